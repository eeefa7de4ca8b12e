"""Which files are films: found by their first bytes, through links; what is passed over is counted."""

import collections
import dataclasses
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator

from mlvicx_jax.errors import UserError

from . import dicom
from .names import printable

_DICOM_SUFFIXES = ('.dcm', '.dicom')
SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp', '.webp', *_DICOM_SUFFIXES)
FORMATS = 'PNG, JPEG, DICOM, TIFF, BMP or WebP'
HEAD = 1024  # bytes that `kind` looks at
_DIB_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes of a BMP's second header
_DIRECTORY_CLASS = b'1.2.840.10008.1.3.10'  # Media Storage Directory Storage, what a DICOMDIR is
# What macOS, Windows and network disks put beside anyone's files.
_SYSTEM_NAMES = ('__macosx', '@eadir', '$recycle.bin', 'lost+found', 'thumbs.db', 'ehthumbs.db', 'desktop.ini')


@dataclasses.dataclass(frozen=True)
class Films:
    """The films found, sorted, and what else was there: {reason: names relative to their folder}."""

    paths: list[pathlib.Path]
    passed_over: dict[str, list[str]]

    def describe(self) -> str:
        """One line that counts what was passed over and why; empty where nothing was."""
        if not self.passed_over:
            return ''
        parts = []
        for reason, names in sorted(self.passed_over.items(), key=lambda item: -len(item[1])):
            examples = ', '.join(map(printable, names[:3])) + (', ...' if len(names) > 3 else '')
            parts.append(f'{len(names)} {reason} ({examples})')
        return f'{len(self.paths)} films found; passed over: ' + '; '.join(parts)


def kind(head: bytes) -> str | None:
    """The format of a file by its first `HEAD` bytes: 'png', 'jpeg', ..., or None for any other."""
    if head.startswith(b'\x89PNG\r\n\x1a\n'):
        return 'png'
    if head.startswith(b'\xff\xd8'):
        return 'jpeg'
    if head.startswith((b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')):  # + is BigTIFF
        return 'tiff'
    if head.startswith(b'RIFF') and head[8:12] == b'WEBP':
        return 'webp'
    if head.startswith(b'BM') and int.from_bytes(head[14:18], 'little') in _DIB_HEADERS:
        return 'bmp'
    return 'dicom' if dicom.is_dicom(head) else None


def find_films(roots: str | os.PathLike | Iterable[str | os.PathLike]) -> Films:
    """The films of one or several folders, in all their folders; a file that is named is taken as it is.

    A file is a film if its name ends as one of `SUFFIXES` or its first bytes are those of `FORMATS`.
    The suffix counts too so that a damaged film.png is refused by its name later, rather than passed
    over here. Links to files and folders are followed, but each folder is read once, under its own path
    where that lies in the tree, so that links which lead back end.

    Raises:
        UserError: a folder does not exist or can not be listed.
    """
    roots = [roots] if isinstance(roots, (str, os.PathLike)) else roots
    paths, passed_over = [], collections.defaultdict(list)
    for root in map(pathlib.Path, roots):
        if not root.is_dir():
            paths.append(root)
            continue
        found = []
        for path, reason in _walk(root):
            reason = reason or _not_a_film(path)
            if reason:
                passed_over[reason].append(os.path.relpath(path, root))
            else:
                found.append(path)
        if not found:
            passed_over['without a film'].append(str(root))
        paths += sorted(found)
    return Films(paths, {reason: sorted(names) for reason, names in passed_over.items()})


def _walk(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    """(path, '') of each file below `root`, and (path, reason) of what is not entered."""
    folders, links, seen = [root], [], set()
    while folders or links:
        if not folders:  # a folder is read under its own path rather than a link's
            links.sort(reverse=True)
        folder = folders.pop() if folders else links.pop()
        try:
            status = folder.stat()
            entries = list(os.scandir(folder))
        except OSError as error:
            if folder == root:
                raise UserError(f'{printable(root)}: can not be listed ({error.strerror})') from error
            yield folder, 'that can not be read'
            continue
        if (status.st_dev, status.st_ino) in seen:
            yield folder, 'leading to a folder that is read already'
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            path = pathlib.Path(entry.path)
            if entry.name.startswith('.'):
                yield path, 'hidden'
            elif entry.name.lower() in _SYSTEM_NAMES:
                yield path, 'made by the operating system'
            elif path.is_dir():
                (links if entry.is_symlink() else folders).append(path)
            else:
                yield path, ''


def _not_a_film(path: pathlib.Path) -> str:
    """Why a file is passed over; '' for a film."""
    suffix = path.suffix.lower()
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return 'that are no regular files'  # reading a pipe would wait for ever
        if suffix in SUFFIXES and suffix not in _DICOM_SUFFIXES:
            return ''
        with path.open('rb') as file:
            head = file.read(HEAD)
    except OSError:
        return 'that can not be read'
    if _DIRECTORY_CLASS in head[:512] or path.name.upper() == 'DICOMDIR':
        return 'DICOMDIR, a list of contents'
    if suffix in SUFFIXES or kind(head):
        return ''
    return f'of another format than {FORMATS}' if head else 'empty'
