"""Whatever happens to the files of a checkpoint or of its data: told and mended, never a wrong state."""

import dataclasses
import json
import logging
import os
import pathlib
import shutil
import time

import jax
import numpy as np
import pytest

import tiny
from mlvicx_jax import parallel
from mlvicx_jax.data.records import records_hash
from mlvicx_jax.data.source import open_dataset
from mlvicx_jax.errors import UserError
from mlvicx_jax.run.checkpoints import Checkpoints, restore_encoder, restore_state
from mlvicx_jax.run.goodput import Goodput
from mlvicx_jax.state import TrainState
from mlvicx_jax_datasets.phantom_cxr import render

# What Orbax leaves of the reads beside one that failed; `checkpoint.py` keeps it from the terminal.
pytestmark = pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnraisableExceptionWarning', 'ignore:coroutine:RuntimeWarning'
)


def state_at(step):
    """A state of every kind of leaf, large enough that its numbers fill files of their own."""
    rng = np.random.default_rng(step)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {'encoder': {'w': draw(64, 32), 'b': draw(32)}, 'head': {'w': draw(32, 8)}}
    state = TrainState(
        np.int32(step),
        np.int32(0),
        params,
        {'encoder': {'mean': draw(32)}},
        {'trace': jax.tree.map(lambda x: 2 * x, params), 'count': np.int32(step)},
        {'queue': draw(16, 8)},
    )
    return jax.device_put(state, parallel.replicated(parallel.create_mesh(4)))


def same(a, b):
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def save(folder, *steps, records=''):
    checkpoints = Checkpoints(folder, 1, 3, 0, 'hash', records)
    for step in steps:
        checkpoints.save(state_at(step))
    checkpoints.wait()
    checkpoints.close()


def restore(folder, data='hash', records=''):
    checkpoints = Checkpoints(folder, 1, 3, 0, data, records)
    try:
        return checkpoints.restore(state_at(0))
    finally:
        checkpoints.close()


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A folder with checkpoints of steps 2 and 3."""
    folder = tmp_path_factory.mktemp('run') / 'checkpoints'
    save(folder, 2, 3)
    return folder


@pytest.fixture
def copy(written, tmp_path):
    shutil.copytree(written, tmp_path / 'checkpoints')
    return tmp_path / 'checkpoints'


def files(folder):
    return sorted(path for path in pathlib.Path(folder).rglob('*') if path.is_file())


def flip(place):
    def flip(path):
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return flip


DAMAGE = {
    'deleted': os.unlink,
    'emptied': lambda path: os.truncate(path, 0),
    'cut in half': lambda path: os.truncate(path, path.stat().st_size // 2),
    'cut by a byte': lambda path: os.truncate(path, max(0, path.stat().st_size - 1)),
    **{f'a bit flipped at {place:.0%}': flip(place) for place in (0, 0.2, 0.4, 0.6, 0.8, 1)},
}


# What a state can be read without. All else of a checkpoint must be missed.
NOT_NEEDED = {
    '_CHECKPOINT_METADATA': 'times of the save',
    'commit_success.txt': 'the mark of a whole folder; here the fingerprint tells',
    'state/commit_success.txt': 'the same, of its part',
    'about/commit_success.txt': 'the same, of its part',
    'state/_sharding': 'devices at the time; those of now are asked for',
    'state/array_metadatas/process_0': 'repeats what each array says of itself',
    'state/ocdbt.process_0/manifest.ocdbt': "one process's index, which state/manifest.ocdbt took over",
}
MERGED = 'state/ocdbt.process_0/d/'  # numbers, and indices that state/d took over; their names are random
ABOVE_ALL = 'about/metadata', 'state/_METADATA', 'state/manifest.ocdbt'  # and state/d/*


def reading(folder, caplog):
    """The step that a resume finds, after proof that it is whole and that damage was told."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = restore(folder)
    step = int(found.step)
    said = [r.getMessage() for r in caplog.records if r.name == 'mlvicx_jax']
    assert same(found, state_at(step))
    if step == 2:
        assert len(said) == 1 and f'{folder / "3"} is damaged' in said[0]
        assert not (folder / '3').exists() and (folder.parent / 'checkpoints_damaged/3').exists()
    else:
        assert step == 3 and not said
    return step


