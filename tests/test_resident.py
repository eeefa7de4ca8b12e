"""Pictures in memory change no batch, no number of a training, and are decoded once."""

import dataclasses
import functools
import itertools
import json
import pickle
import threading
import types

import jax
import numpy as np
import pytest
import several
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import tiny
from mlvicx_jax import config as configs
from mlvicx_jax import parallel, train
from mlvicx_jax.data import pipeline, resident
from mlvicx_jax.data.source import open_dataset
from mlvicx_jax.errors import UserError
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.run import folder as workdirs
from mlvicx_jax.run.metrics import read_metrics

STEPS, SIZE = 7, 16  # nearly three epochs of 40 images

# One of two processes with two devices each: bytes and places of what the step would get.
PROCESS = """
import pickle
import sys
import jax
from mlvicx_jax import parallel
import test_resident

address, process, data_dir, path = sys.argv[1:]
parallel.start(address, 2, int(process))
split = test_resident.open_split(data_dir)
found = [{name: [(str(shard.index), jax.device_get(shard.data))
                 for shard in array.addressable_shards] for name, array in arrays.items()}
         for arrays in test_resident.arrays_of(split, 'device', start_step=3)]
pickle.dump(found, open(path, 'wb'))
"""


@functools.cache
def open_split(data_dir, structures=2):
    """40 training images with the masks of so many structures."""
    config = tiny.get_config().data
    data = open_dataset(config.name, data_dir, None, {'size': config.stored_size, **config.options})
    return data.with_target(list(data.structures)[:structures]).splits['train']


def mesh():
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def batches_of(split, where, count=STEPS, **place):
    """Batches of the stream, and what completes their arrays."""
    pictures, with_pictures = resident.hold(split, where, mesh(), 2)
    stream = pipeline.train_batches(split, SIZE, 3, pictures=pictures, **place)
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches, with_pictures


