"""The training step: the only file that knows shard_map.

The cut runs at the network's output. Views and forward run per device on its rows (`shard_map`); their
outputs leave it as arrays of the global batch, still divided over the devices. The method's loss is
plain mathematics on these arrays, and XLA's partitioner divides its work: no device computes the loss
of all rows, and no method can compute one of its own rows by accident. The gradient is that of one
global loss, so it needs no scaling by hand.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlvicx_jax import rows
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.state import TrainState


def make_train_step(
    method, optimizer: optax.GradientTransformation, mesh, seed: int, total_steps: int, accumulation: int = 1
) -> Callable:
    """(state, batch) -> (state, metrics, out), compiled; the state's buffers are given away.

    `batch` holds arrays [B, ...] split over the mesh; `metrics` scalars, the same on every device;
    `out` what the method's forward returned, arrays [B, ...] split as the batch is.

    With `accumulation` k the network sees the batch in k parts, one after the other, and computes
    each once more for its gradient: activations take 1 / k of the memory. Loss and gradient stay
    those of the whole batch, as the outputs of all parts are put together before the loss (the
    gradient cache of Gao et al., arXiv:2101.06983, here by `jax.checkpoint`). What changes:
    BatchNorm has the statistics of a part, and its running ones move k times a step.
    """
    forward_all = _over_devices(method, mesh, accumulation)

    def loss_fn(params, batch_stats, method_state, key, batch):
        out, (batch_stats, method_state) = forward_all(params, batch_stats, method_state, key, batch)
        loss, terms = method.loss(out, method_state)
        return loss, (terms, out, batch_stats, method_state)

    everywhere, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))

    # Without `out_shardings` the partitioner may leave a queue or a metric divided over the devices.
    @functools.partial(jax.jit, donate_argnums=1, out_shardings=(everywhere, everywhere, divided))
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


def _over_devices(method, mesh, accumulation: int) -> Callable:
    """(params, batch_stats, method_state, key, batch) -> (out, (batch_stats, method_state)).

    Views and forward of each device's rows, in `accumulation` parts.
    """

    def shard_forward(params, batch_stats, method_state, key, batch):
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
        refuse_varying(carried)
        return out, tuple(carried)

    everywhere, divided = P(), P(AXIS)
    return jax.shard_map(
        shard_forward,
        mesh=mesh,
        in_specs=(everywhere, everywhere, everywhere, everywhere, divided),
        out_specs=(divided, everywhere),
    )


def refuse_varying(tree) -> None:
    """Raises a ValueError for an array of the state that may differ from device to device.

    The statistics of a BatchNorm that was built without its mesh axis are the usual case. `shard_map`
    refuses them too, but does not say which they are.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        try:
            lax.pcast(leaf, AXIS, to='varying')  # for what is the same on each device only
        except ValueError as error:
            raise ValueError(
                f'{jax.tree_util.keystr(path)} varies over the devices, expected the same on each; '
                f'build its module with axis_name={AXIS!r}'
            ) from error
