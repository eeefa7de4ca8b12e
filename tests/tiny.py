"""configs/mlvicx.py shrunk to seconds: python main.py --config=tests/tiny.py[:released]"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np

from configs import mlvicx
from mlvicx_jax import methods, optim, parallel, state as states
from mlvicx_jax.data import pipeline
from mlvicx_jax.data.source import open_dataset
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.step import make_train_step


def get_config(argument=''):
    """The recipe that `argument` names, on a few phantoms, with a narrow encoder and expander."""
    config = mlvicx.get_config(argument)
    config.seed = 2  # not 0, the seed of the evaluation's own batches
    config.batch_size = 16
    config.total_steps = 12
    config.data.name = 'phantom_cxr'
    config.data.options.patients = 25
    config.data.stored_size = 96
    config.data.image_size = 80  # the last map is 3 x 3; XLA is slow on 2 x 2
    config.data.num_threads = 1
    config.model.width = 4
    config.method.widths = (16, 16, 16)
    config.optim.update(learning_rate=1e-3, scale_with_batch=False)
    config.log_every_steps = 1
    config.eval_every_steps = 0
    config.eval.update(split='test', batch_size=8)
    config.checkpoint.update(every_steps=6, keep_last=3)
    return config


def leaves(state):
    """{path: NumPy array} of a state."""
    return {jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


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


def train_in_double(argument, data_dir, devices, steps=6):
    """States before and after `steps` steps, metrics and embeddings, on `devices` in float64.

    In float32 a rounding error of 1e-7 can flip a ReLU or a maximum of a network this small, and
    LARS scales the smallest gradient up to full size: two right programs then differ by per cents. In
    float64 they agree, and what differs is wrong. Call under `jax.enable_x64`.
    """
    config = get_config(argument)
    method = methods.create(config)
    method = dataclasses.replace(method, encoder=method.encoder.clone(dtype=jnp.float64))
    options = {'size': config.data.stored_size, **config.data.options}
    split = open_dataset(config.data.name, data_dir, None, options).splits['train']
    rate = optim.schedule(config.optim, config.batch_size, len(split) // config.batch_size,
                          config.total_steps)
    optimizer = optim.create(config.optim, rate)
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    double = jax.jit(
        lambda state: jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state),
        out_shardings=parallel.replicated(mesh))
    state = double(states.create(method, optimizer, config.seed, parallel.replicated(mesh)))
    first = jax.tree.map(np.asarray, state)
    step = make_train_step(method, optimizer, mesh, config.seed, config.total_steps)
    stream = pipeline.train_batches(split, config.batch_size, config.seed, 0,
                                    jax.process_index(), jax.process_count())
    for batch in itertools.islice(stream, steps):
        arrays = parallel.to_global({name: batch[name] for name in ('image', 'labels')}, mesh)
        state, metrics, out = step(state, arrays)
    stream.close()
    return first, *(jax.tree.map(np.asarray, tree) for tree in (state, metrics, out))