def assert_read_right_or_refused(workdir):
    """A reader of a run gets the newest checkpoint's own numbers, or one line."""
    expected = state_at(3)
    try:
        state, data_hash = restore_state(workdir, jax.eval_shape(lambda: expected))
        assert same(state, expected) and data_hash == 'hash'
    except UserError as error:
        assert 'is damaged' in str(error)
    try:
        encoder = restore_encoder(workdir)
        assert same(
            encoder, {'batch_stats': expected.batch_stats['encoder'], 'params': expected.params['encoder']}
        )
    except UserError as error:
        assert 'is damaged' in str(error)


@pytest.mark.parametrize('damage', DAMAGE)
def test_each_file_of_the_newest_checkpoint(damage, written, tmp_path, caplog):
    """One at a time: the one before is used and it is said, or what is read is the newest, bit for bit."""
    outcome = {}
    for number, path in enumerate(files(written / '3')):
        workdir = tmp_path / str(number)
        shutil.copytree(written, workdir / 'checkpoints')
        DAMAGE[damage](workdir / 'checkpoints' / path.relative_to(written))
        assert_read_right_or_refused(workdir)
        outcome[str(path.relative_to(written / '3'))] = reading(workdir / 'checkpoints', caplog)
    assert outcome.keys() >= {*NOT_NEEDED, *ABOVE_ALL}, 'Orbax writes other files now: look at them'
    if 'bit' not in damage and 'byte' not in damage:
        needed = {name for name in outcome if name not in NOT_NEEDED and not name.startswith(MERGED)}
        assert needed > set(ABOVE_ALL) and {outcome[name] for name in needed} == {2}, outcome
        assert 2 in {outcome[name] for name in outcome if name.startswith(MERGED)}, outcome


@pytest.mark.parametrize('backwards', [False, True])
def test_a_copy_that_was_broken_off_is_never_taken_for_whole(backwards, written, tmp_path, caplog):
    """The first files of the newest under its final name, in two orders, with and without the marks."""
    everything = files(written / '3')[:: -1 if backwards else 1]
    found = []
    for count in range(len(everything) + 1):
        folder = tmp_path / str(count) / 'checkpoints'
        shutil.copytree(written / '2', folder / '2')
        (folder / '3').mkdir()
        for path in everything[:count]:
            target = folder / path.relative_to(written)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        found.append(reading(folder, caplog))
    assert found == sorted(found) and found[0] == 2 and found[-1] == 3
    assert found.count(3) < len(everything) - 3


@pytest.mark.parametrize('name', ['4.orbax-checkpoint-tmp', '4.orbax-checkpoint-tmp-1700000000000000'])
def test_a_folder_under_its_temporary_name_is_not_read_and_goes(name, copy, caplog):
    shutil.copytree(copy / '3', copy / name)
    for file in ('commit_success.txt', 'state/commit_success.txt'):
        (copy / name / file).unlink()
    assert reading(copy, caplog) == 3
    assert sorted(path.name for path in copy.iterdir()) == ['2', '3']


def test_notes_beside_the_state_are_proved_too(copy, caplog):
    """A changed hash of the data is damage, not other data; so is a changed fingerprint."""
    path = copy / '3/about/metadata'
    about = json.loads(path.read_text())
    for name, other in (
        ('data_hash', 'hasi'),
        ('fingerprint', about['fingerprint'] ^ 4),
        ('encoder', about['encoder'] ^ 4),
        ('records_hash', 'x'),
    ):
        path.write_text(json.dumps(about | {name: other}))
        assert_read_right_or_refused(copy.parent)
        with pytest.raises(UserError, match='is damaged'):
            restore_encoder(copy.parent)
    assert reading(copy, caplog) == 2


