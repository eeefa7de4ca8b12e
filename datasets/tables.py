"""Text of a release: lists and CSV tables of any usual separator and encoding, read row by row."""

import codecs
import csv
import dataclasses
import io
import pathlib
from collections.abc import Iterator, Sequence

from mlvicx_jax.errors import UserError

from . import words

SEPARATORS = (',', ';', '\t', '|')
_NAMES = {',': 'comma', ';': 'semicolon', '\t': 'tab', '|': '|'}
ROW = 1 << 20  # characters; a row is refused before more of it are in memory
COLUMNS = 2000
NAME = 500  # characters of a column's name
TEXT = 256 << 20  # bytes of a file that is read whole
_SAMPLE = 1 << 16  # characters that the separator is told from
_MARKS = (
    (codecs.BOM_UTF8, 'utf-8-sig'),
    (codecs.BOM_UTF32_LE, 'utf-32'),
    (codecs.BOM_UTF32_BE, 'utf-32'),
    (codecs.BOM_UTF16_LE, 'utf-16'),
    (codecs.BOM_UTF16_BE, 'utf-16'),
)
# What spreadsheets write that are no text.
_WORKBOOKS = {b'PK\x03\x04': 'an Excel or Calc workbook', b'\xd0\xcf\x11\xe0': 'an Excel workbook'}


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file: its header, stripped, and how its rows are to be read."""

    path: pathlib.Path
    header: tuple[str, ...]
    separator: str
    encoding: str

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """Yields ('file, line n', stripped cells) of each row that is not empty, after the header.

        Rows are as long as they are in the file.

        Raises:
            UserError: a row that is no CSV, or longer than `ROW`, or bytes that are no text.
        """
        rows = _read(self.path, self.separator, self.encoding)
        next(rows)  # the header
        for line, cells in rows:
            yield f'{self.path}, line {line}', cells

    def column(self, name: str) -> int | None:
        """The position of a column, whatever the case, spaces and underscores of its name."""
        if name in self.header:
            return self.header.index(name)
        wanted = words.plain(name)
        return next((i for i, found in enumerate(self.header) if words.plain(found) == wanted), None)

    def describe(self) -> str:
        """What is unusual about the file, in a few words; empty for UTF-8 with commas."""
        said = []
        if self.separator != ',':
            said.append(f'separated by {_NAMES[self.separator]}')
        if self.encoding == 'cp1252':
            said.append('not UTF-8, so read as Windows-1252')
        elif not self.encoding.startswith('utf-8'):
            said.append(f'read as {self.encoding.upper()}')
        return f'{self.path.name}: {", ".join(said)}' if said else ''


def open_table(path: pathlib.Path) -> Table:
    """Opens a CSV file, told its encoding and its separator by its content.

    The encoding is that of its byte order mark, else UTF-8, or else Windows-1252. The separator is the one
    of comma, semicolon, tab and | that cuts the first rows most evenly, and the header into most names.

    Raises:
        UserError: the file is missing, no text, has no rows, or more than `COLUMNS` columns.
    """
    encoding = _encoding(path)
    separator = _sniff(path, encoding)
    rows = _read(path, separator, encoding)
    header = next(rows, (0, []))[1]
    if next(rows, None) is None:
        raise UserError(f'{path}: the file has no rows')
    if (longest := max(map(len, header))) > NAME:
        raise UserError(
            f'{path}: the first line has a name of {longest} characters, expected {NAME} at most; '
            'is it the header?'
        )
    if len(header) > COLUMNS:
        raise UserError(f'{path}: has {len(header)} columns, expected {COLUMNS} at most; take some out')
    return Table(path, tuple(header), separator, encoding)


def read_columns(
    path: pathlib.Path, names: Sequence[str], way_out: str = 'use the table as it was published'
) -> Iterator[tuple[str, list[str]]]:
    """Yields ('file, line n', the named cells) of each row; case, spaces and underscores of names are free.

    Rows may have more cells than the header has names, as NIH's do; a short row is refused.
    """
    table = open_table(path)
    columns = []
    for name in names:
        if (position := table.column(name)) is None:
            raise UserError(f'{path}: no column {name!r} ({found(table)}); {way_out}')
        columns.append(position)
    for where, cells in table.rows():
        if len(cells) <= max(columns):
            raise UserError(f'{where}: {len(cells)} fields, expected at least {max(columns) + 1}')
        yield where, [cells[i] for i in columns]


def found(table: Table) -> str:
    """The names of a header for a message, and the separator that they were cut by."""
    names = ', '.join(name[:60] for name in table.header[:40])
    more = f' and {len(table.header) - 40} more' if len(table.header) > 40 else ''
    return f'found: {names}{more}; read as separated by {_NAMES[table.separator]}'


def read_text(path: pathlib.Path) -> str:
    """A text file whole, such as a list, in any of the encodings of `open_table`."""
    encoding = _encoding(path)
    if path.stat().st_size > TEXT:
        raise UserError(f'{path}: has {path.stat().st_size >> 20} MB, expected {TEXT >> 20} at most')
    try:
        return path.read_text(encoding=encoding)
    except UnicodeError:
        raise _no_text(path) from None


def _no_text(path: pathlib.Path) -> UserError:
    return UserError(
        f'{path}: neither UTF-8 nor UTF-16 nor Windows-1252 text; save it as UTF-8 or fetch it again'
    )


def _encoding(path: pathlib.Path) -> str:
    try:
        with path.open('rb') as file:
            head = file.read(4096)
            for mark, name in _MARKS:
                if head.startswith(mark):
                    return name
            for mark, what in _WORKBOOKS.items():
                if head.startswith(mark):
                    raise UserError(f'{path}: is {what}, expected text; save it as CSV in UTF-8')
            for start, name in ((1, 'utf-16-le'), (0, 'utf-16-be')):  # UTF-16 without its mark
                if head[start::2].count(0) > len(head) / 6 and head[1 - start :: 2].count(0) < len(head) / 20:
                    return name
            decoder = codecs.getincrementaldecoder('utf-8')()
            while head:
                decoder.decode(head)
                head = file.read(1 << 20)
            decoder.decode(b'', final=True)
    except FileNotFoundError:
        raise UserError(f'{path}: the file does not exist; it is part of the release') from None
    except UnicodeDecodeError:
        return 'cp1252'
    except OSError as error:
        raise UserError(f'{path}: can not be read ({error.strerror})') from error
    return 'utf-8'


def _sniff(path: pathlib.Path, encoding: str) -> str:
    try:
        with path.open(encoding=encoding, newline='') as file:
            text = file.read(_SAMPLE)
    except UnicodeError:
        raise _no_text(path) from None
    first = text.split('\n', 1)[0].strip()
    if first.casefold().startswith('sep=') and first[4:] in SEPARATORS:  # Excel's own way to say it
        return first[4:]
    best = (0, 1, ',')
    for separator in SEPARATORS:
        rows = []
        try:
            for row in csv.reader(io.StringIO(text, newline=''), delimiter=separator, skipinitialspace=True):
                rows.append(len(row))
                if len(rows) > 20:
                    break
        except csv.Error:  # the sample ends within a quoted cell, or this is the wrong separator
            pass
        header = rows[0] if rows else 0
        even = sum(count == header for count in rows[1:])
        if header > 1 and (even, header) > best[:2]:
            best = (even, header, separator)
    return best[2]


def _read(path: pathlib.Path, separator: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, stripped cells) of the rows that are not empty, the header first."""
    spent = number = 0  # characters of the row so far, lines

    def lines(file) -> Iterator[str]:
        nonlocal spent, number
        while line := file.readline(ROW + 1):
            spent, number = spent + len(line), number + 1
            if spent > ROW:
                raise UserError(
                    f'{path}, line {number}: a row of more than {ROW} characters; '
                    'is the file a table, or a quote not closed?'
                )
            yield line

    try:
        with path.open(encoding=encoding, newline='') as file:
            reader = csv.reader(lines(file), delimiter=separator, skipinitialspace=True, strict=True)
            for row in reader:
                spent = 0
                cells = [cell.strip() for cell in row]
                if any(cells) and not (number == 1 and cells[0].casefold().startswith('sep=')):
                    yield number, cells
    except csv.Error as error:
        raise UserError(f'{path}, line {number}: not a CSV row ({error}); is a quote not closed?') from None
    except UnicodeError:
        raise _no_text(path) from None
