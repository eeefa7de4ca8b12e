"""A CSV that is written row by row, keeps what it has when it is stopped, and goes on from there."""

import contextlib
import csv
import io
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol

from mlvicx_jax.errors import UserError
from mlvicx_jax.files import write_text


class Table(Protocol):
    """Rows that are there already, in the order of the films, and how to add the next ones."""

    kept: list[list[str]]

    def write(self, rows: Sequence[Sequence[str]]) -> None: ...


class _Printed:
    """On the terminal, where nothing is kept."""

    def __init__(self, header: Sequence[str]):
        self.kept: list[list[str]] = []
        self._writer = csv.writer(sys.stdout, lineterminator='\n')
        self._writer.writerow(header)

    def write(self, rows):
        self._writer.writerows(rows)
        sys.stdout.flush()


class _Filed:
    """In a file, whose rows are on disk when `write` returns."""

    def __init__(self, file, kept: list[list[str]]):
        self.kept, self._file = kept, file

    def write(self, rows):
        csv.writer(self._file, lineterminator='\n').writerows(rows)
        self._file.flush()


@contextlib.contextmanager
def opened(
    out, header: Sequence[str], paths: Sequence[str], names: Sequence[str], made_by: str
) -> Iterator[Table]:
    """A `Table` with a row for each film, which takes its name when the block ends well.

    Until then its rows lie in `<out>.<made_by>.partial`. A second start with the same `made_by` keeps
    them, as far as they are of the same films in the same order and no film is newer than they are,
    so that the finished table is that of one start. Without `out` the rows are printed.

    Args:
        header: its first row.
        paths: the films.
        names: of the films, as the first column has them.
        made_by: what rows have to be made by, to be kept: a hash of network and options.

    Raises:
        UserError: the file can not be written.
    """
    if out is None:
        try:
            yield _Printed(header)
        except BrokenPipeError:  # whoever read it has enough, such as head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    out = pathlib.Path(out)
    partial = out.with_name(f'{out.name}.{made_by}.partial')
    try:
        for other in out.parent.glob(f'{out.name}.*.partial'):
            if other != partial:
                other.unlink()  # another network's: nobody goes on with it under this name
        kept = _kept(partial, header, paths, names)
        rows = io.StringIO()
        csv.writer(rows, lineterminator='\n').writerows([header, *kept])
        write_text(partial, rows.getvalue())  # a kill in between leaves the rows of before
        with partial.open('a', newline='', encoding='utf-8') as file:
            yield _Filed(file, kept)
        os.replace(partial, out)
    except OSError as error:
        raise UserError(f'{out}: can not be written ({error.strerror}); give another --out') from error


def _kept(partial: pathlib.Path, header, paths, names) -> list[list[str]]:
    """The rows of an earlier start, up to the first film that it lacks or that has changed since."""
    try:
        content, written = partial.read_text(encoding='utf-8'), partial.stat().st_mtime_ns
    except (OSError, UnicodeDecodeError):
        return []
    whole, _, _ = content.rpartition('\n')  # a kill may have cut the last row
    try:
        first, *rows = list(csv.reader(io.StringIO(whole))) or [[]]
    except csv.Error:
        return []
    if first != list(header):
        return []
    kept = []
    for row, path, name in zip(rows, paths, names):
        if len(row) != len(header) or row[0] != name or _changed(path) > written:
            break
        kept.append(row)
    return kept


def _changed(path: str) -> float:
    """When a file was last changed, in ns; never where it is not there."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return float('inf')