def test_checkpoints_of_older_programs_are_read(copy, caplog):
    """Those had the state's fingerprint and the hash of the image ids, no more."""
    path = copy / '3/about/metadata'
    about = json.loads(path.read_text())
    path.write_text(json.dumps({name: about[name] for name in ('fingerprint', 'data_hash')}))
    assert same(restore(copy, records='now there is one'), state_at(3))
    assert same(restore_encoder(copy.parent)['params'], state_at(3).params['encoder'])
    with pytest.raises(UserError, match='hash'):
        restore(copy, data='other')


@pytest.mark.parametrize('jump', [-(10**8), 10**8], ids=['back', 'forward'])
def test_a_clock_that_jumps_between_two_starts(jump, tmp_path, monkeypatch, caplog):
    """The newest is the one of the highest step, also when old ones are deleted; no time is negative."""
    folder = tmp_path / 'checkpoints'
    save(folder, 1, 2, 3)
    goodput = Goodput(tmp_path)
    goodput.spent('training')
    goodput.saved(3)
    real = time.time
    monkeypatch.setattr(time, 'time', lambda: real() + jump)
    for path in folder.rglob('*'):  # as if the files came from a host with another clock
        os.utime(path, (real() - jump,) * 2)
    assert reading(folder, caplog) == 3
    save(folder, 4)
    assert sorted(path.name for path in folder.iterdir()) == ['2', '3', '4']
    assert int(restore(folder).step) == 4
    again = Goodput(tmp_path)
    again.resume(3)
    again.spent('start')
    again.write()
    seconds = json.loads((tmp_path / 'goodput.json').read_text())['seconds']
    assert min(seconds.values()) >= 0 and seconds['down'] == pytest.approx(max(0, jump), abs=60)


def test_other_images_under_the_same_ids_are_refused(tmp_path, data_dir, monkeypatch):
    """A set that was prepared once more is the same, unless its images were rendered differently."""
    config = tiny.get_config().data
    opened = lambda folder: open_dataset(
        config.name, folder, None, {'size': config.stored_size, **config.options}
    )
    first, again = opened(data_dir), opened(tmp_path / 'again')
    original = render.render

    def brighter(*arguments):
        shot = original(*arguments)
        return dataclasses.replace(shot, image=np.maximum(shot.image, 3))

    monkeypatch.setattr(render, 'render', brighter)
    other = opened(tmp_path / 'other')
    assert first.splits['train'].hash == other.splits['train'].hash
    assert records_hash(first) == records_hash(again) != records_hash(other)
    folder = tmp_path / 'checkpoints'
    save(folder, 1, records=records_hash(first))
    assert int(restore(folder, records=records_hash(again)).step) == 1
    with pytest.raises(UserError, match='same ids but other content') as refused:
        restore(folder, records=records_hash(other))
    assert '--workdir' in str(refused.value) and (folder / '1').exists()


@pytest.mark.parametrize('change', ['an image', 'a label'])
def test_a_change_of_one_thing_changes_the_hash_of_the_records(change, data_dir):
    config = tiny.get_config().data
    data = open_dataset(config.name, data_dir, None, {'size': config.stored_size, **config.options})
    before = records_hash(data)
    train = data.splits['train']
    if change == 'an image':
        last = train.records[-1]
        examples = {record: dict(train.source[record]) for record in train.records}
        examples[last]['image'] = examples[last]['image'][:-1] + b'?'
        train = dataclasses.replace(train, source=examples)
    else:
        train = dataclasses.replace(train, labels=np.roll(train.labels, 1, axis=0))
    changed = dataclasses.replace(data, splits=data.splits | {'train': train})
    assert records_hash(changed) != before