def arrays_of(split, where, start_step=0):
    """What the training step gets at each step, on all processes and devices."""
    batches, with_pictures = batches_of(
        split,
        where,
        STEPS - start_step,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return [
        with_pictures(
            parallel.to_global({name: array for name, array in batch.items() if name != 'record'}, mesh())
        )
        for batch in batches
    ]


def assert_same(ones, others):
    assert len(ones) == len(others) > 0
    for one, other in zip(ones, others):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(
    'place',
    [
        {},
        {'start_step': 5},
        {'process_index': 1, 'process_count': 2},
        {'start_step': 2, 'process_index': 3, 'process_count': 4},
    ],
    ids=str,
)
@pytest.mark.parametrize('structures', [0, 2])
def test_batches_in_host_memory_are_those_of_the_records(structures, place, data_dir):
    split = open_split(data_dir, structures)
    expected, _ = batches_of(split, 'none', **place)
    assert ('target' in expected[0]) == bool(structures) and 2 * len(split) < STEPS * SIZE
    assert_same(batches_of(split, 'host', **place)[0], expected)


@pytest.mark.parametrize('structures', [0, 2])
def test_what_a_step_gets_is_the_same_and_lies_the_same(structures, data_dir):
    split = open_split(data_dir, structures)
    expected = arrays_of(split, 'none')
    for where in ('host', 'device'):
        found = arrays_of(split, where)
        assert_same(found, expected)
        for name, array in found[0].items():
            assert array.sharding == expected[0][name].sharding == NamedSharding(mesh(), P(AXIS))
            assert {shard.data.shape[0] for shard in array.addressable_shards} == {SIZE // 4}
        assert_same(arrays_of(split, where, start_step=4), expected[4:])


def test_to_the_devices_go_positions_and_labels_alone(data_dir):
    split = open_split(data_dir)
    batches, with_pictures = batches_of(split, 'device')
    for batch in batches:
        assert {name: array.nbytes for name, array in batch.items()} == {
            'position': 4 * SIZE,
            'record': 4 * SIZE,
            'labels': SIZE * split.labels.shape[1],
        }
    assert all(array.sharding.is_fully_replicated for array in with_pictures.args[0].values())
    arrays = parallel.to_global({'position': batches[0]['position']}, mesh())
    program = with_pictures.func.lower(*with_pictures.args, arrays).compile().as_text()
    assert 'gather' in program
    # Each device picks its rows by itself: a collective is all-gather, all-reduce, all-to-all, ...
    assert not any(word in program for word in ('all-', 'collective', 'reduce-scatter'))


def test_two_processes_of_two_devices_are_one_of_four(data_dir, tmp_path):
    address, paths = several.free_address(), [tmp_path / str(i) for i in range(2)]
    codes, said = several.run(
        PROCESS, [(address, i, data_dir, path) for i, path in enumerate(paths)], devices=2, timeout=120
    )
    assert codes == [0, 0], said
    parts = [pickle.loads(path.read_bytes()) for path in paths]
    alone = arrays_of(open_split(data_dir), 'none', start_step=3)
    assert len(parts[0]) == len(parts[1]) == len(alone)
    for *shares, expected in zip(*parts, alone):
        assert shares[0].keys() == shares[1].keys() == expected.keys()
        for name, array in expected.items():
            shards = {str(shard.index): shard.data for shard in array.addressable_shards}
            found = dict(shares[0][name] + shares[1][name])
            assert found.keys() == shards.keys() and len(found) == 4
            for index, rows in shards.items():
                np.testing.assert_array_equal(found[index], rows)


@pytest.mark.parametrize('where,decodes', [('host', 41), ('device', 41), ('none', STEPS * SIZE)])
def test_every_picture_is_decoded_once(where, decodes, data_dir, monkeypatch):
    """And one of them before, of which the size is known."""
    split = dataclasses.replace(open_split(data_dir, 0), name='counted')
    lock, counted, decode = threading.Lock(), [], pipeline.radiograph.decode_image

    def counting(data, name):
        if split.name in name:  # not of another test's stream, whose threads may still read ahead
            with lock:
                counted.append(name)
        return decode(data, name)

    monkeypatch.setattr(pipeline.radiograph, 'decode_image', counting)
    pictures, _ = resident.hold(split, where, mesh(), 2)
    before = len(counted)
    stream = pipeline.train_batches(split, SIZE, 3, pictures=pictures, num_threads=1, prefetch=1)
    for _ in range(STEPS):
        next(stream)
    stream.close()
    assert len(set(counted)) == len(split) == 40
    if where == 'none':  # and what its thread read ahead
        assert before == 0 and len(counted) >= decodes
    else:
        assert before == len(counted) == decodes


@pytest.mark.parametrize('how', ['unreadable', 'truncated'])
@pytest.mark.parametrize('where', ['host', 'device'])
def test_a_damaged_record_is_named(where, how, data_dir):
    split = open_split(data_dir)
    position = 17

    class Spoiled:
        def __getitem__(self, record):
            example = dict(split.source[record])
            if record == split.records[position]:
                if how == 'unreadable':
                    raise RuntimeError('corrupt chunk')
                example['image'] = example['image'][:-9]
            return example

    before = threading.active_count()
    with pytest.raises(UserError, match=f'record of image {split.image_ids[position]}'):
        resident.hold(dataclasses.replace(split, source=Spoiled()), where, mesh(), 2)
    assert threading.active_count() <= before


class Device(types.SimpleNamespace):
    """One with memory of its own, as a GPU tells of it."""

    platform = 'gpu'

    def memory_stats(self):
        return {'bytes_limit': self.limit, 'bytes_in_use': self.used}

    def __str__(self):
        return self.name


@pytest.fixture
def free(monkeypatch):
    def set_free(host, *devices):
        monkeypatch.setattr(resident, '_free_on_host', lambda: host)
        return types.SimpleNamespace(
            local_devices=[
                Device(name=f'GPU {i}', limit=limit, used=used) for i, (limit, used) in enumerate(devices)
            ]
        )

    return set_free


def test_what_does_not_fit_is_refused_before_it_is_decoded(free, data_dir, monkeypatch):
    split = open_split(data_dir)
    needed = 40 * 96 * 96 * (1 + 2)
    decoded = []
    monkeypatch.setattr(resident, '_decode', lambda *arguments: decoded.append(1) or {})
    monkeypatch.setattr(resident, '_gather_on_devices', lambda *arguments: None)
    plenty = (10 * needed, needed)
    tight = (needed + int(needed / 0.6) + 2, needed)
    fits = lambda where, place: resident.hold(split, where, place, 1)

    fits('host', free(2 * needed))
    fits('device', free(2 * needed, plenty, tight))
    assert len(decoded) == 2
    for where, place in (('host', (2 * needed - 1,)), ('device', (2 * needed - 1, plenty))):
        with pytest.raises(UserError) as refused:
            fits(where, free(*place))
        assert str(refused.value) == (
            f"config.data.resident is '{where}': the 40 training images take 0.00111 GB decoded, "
            "more than 50% of the 0.00221 GB that are free in this host's memory; make it 'none'"
        )
    with pytest.raises(UserError) as refused:
        fits('device', free(2 * needed, plenty, (tight[0] - 4, needed)))
    assert str(refused.value) == (
        "config.data.resident is 'device': the 40 training images take 0.00111 GB decoded, more "
        "than 60% of the 0.00184 GB that are free in the memory of GPU 1; make it 'host' or 'none'"
    )
    # Devices whose memory is the host's: all there at first, and then on each of four.
    free(10 * needed - 1)
    with pytest.raises(UserError, match="take 0.00553 GB decoded.*in this host's memory"):
        fits('device', mesh())
    free(10 * needed)
    fits('device', mesh())
    assert len(decoded) == 3


def test_what_is_free_in_a_container_is_what_its_limit_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(resident, '_cgroups', lambda: [tmp_path / 'job', tmp_path])
    monkeypatch.setattr(resident.psutil, 'virtual_memory', lambda: types.SimpleNamespace(available=1000))
    assert resident._free_on_host() == 1000  # no container
    (tmp_path / 'memory.current').write_text('600\n')
    (tmp_path / 'memory.stat').write_text('anon 400\nfile 200\ninactive_file 120\nactive_file 30\n')
    for limit, free in (('max', 1000), ('900', 450), ('1500', 1000)):
        (tmp_path / 'memory.max').write_text(f'{limit}\n')
        assert resident._free_on_host() == free
    job = tmp_path / 'job'
    job.mkdir()
    for name, text in (('current', '300'), ('stat', 'inactive_file 10\nactive_file 0'), ('max', '500')):
        (job / f'memory.{name}').write_text(text)
    assert resident._free_on_host() == 210


def test_a_process_finds_its_cgroup():
    assert resident._cgroups()[-1] == resident.pathlib.Path('/sys/fs/cgroup')
    assert resident._free_on_host() > 0


def test_the_option_is_one_of_three_and_needs_no_workers():
    config = tiny.get_config()
    assert config.data.resident == 'none'
    for value in configs.RESIDENT:
        config.data.resident = value
        configs.check(config)
    config.data.num_workers = 1
    with pytest.raises(UserError, match='config.data.num_workers is set.*config.data.resident'):
        configs.check(config)
    config.data.resident = 'none'
    configs.check(config)
    config.data.resident = 'disk'
    with pytest.raises(UserError, match="data.resident is 'disk', expected one of none, host"):
        configs.check(config)


def once(make):
    """`make`, whose first product all later calls get: a training step is compiled once."""
    made = []
    return lambda *arguments: made[0] if made else made.append(make(*arguments)) or made[0]


def test_a_training_has_the_same_numbers_and_may_change_its_mind(data_dir, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(train, 'make_train_step', once(train.make_train_step))
    lines, config = {}, tiny.get_config('supervised')
    config.data.data_dir = str(data_dir)
    config.total_steps = 6  # more than two epochs
    for where in configs.RESIDENT:
        config.data.resident = where
        assert train.train(config, tmp_path / where) == 0
        assert ('train into memory' in capfd.readouterr().err) == (where != 'none')
        lines[where] = [
            {name: line[name] for name in line if not name.startswith('time/')}
            for line in read_metrics(tmp_path / where)
        ]
    assert lines['host'] == lines['device'] == lines['none']
    assert sum('train/loss' in line for line in lines['none']) == 6

    path = tmp_path / 'none/config.json'
    older = json.loads(path.read_text())
    assert older['data'].pop('resident') == 'none'
    assert workdirs.with_later(older)['data']['resident'] == 'none'
    for content in (path.read_text(), json.dumps(older)):
        path.write_text(content)
        workdirs.claim(path.parent, config)
        said = 'config.data.resident: none -> device'
        assert f'changed since the last start: {said}\n' in capfd.readouterr().out
