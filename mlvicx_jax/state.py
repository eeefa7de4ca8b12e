"""Everything that a training run carries from one step to the next."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


class TrainState(struct.PyTreeNode):
    """A pytree: what is saved, restored and compared. Random keys derive from the seed and `step`.

    Attributes:
        step: number of batches seen, int32.
        skipped: how many of the newest of them in a row gave a loss or gradient that is not finite.
        params, batch_stats: of the method's network; `params['encoder']` is what is kept.
        opt_state: of the optax optimiser.
        method_state: the method's own (EMA tree, queue, or {}).
    """

    step: jax.Array
    skipped: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    method_state: Any

    @property
    def encoder(self) -> dict:
        """The encoder's own variables, {'params', 'batch_stats'}."""
        return {'params': self.params['encoder'], 'batch_stats': self.batch_stats['encoder']}


def create(method, optimizer, seed: int, sharding) -> TrainState:
    """The state at step 0, a function of the seed alone."""

    def init(key):
        variables, method_state = method.init(key)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(
            zero,
            zero,
            variables['params'],
            variables['batch_stats'],
            optimizer.init(variables['params']),
            method_state,
        )

    return jax.jit(init, out_shardings=sharding)(jax.random.key(seed))
