"""The NIH builder reads the release and Kaggle's copy alike, and refuses every damaged one."""

import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest
from nih_release import write_release

from mlvicx_jax.commands import prepare as prepare_command
from mlvicx_jax.data import prepare as prepare_lib
from mlvicx_jax.data.prepare import prepare
from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import nih_lists, radiograph
from mlvicx_jax_datasets.nih_chestxray14 import nih_chestxray14_dataset_builder as nih

REAL = pathlib.Path(os.environ.get('MLVICX_REAL_DATA', 'absent'))
OPTIONS = {'size': 32}


def _examples(builder, split):
    return {e['image_id'].decode(): e for e in builder.as_data_source(split)}


@pytest.mark.parametrize('kaggle', [False, True])
def test_both_forms_of_the_release(tmp_path, kaggle):
    lists = write_release(tmp_path / 'raw', kaggle=kaggle)
    builder = prepare('nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS)
    assert 'tensorflow' not in sys.modules
    assert tuple(builder.info.metadata['labels']) == nih.LABELS and len(nih.LABELS) == 15
    for split, ids in lists.items():
        assert builder.info.splits[split].num_examples == len(ids)
        assert set(_examples(builder, split)) == set(ids)
    examples = _examples(builder, 'train_val')
    first = examples[lists['train_val'][0]]
    assert first['patient_id'] == b'1' and first['age'] == 51
    assert nih.SEXES[first['sex']] == 'M' and nih.VIEWS[first['view']] == 'PA'
    assert [nih.LABELS[i] for i in np.flatnonzero(first['labels'])] == ['Hernia']
    boxes = first['bboxes']
    np.testing.assert_allclose(boxes['bbox'][0], [512 / 1024, 256 / 1024, 576 / 1024, 384 / 1024])
    np.testing.assert_allclose(boxes['bbox'][1], [0, 1000 / 1024, 1, 1])  # clipped to the frame
    assert [nih.LABELS[i] for i in boxes['label']] == ['Infiltration', 'Mass']
    second = examples[lists['train_val'][2]]
    assert [nih.LABELS[i] for i in np.flatnonzero(second['labels'])] == ['Infiltration', 'Mass']
    folders = ('images_001/images', 'images_002/images') if kaggle else ('images', 'images')
    for folder, image_id in zip(folders, lists['train_val']):
        raw = radiograph.read_image(tmp_path / 'raw' / folder / image_id)
        np.testing.assert_array_equal(examples[image_id]['image'][..., 0], radiograph.resize(raw, 32))


@pytest.mark.parametrize(
    'text,age', [('58', 58), ('058Y', 58), ('011M', 0), ('020D', 0), ('414', -1), ('', -1)]
)
def test_age(text, age):
    assert nih._age(text, 'here') == age


def _edit(name, old, new, count=1):
    def edit(root):
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, count))

    return edit


def _append(name, line):
    def edit(root):
        with open(root / name, 'a') as file:
            file.write(line + '\n')

    return edit


