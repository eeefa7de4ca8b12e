"""Bad images are collected, not fatal; a set that lacks some is taken only if that is allowed."""

import io
import json
import sys
import tarfile

import numpy as np
import pytest
from nih_release import write_release

from mlvicx_jax.commands import prepare as prepare_command
from mlvicx_jax.data import prepare as prepare_lib
from mlvicx_jax.data.prepare import prepare, read_report
from mlvicx_jax.data.source import open_dataset
from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import radiograph, release

OPTIONS = {'size': 32}


@pytest.fixture
def spoiled(tmp_path):
    """A release with a truncated, an empty and a text file; returns its lists."""
    lists = write_release(tmp_path / 'raw')
    images = tmp_path / 'raw/images'
    whole = (images / lists['train_val'][0]).read_bytes()
    (images / lists['train_val'][0]).write_bytes(whole[:-100])
    (images / lists['train_val'][5]).write_bytes(b'')
    (images / lists['test'][1]).write_bytes(b'<html>404</html>')
    return lists


def _command(tmp_path, *more):
    return [
        '--dataset',
        'nih_chestxray14',
        '--data_dir',
        str(tmp_path / 'data'),
        '--manual_dir',
        str(tmp_path / 'raw'),
        '--option',
        'size=32',
        *more,
    ]


def test_run_with_bad_images_fails_at_its_end_and_lists_them(tmp_path, spoiled):
    with pytest.raises(SystemExit) as exit_:
        prepare_command.main(_command(tmp_path))
    message = str(exit_.value)
    assert message.startswith('error: nih_chestxray14: 3 of 16 images') and '\n' not in message
    assert '--allow_bad 3' in message
    (path,) = (tmp_path / 'data').rglob('prepare_report.json')
    assert str(path) in message
    report = json.loads(path.read_text())
    assert report['images'] == 13
    reasons = {row['file'].rpartition('/')[2]: row['reason'] for row in report['bad']}
    for name, words in (
        (spoiled['train_val'][0], 'truncated'),
        (spoiled['train_val'][5], 'is empty'),
        (spoiled['test'][1], 'neither PNG nor JPEG nor DICOM'),
    ):
        assert words in reasons[name]
    with pytest.raises(UserError, match='manual_dir'):  # training does not take it for prepared
        open_dataset('nih_chestxray14', tmp_path / 'data', None, OPTIONS)


def test_allowed_set_is_taken_without_reading_images_again(tmp_path, spoiled, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        prepare_command.main(_command(tmp_path, '--allow_bad', '2'))
    monkeypatch.setattr(radiograph, 'read_radiograph', lambda path: pytest.fail('read again'))
    prepare_command.main(_command(tmp_path, '--allow_bad', '3'))
    printed = capsys.readouterr().out
    assert 'train_val: 10 images' in printed and 'left out: 3 images' in printed
    builder = prepare('nih_chestxray14', tmp_path / 'data', None, OPTIONS)
    assert len(read_report(builder.data_path)['bad']) == 3
    ids = {e['image_id'].decode() for e in builder.as_data_source('train_val')}
    assert ids == set(spoiled['train_val']) - {spoiled['train_val'][0], spoiled['train_val'][5]}
    assert not list(builder.data_path.parent.glob('unchecked.*'))


def test_mended_images_are_read_again(tmp_path, spoiled):
    arguments = 'nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS
    with pytest.raises(UserError, match='3 of 16'):
        prepare(*arguments)
    write_release(tmp_path / 'raw')
    builder = prepare(*arguments)
    report = read_report(builder.data_path)
    assert (report['images'], report['bad']) == (16, [])
    assert not list(builder.data_path.parent.glob('unchecked.*'))


def test_split_without_any_good_image_ends_the_run(tmp_path):
    lists = write_release(tmp_path / 'raw')
    for name in lists['test']:
        (tmp_path / 'raw/images' / name).write_bytes(b'')
    with pytest.raises(UserError, match='no image of test can be used; the last reason'):
        prepare('nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS, allow_bad=9)


def test_missing_decoder_ends_the_run_at_once(tmp_path, monkeypatch):
    dicoms = pytest.importorskip('dicoms')
    lists = write_release(tmp_path / 'raw')
    for name in lists['train_val'][:2]:  # content decides
        dicoms.write(tmp_path / 'raw/images' / name, np.zeros((8, 8), np.uint8))
    release.dicom.require.cache_clear()
    monkeypatch.setitem(sys.modules, 'pydicom', None)
    with pytest.raises(release.dicom.NotInstalled):
        prepare('nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS)


def test_progress_shows_the_end(tmp_path, capsys):
    write_release(tmp_path / 'raw')
    prepare('nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS)
    shown = capsys.readouterr().err
    assert 'nih_chestxray14 train_val: 100%' in shown and '12/12' in shown


def test_stream_keeps_the_order_of_archives_and_reads_each_once(tmp_path):
    names = [[f'{a}_{i}.png' for i in range(3)] for a in range(2)]
    paths = []
    for number, inside in enumerate(names):
        paths.append(tmp_path / f'images_{number:03}.tar.gz')
        with tarfile.open(paths[-1], 'w:gz') as archive:
            for name in inside:
                member = tarfile.TarInfo(f'images/{name}')
                member.size = len(name)
                archive.addfile(member, io.BytesIO(name.encode()))
    assert [(n, d.decode()) for n, d in release.stream_tar(paths)] == [
        (name, name) for inside in names for name in inside
    ]


def test_drawn_test_patients_depend_on_seed_and_ids_alone():
    records = [release.Record(f'{p}_{i}', str(p)) for p in range(50) for i in range(1 + p % 3)]
    one = release.draw_test(records, 0.2, 0)
    two = release.draw_test(records[::-1], 0.2, 0)
    patients = [{r.patient_id for r in split['test']} for split in (one, two)]
    assert patients[0] == patients[1] and len(patients[0]) == 10
    assert not patients[0] & {r.patient_id for r in one['train_val']}
    assert patients[0] != {r.patient_id for r in release.draw_test(records, 0.2, 1)['test']}
    assert len(one['train_val']) + len(one['test']) == len(records)


def test_list_hash_is_the_hash_of_a_split(tmp_path):
    lists = write_release(tmp_path / 'raw')
    data = open_dataset('nih_chestxray14', tmp_path / 'data', tmp_path / 'raw', OPTIONS)
    assert data.splits['test'].hash == release.list_hash(lists['test'])


def test_sorting_on_disk_gives_what_sorting_in_memory_gives(tmp_path, monkeypatch):
    write_release(tmp_path / 'raw')
    one = prepare('nih_chestxray14', tmp_path / 'one', tmp_path / 'raw', OPTIONS)
    monkeypatch.setattr(prepare_lib.shuffle, 'MAX_MEM_BUFFER_SIZE', 2000)  # bytes: a few images
    two = prepare('nih_chestxray14', tmp_path / 'two', tmp_path / 'raw', OPTIONS)
    assert 'tensorflow' not in sys.modules
    for split in ('train_val', 'test'):
        pair = [
            [(e['image_id'], e['image'].tobytes()) for e in builder.as_data_source(split)]
            for builder in (one, two)
        ]
        assert pair[0] == pair[1] and len(pair[0]) == one.info.splits[split].num_examples
    assert not list(two.data_path.glob('bucket*'))
