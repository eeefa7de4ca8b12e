"""The audit finds what is planted, and nothing else."""

import collections
import dataclasses
import json
import os
import pathlib
import shutil
import types

import cv2
import numpy as np
import pytest
from nih_release import write_release

from mlvicx_jax.audit import copies, page
from mlvicx_jax.audit import report as reports
from mlvicx_jax.commands import audit as command
from mlvicx_jax.data.prepare import prepare
from mlvicx_jax.data.source import open_folder
from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import nih_lists, radiograph, records
from mlvicx_jax_datasets.nih_chestxray14 import nih_chestxray14_dataset_builder as nih
from mlvicx_jax_datasets.phantom_cxr import render

REAL = pathlib.Path(os.environ.get('MLVICX_REAL_DATA', 'absent'))
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason='MLVICX_REAL_DATA names no folder')

CROPS = {'sides': np.s_[5:-5, 5:-5], 'corner': np.s_[5:, 5:], 'left': np.s_[:, 5:]}


def _jpeg(image, quality):
    return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _make_official(root, patch):
    """Has the lists of a small release pass for NIH's."""
    for split, names in nih_lists.read_lists(root).items():
        patch.setitem(nih_lists.OFFICIAL, split, records.list_hash(names))


def _plant(root, patch):
    """Adds to a release a copied, a recompressed and a cropped film, all in test under patients of
    their own, and puts a film of a training patient into test. The lists are no more the known
    ones. Returns the pairs of copies, and the patient."""
    lists = nih_lists.read_lists(root)
    table = (root / nih.TABLES[0]).read_text()
    rows = {line.partition(',')[0]: line for line in table.splitlines()}
    images = collections.Counter(name[:8] for name in lists['train_val'])
    several = [name for name in lists['train_val'] if images[name[:8]] > 1]
    copied, recompressed, cropped, moved = (several[i] for i in (0, 10, 20, 30))
    film = radiograph.read_image(root / 'images' / cropped)
    planted = {
        '90000001_000.png': (copied, (root / 'images' / copied).read_bytes()),
        '90000002_000.png': (recompressed, _jpeg(radiograph.read_image(root / 'images' / recompressed), 75)),
        '90000003_000.png': (cropped, radiograph.encode_png(film[CROPS['sides']])),
    }
    for name, (source, data) in planted.items():
        (root / 'images' / name).write_bytes(data)
        row = rows[source].split(',')
        row[0], row[3] = name, str(int(name[:8]))
        table += ','.join(row) + '\n'
    (root / nih.TABLES[0]).write_text(table)
    lists['train_val'].remove(moved)
    for split, names in (('train_val', lists['train_val']), ('test', [*lists['test'], *planted, moved])):
        (root / nih_lists.LISTS[split]).write_text('\n'.join(names) + '\n')
    patch.setattr(nih, '_check', lambda *_: None)  # the builder itself refuses such a patient
    patch.setattr(records, 'check', lambda *_: None)
    return {frozenset((name, source)) for name, (source, _) in planted.items()}, str(int(moved[:8]))


def _audit(folder, out, *flags):
    """Exit code and report of the command."""
    code = command.main([str(folder), '--out', str(out), *flags])
    return code, json.loads((out / 'audit.json').read_text())


def _check_planted(report, pairs, patient):
    assert {frozenset(member['image_id'] for member in film['members']) for film in report['films']} == pairs
    assert all(film['leak'] for film in report['films'])
    assert sorted(film['exact'] for film in report['films']) == [False, False, True]
    leaks = [row for row in report['patients'] if row['leak']]
    assert leaks and all(row['patients'] == [patient] for row in leaks)
    text = '\n'.join(report['problems'])
    assert patient not in text
    assert text.count("is not NIH's official one") == 2  # a film left one list for the other
    assert ' film' in text and f': {patient}' in reports.as_text(report)


@pytest.fixture(scope='module')
def releases(tmp_path_factory):
    """Folders of prepared sets of phantom films laid out as NIH's: clean, and with leaks."""
    root = tmp_path_factory.mktemp('audit')
    lists = write_release(root / 'clean', train_patients=30, test_patients=8)
    for names in lists.values():
        for name in names:
            film = render.render(0, int(name[:8]), int(name[9:12]), 256).image
            (root / 'clean/images' / name).write_bytes(radiograph.encode_png(film))
    shutil.copytree(root / 'clean', root / 'leaky')
    with pytest.MonkeyPatch.context() as patch:
        _make_official(root / 'clean', patch)
        for name in ('clean', 'leaky'):
            if name == 'leaky':
                pairs, patient = _plant(root / 'leaky', patch)
            prepare('nih_chestxray14', root / 'data' / name, root / name)
    return root / 'data', pairs, patient


