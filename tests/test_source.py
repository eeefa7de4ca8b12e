"""Splits are patient-disjoint, seeded and indexed without decoding an image."""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest
from nih_release import write_release

from mlvicx_jax.data import source as source_lib
from mlvicx_jax.data.source import open_dataset
from mlvicx_jax.errors import UserError

REAL = pathlib.Path(os.environ.get('MLVICX_REAL_DATA', 'absent'))
OPTIONS = {'size': 32}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp('nih')
    write_release(root / 'raw', train_patients=20, test_patients=3)
    open_dataset('nih_chestxray14', root / 'data', root / 'raw', OPTIONS)
    return root / 'data'


def _open(data_dir, **changes):
    return open_dataset('nih_chestxray14', data_dir, options=OPTIONS, **changes)


def test_splits_hold_what_the_release_says(data_dir):
    data = _open(data_dir)
    assert (data.name, data.size, len(data.label_names)) == ('nih_chestxray14', 32, 15)
    assert {k: len(s) for k, s in data.splits.items()} == {'train': 36, 'validation': 4, 'test': 6}
    for name, split in data.splits.items():
        assert split.name == name
        assert split.labels.dtype == np.uint8 and split.labels.shape == (len(split), 15)
        assert split.records.dtype == np.int64 and split.age.dtype == np.int32
        for i, record in enumerate(split.records):
            example = split.source[record]
            assert example['image'].startswith(b'\x89PNG')  # not decoded
            assert example['image_id'].decode() == split.image_ids[i]
            patient = int(split.image_ids[i][:8])
            assert split.patient_ids[i] == str(patient) and split.age[i] == 50 + patient
            assert split.sex[i] == 'FM'[patient % 2]
            assert split.view[i] == ('AP' if split.image_ids[i].endswith('_001.png') else 'PA')
            np.testing.assert_array_equal(split.labels[i], example['labels'])
    patients = [set(s.patient_ids) for s in data.splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 23


def test_hash_is_of_the_sorted_ids_joined_by_newline(data_dir):
    test = _open(data_dir).splits['test']
    ids = [f'{p:08}_{v:03}.png' for p in (21, 22, 23) for v in (0, 1)]
    assert test.hash == hashlib.sha256('\n'.join(ids).encode()).hexdigest()


def test_validation_depends_on_seed_and_fraction_alone(data_dir):
    base = set(_open(data_dir).splits['validation'].patient_ids)
    assert set(_open(data_dir).splits['validation'].patient_ids) == base
    draws = {frozenset(_open(data_dir, split_seed=seed).splits['validation'].patient_ids) for seed in range(6)}
    assert len(draws) > 3
    assert base < set(_open(data_dir, validation_fraction=0.5).splits['validation'].patient_ids)
    whole = [
        np.concatenate([s.image_ids for s in _open(data_dir, split_seed=seed).splits.values()])
        for seed in (0, 1)
    ]
    assert set(whole[0]) == set(whole[1])
    tests = [_open(data_dir, split_seed=seed).splits['test'].hash for seed in (0, 1)]
    assert tests[0] == tests[1]


def test_index_is_read_once_and_remade_when_damaged(data_dir, monkeypatch):
    before = _open(data_dir)
    reads = []
    make = source_lib._make_index
    monkeypatch.setattr(source_lib, '_make_index', lambda *a: reads.append(1) or make(*a))
    _open(data_dir)
    assert not reads
    (path,) = data_dir.rglob('index_test.npz')
    short = {key: value[:-1] for key, value in np.load(path).items()}
    for damage in (
        lambda: path.write_bytes(path.read_bytes()[:100]),
        path.unlink,
        lambda: path.write_bytes(b''),
        lambda: np.savez(path, **short),
    ):
        damage()
        reads.clear()
        after = _open(data_dir)
        assert len(reads) == 1 and after.splits['test'].hash == before.splits['test'].hash
    assert sorted(p.name for p in path.parent.glob('*.tmp')) == []

    def refuse(*args, **kwargs):
        raise OSError(30, 'Read-only file system')

    path.unlink()
    monkeypatch.setattr(source_lib.tempfile, 'NamedTemporaryFile', refuse)
    assert len(_open(data_dir).splits['test']) == 6 and not path.exists()


def test_leaks_and_empty_splits_are_refused(data_dir):
    for fraction in (0, 1, -0.5):
        with pytest.raises(UserError, match='validation_fraction'):
            _open(data_dir, validation_fraction=fraction)
    with pytest.raises(UserError, match='the validation split is empty'):
        _open(data_dir, validation_fraction=0.01)
    with pytest.raises(UserError, match='the train split is empty'):
        _open(data_dir, validation_fraction=0.99)
    splits = _open(data_dir).splits
    leaky = dataclasses.replace(splits['test'], patient_ids=splits['train'].patient_ids[:6])
    with pytest.raises(UserError, match=r'patient \d+, .* both in train and test'):
        source_lib._check('set', splits | {'test': leaky})
    twice = dataclasses.replace(splits['test'], image_ids=splits['test'].image_ids[[0] * 6])
    with pytest.raises(UserError, match='more than once in test'):
        source_lib._check('set', splits | {'test': twice})


@pytest.mark.skipif(not REAL.is_dir(), reason='MLVICX_REAL_DATA names no folder')
def test_official_test_list_has_the_published_hash(data_dir):
    ids = np.array((REAL / 'nih_official/test_list.txt').read_text().split())
    split = dataclasses.replace(_open(data_dir).splits['test'], image_ids=ids)
    assert split.hash == '38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc'


PLANTED = {
    'a class': lambda text: text.replace('tensorflow_datasets.core.features.text_feature.Text', 'evilmod.C'),
    'its other spelling': lambda text: text.replace('{', '{"python_class_name": "evilmod.C", ', 1),
    'the older form': lambda text: '{"type": "evilmod.C", "content": {}}',
    'an escaped key': lambda text: text.replace('{', '{"\\u0070ythonClassName": "evilmod.C", ', 1),
    'a key twice': lambda text: text.replace('{', '{"pythonClassName": "evilmod.C", ', 1),
    'a name that begins well': lambda text: text.replace(
        'tensorflow_datasets.', 'tensorflow_datasets_evilmod.'
    ),
    'a name that goes on': lambda text: text.replace('text_feature.Text"', 'text_feature.Text evilmod.C"'),
    'no JSON': lambda text: text[: len(text) // 2],
    'nested': lambda text: '[' * 100_000,
}


@pytest.mark.parametrize('how', PLANTED)
def test_a_class_of_a_strangers_set_is_never_imported(how, data_dir, tmp_path, monkeypatch):
    (tmp_path / 'evilmod.py').write_text('raise SystemExit("it was imported")')
    monkeypatch.syspath_prepend(tmp_path)
    folder = next(path.parent for path in data_dir.rglob('features.json'))
    shutil.copytree(folder, tmp_path / 'set')
    text = (folder / 'features.json').read_text()
    spoiled = PLANTED[how](text)
    assert spoiled != text
    (tmp_path / 'set/features.json').write_text(spoiled)
    with pytest.raises(UserError, match='features.json: (names the class|can not be read)') as told:
        source_lib.open_folder(tmp_path / 'set')
    assert 'evilmod' not in sys.modules and '\n' not in str(told.value) and len(str(told.value)) < 600
