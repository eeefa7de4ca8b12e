"""Folders as people have them: exports, zips, links, copies, odd names; prepared and audited, or refused."""

import json
import os
import pathlib
import shutil
import stat

import pytest
import worlds
from dicoms import write
from worlds import film, write_film

from mlvicx_jax.commands import audit
from mlvicx_jax.commands import prepare as command
from mlvicx_jax.data.prepare import prepare, read_report
from mlvicx_jax.data.source import open_folder
from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import copies, identity


def _prepare(tmp_path, folder, **options):
    return prepare('image_folder_cxr', tmp_path / 'data', folder, {'size': 32, **options})


def _count(builder):
    return sum(split.num_examples for split in builder.info.splits.values())


def _notes(builder):
    return '\n'.join(builder.info.metadata['notes'])


def _ids(builder):
    examples = (e for split in builder.info.splits for e in builder.as_data_source(split))
    return {e['image_id'].decode(): e['patient_id'].decode() for e in examples}


EXPECTED = {
    'pacs_export': (16, [], 8, ['20240101', 'DICOM headers', '1 DICOMDIR', 'README.TXT']),
    'chexpert': (20, sorted(worlds.CHEXPERT), 10, ['Pneumonia 1', '6 films are lateral', 'their folders name']),
    'german_excel': (16, ['Pleuraerguß', 'Stauung', 'kein Befund'], 8, ['semicolon', 'Windows-1252', 'joins']),
    'kaggle_zip': (20, ['NORMAL', 'PNEUMONIA'], 20, ['test: 7, train: 13', '1 made by the operating system']),
}


@pytest.mark.parametrize('world', worlds.WORLDS)
def test_worlds_are_prepared_whole_and_pass_the_audit(tmp_path, world):
    folder, options = worlds.WORLDS[world](tmp_path / 'raw')
    builder = _prepare(tmp_path, folder, **options)
    films, labels, patients, notes = EXPECTED[world]
    assert _count(builder) == films and builder.info.metadata['labels'] == labels
    assert len(set(_ids(builder).values())) == patients
    for words in notes:
        assert words in _notes(builder)
    assert 'not understood' not in _notes(builder) and read_report(builder.data_path)['bad'] == []
    assert audit.main([str(builder.data_path), '--out', str(tmp_path / 'audit')]) == 0
    splits = open_folder(builder.data_path).splits.values()
    if world == 'pacs_export':
        assert {age for split in splits for age in split.age.tolist()} == set(range(40, 48))
    if world == 'german_excel':
        assert {sex for split in splits for sex in split.sex.tolist()} == {'F', 'M'}
        assert {view for split in splits for view in split.view.tolist()} == {'PA', 'AP'}


@pytest.mark.parametrize(
    'name,title',
    [('films', 'films'), ('Röntgen (2024)', 'Rontgen_2024'), ('胸部', 'films'), ('a.b-c', 'a_b_c')],
)
def test_the_folder_names_the_set_that_has_no_title(tmp_path, name, title):
    for i in range(4):
        write_film(tmp_path / name / f'{i}.png', i)
    assert f'title={title}' in str(_prepare(tmp_path, tmp_path / name).data_path)
    with pytest.raises(UserError, match='option title'):
        _prepare(tmp_path, None)