def test_clean_release_passes(releases, tmp_path, capsys):
    code, report = _audit(releases[0] / 'clean', tmp_path / 'out')
    assert (code, report['problems'], report['films']) == (0, [], [])
    text = capsys.readouterr().out
    assert 'no leak found' in text and "the list of test is NIH's official one" in text
    (data,) = report['sets']
    for split in open_folder(reports.find_folder(str(releases[0] / 'clean'), tmp_path)).splits.values():
        told = data['splits'][split.name]
        assert told['sha256'] == split.hash and told['images'] == len(split)
        assert told['positives']['Hernia'] == split.labels[:, 13].sum() and ('Cardiomegaly' in told['absent'])


def test_five_planted_leaks_are_found(releases, tmp_path, capsys):
    data, pairs, patient = releases
    code, report = _audit(data / 'leaky', tmp_path)
    assert code == 1
    _check_planted(report, pairs, patient)
    assert 'PROBLEM: ' in capsys.readouterr().out
    html = (tmp_path / 'audit.html').read_text()
    assert html.count('<img src="data:image/png;base64,iVBOR') == 6 and 'http' not in html
    assert all(name in html for pair in pairs for name in pair)
    assert '>patient ' not in html and str(data) not in html  # nobody asked for them
    _audit(data / 'leaky', tmp_path, '--patient-ids')
    assert '>patient ' in (tmp_path / 'audit.html').read_text()
    report = _audit(data / 'leaky', tmp_path, '--own_lists')[1]
    assert report['problems'] and 'official' not in '\n'.join(report['problems'])


def test_between_sets_only_test_against_the_rest_is_a_leak(releases, tmp_path):
    """The same release twice: each film is in both, but test meets test alone, whichever patients
    are drawn for validation. Then with a film of the one set's training in the other's test."""
    clean = open_folder(reports.find_folder(str(releases[0] / 'clean'), tmp_path))
    other = dataclasses.replace(clean, name='other', metadata={})
    report = reports.audit([clean, other])
    assert report['problems'] == [] and report['patients'] == []
    assert sum(row['films'] for row in report['overlaps']) == len(report['films']) == 76
    drawn_anew = open_folder(clean.folder, split_seed=1).splits
    report = reports.audit([clean, dataclasses.replace(other, splits=drawn_anew)])
    assert report['problems'] == [] and any(
        row['one'].endswith('validation') != row['other'].endswith('validation') for row in report['overlaps']
    )
    train, test = clean.splits['train'], clean.splits['test']
    spoiled = clean.splits | {
        'train': train.take(np.arange(1, len(train))),
        'test': dataclasses.replace(test.take(np.arange(1)), records=train.records[:1], source=train.source),
    }
    report = reports.audit([clean, dataclasses.replace(other, splits=spoiled)])
    assert report['problems'] == ['1 film in both nih_chestxray14 train and other test']
    nih_ids = dataclasses.replace(
        other, metadata=clean.metadata, splits=clean.splits | {'test': train.take(np.arange(2))}
    )
    assert any('patient' in problem for problem in reports.audit([clean, nih_ids])['problems'])


def test_copies_of_one_film_are_one_group():
    films = [render.render(0, patient, 0, 128).image for patient in range(4)]
    small = cv2.resize(films[1], (96, 96), interpolation=cv2.INTER_AREA)
    films += [films[1], films[1].copy(), small, np.zeros((128, 128), np.uint8)]
    found = copies.find_copies(len(films), films.__getitem__)
    assert copies.join(len(films), [(c.one, c.other) for c in found]) == [[1, 4, 5, 6]]
    assert sorted(c.exact for c in found) == [False, True, True]
    assert copies.join(9, [(4, 5), (1, 2), (5, 2), (7, 8)]) == [[1, 2, 4, 5], [7, 8]]


def test_blocks_do_not_change_the_candidates(monkeypatch):
    rng = np.random.default_rng(0)
    spectra = rng.normal(size=(200, 143)).astype(np.float32)
    spectra[150] = spectra[3] + 0.2 * spectra[4]
    assert list(copies.candidates(spectra)) == [(3, 150)]
    monkeypatch.setattr(copies, '_BLOCK', 1400)
    assert list(copies.candidates(spectra)) == [(3, 150)]
    assert len(list(copies.candidates(spectra[:5]))) == 10


