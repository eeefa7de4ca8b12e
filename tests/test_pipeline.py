"""The stream is a function of (split, batch size, seed, step), whoever reads it."""

import dataclasses
import itertools
import pathlib
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from nih_release import write_release

import tiny
from mlvicx_jax import parallel
from mlvicx_jax.data import pipeline
from mlvicx_jax.data.source import open_dataset
from mlvicx_jax.errors import UserError
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax_datasets import radiograph


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('nih')
    write_release(root / 'raw', train_patients=8, test_patients=3)
    return root


@pytest.fixture(scope='module')
def data(root):  # 12 images to train on
    return open_dataset('nih_chestxray14', root / 'data', root / 'raw', {'size': 64}, validation_fraction=0.25)


def _take(split, count, batch_size, **kwargs):
    stream = pipeline.train_batches(split, batch_size, seed=3, **kwargs)
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


def _assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_batch_holds_the_images_it_names(root, data):
    split = data.splits['train']
    batch = _take(split, 1, 8)[0]
    assert {key: (a.dtype, a.shape) for key, a in batch.items()} == {
        'image': (np.uint8, (8, 64, 64, 1)),
        'labels': (np.uint8, (8, 15)),
        'record': (np.int32, (8,)),
    }
    for image, labels, i in zip(batch['image'], batch['labels'], batch['record']):
        raw = radiograph.read_image(root / 'raw/images' / split.image_ids[i])
        np.testing.assert_array_equal(image[..., 0], raw)
        np.testing.assert_array_equal(labels, split.labels[i])


