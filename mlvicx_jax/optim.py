"""Optimisers and the learning-rate schedule."""

import jax
import optax

from mlvicx_jax import durations
from mlvicx_jax.errors import UserError

NAMES = 'lars', 'lars_simclr', 'sgd', 'adamw'
TRUST = 0.001  # of LARS, in SimCLR, BYOL, Barlow Twins and VICReg alike


def matrices_only(params):
    """Mask of the leaves with more than one dimension.

    Biases and BatchNorm's scales get neither weight decay nor adaptation, as in VICReg's LARS.
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def warmup_steps(config, clock: durations.Clock) -> tuple[int, int]:
    """Length of the warm-up, and the length that the config asks for: a tenth of the run is the most."""
    asked = durations.steps(config, 'optim', 'warmup', clock) or 0
    return min(asked, clock.total_steps // 10), asked


def schedule(
    config, batch_size: int, steps_per_epoch: int, total_steps: int, final_factor: float
) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine to `final_factor` of the peak at the last step.

    The peak is `learning_rate`, times batch_size / 256 if `scale_with_batch`. The warm-up is
    that of `warmup_steps`.
    """
    peak = config.learning_rate * (batch_size / 256 if config.scale_with_batch else 1)
    warmup, _ = warmup_steps(config, durations.Clock(batch_size, steps_per_epoch, total_steps))
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else peak, peak, warmup, total_steps, peak * final_factor
    )


def create(config, batch_size: int, steps_per_epoch: int, total_steps: int) -> optax.GradientTransformation:
    """The optimiser that `config.optim` names, on the schedule of `schedule`; momentum is 0.9.

    lars: in the order of VICReg's code (and BYOL's, Barlow Twins'): decay, adapt, accumulate, and
        the learning rate last.
    lars_simclr: SimCLR's, and `optax.lars`'s: the learning rate before the momentum, so that past
        gradients keep their old rate. Another optimiser wherever the rate changes.
    sgd: PyTorch's; it decays every parameter, biases and BatchNorm's scales too.
    adamw: decays matrices only.

    Biases and BatchNorm's vectors learn at `vector_factor` times the rate, in parts whose rate is
    `constant` too; parts that are `frozen` stay as they are.

    Raises:
        UserError: at `init`, of parts that the network does not have.
    """

    def rate(final_factor, factor=1.0):
        schedule_ = schedule(config, batch_size, steps_per_epoch, total_steps, final_factor)
        return optax.scale_by_learning_rate(lambda step: factor * schedule_(step))

    peak = rate(1.0)

    def constant(updates, state, params=None):
        updates, state = peak.update(updates, state, params)
        return jax.tree.map(lambda u: u if u.ndim > 1 else config.vector_factor * u, updates), state

    def parts(params):
        check_parts(config, params)
        return {
            name: jax.tree.map(
                lambda leaf, name=name: (
                    'frozen'
                    if name in config.frozen
                    else 'constant'
                    if name in config.constant
                    else 'matrix'
                    if leaf.ndim > 1
                    else 'vector'
                ),
                part,
            )
            for name, part in params.items()
        }

    learning_rate = optax.partition(
        {
            'matrix': rate(config.final_factor),
            'constant': optax.GradientTransformation(peak.init, constant),
            'vector': rate(config.final_factor, config.vector_factor),
            'frozen': optax.set_to_zero(),
        },
        parts,
    )
    decay = optax.add_decayed_weights(config.weight_decay, matrices_only)
    adapt = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=TRUST), matrices_only)
    momentum = optax.trace(0.9)
    chains = {
        'lars': (decay, adapt, momentum, learning_rate),
        'lars_simclr': (decay, adapt, learning_rate, momentum),
        'sgd': (optax.add_decayed_weights(config.weight_decay), momentum, learning_rate),
        'adamw': (optax.scale_by_adam(), decay, learning_rate),
    }
    return optax.chain(*chains[config.name])


def check_parts(config, params) -> None:
    """Raises a UserError where `constant` or `frozen` names no part of the network with these params."""
    for field in ('constant', 'frozen'):
        if unknown := set(config[field]) - set(params):
            raise UserError(
                f'config.optim.{field} names {", ".join(map(repr, sorted(unknown)))}; the parts of '
                f'this network are {", ".join(sorted(params))}'
            )
