"""Optimisers and the learning-rate schedule."""

import jax
import optax

from mlvicx_jax.errors import UserError


def matrices_only(params):
    """Mask of the leaves with more than one dimension.

    Biases and BatchNorm's scales get neither weight decay nor adaptation, as in VICReg's LARS.
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def lars(learning_rate, weight_decay: float, momentum: float = 0.9,
         trust_coefficient: float = 0.001) -> optax.GradientTransformation:
    """LARS in the order of VICReg's code: decay, adapt, accumulate, and the learning rate last.

    `optax.lars` multiplies by the learning rate before the momentum, so that past gradients keep
    their old rate: another optimiser wherever the rate changes.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, matrices_only),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient),
                     matrices_only),
        optax.trace(momentum),
        optax.scale_by_learning_rate(learning_rate))


def schedule(config, batch_size: int, steps_per_epoch: int, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine to `final_factor` of the peak at the last step.

    The peak is `learning_rate`, times batch_size / 256 if `scale_with_batch`. The warm-up is
    `warmup_epochs` long, but never more than a tenth of the run.
    """
    peak = config.learning_rate * (batch_size / 256 if config.scale_with_batch else 1)
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps // 10)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else peak, peak, warmup, total_steps, peak * config.final_factor)


def create(config, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser that `config.optim` names: 'lars', 'adamw' or 'sgd' with momentum 0.9."""
    if config.name == 'lars':
        return lars(learning_rate, config.weight_decay)
    if config.name == 'adamw':
        return optax.adamw(learning_rate, weight_decay=config.weight_decay, mask=matrices_only)
    if config.name == 'sgd':
        return optax.chain(optax.add_decayed_weights(config.weight_decay, matrices_only),
                           optax.sgd(learning_rate, momentum=0.9))
    raise UserError(f'config.optim.name is {config.name!r}; expected lars, adamw or sgd')
