"""The training step: the only file that knows shard_map and collectives.

The cut runs at the network's output. Views and forward run per device on its rows; their outputs
are gathered; the method's loss is then plain mathematics on the whole batch. The gradient is taken
outside the mapped function, of a loss that is already the same on every device, so it needs no
scaling by hand.
"""

import functools
from typing import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.state import TrainState


def example_keys(key: jax.Array, rows: int) -> jax.Array:
    """One key for each of this device's rows, from the row's place in the global batch.

    The same picture gets the same augmentation on one device and on eight.
    """
    first = lax.axis_index(AXIS) * rows
    return jax.vmap(functools.partial(jax.random.fold_in, key))(first + jnp.arange(rows))


def make_train_step(method, optimizer: optax.GradientTransformation, mesh, seed: int,
                    total_steps: int) -> Callable:
    """Compiles (state, batch) -> (state, metrics, out); the state's buffers are given away.

    `batch` holds arrays [B, ...] split over the mesh; `metrics` scalars; `out` what the method's
    forward returned, for the whole batch, on every device.
    """

    def shard_loss(params, batch_stats, method_state, key, batch):
        keys = example_keys(key, len(batch['image']))
        out, batch_stats, method_state = method.forward(
            {'params': params, 'batch_stats': batch_stats}, method_state,
            method.views(keys, batch))
        out = lax.all_gather(out, AXIS, tiled=True)
        loss, terms = method.loss(out, method_state)
        # Every device holds the same numbers by now; pmean is how shard_map comes to know it.
        loss, terms, out = lax.pmean((loss, terms, out), AXIS)
        return loss, (terms, out, batch_stats, method_state)

    loss_fn = jax.shard_map(shard_loss, mesh=mesh, in_specs=(P(), P(), P(), P(), P(AXIS)),
                            out_specs=P())

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, (terms, out, batch_stats, method_state)), gradient = jax.value_and_grad(
            loss_fn, has_aux=True)(state.params, state.batch_stats, state.method_state, key, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        progress = (state.step + 1) / total_steps
        state = state.replace(
            step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state,
            method_state=method.update(method_state, params, out, progress))
        metrics = {'loss': loss, 'gradient_norm': optax.tree.norm(gradient), **terms}
        return state, metrics, out

    return train_step