@needs_real_data
def test_texture_tells_copies_from_other_films_of_a_patient():
    folder = REAL / 'nih_sample/images'
    films = [
        radiograph.resize(radiograph.read_image(folder / name), 256)
        for name in (
            '00009507_001.png',
            '00009507_002.png',
            '00001543_003.png',
            '00001543_004.png',
            '00001772_007.png',
            '00003211_004.png',
            '00002556_000.png',
            '00003248_001.png',
        )
    ]
    for one, other in zip(films[::2], films[1::2]):  # the pairs of the 999 that are most alike
        assert copies.texture_correlation(one, other) < copies.SAME - 0.08
        for image in (
            radiograph.decode_image(_jpeg(one, 70), 'jpeg'),
            *(one[crop] for crop in CROPS.values()),
            radiograph.decode_image(_jpeg(one[CROPS['corner']], 70), 'jpeg'),
            (255 * (one / 255) ** 0.7).astype(np.uint8),
        ):
            assert copies.texture_correlation(one, image) > copies.SAME


@needs_real_data
def test_duplicate_of_the_release_is_found():
    paths = sorted((REAL / 'originals').glob('*.png'))
    found = copies.find_copies(len(paths), lambda i: radiograph.read_image(paths[i]))
    assert [(paths[c.one].name, paths[c.other].name, c.exact) for c in found] == [
        ('00002658_001.png', '00002658_002.png', True)
    ]


@needs_real_data
def test_five_leaks_among_999_real_films(tmp_path, monkeypatch):
    root = tmp_path / 'nih'
    shutil.copytree(REAL / 'nih_sample', root)
    root.chmod(0o755)
    for path in (root, root / 'images', *root.glob('*.*')):
        path.chmod(0o755)
    _make_official(root, monkeypatch)
    prepare('nih_chestxray14', tmp_path / 'clean', root)
    code, report = _audit(tmp_path / 'clean', tmp_path / 'out')
    assert (code, report['problems'], report['films']) == (0, [], [])
    planted = _plant(root, monkeypatch)
    prepare('nih_chestxray14', tmp_path / 'leaky', root)
    code, report = _audit(tmp_path / 'leaky', tmp_path / 'out')
    assert code == 1
    _check_planted(report, *planted)


def test_a_page_shows_one_film_of_each_split_first():
    members = [
        {'set': 'a', 'split': split, 'image_id': str(i)} for i, split in enumerate(['train'] * 5 + ['test'])
    ]
    assert [m['image_id'] for m in page._most_telling(members)] == ['0', '5', '1', '2']


def test_sheets_show_each_split_and_label(releases, tmp_path):
    assert (
        command.main(['nih_chestxray14', '--data_dir', str(releases[0] / 'clean'), '--sheets', str(tmp_path)])
        == 0
    )
    names = {path.stem for path in tmp_path.iterdir()}
    assert 'nih_chestxray14_test_Pleural_Thickening' in names and len(names) > 8
    assert 'nih_chestxray14_test_Edema' not in names  # of which there is none
    sheet = cv2.imread(str(tmp_path / 'nih_chestxray14_train_any.png'))
    assert sheet.shape == (30 + 4 * 312, 6 * 260, 3)
    films = cv2.imread(str(tmp_path / 'nih_chestxray14_test_Hernia.png'), 0)
    assert films[30:286, :256].std() > 20


def test_sets_that_are_not_there_or_not_one(releases, tmp_path, capsys):
    with pytest.raises(UserError, match='neither a prepared set'):
        reports.find_folder('absent', tmp_path)
    with pytest.raises(UserError, match='2 prepared sets are there'):
        reports.find_folder(str(releases[0]), tmp_path)
    folder = str(releases[0] / 'clean')
    assert command.main([folder, folder, '--out', str(tmp_path)]) == 2
    assert 'given twice' in capsys.readouterr().err


def test_ids_that_differ_in_form_are_one_patient():
    one, other = (
        types.SimpleNamespace(image_ids=np.array(images), patient_ids=np.array(patients))
        for images, patients in (
            (['a', 'b', 'c', '3.0'], ['3', 'Ann', 'c', '3.0']),
            (['d', 'e', 'C', 'f'], ['003', 'ann ', 'C', 'bob']),
        )
    )
    assert reports._common_patients(one, other) == ['3', 'Ann']