TABLE, BOXES, TRAIN, TEST = (
    'Data_Entry_2017_v2020.csv',
    'BBox_List_2017.csv',
    'train_val_list.txt',
    'test_list.txt',
)
ROW = '{},{},0,{},50,M,PA,1,1,0.1,0.1'
BAD = {
    'no table': (lambda root: (root / TABLE).unlink(), [TABLE, 'does not exist']),
    'no list': (lambda root: (root / TEST).unlink(), [TEST, 'does not exist']),
    'no boxes': (lambda root: (root / BOXES).unlink(), [BOXES, 'does not exist']),
    'no images': (lambda root: shutil.rmtree(root / 'images'), ['images_001/images', 'unpack']),
    'no column': (_edit(TABLE, 'Patient ID', 'Patient'), [TABLE, "'Patient ID'", 'found:']),
    'no box column': (_edit(BOXES, 'Bbox [x', 'Box [x'), [BOXES, "'Bbox [x,y,w,h]'"]),
    'empty table': (lambda root: (root / TABLE).write_text(''), [TABLE, 'no rows']),
    'short row': (_append(TABLE, '00000009_000.png,Mass'), [TABLE, 'line 18', '2 fields']),
    'not in table': (_append(TRAIN, '00000077_000.png'), [TRAIN, '00000077_000.png', 'table']),
    'no file': (
        lambda root: (root / 'images/00000002_001.png').unlink(),
        [TRAIN, 'no image file', '00000002_001.png'],
    ),
    'empty list': (lambda root: (root / TEST).write_text('\n'), [TEST, 'empty']),
    'image in both': (_append(TEST, '00000001_000.png'), ['00000001_000.png both in']),
    'patient in both': (_edit(TABLE, ',1,7,', ',1,1,'), ['patient 1 both in', TRAIN, TEST]),
    'unknown finding': (_edit(TABLE, 'Hernia', 'Hernla'), [TABLE, 'line 2', "'Hernla'"]),
    'unknown box finding': (_edit(BOXES, 'Mass', 'Lump'), [BOXES, 'line 3', "'Lump'"]),
    'bad box': (_edit(BOXES, '128.0', '-3'), [BOXES, 'line 2', 'empty or outside']),
    'box of text': (_edit(BOXES, '128.0', 'wide'), [BOXES, 'line 2', 'four numbers']),
    'box of nan': (_edit(BOXES, '128.0', 'nan'), [BOXES, 'line 2', 'empty or outside']),
    'row twice': (_append(TABLE, ROW.format('00000001_000.png', 'Mass', 1)), [TABLE, 'twice']),
    'listed twice': (_append(TRAIN, '00000001_000.png'), [TRAIN, '00000001_000.png', 'twice']),
    'latin-1': (
        lambda root: (root / TABLE).write_bytes((root / TABLE).read_bytes() + b'00000009_000.png,Ma\x81'),
        [TABLE, 'UTF-8'],
    ),
    'bad age': (_edit(TABLE, ',51,', ',old,'), [TABLE, 'line 2', "'old'"]),
    'bad patient': (_edit(TABLE, ',0,1,', ',0,one,'), [TABLE, 'line 2', "'one'"]),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_release_is_refused_before_any_image_is_read(tmp_path, monkeypatch, case):
    monkeypatch.setattr(radiograph, 'read_radiograph', lambda path: pytest.fail('decoded an image'))
    spoil, words = BAD[case]
    write_release(tmp_path / 'raw')
    spoil(tmp_path / 'raw')
    with pytest.raises(UserError) as error:
        prepare('nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS)
    message = str(error.value)
    assert '\n' not in message
    for word in words:
        assert word in message, message
    assert not list((tmp_path / 'data').rglob('*.array_record*'))


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    write_release(tmp_path / 'raw')
    for name in (TABLE, BOXES, TRAIN, TEST):
        path = tmp_path / 'raw' / name
        path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes().replace(b'\n', b'\r\n'))
    builder = prepare('nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS)
    assert builder.info.splits['train_val'].num_examples == 12


def _into_images_images(root):
    shutil.move(root / 'images', root / 'inner')
    (root / 'images').mkdir()
    shutil.move(root / 'inner', root / 'images/images')


def _into_archives_of_kaggle(root):
    shutil.move(root / 'images', root / 'inner')
    for path in (root / 'inner').iterdir():
        target = root / f'images_00{1 + int(path.stem[-1])}/deep/images/{path.name}'
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)


def _as_jpeg(root):
    for path in (root / 'images').iterdir():
        cv2.imwrite(str(path.with_suffix('.jpg')), cv2.imread(str(path), 0))
        path.unlink()


def _flags_in_list(root, sign=' '):
    names = (root / TEST).read_text().split()
    (root / TEST).write_text('\r\n'.join(sign.join([name, *'01000000000000']) for name in names))


@pytest.mark.parametrize(
    'change',
    [
        _into_images_images,
        _into_archives_of_kaggle,
        _as_jpeg,
        _flags_in_list,
        lambda root: _flags_in_list(root, ','),
        lambda root: (root / TRAIN).write_text((root / TRAIN).read_text().replace('0000', 'images/0000', 1)),
        _edit(TABLE, 'Image Index,Finding Labels', 'image_index,finding_labels'),
        _edit(TABLE, ',51,', ',>89,'),
        _edit(TABLE, ',1,51,', ',1.0,51.0,'),
        lambda root: (root / TABLE).write_text((root / TABLE).read_text(), encoding='utf-16'),
    ],
)
def test_other_forms_of_the_release_are_read(tmp_path, change):
    lists = write_release(tmp_path / 'raw')
    change(tmp_path / 'raw')
    builder = prepare('nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS)
    for split, names in lists.items():
        found = _examples(builder, split)
        assert found.keys() == set(names)
        assert {name: int(name[:8]) for name in names} == {n: int(e['patient_id']) for n, e in found.items()}


def test_list_that_holds_more_than_names(tmp_path):
    write_release(tmp_path / 'raw')
    (tmp_path / 'raw' / TEST).write_text('00000007_000.png Mass|Edema\n')
    with pytest.raises(UserError, match=r'test_list.txt, line 1: .* holds more than a name, expected one'):
        prepare('nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS)


@pytest.mark.parametrize('manual_dir', [None, 'absent', 'empty'])
def test_missing_release_says_where_to_get_it(tmp_path, manual_dir):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError) as error:
        prepare('nih_chestxray14', tmp_path / 'data', manual_dir and tmp_path / manual_dir)
    for word in (
        'manual_dir',
        'NIH Clinical Center',
        '--config.data.name=phantom_cxr',
        'configs/quickstart.py',
    ):
        assert word in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'name,options,words',
    [
        ('nih', {}, ["'nih'", 'nih_chestxray14']),
        ('nih_chestxray14', {'sise': 64}, ["'sise'", 'size']),
        ('nih_chestxray14', {'size': '64'}, ['size', "'64'", 'int']),
        ('nih_chestxray14', {'size': 0}, ['size', '0']),
    ],
)
def test_unknown_set_or_option(tmp_path, name, options, words):
    with pytest.raises(UserError) as error:
        prepare(name, tmp_path, tmp_path, options)
    assert all(word in str(error.value) for word in words), error.value


def test_damaged_image_leaves_nothing_that_passes_for_prepared(tmp_path):
    lists = write_release(tmp_path / 'raw')
    path = tmp_path / 'raw/images' / lists['test'][1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(UserError, match=f'{path.name}: the PNG is truncated'):
        prepare('nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS)
    with pytest.raises(UserError, match='manual_dir'):
        prepare('nih_chestxray14', tmp_path / 'data', None, OPTIONS)
    path.write_bytes(whole)
    builder = prepare('nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS)
    assert builder.info.splits['test'].num_examples == 4


def test_a_killed_run_leaves_nothing_that_passes_for_whole(tmp_path):
    write_release(tmp_path / 'raw')
    program = (
        'import os, signal\n'
        'from mlvicx_jax_datasets import radiograph\n'
        'from mlvicx_jax.data.prepare import prepare\n'
        'real = radiograph.read_radiograph\n'
        'def read(path):\n'
        '    if path.name == "00000008_000.png": os.kill(os.getpid(), signal.SIGKILL)\n'
        '    return real(path)\n'
        'radiograph.read_radiograph = read\n'
        f'prepare("nih_chestxray14", {str(tmp_path / "data")!r}, {str(tmp_path / "raw")!r}, '
        '{"size": 32})\n'
    )
    killed = subprocess.run([sys.executable, '-c', program], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    config = tmp_path / 'data/nih_chestxray14/size32'
    assert list(config.glob('incomplete.*'))
    with pytest.raises(UserError, match='manual_dir'):  # it is not taken for prepared
        prepare('nih_chestxray14', tmp_path / 'data', None, OPTIONS)
    prepare('nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS)
    assert not list(config.glob('incomplete.*'))
    # Once prepared, the release is not needed.
    assert prepare('nih_chestxray14', tmp_path / 'data', None, OPTIONS).is_prepared()


def test_prepared_folder_with_a_file_gone_is_refused(tmp_path):
    write_release(tmp_path / 'raw')
    builder = prepare('nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS)
    (record,) = builder.data_path.glob('*test.array_record*')
    record.unlink()
    with pytest.raises(UserError, match='is gone; delete'):
        prepare('nih_chestxray14', tmp_path / 'data', None, OPTIONS)
    (builder.data_path / 'dataset_info.json').unlink()
    with pytest.raises(UserError, match='not a whole prepared data set'):
        prepare('nih_chestxray14', tmp_path / 'data', None, OPTIONS)


def test_two_processes_prepare_once(tmp_path):
    write_release(tmp_path / 'raw')
    command = [
        sys.executable,
        '-m',
        'mlvicx_jax.prepare',
        '--dataset',
        'nih_chestxray14',
        '--data_dir',
        tmp_path / 'data',
        '--manual_dir',
        tmp_path / 'raw',
        '--option',
        'size=32',
    ]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for run in runs:
        out, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
        assert 'train_val: 12 images' in out and 'test: 4 images' in out and 'size32' in out


def test_unwritable_and_full_disk(tmp_path, monkeypatch):
    write_release(tmp_path / 'raw')
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='can not be written'):
        prepare('nih_chestxray14', tmp_path / 'file/data', tmp_path / 'raw', OPTIONS)
    for error, words in (
        (OSError(28, 'No space left on device'), 'disk is full'),
        (RuntimeError('writer: No space left on device'), 'disk is full'),
        (PermissionError(13, 'Permission denied'), 'can not be written'),
    ):

        def fail(*args, error=error, **kwargs):
            raise RuntimeError('wrapped') from error

        monkeypatch.setattr(nih.Builder, 'download_and_prepare', fail)
        with pytest.raises(UserError, match=words):
            prepare('nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS)


def test_command_line_prints_one_line_on_a_mistake(tmp_path, capsys):
    arguments = ['--dataset', 'nih_chestxray14', '--data_dir', str(tmp_path), '--option', 'size']
    assert prepare_command.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: --option 'size'")


@pytest.mark.skipif(not REAL.is_dir(), reason='MLVICX_REAL_DATA names no folder')
def test_official_tables_parse(tmp_path):
    official = REAL / 'nih_official'
    boxes = nih._read_boxes(official / BOXES)
    assert len(boxes) == 880 and sum(map(len, boxes.values())) == 984
    for source, name in (
        ('Data_Entry_2017_v2020.head.csv', TABLE),
        ('kaggle_sample_labels.head.csv', 'Data_Entry_2017.csv'),
    ):
        root = tmp_path / name
        root.mkdir()
        shutil.copy(official / source, root / name)
        table = nih._read_table(root)
        assert len(table) > 100
        for image_id, entry in table.items():
            assert entry.patient_id == str(int(image_id[:8])) and 0 <= entry.age <= 120


@pytest.mark.skipif(not REAL.is_dir(), reason='MLVICX_REAL_DATA names no folder')
def test_real_sample(tmp_path):
    builder = prepare('nih_chestxray14', tmp_path, REAL / 'nih_sample', {'size': 64})
    train_val, test = _examples(builder, 'train_val'), _examples(builder, 'test')
    assert (len(train_val), len(test)) == (737, 262)
    patients = [{e['patient_id'] for e in part.values()} for part in (train_val, test)]
    assert not patients[0] & patients[1] and len(patients[0] | patients[1]) == 682
    everything = [*train_val.values(), *test.values()]
    positives = dict(zip(nih.LABELS, np.sum([e['labels'] for e in everything], axis=0)))
    assert (positives['Pneumonia'], positives['No Finding'], positives['Infiltration']) == (500, 499, 187)
    assert sum(nih.VIEWS[e['view']] == 'AP' for e in everything) == 566


def _pack(root):
    """The images of a release as two tar.gz archives, interleaving the splits."""
    paths = sorted((root / 'images').iterdir())
    for number in (1, 2):
        with tarfile.open(root / f'images_{number:03}.tar.gz', 'w:gz') as archive:
            for path in paths[number - 1 :: 2]:
                archive.add(path, f'images/{path.name}')
    shutil.rmtree(root / 'images')


def test_archives_give_the_set_that_unpacked_images_give(tmp_path):
    lists = write_release(tmp_path / 'raw')
    unpacked = prepare('nih_chestxray14', tmp_path / 'one', tmp_path / 'raw', OPTIONS)
    _pack(tmp_path / 'raw')
    packed = prepare('nih_chestxray14', tmp_path / 'two', tmp_path / 'raw', OPTIONS)
    for split in lists:
        one, two = _examples(unpacked, split), _examples(packed, split)
        assert one.keys() == two.keys() == set(lists[split])
        for image_id, example in one.items():
            np.testing.assert_array_equal(example['image'], two[image_id]['image'])
            np.testing.assert_array_equal(example['labels'], two[image_id]['labels'])
            assert example['patient_id'] == two[image_id]['patient_id']
    assert not [f for f in packed.data_path.iterdir() if f.name.startswith('tmp')]


def test_archives_with_images_damaged_or_absent_and_truncated_archives(tmp_path):
    lists = write_release(tmp_path / 'raw')
    (tmp_path / 'raw/images' / lists['train_val'][0]).unlink()
    (tmp_path / 'raw/images' / lists['test'][0]).unlink()
    (tmp_path / 'raw/images' / lists['test'][1]).write_bytes(b'')
    _pack(tmp_path / 'raw')
    arguments = 'nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS
    with pytest.raises(UserError, match='3 of 16 images'):
        prepare(*arguments)
    builder = prepare(*arguments, allow_bad=3)
    assert [builder.info.splits[split].num_examples for split in lists] == [11, 2]
    bad = prepare_lib.read_report(builder.data_path)['bad']
    assert {row['file']: row['reason'].partition(': ')[2] for row in bad} == {
        lists['train_val'][0]: 'none of the 2 archives has this image',
        lists['test'][0]: 'none of the 2 archives has this image',
        lists['test'][1]: 'the image file is empty; fetch or export this image again',
    }
    archive = tmp_path / 'raw/images_002.tar.gz'
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(UserError, match='images_002.tar.gz: the archive is truncated') as error:
        prepare('nih_chestxray14', tmp_path / 'new', tmp_path / 'raw', OPTIONS)
    assert '\n' not in str(error.value)


@pytest.mark.skipif(not REAL.is_dir(), reason='MLVICX_REAL_DATA names no folder')
def test_official_lists_are_known_by_their_hash(tmp_path):
    lists = nih_lists.read_lists(REAL / 'nih_official')
    assert {split: len(names) for split, names in lists.items()} == {'train_val': 86524, 'test': 25596}
    assert nih_lists.is_official(lists)
    assert nih_lists.is_official({split: names[::-1] for split, names in lists.items()})
    lists['test'].pop()
    assert not nih_lists.is_official(lists)
    (tmp_path / 'images_003.tar.gz').touch()
    with pytest.raises(UserError, match='images_001.tar.gz, .* and 8 more not there'):
        nih._find_archives(tmp_path, official=True)


def test_unofficial_lists_are_recorded_and_printed(tmp_path, capsys):
    lists = write_release(tmp_path / 'raw')
    prepare_command.main(
        [
            '--dataset',
            'nih_chestxray14',
            '--data_dir',
            str(tmp_path / 'data'),
            '--manual_dir',
            str(tmp_path / 'raw'),
            '--option',
            'size=32',
        ]
    )
    printed = capsys.readouterr().out
    assert "train_val_list.txt is NOT NIH's official list (12 names" in printed
    builder = prepare('nih_chestxray14', tmp_path / 'data', None, OPTIONS)
    digest = hashlib.sha256('\n'.join(sorted(lists['test'])).encode()).hexdigest()
    assert builder.info.metadata['lists']['test'] == {'sha256': digest, 'official': False}
