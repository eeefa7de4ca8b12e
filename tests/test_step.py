"""The training step computes the same on one device and on four, augmentation included."""

import contextlib
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import several
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import tiny
from mlvicx_jax import methods, optim, parallel, rows
from mlvicx_jax import state as states
from mlvicx_jax.data import pipeline
from mlvicx_jax.data.source import open_dataset
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.step import make_train_step

# One of two processes with two devices each; the first writes every leaf of the last state.
PROCESS = """
import sys
import jax
import numpy as np
import tiny
from mlvicx_jax import parallel

address, process, data_dir, path = sys.argv[1:]
parallel.start(address, 2, int(process))
_, state, metrics, _ = tiny.train_in_double('', data_dir, jax.devices())
if process == '0':
    np.savez(path, loss=metrics['loss'], **tiny.leaves(state))
"""


def mesh_of(count):
    return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


@pytest.fixture(scope='module')
def four_devices(data_dir):
    """argument -> what six steps on four devices gave, in double precision; computed once."""
    known = {}

    def run(argument):
        if argument not in known:
            with jax.enable_x64(True):
                known[argument] = tiny.train_in_double(argument, data_dir, jax.devices()[:4])
        return known[argument]

    return run


@pytest.mark.parametrize('argument', ['', 'released'], ids=['concat', 'sum, last_norm'])
def test_one_device_is_four(argument, four_devices, data_dir):
    with jax.enable_x64(True):
        _, one, metrics_1, out_1 = tiny.train_in_double(argument, data_dir, jax.devices()[:1])
    first, four, metrics_4, out_4 = four_devices(argument)
    assert one.step == four.step == 6
    tiny.assert_close(four, one, 1e-4)
    for name, value in metrics_1.items():
        np.testing.assert_allclose(metrics_4[name], value, rtol=1e-4, err_msg=name)
    for name, z in out_1.items():
        assert z.shape == (16, 16)
        np.testing.assert_allclose(out_4[name], z, atol=1e-4 * np.abs(z).max(), err_msg=name)
    # The comparison sees training, not a state that stands still.
    before, after = tiny.leaves(first), tiny.leaves(four)
    still = [path for path in after if np.array_equal(before[path], after[path])]
    assert not [path for path in still if 'bias' not in path and path != '.skipped'], still


@pytest.mark.slow
def test_two_processes_of_two_devices_are_one_of_four(four_devices, data_dir, tmp_path):
    address, path = several.free_address(), tmp_path / 'state.npz'
    codes, said = several.run(
        PROCESS, [(address, i, data_dir, path) for i in range(2)], devices=2, JAX_ENABLE_X64='1'
    )
    assert codes == [0, 0], said
    _, four, metrics, _ = four_devices('')
    with np.load(path) as found:
        np.testing.assert_allclose(found['loss'], metrics['loss'], rtol=1e-4)
        expected = tiny.leaves(four)
        tiny.assert_close({path: found[path] for path in expected}, expected, 1e-4)


def test_batch_statistics_of_one_device_alone_are_refused():
    config = tiny.get_config()
    method = methods.create(config)
    method = dataclasses.replace(method, encoder=method.encoder.clone(axis_name=None))
    optimizer = optim.create(config.optim, 16, 2, 12)
    step = make_train_step(method, optimizer, mesh_of(4), config.seed, config.total_steps)
    state = jax.eval_shape(lambda: states.create(method, optimizer, 0, parallel.replicated(mesh_of(4))))
    batch = {'image': jax.ShapeDtypeStruct((16, 96, 96, 1), np.uint8)}
    with pytest.raises(ValueError, match='bn1.*mean.*varies over the devices'):
        step.func.lower(*step.args, state, batch)


class Poisoned:
    """One number, whose loss is not finite where the batch says so."""

    init = staticmethod(lambda key: ({'params': {'w': jnp.ones(3)}, 'batch_stats': {'n': jnp.zeros(1)}}, {}))
    views = staticmethod(lambda keys, batch: batch)
    forward = staticmethod(
        lambda variables, state, views, key: (
            {'z': views['image'].reshape(len(views['image']), -1) * variables['params']['w']},
            {'n': variables['batch_stats']['n'] + 1},
            state,
        )
    )
    loss = staticmethod(lambda out, state: (out['z'].sum(), {}))
    update = staticmethod(lambda state, params, out, progress: state)


def test_a_step_that_is_not_finite_leaves_nothing_but_its_count():
    mesh, config = mesh_of(2), tiny.get_config()
    optimizer = optax.sgd(0.1)
    state = states.create(Poisoned, optimizer, 0, parallel.replicated(mesh))
    step = make_train_step(Poisoned, optimizer, mesh, config.seed, 10)
    found = []
    for poison in (0, np.nan, np.inf, 0):
        image = np.ones((4, 3), np.float32)
        image[3, 1] += poison  # on the second device
        state, metrics, _ = step(state, parallel.to_global({'image': image}, mesh))
        found.append(
            (
                int(state.step),
                int(metrics['skipped']),
                float(state.batch_stats['n'][0]),
                np.asarray(state.params['w']).tolist(),
            )
        )
    steps, skipped, passes, w = zip(*found)
    assert steps == (1, 2, 3, 4) and skipped == (0, 1, 2, 0) and passes == (1, 1, 1, 2)
    assert w[0] == w[1] == w[2] != w[3] and np.isfinite(w[3]).all()


