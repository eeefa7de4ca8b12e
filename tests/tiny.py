"""A recipe shrunk to seconds: python main.py --config=tests/tiny.py[:byol|:released|...]"""

import contextlib
import dataclasses
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from configs import base
from mlvicx_jax import methods, optim, parallel
from mlvicx_jax import state as states
from mlvicx_jax.data import pipeline
from mlvicx_jax.data.source import open_dataset
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.run.checkpoints import Checkpoints
from mlvicx_jax.step import make_train_step

# Narrower than in the method's own recipe; one that is not here is as small as its recipe can be.
METHOD = {
    'mlvicx': dict(widths=(16, 16, 16)),
    'vicreg': dict(widths=(16, 16, 16)),
    'simclr': dict(widths=(16, 16, 8)),
    'moco_v2': dict(widths=(16, 8), queue=64, momentum=0.9),
    'byol': dict(projector=(16, 8), predictor=(16, 8), momentum=0.9),
    'simsiam': dict(projector=(16, 16, 16), predictor=(8, 16)),
    'barlow_twins': dict(widths=(16, 16, 16)),
    'inter_moco': dict(widths=(8,), queue=64, momentum=0.9),
    'pcrl_v1': dict(widths=(8, 8), queue=80, momentum=0.9),
    'caid': dict(widths=(16, 8), queue=64, momentum=0.9),
    'pcrl_v2': dict(local_size=66),
    'supervised': dict(labels=9),
}


def get_config(argument=''):
    """The recipe that `argument` names, a method's or one of MLVICX's, on a few phantoms, narrow."""
    name = argument if argument in base.methods() else 'mlvicx'
    recipe = importlib.import_module(f'configs.{name}')
    config = recipe.get_config(argument) if name == 'mlvicx' else recipe.get_config()
    if name in METHOD:
        config.method.update(METHOD[name])
    else:
        getattr(recipe, 'small', base.small)(config)
    config.seed = 2  # not 0, the seed of the evaluation's own batches
    config.batch_size = 16
    base.duration(config, 'total', steps=12)
    config.data.name = 'phantom_cxr'
    config.data.options.patients = 25
    config.data.stored_size = 96
    config.data.image_size = 80  # the last map is 3 x 3; XLA is slow on 2 x 2
    config.data.num_threads = 1
    config.model.width = 4
    config.optim.update(learning_rate=1e-3, scale_with_batch=False)
    config.log_every_steps = 1
    base.duration(config, 'eval_every')
    config.eval.update(split='test', batch_size=8)
    config.checkpoint.update(every_steps=6, keep_last=3)
    return config


def leaves(state):
    """{path: NumPy array} of a state."""
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def assert_close(actual, expected, tolerance):
    """Every leaf, dtype included, within `tolerance`; 0 asks for the same bits.

    Of a leaf's greatest entry for matrices, which may be small all over; of 1 at least for vectors,
    among which are biases that the loss is blind to: their gradient is nothing but rounding.
    """
    actual, expected = leaves(actual), leaves(expected)
    assert actual.keys() == expected.keys() and len(actual) > 100
    for path, a in actual.items():
        b = expected[path]
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        if tolerance:
            error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-6 if b.ndim > 1 else 1)
            assert error <= tolerance, f'{path}: {error:.1e}'
        else:
            assert a.tobytes() == b.tobytes(), path


def train_in_double(argument, data_dir, devices, steps=6, again=None):
    """States before and after `steps` steps, metrics and outputs, on `devices` in float64.

    In float32 a rounding error of 1e-7 can flip a ReLU or a maximum of a network this small, and
    LARS scales the smallest gradient up to full size: two right programs then differ by per cents. In
    float64 they agree, and what differs is wrong. Call under `jax.enable_x64`.

    With a folder `again`, the state half-way is saved there, and what the run would be that goes on
    from it is returned fifth.
    """
    config = get_config(argument)
    method = methods.create(config)
    method = dataclasses.replace(method, encoder=method.encoder.clone(dtype=jnp.float64))
    options = {'size': config.data.stored_size, **config.data.options}
    split = open_dataset(config.data.name, data_dir, None, options).splits['train']
    optimizer = optim.create(
        config.optim, config.batch_size, len(split) // config.batch_size, config.total_steps
    )
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    double = jax.jit(
        lambda state: jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state),
        out_shardings=parallel.replicated(mesh),
    )
    state = double(states.create(method, optimizer, config.seed, parallel.replicated(mesh)))
    first = jax.tree.map(np.asarray, state)
    like = jax.tree.map(jnp.copy, state)  # the step gives its state's buffers away
    train_step = make_train_step(method, optimizer, mesh, config.seed, config.total_steps)

    def run(state, until):
        start = int(state.step)
        stream = pipeline.train_batches(
            split, config.batch_size, config.seed, start, jax.process_index(), jax.process_count()
        )
        for batch in itertools.islice(stream, until - start):
            arrays = parallel.to_global({name: batch[name] for name in ('image', 'labels')}, mesh)
            state, metrics, out = train_step(state, arrays)
        stream.close()
        return state, metrics, out

    def fetch(state, metrics, out):
        if jax.process_count() > 1:  # outputs stay divided, here over processes
            out = multihost_utils.process_allgather(out, tiled=True)
        return jax.tree.map(np.asarray, (state, metrics, out))

    if again is None:
        return first, *fetch(*run(state, steps))
    state, _, _ = run(state, steps // 2)
    with contextlib.closing(Checkpoints(again, 1, 1, 0, split.hash)) as checkpoints:
        if checkpoints.newest() is None:  # else one of another number of devices, which shall be gone on from
            checkpoints.save(state)
            checkpoints.wait()
        last, metrics, out = fetch(*run(state, steps))
        resumed, _, _ = run(checkpoints.restore(like), steps)
    return first, last, metrics, out, jax.tree.map(np.asarray, resumed)


def one_pass(method, views, key):
    """A pass of a momentum-contrast method from its initial state, on one device.

    What went in (variables, state), what came out (out, stats, new: the state) and the gradient into
    the query's and into the key network's parameters.
    """
    variables, state = jax.jit(method.init)(jax.random.key(0))
    mesh = jax.make_mesh((1,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    forward = jax.shard_map(
        method.forward, mesh=mesh, in_specs=(P(), P(), P(AXIS), P()), out_specs=(P(AXIS), P(), P())
    )

    @jax.jit
    def run(variables, state):
        def loss(params, key_params):
            key_network = state['key'] | {'params': key_params}
            out, stats, new = forward(variables | {'params': params}, state | {'key': key_network}, views, key)
            return method.loss(out, state)[0], (out, stats, new)

        (_, aux), gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            variables['params'], state['key']['params']
        )
        return *aux, gradient

    out, stats, new, gradient = jax.tree.map(np.asarray, run(variables, state))
    return dict(
        variables=variables,
        state=state,
        views=jax.tree.map(np.asarray, views),
        out=out,
        stats=stats,
        new=new,
        gradient=gradient,
    )