@pytest.mark.parametrize('batch_size', [4, 8, 12])
def test_every_image_once_per_epoch_in_a_new_order(data, batch_size):
    n = len(data.splits['train'])
    assert n == 12
    batches = _take(data.splits['train'], 6 * n // batch_size, batch_size)
    epochs = np.concatenate([b['record'] for b in batches]).reshape(6, n)
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    assert len({tuple(epoch) for epoch in epochs}) == 6
    other = list(itertools.islice(pipeline.train_batches(data.splits['train'], n, seed=4), 1))
    assert tuple(other[0]['record']) != tuple(epochs[0])


def test_hosts_share_one_global_batch(data):
    alone = _take(data.splits['train'], 7, 8)
    for count in (2, 4):
        hosts = [_take(data.splits['train'], 7, 8, process_index=h, process_count=count) for h in range(count)]
        joined = [
            {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} for parts in zip(*hosts)
        ]
        _assert_same(alone, joined)


@pytest.mark.parametrize('count', [1, 2, 4])
def test_hosts_together_deliver_every_image_once_an_epoch(data, count):
    """Training: each epoch of 12; evaluation: a split of 11, filled up to whole batches."""
    split, size = data.splits['train'], 4
    hosts = [_take(split, 9, size, process_index=h, process_count=count) for h in range(count)]
    assert all(len(b['record']) == size // count for batches in hosts for b in batches)
    order = np.concatenate([b['record'] for step in zip(*hosts) for b in step])
    for epoch in order.reshape(3, 12):
        assert sorted(split.image_ids[epoch]) == sorted(split.image_ids)
    odd = split.take(np.arange(11))
    seen = [
        odd.image_ids[r]
        for h in range(count)
        for b in pipeline.eval_batches(odd, size, h, count)
        for r in b['record'][b['mask']]
    ]
    assert sorted(seen) == sorted(odd.image_ids)


@pytest.mark.parametrize('hosts', [1, 2, 4])
@pytest.mark.parametrize('devices', [1, 2, 4])
def test_devices_of_all_hosts_together_hold_every_image_once_an_epoch(hosts, devices, data_dir):
    """As the training step gets them: each host's rows laid out on that many devices of its own."""
    config = tiny.get_config().data
    split = open_dataset(config.name, data_dir, None, {'size': config.stored_size, **config.options}).splits[
        'train'
    ]
    split, size, epochs = split.take(np.arange(40)), 16, 2
    mesh = jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    held = []  # [step, device of all] -> positions in the split
    streams = [
        _take(split, epochs * 40 // size, size, process_index=h, process_count=hosts) for h in range(hosts)
    ]
    for batches in zip(*streams):
        rows = [
            shard
            for batch in batches
            for shard in parallel.to_global({'record': batch['record']}, mesh)['record'].addressable_shards
        ]
        held.append([np.asarray(shard.data) for shard in rows])
    assert {len(part) for step in held for part in step} == {size // (hosts * devices)}
    alone = np.stack([batch['record'] for batch in _take(split, epochs * 40 // size, size)])
    np.testing.assert_array_equal([np.concatenate(step) for step in held], alone)
    seen = np.concatenate([part for step in held for part in step]).reshape(epochs, 40)
    for epoch in seen:
        assert sorted(split.image_ids[epoch]) == sorted(split.image_ids)
    # No two devices hold the same rows: the split is by rows, not a copy for each.
    assert all(len(np.unique(np.concatenate(step))) == size for step in held[:2])


def test_resuming_equals_skipping(data):
    for hosts in ({}, {'process_index': 1, 'process_count': 2}):
        whole = _take(data.splits['train'], 9, 8, **hosts)
        _assert_same(whole[5:], _take(data.splits['train'], 4, 8, start_step=5, **hosts))
    far = 10**9 // 7  # no table of an epoch's order is built on the way
    assert _take(data.splits['train'], 1, 8, start_step=far)[0]['image'].shape[0] == 8


def test_threads_and_workers_do_not_change_the_stream(data):
    split = data.splits['train']
    base = _take(split, 4, 4, num_threads=1)
    _assert_same(base, _take(split, 4, 4, num_threads=8, prefetch=1))
    _assert_same(base, _take(split, 4, 4, num_workers=2, prefetch=1))


@pytest.mark.parametrize('process_count', [1, 2, 4])
@pytest.mark.parametrize('batch_size', [4, 8, 24])
def test_eval_sees_every_image_once_in_order(data, process_count, batch_size):
    split = data.splits['train']
    hosts = [list(pipeline.eval_batches(split, batch_size, h, process_count)) for h in range(process_count)]
    assert {len(batches) for batches in hosts} == {-(-12 // batch_size)}
    rows = [
        np.concatenate([b[key] for step in zip(*hosts) for b in step])
        for key in ('mask', 'record', 'image', 'labels')
    ]
    mask, record, image, labels = rows
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(record[mask], np.arange(12))
    np.testing.assert_array_equal(labels[mask], split.labels)
    assert mask[:12].all() and not image[~mask].any() and (record[~mask] == -1).all()


@pytest.mark.parametrize(
    'make,words',
    [
        (lambda s: pipeline.train_batches(s, 13, 0), 'more than the 12 images'),
        (lambda s: pipeline.train_batches(s, 8, 0, process_count=3), 'multiple of the 3'),
        (lambda s: pipeline.train_batches(s, 0, 0), 'positive'),
        (lambda s: pipeline.eval_batches(s, 5, process_count=2), 'multiple of the 2'),
    ],
)
def test_batches_that_can_not_be_are_refused_at_once(data, make, words):
    with pytest.raises(UserError, match=words):
        make(data.splits['train'])


class _Spoiled:
    """A source whose record 0 is damaged."""

    def __init__(self, source, how):
        self.source, self.how = source, how

    def __getitem__(self, record):
        example = dict(self.source[record])
        if record == 0:
            if self.how == 'unreadable':
                raise RuntimeError('corrupt chunk')
            example['image'] = example['image'][:-9]
        return example


@pytest.mark.parametrize('how', ['unreadable', 'truncated'])
@pytest.mark.parametrize('num_workers', [0, 1])
def test_damaged_record_is_named(data, how, num_workers):
    split = data.splits['test']
    (position,) = np.flatnonzero(split.records == 0)
    spoiled = dataclasses.replace(split, source=_Spoiled(split.source, how))
    with pytest.raises(UserError, match=split.image_ids[position]):
        list(pipeline.eval_batches(spoiled, 2, num_workers=num_workers))


def test_close_ends_the_threads(data):
    before = threading.active_count()
    for _ in range(5):
        stream = pipeline.train_batches(data.splits['train'], 4, 0)
        next(stream)
        stream.close()
    deadline = time.monotonic() + 5  # grain lets a thread finish the image it is at
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def _program(root, num_workers, last=''):
    """A program that reads one batch of `data`, prints its shape, and runs the line `last`."""
    path = root / f'program_{num_workers}_{len(last)}.py'
    path.write_text(
        'import multiprocessing, time\n'
        'from mlvicx_jax.data import pipeline, source\n'
        'if __name__ == "__main__":\n'
        f'    data = source.open_dataset("nih_chestxray14", {str(root / "data")!r},\n'
        '                               options={"size": 64}, validation_fraction=0.25)\n'
        '    stream = pipeline.train_batches(data.splits["train"], 4, 0, '
        f'num_workers={num_workers})\n'
        f'    print(next(stream)["image"].shape)\n    {last}\n'
    )
    return [sys.executable, path]


@pytest.mark.parametrize('num_workers', [0, 2])
def test_leaving_without_close_is_silent(root, data, num_workers):
    run = subprocess.run(_program(root, num_workers), capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and run.stdout.strip() == '(4, 64, 64, 1)'
    assert 'Traceback' not in run.stderr, run.stderr


def test_a_killed_process_leaves_no_worker(root, data):
    """Nobody tells them, and what they wait for never comes."""
    last = 'print(*(w.pid for w in multiprocessing.active_children()), flush=True); time.sleep(100)'
    with subprocess.Popen(_program(root, 2, last), stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        workers = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(workers) == 2
    end = time.monotonic() + 20
    while left := [pid for pid in workers if _state(pid) not in 'ZX']:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def _state(pid):
    """Its letter in /proc; Z where it has ended and nobody asked how, X where it is gone."""
    try:
        return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except OSError:
        return 'X'
