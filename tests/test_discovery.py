"""Films are found by their content; what is passed over is counted, and names of any bytes survive."""

import os
import pathlib

import pytest

from mlvicx_jax_datasets import discovery
from mlvicx_jax_datasets.discovery import find_films

HEADS = {
    'png': b'\x89PNG\r\n\x1a\n',
    'jpeg': b'\xff\xd8\xff\xe0',
    'tiff': b'II*\0',
    'bmp': b'BM' + bytes(12) + b'\x28\0\0\0',
    'webp': b'RIFF\x10\0\0\0WEBPVP8 ',
    'dicom': bytes(128) + b'DICM',
}


def _tree(root: pathlib.Path, **files: bytes) -> pathlib.Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def _names(found: discovery.Films, root) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found.paths]


@pytest.mark.parametrize('kind', HEADS)
def test_content_tells_a_film_without_suffix(tmp_path, kind):
    assert discovery.kind(HEADS[kind]) == kind
    _tree(tmp_path, **{'STUDY/S0/IM000000': HEADS[kind], 'STUDY/readme': b'text', 'film.txt': HEADS[kind]})
    found = find_films(tmp_path)
    assert _names(found, tmp_path) == ['STUDY/S0/IM000000', 'film.txt']
    assert list(found.passed_over.values()) == [['STUDY/readme']]


def test_old_dicom_without_preamble_is_told_from_text_and_numbers():
    assert discovery.kind(b'\x08\0\x05\0\x0a\0\0\0ISO_IR 100' + bytes(200)) == 'dicom'
    assert discovery.kind(b'\x08\0\x16\0UI\x1a\0001.2.840.10008.5.1.4.1.1.1\0' + bytes(200)) == 'dicom'
    for other in (
        b'\x08\0\xff\0\xff\xff\xff\x7f' + bytes(200),
        b'\x02\0\0\0' + b'\xff' * 200,
        b'BMW' * 99,
        b'',
    ):
        assert discovery.kind(other) is None


def test_a_damaged_film_is_found_by_its_suffix_so_that_it_is_refused_by_name(tmp_path):
    _tree(tmp_path, **{'page.PNG': b'<html>', 'empty.dcm': b'', 'empty': b''})
    found = find_films(tmp_path)
    assert _names(found, tmp_path) == ['empty.dcm', 'page.PNG']
    assert found.describe() == '2 films found; passed over: 1 empty (empty)'


def test_what_systems_leave_beside_films_is_passed_over_and_counted(tmp_path):
    film, directory = HEADS['png'], bytes(128) + b'DICM\x02\0\x02\0UI\x14\x001.2.840.10008.1.3.10'
    _tree(
        tmp_path,
        **dict.fromkeys(('a/1.png', 'a/._1.png', '.hidden/2.png', '__MACOSX/a/1.png', '@eaDir/1.png'), film),
        **{'Thumbs.db': b'x', '.DS_Store': b'x', 'DICOMDIR': directory, 'copy.dcm': directory},
    )
    found = find_films(tmp_path)
    assert _names(found, tmp_path) == ['a/1.png']
    assert found.passed_over == {
        'hidden': ['.DS_Store', '.hidden', 'a/._1.png'],
        'made by the operating system': ['@eaDir', 'Thumbs.db', '__MACOSX'],
        'DICOMDIR, a list of contents': ['DICOMDIR', 'copy.dcm'],
    }
    assert '3 hidden (.DS_Store, .hidden, a/._1.png)' in found.describe()
    assert '\n' not in found.describe()


def test_links_are_followed_and_loops_end(tmp_path):
    store = _tree(tmp_path / 'store', **{'train/1.png': HEADS['png'], 'test/2.png': HEADS['png']})
    root = tmp_path / 'set'
    root.mkdir()
    for name in ('train', 'test'):
        (root / name).symlink_to(store / name)
    assert _names(find_films(root), root) == ['test/2.png', 'train/1.png']
    (store / 'test' / 'again').symlink_to(root)  # a loop through a link
    (store / 'train' / 'self').symlink_to('self')  # one that can not be resolved
    (store / 'train' / '3.png').symlink_to('1.png')
    (store / 'train' / 'gone.png').symlink_to('nowhere')
    os.mkfifo(store / 'train' / 'pipe.png')
    found = find_films(root)
    assert _names(found, root) == ['test/2.png', 'train/1.png', 'train/3.png']
    assert {reason: len(names) for reason, names in found.passed_over.items()} == {
        'leading to a folder that is read already': 1,
        'that can not be read': 2,
        'that are no regular files': 1,
    }


def test_a_folder_reached_twice_is_read_once_under_its_own_path(tmp_path):
    _tree(tmp_path, **{'z/1.png': HEADS['png']})
    (tmp_path / 'a').symlink_to('z')
    found = find_films(tmp_path)
    assert _names(found, tmp_path) == ['z/1.png']
    assert found.passed_over == {'leading to a folder that is read already': ['a']}


def test_names_that_are_not_utf8_survive_and_print(tmp_path):
    raw = os.fsencode(tmp_path) + b'/t\xf3rax\n1.png'
    pathlib.Path(os.fsdecode(raw)).write_bytes(HEADS['png'])
    [path] = find_films(tmp_path).paths
    assert os.fsencode(path) == raw and path.exists()
    assert discovery.printable(path.name) == 't\\udcf3rax\\n1.png'
    assert discovery.printable('Röntgen 1.png') == 'Röntgen 1.png'


def test_files_that_are_named_are_taken_as_they_are(tmp_path):
    _tree(tmp_path, **{'notes.txt': b'text', 'folder/1.png': HEADS['png']})
    (tmp_path / 'bare').mkdir()
    given = [tmp_path / name for name in ('notes.txt', 'folder', 'missing.png', 'bare')]
    found = find_films(given)
    assert found.paths == [given[0], tmp_path / 'folder/1.png', given[2]]
    assert found.passed_over == {'without a film': [str(tmp_path / 'bare')]}
