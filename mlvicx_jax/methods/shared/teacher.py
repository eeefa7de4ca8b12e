"""Exponential moving averages of a network: MoCo's key encoder, BYOL's target, PCRL's teacher."""

import jax
import jax.numpy as jnp


def average(old, new, momentum):
    """momentum * old + (1 - momentum) * new, leaf by leaf."""
    return jax.tree.map(lambda a, b: momentum * a + (1 - momentum) * b, old, new)


def follow(teacher, params, momentum):
    """The teacher {'params', 'batch_stats'} a step nearer to the trained `params`, in the parts it has."""
    trained = {part: params[part] for part in teacher['params']}
    return teacher | {'params': average(teacher['params'], trained, momentum)}


def cosine_momentum(base: float, progress):
    """From `base` at progress 0 to 1 at 1: 1 - (1 - base) (1 + cos(pi progress)) / 2 (BYOL)."""
    return 1 - (1 - base) * (1 + jnp.cos(jnp.pi * progress)) / 2
