"""Tar archives: what is not wanted is not read, and nothing is read that would fill the memory."""

import io
import tarfile

import pytest

from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import archives


def _tar(path, *members):
    """An archive of (name, content) members."""
    with tarfile.open(path, 'w:gz') as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _sparse(path, name, size):
    """A GNU sparse member of `size` bytes, none of which is stored."""
    member = tarfile.TarInfo(name)
    member.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    # One run of no bytes, which starts at the end, and the real size; base 256, as octal ends at 8 GB.
    block[386:398] = block[483:495] = b'\x80' + size.to_bytes(11, 'big')
    block[398:410] = b'%011o\0' % 0
    block[148:156] = b' ' * 8
    block[148:156] = b'%06o\0 ' % sum(block)
    path.write_bytes(bytes(block) + bytes(1024))
    return path


def test_members_that_are_not_wanted_are_not_read(tmp_path, monkeypatch):
    paths = [
        _tar(
            tmp_path / 'a.tar.gz', ('images/1.png', b'one'), ('images/2.png', bytes(1 << 20)), ('x/3.png', b'')
        ),
        _tar(tmp_path / 'b.tar.gz', ('4.png', b'four')),
    ]
    extract, read = tarfile.TarFile.extractfile, []
    monkeypatch.setattr(
        tarfile.TarFile, 'extractfile', lambda self, member: read.append(member.name) or extract(self, member)
    )
    found = dict(archives.stream_tar(paths, {'1.png', '3.png', '4.png'}))
    assert found == {'1.png': b'one', '3.png': b'', '4.png': b'four'}
    assert read == ['images/1.png', 'x/3.png', '4.png']


@pytest.mark.parametrize('size', [1 << 30, 1 << 40])
def test_a_sparse_member_is_not_filled_up(tmp_path, size):
    path = _sparse(tmp_path / 'a.tar', '1.png', size)
    ((name, reason),) = archives.stream_tar([path], {'1.png'})
    assert name == '1.png' and f'has {size} bytes, expected {archives.MEMBER} at most' in reason
    assert list(archives.stream_tar([path], {'2.png'})) == []


@pytest.mark.parametrize('kind', [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_would_fill_the_memory_ends_in_one_line(tmp_path, kind):
    member = tarfile.TarInfo('long')
    member.type, member.size = kind, 100 << 20
    (tmp_path / 'a.tar').write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    with pytest.raises(UserError, match=r'a.tar: .*a header of 104857600 bytes') as error:
        list(archives.stream_tar([tmp_path / 'a.tar'], {'1.png'}))
    assert '\n' not in str(error.value)
