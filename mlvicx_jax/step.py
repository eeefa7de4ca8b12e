"""The training step: the only file that knows shard_map.

The cut runs at the network's output. Views and forward run per device on its rows; their outputs
are gathered; the method's loss is then plain mathematics on the whole batch. The gradient is taken
outside the mapped function, of a loss that is already the same on every device, so it needs no
scaling by hand.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from mlvicx_jax import rows
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.state import TrainState


def make_train_step(
    method, optimizer: optax.GradientTransformation, mesh, seed: int, total_steps: int, accumulation: int = 1
) -> Callable:
    """(state, batch) -> (state, metrics, out), compiled; the state's buffers are given away.

    `batch` holds arrays [B, ...] split over the mesh; `metrics` scalars; `out` what the method's
    forward returned, for the whole batch, on every device.

    With `accumulation` k the network sees the batch in k parts, one after the other, and computes
    each once more for its gradient: activations take 1 / k of the memory. Loss and gradient stay
    those of the whole batch, as the outputs of all parts are put together before the loss (the
    gradient cache of Gao et al., arXiv:2101.06983, here by `jax.checkpoint`). What changes:
    BatchNorm has the statistics of a part, and its running ones move k times a step.
    """

    def shard_loss(params, batch_stats, method_state, key, batch):
        # Varying from here on: the gradient is summed over the devices once, not at every use.
        params = lax.pcast(params, AXIS, to='varying')
        # Row i of the global batch has key i, on one device and on eight: the same views. The numbers
        # behind the last row make the key that all of a part shares.
        count = len(batch['image'])
        fold = jax.vmap(functools.partial(jax.random.fold_in, key))
        keys = fold(rows.own(count))
        shared = fold(count * lax.axis_size(AXIS) + jnp.arange(accumulation))

        def forward(carried, part):
            batch_stats, method_state = carried
            keys, batch, shared = part
            out, *carried = method.forward(
                {'params': params, 'batch_stats': batch_stats}, method_state, method.views(keys, batch), shared
            )
            return tuple(carried), out

        carried, whole = (batch_stats, method_state), (keys, batch)
        if accumulation == 1:
            carried, out = forward(carried, (*whole, shared[0]))
        else:
            parts = jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), whole)
            carried, out = lax.scan(jax.checkpoint(forward), carried, (*parts, shared))
            out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
        batch_stats, method_state = carried
        out = lax.all_gather(out, AXIS, tiled=True, to='invarying')  # the same on every device
        loss, terms = method.loss(out, method_state)
        return loss, (terms, out, batch_stats, method_state)

    loss_fn = jax.shard_map(shard_loss, mesh=mesh, in_specs=(P(), P(), P(), P(), P(AXIS)), out_specs=P())

    @functools.partial(jax.jit, donate_argnums=1)
    def train_step(key, state: TrainState, batch):
        key = jax.random.fold_in(key, state.step)
        (loss, (terms, out, batch_stats, method_state)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, state.method_state, key, batch
        )
        norm = optax.tree.norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        progress = (state.step + 1) / total_steps
        after = state.replace(
            skipped=jnp.zeros_like(state.skipped),
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            method_state=method.update(method_state, params, out, progress),
        )
        # A step that is not finite leaves nothing behind but its count.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        before = state.replace(skipped=state.skipped + 1)
        state = jax.tree.map(functools.partial(jnp.where, finite), after, before)
        state = state.replace(step=state.step + 1)
        metrics = {'loss': loss, 'gradient_norm': norm, 'skipped': state.skipped, **terms}
        return state, metrics, out

    # An argument, not a constant of the program: all seeds share one compilation.
    return functools.partial(train_step, jax.random.key(seed))
