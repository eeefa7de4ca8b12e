"""Films from tar archives, each of them read once from front to end."""

from __future__ import annotations

import itertools
import os
import pathlib
import tarfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence

from mlvicx_jax.errors import UserError

from . import pictures, radiograph
from .pictures import Picture
from .records import Record
from .spool import Spool

MEMBER = 256 << 20  # bytes of a member; no film of 100 megapixels is larger
_HEADER = 1 << 20  # bytes of a long name or of the extended header of a member
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE) + (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class _Member(tarfile.TarInfo):
    """A member whose extended header is refused where it would fill the memory."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTENDED and member.size > _HEADER:
            raise tarfile.ReadError(f'a header of {member.size} bytes')
        return member


def stream_tar(paths: Iterable[pathlib.Path], wanted: Collection[str]) -> Iterator[tuple[str, bytes | str]]:
    """Yields (file name without folders, content) of the wanted files of the archives, in their order.

    Members that are not wanted are passed over unread. Of one larger than `MEMBER` bytes, as a sparse one
    may say it is, the content is the reason why it is not read, a str.

    Raises:
        UserError: an archive is truncated or damaged: what follows in it is lost.
    """
    for path in paths:
        try:
            with tarfile.open(path, 'r|*', tarinfo=_Member) as archive:
                for member in archive:
                    name = pathlib.PurePosixPath(member.name).name
                    if not member.isfile() or name not in wanted:
                        continue
                    if member.size > MEMBER:
                        yield name, f'{name} in {path}: has {member.size} bytes, expected {MEMBER} at most'
                    else:
                        yield name, archive.extractfile(member).read()
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise UserError(f'{path}: the archive is truncated or damaged ({error}); fetch it again') from error


class Stream:
    """Pictures of all splits from tar archives, each of them read once from front to end.

    gzip has no random access, and TFDS asks for one split after the other: while the first is
    read, the pictures of the others, small by then, wait in a file beside the records.
    """

    def __init__(
        self, paths: Sequence[pathlib.Path], splits: dict[str, list[Record]], size: int, folder: os.PathLike
    ):
        """`folder`: of the unfinished set, which goes with a killed run."""
        self._paths, self._splits, self._size = paths, splits, size
        self._first, self._spool = next(iter(splits)), Spool(folder)

    def pictures(self, split: str) -> Iterator[tuple[Record, Picture | str]]:
        return self._read_all() if split == self._first else self._spool.read(self._splits[split])

    def _read_all(self) -> Iterator[tuple[Record, Picture | str]]:
        wanted = {r.image_id: (split, r) for split, rs in self._splits.items() for r in rs}
        seen = set()

        def jobs():
            for name, data in stream_tar(self._paths, wanted):
                if name not in seen:
                    seen.add(name)
                    yield *wanted[name], data

        def work(job):
            split, record, data = job
            picture = data if isinstance(data, str) else pictures.read(record, self._size, data)
            return split, record, picture

        def absent():
            for name, (split, record) in wanted.items():
                if name not in seen:
                    yield split, record, f'{name}: none of the {len(self._paths)} archives has this image'

        found = radiograph.parallel_map(work, jobs(), os.cpu_count() or 1)
        for split, record, picture in itertools.chain(found, absent()):
            if split == self._first:
                yield record, picture
            else:
                self._spool.keep(record.image_id, picture)
