"""The training step computes the same on one device and on four, augmentation included."""

import dataclasses
import itertools

import jax
from jax.sharding import AxisType, PartitionSpec as P
import numpy as np
import pytest

import tiny
from mlvicx_jax import methods, optim, parallel, state as states
from mlvicx_jax.data import pipeline
from mlvicx_jax.data.source import open_dataset
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.step import example_keys, make_train_step

STEPS = 6


def mesh_of(count):
    return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,),
                         devices=jax.devices()[:count])


@pytest.fixture(scope='module')
def split(data_dir):
    config = tiny.get_config()
    options = {'size': config.data.stored_size, **config.data.options}
    return open_dataset(config.data.name, data_dir, None, options).splits['train']


def parts(argument, split):
    config = tiny.get_config(argument)
    method = methods.create(config)
    rate = optim.schedule(config.optim, config.batch_size, len(split) // config.batch_size,
                          config.total_steps)
    return config, method, optim.create(config.optim, rate)


def train(argument, split, devices):
    """The states before and after `STEPS` steps, and the last step's metrics and embeddings."""
    config, method, optimizer = parts(argument, split)
    mesh = mesh_of(devices)
    step = make_train_step(method, optimizer, mesh, config.seed, config.total_steps)
    # One compiled initialisation serves every number of devices.
    state = states.create(method, optimizer, config.seed, parallel.replicated(mesh_of(4)))
    first = jax.device_get(state)
    state = jax.device_put(first, parallel.replicated(mesh))
    stream = pipeline.train_batches(split, config.batch_size, config.seed)
    for batch in itertools.islice(stream, STEPS):
        arrays = parallel.to_global({name: batch[name] for name in ('image', 'labels')}, mesh)
        state, metrics, out = step(state, arrays)
    stream.close()
    return first, jax.device_get(state), jax.device_get(metrics), jax.device_get(out)


@pytest.mark.parametrize('argument', ['', 'released'], ids=['concat', 'sum, last_norm'])
def test_one_device_is_four(argument, split):
    _, one, metrics_1, out_1 = train(argument, split, 1)
    first, four, metrics_4, out_4 = train(argument, split, 4)
    assert one.step == four.step == STEPS
    tiny.assert_close(four, one, 1e-4)
    for name, value in metrics_1.items():
        np.testing.assert_allclose(metrics_4[name], value, rtol=1e-4, err_msg=name)
    for name, z in out_1.items():
        assert z.shape == (16, 16)
        np.testing.assert_allclose(out_4[name], z, atol=1e-4 * np.abs(z).max(), err_msg=name)
    # The comparison sees training, not a state that stands still.
    before, after = tiny.leaves(first), tiny.leaves(four)
    still = [path for path in after if np.array_equal(before[path], after[path])]
    assert not [path for path in still if 'bias' not in path], still


def test_batch_statistics_of_one_device_alone_are_refused(split):
    config, method, optimizer = parts('', split)
    method = dataclasses.replace(method, encoder=method.encoder.clone(axis_name=None))
    step = make_train_step(method, optimizer, mesh_of(4), config.seed, config.total_steps)
    state = jax.eval_shape(
        lambda: states.create(method, optimizer, 0, parallel.replicated(mesh_of(4))))
    batch = {'image': jax.ShapeDtypeStruct((16, 96, 96, 1), np.uint8)}
    with pytest.raises(ValueError, match='vary|varying|replicat'):
        step.lower(state, batch)


def test_keys_follow_the_place_in_the_global_batch():
    def keys(devices):
        draw = lambda rows: jax.random.key_data(example_keys(jax.random.key(3), len(rows)))
        mapped = jax.shard_map(draw, mesh=mesh_of(devices), in_specs=P(AXIS), out_specs=P(AXIS))
        return np.asarray(jax.jit(mapped)(np.zeros(8)))

    assert len(np.unique(keys(4), axis=0)) == 8
    np.testing.assert_array_equal(keys(4), keys(1))