def test_one_folder_of_a_patient_is_no_class(tmp_path):
    for i in range(6):
        write(tmp_path / f'raw/DOE^{"ABC"[i // 2]}/IM{i}', film(i), PatientID='ABC'[i // 2])
    builder = _prepare(tmp_path, tmp_path / 'raw')
    assert builder.info.metadata['labels'] == [] and 'each holds the films of one patient' in _notes(builder)
    assert set(_ids(builder).values()) == set('ABC')


def test_one_id_in_all_headers_is_no_patient(tmp_path):
    for i in range(4):
        write(tmp_path / f'raw/IM{i}', film(i), PatientID='CASE')
    builder = _prepare(tmp_path, tmp_path / 'raw')
    assert len(set(_ids(builder).values())) == 4 and 'nothing can be learnt from the test' in _notes(builder)


@pytest.mark.parametrize(
    'inner,outer', [('chest_xray', ''), ('chest_xray/chest_xray', 'chest_xray'), ('b', 'a')]
)
def test_a_copy_of_the_set_inside_it_is_named(tmp_path, inner, outer):
    for i, name in enumerate(('train/A/0.png', 'train/B/1.png', 'test/A/2.png', 'test/B/3.png')):
        for base in (inner, outer):
            write_film(tmp_path / 'raw' / base / name, i)
    for options in ({}, {'split': 'random'}):
        with pytest.raises(UserError, match='both hold a split') as error:
            _prepare(tmp_path, tmp_path / 'raw', **options)
        assert str(tmp_path / 'raw' / inner) in str(error.value) and '4 of the 4' in str(error.value)
        assert f'{inner}/test/A/2.png' in str(error.value)
    shutil.rmtree(tmp_path / 'raw' / inner)
    assert _prepare(tmp_path, tmp_path / 'raw').info.metadata['labels'] == ['A', 'B']


def test_masks_and_archives_are_no_films(tmp_path):
    for i in range(4):
        write_film(tmp_path / f'raw/images/{i}.png', i)
        write_film(tmp_path / f'raw/masks/{i}.png', 10 + i)
    builder = _prepare(tmp_path, tmp_path / 'raw')
    assert _ids(builder).keys() == {f'images/{i}.png' for i in range(4)}
    assert '4 files in folders of masks' in _notes(builder) and builder.info.metadata['labels'] == []
    archive = tmp_path / 'zip/films.zip'
    archive.parent.mkdir()
    archive.write_bytes(b'PK\3\4' + bytes(100))
    for folder, words in ((archive.parent, 'films.zip.*unpack what is'), (archive, 'is a file, unpack it')):
        with pytest.raises(UserError, match=words):
            _prepare(tmp_path, folder)


def test_links_to_folders_are_followed(tmp_path):
    for i in range(6):
        write_film(tmp_path / f'store/{"train" if i < 4 else "test"}/A/{i}.png', i)
    (tmp_path / 'raw').mkdir()
    for split in ('train', 'test'):
        (tmp_path / 'raw' / split).symlink_to(tmp_path / 'store' / split)
    builder = _prepare(tmp_path, tmp_path / 'raw')
    assert _ids(builder).keys() == {f'train/A/{i}.png' for i in range(4)} | {f'test/A/{i}.png' for i in (4, 5)}


@pytest.mark.parametrize('name', [b't\xf3rax.png', b'\xff\xfe.png', 'tórax\u2028.png'.encode()])
def test_names_that_are_not_utf8_come_back_escaped(tmp_path, name):
    for i in range(4):
        write_film(tmp_path / f'raw/{i}.png', i)
    shutil.copy(tmp_path / 'raw/0.png', tmp_path / 'new.png')
    write_film(tmp_path / 'new.png', 9)
    os.rename(os.fsencode(tmp_path / 'new.png'), os.fsencode(tmp_path / 'raw') + b'/' + name)
    ids = _ids(_prepare(tmp_path, tmp_path / 'raw'))
    assert len(ids) == 5 and any('\\' in image_id and image_id.isprintable() for image_id in ids)


def _split(tmp_path, copy_to='test/A/9.png', suffix='.png'):
    for i in range(6):
        write_film(tmp_path / f'raw/{"train" if i < 4 else "test"}/A/{i}.png', i)
    write_film((tmp_path / 'raw' / copy_to).with_suffix(suffix), 0)


@pytest.mark.parametrize('suffix', ['.png', '.bmp'])
def test_equal_pixels_in_two_splits_are_refused_by_name(tmp_path, suffix):
    _split(tmp_path, suffix=suffix)
    with pytest.raises(UserError, match=rf'test/A/9{suffix}: shows the same pixels as train/A/0.png') as error:
        _prepare(tmp_path, tmp_path / 'raw')
    assert 'option copies=keep' in str(error.value) and '--allow-bad 1' in str(error.value)
    kept = _prepare(tmp_path, tmp_path / 'raw', copies='keep')
    assert _count(kept) == 7 and 'films of test are also in train_val' in _notes(kept)
    lacking = prepare('image_folder_cxr', tmp_path / 'data', tmp_path / 'raw', {'size': 32}, allow_bad=1)
    assert _count(lacking) == 6 and f'test/A/9{suffix}' not in _ids(lacking)


def test_equal_films_in_one_split_are_noted_and_stay_together(tmp_path):
    _split(tmp_path, 'train/A/9.png')
    builder = _prepare(tmp_path, tmp_path / 'raw')
    assert 'such as train/A/9.png = train/A/0.png' in _notes(builder)
    assert _ids(builder)['train/A/9.png'] == _ids(builder)['train/A/0.png']  # so validation gets both or none


def test_a_drawn_split_keeps_equal_films_together(tmp_path):
    for i in range(12):
        write_film(tmp_path / f'raw/IMG{i}{(".png", ".bmp")[i % 2]}', i // 2)
    for seed in range(3):
        assert _count(_prepare(tmp_path, tmp_path / 'raw', split_seed=seed)) == 12


def test_equal_files(tmp_path):
    contents = {
        'a': b'x' * 99,
        'b': b'x' * 99,
        'c': b'y' * 99,
        'd': b'x',
        'e': b'',
        'f': b'',
        'g': bytes(1 << 17),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / 'h').write_bytes(bytes((1 << 17) - 1) + b'1')
    groups = copies.equal_files([*sorted(tmp_path.iterdir()), tmp_path / 'absent'])
    assert [[path.name for path in group] for group in groups] == [['a', 'b'], ['e', 'f']]


def test_one_file_does_not_end_the_run(tmp_path, monkeypatch):
    from mlvicx_jax_datasets import radiograph

    for i in range(20):
        write_film(tmp_path / f'raw/{i}.png', i)
    read = radiograph.read_radiograph

    def fail(path):
        if path.name in ('1.png', '3.png'):
            raise {'1.png': MemoryError(), '3.png': ZeroDivisionError('a decoder\nfails')}[path.name]
        return read(path)

    monkeypatch.setattr(radiograph, 'read_radiograph', fail)
    builder = prepare('image_folder_cxr', tmp_path / 'data', tmp_path / 'raw', {'size': 32}, allow_bad=2)
    reasons = sorted(row['reason'].partition(': ')[2] for row in read_report(builder.data_path)['bad'])
    assert (
        reasons[0].startswith('can not be read (MemoryError)') and 'ZeroDivisionError: a decoder' in reasons[1]
    )


def test_pseudonyms(tmp_path, capsys):
    for i in range(8):
        write(tmp_path / f'raw/P{i // 2:03}/2024/IM{i}', film(i), PatientID=f'P{i // 2:03}')
    broken = tmp_path / 'raw/P003/2024/IM9'
    broken.write_bytes((tmp_path / 'raw/P003/2024/IM7').read_bytes()[:1500])
    arguments = ['--dataset', 'image_folder_cxr', '--data_dir', str(tmp_path / 'data'), '--option', 'size=32']
    arguments += ['--manual_dir', str(tmp_path / 'raw'), '--pseudonymise', '--allow_bad', '1']
    command.main(arguments)
    assert 'patient ids are pseudonyms' in capsys.readouterr().out
    builder = _prepare(tmp_path, None, title='raw', pseudonymise=True)
    ids = _ids(builder)
    assert len(set(ids.values())) == 4 and all(
        name.startswith(f'{patient}/2024/IM') for name, patient in ids.items()
    )
    report = read_report(builder.data_path)
    assert 'P00' not in json.dumps([ids, report['bad'], report['notes']])
    key = tmp_path / 'data' / identity.KEY_FILE
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with_key = [
        path for path in pathlib.Path(builder.data_path).rglob('*') if key.read_bytes() in path.read_bytes()
    ]
    assert with_key == []
    broken.unlink()
    again = _prepare(tmp_path, tmp_path / 'raw', title='again', pseudonymise=True, table='none', split_seed=1)
    assert _ids(again) == ids  # the same patients in another set of this data_dir
    key.write_text('no key')
    with pytest.raises(UserError, match='restore it, or delete it'):
        _prepare(tmp_path, tmp_path / 'raw', title='third', pseudonymise=True)