class Covariance:
    """Two views, a linear map, and a loss of the whole batch: no BatchNorm."""

    @staticmethod
    def init(key):
        w = jax.random.normal(key, (12, 5), jnp.float32)
        return {'params': {'w': w}, 'batch_stats': {'n': jnp.zeros(1)}}, {'queue': jnp.zeros((16, 5))}

    @staticmethod
    def views(keys, batch):
        rows = batch['image'].reshape(len(batch['image']), -1)
        return rows + jax.vmap(lambda key: jax.random.normal(key, rows.shape[1:]))(keys)

    @staticmethod
    def forward(variables, state, views, key):
        z = jnp.tanh(views @ variables['params']['w'])
        return {'z_1': z}, {'n': variables['batch_stats']['n'] + 1}, state

    @staticmethod
    def loss(out, state):
        z = out['z_1'] - out['z_1'].mean(0)
        covariance = z.T @ z / (len(z) - 1)
        return jnp.square(covariance - jnp.eye(5)).sum(), {}

    @staticmethod
    def update(state, params, out, progress):
        return {'queue': out['z_1']}


def test_each_step_draws_anew_by_its_number_and_the_seed():
    mesh, optimizer = mesh_of(1), optax.sgd(0.0)
    batch = parallel.to_global({'image': np.zeros((16, 12), np.float32)}, mesh)

    def drawn(seed, number):
        state = states.create(Covariance, optimizer, 0, parallel.replicated(mesh))
        state = state.replace(step=jax.device_put(jnp.int32(number), parallel.replicated(mesh)))
        _, _, out = make_train_step(Covariance, optimizer, mesh, seed, 10)(state, batch)
        return np.asarray(out['z_1'])

    found = [drawn(0, 0), drawn(0, 1), drawn(1, 0)]
    for one, other in itertools.combinations(found, 2):
        assert np.abs(one - other).max(1).min() > 0.01
    np.testing.assert_array_equal(drawn(0, 1), found[1])


@pytest.mark.parametrize('devices,parts', [(1, 2), (1, 4), (2, 4), (4, 2)])
def test_accumulation_has_the_loss_and_gradient_of_the_whole_batch(devices, parts):
    image = np.random.default_rng(0).normal(size=(16, 12)).astype(np.float32)

    def run(count, accumulation):
        mesh, optimizer = mesh_of(count), optax.sgd(0.1)
        state = states.create(Covariance, optimizer, 0, parallel.replicated(mesh))
        step = make_train_step(Covariance, optimizer, mesh, 1, 10, accumulation)
        for _ in range(3):
            state, metrics, out = step(state, parallel.to_global({'image': image}, mesh))
        return jax.device_get((state, metrics, out))

    (whole, metrics, out), (parted, metrics_p, out_p) = run(1, 1), run(devices, parts)
    np.testing.assert_allclose(out_p['z_1'], out['z_1'], atol=1e-5)  # rows in their order
    np.testing.assert_allclose(parted.params['w'], whole.params['w'], atol=1e-5)
    np.testing.assert_allclose(metrics_p['loss'], metrics['loss'], rtol=1e-4)
    np.testing.assert_allclose(parted.method_state['queue'], whole.method_state['queue'], atol=1e-5)
    assert (whole.batch_stats['n'][0], parted.batch_stats['n'][0]) == (3, 3 * parts)


def test_accumulation_runs_on_a_method_that_shuffles_and_takes_less_memory():
    config = tiny.get_config('moco_v2')
    method, mesh = methods.create(config), mesh_of(1)
    optimizer = optim.create(config.optim, 64, 2, 12)
    state = jax.eval_shape(lambda: states.create(method, optimizer, 0, parallel.replicated(mesh)))
    batch = {'image': jax.ShapeDtypeStruct((64, 96, 96, 1), np.uint8)}

    def memory(accumulation):
        step = make_train_step(method, optimizer, mesh, config.seed, 12, accumulation)
        return step.func.lower(*step.args, state, batch).compile().memory_analysis().temp_size_in_bytes

    assert memory(4) < 0.5 * memory(1)


def test_bfloat16_has_the_loss_of_float32_over_50_steps(data_dir):
    """On average: two trajectories part by chance, and come back, where a network is this small."""

    def losses(dtype):
        config, mesh = tiny.get_config(), mesh_of(1)
        config.dtype = dtype
        method = methods.create(config)
        optimizer = optim.create(config.optim, config.batch_size, 2, 50)
        state = states.create(method, optimizer, 0, parallel.replicated(mesh))
        step = make_train_step(method, optimizer, mesh, 0, 50)
        options = {'size': config.data.stored_size, **config.data.options}
        split = open_dataset(config.data.name, data_dir, None, options).splits['train']
        found = []
        with contextlib.closing(pipeline.train_batches(split, config.batch_size, 0)) as stream:
            for batch in itertools.islice(stream, 50):
                arrays = parallel.to_global({name: batch[name] for name in ('image', 'labels')}, mesh)
                state, metrics, _ = step(state, arrays)
                found.append(float(metrics['loss']))
        return np.mean(found)

    assert abs(losses('bfloat16') / losses('float32') - 1) < 0.01


def test_rows_follow_their_place_in_the_global_batch():
    order = jnp.array([3, 0, 7, 1, 6, 2, 5, 4])

    def run(devices):
        here = lambda x: (rows.own(len(x)), rows.permute(x, order))
        mapped = jax.shard_map(here, mesh=mesh_of(devices), in_specs=P(AXIS), out_specs=P(AXIS))
        return jax.jit(mapped)(np.arange(80.0).reshape(8, 10))

    for devices in (1, 2, 4):
        own, permuted = run(devices)
        np.testing.assert_array_equal(own, np.arange(8))
        np.testing.assert_array_equal(permuted, np.arange(80.0).reshape(8, 10)[order])
