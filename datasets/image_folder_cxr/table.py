"""Records of anyone's own table: a row a film, whose cells are understood, or counted where they are not."""

import collections
import functools
import os
import pathlib
from collections.abc import Callable

import numpy as np

from mlvicx_jax.errors import UserError

from .. import columns, discovery, identity, labels, radiograph, words
from ..names import printable
from ..records import Record, some
from ..tables import Table, open_table
from .finder import Finder

# Names of labels beyond which a column of them holds sentences.
MANY_LABELS, SENTENCES = 1000, 50
LONGEST_NAME = 1000  # characters
UNCERTAIN = ('negative', 'positive', 'ignore')


def read_table(
    root: pathlib.Path, path: pathlib.Path, config, films: discovery.Films, note: Callable
) -> tuple[list[tuple[Record, str]], list[str]]:
    """The records of a table, each with its split as written, and the findings that have a column each.

    What was not understood is noted by count.

    Args:
        config: the options `columns`, `uncertain`, `masks` and `split` of the builder.
        films: what lies below `root`.

    Raises:
        UserError: the table does not say what is needed, or says it twice.
    """
    table = open_table(path)
    needed = ('image', 'mask') if config.masks else ('image',)
    found = columns.understand(
        table, columns.parse_mapping(config.columns), needed, split=config.split != 'random'
    )
    for line in found.notes:
        note(line)
    if 'mask' in found.roles and not config.masks:
        note(f'{path.name} has masks, which are not used; give option masks=True for them')
    finder = Finder(root, films)
    reader = _Reader(table, found, config, finder)
    entries = [entry for where, row in table.rows() if (entry := reader.read(where, row))]
    for line in reader.report():
        note(line)
    if finder.elsewhere:
        note(f'{finder.elsewhere} films were found in another folder than the table names')
    if idle := finder.idle():
        note(f'{len(idle)} films have no row in {path.name} and are not used', map(printable, idle))
    _refuse_sentences(table, found, entries)
    if not entries:
        raise UserError(f'{path}: no row is left with uncertain=ignore; give uncertain=negative or positive')
    if not any(os.path.exists(record.path) for record, _ in entries):
        name = table.header[found.roles['image'][0]]
        raise UserError(
            f'{path}: no image of column {name!r} exists below {root}, such as {entries[0][0].image_id}; give '
            'paths relative to manual_dir'
        )
    return entries, list(reader.findings.values())


def _refuse_sentences(table: Table, found: columns.Columns, entries: list[tuple[Record, str]]) -> None:
    names = {name for record, _ in entries for name in record.labels}
    if len(names) > MANY_LABELS or len(names) > max(SENTENCES, len(entries) / 2):
        column = table.header[found.roles['label'][0]]
        raise UserError(
            f'{table.path}: column {column!r} holds {len(names)} different labels in {len(entries)} rows, '
            f'such as {some(names)}; it looks like text: give another with --column label=NAME, or '
            f'--column ignore="{column}"'
        )


class _Reader:
    """Rows to records, and a count of all that was not understood."""

    def __init__(self, table: Table, found: columns.Columns, config, finder: Finder):
        self._table, self._columns, self._config, self._finder = table, found, config, finder
        self._lines: dict[str, str] = {}  # image -> where it is
        self._odd: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        self._counts: collections.Counter = collections.Counter()
        roles, findings = found.roles, dict(found.findings)
        self._lists = {}
        for i in roles.get('label', ()):
            if all(words.flag(cell) is not None for cell in found.cells[i]):
                findings[i] = table.header[i]
            else:
                self._lists[i] = labels.separator(found.cells[i])
        self.findings = findings
        self._flag = functools.lru_cache(1024)(words.flag)  # few different cells, as `columns` has seen

    def read(self, where: str, row: list[str]) -> tuple[Record, str] | None:
        """The record of a row, and its split; None where option uncertain=ignore leaves it out."""
        row = row + [''] * (len(self._table.header) - len(row))
        cell = {role: row[positions[0]] for role, positions in self._columns.roles.items() if role != 'ignore'}
        name = cell['image'] if cell['image'].isprintable() else printable(cell['image'])
        if not 0 < len(name) < LONGEST_NAME:
            raise UserError(
                f'{where}: the name of the image has {len(name)} characters, expected 1 to {LONGEST_NAME}'
            )
        if name in self._lines:
            raise UserError(
                f'{where}: {name[:120]} is there twice ({self._lines[name]}); join its labels with | in one row'
            )
        self._lines[name] = where.rpartition(', ')[2]
        path = self._finder.find(cell['image'], where)
        names = self._labels(row)
        mask = self._mask(cell['mask'], where) if self._config.masks else None
        if names is None:
            self._counts['left out'] += 1
            return None
        record = Record(
            name,
            self._patient(cell.get('patient', ''), name, path),
            path,
            names,
            self._view(row),
            self._word('sex', cell, words.sex, 'unknown'),
            self._word('age', cell, words.years, -1),
            mask=mask,
        )
        return record, cell.get('split', '')

    def _labels(self, row: list[str]) -> tuple[str, ...] | None:
        names: list[str] = []
        ignored = False
        for i, sign in self._lists.items():
            inside = labels.split_cell(row[i], sign)
            self._counts[f'list {i}'] += len(inside) > 1
            names += inside
        for i, name in self.findings.items():
            said = self._flag(row[i])
            if said == 'uncertain':
                self._counts[f'uncertain {name}'] += 1
                said = self._config.uncertain
                ignored |= said == 'ignore'
            if said == 'positive':
                names.append(name)
        return None if ignored else tuple(names)

    def _patient(self, cell: str, name: str, path: pathlib.Path) -> str:
        if cell and not identity.is_missing(cell):
            return cell
        found = identity.of_header(path)
        where = 'DICOM headers' if found else ''
        if not found and (found := identity.of_folders(name)):
            where = 'folders'
        self._counts[f'patient {where}'] += 1
        return found or name

    def _view(self, row: list[str]) -> str:
        """The view of the first column that says PA or AP, else of the first that says anything."""
        said = [(row[i], words.view(row[i])) for i in self._columns.roles.get('view', ())]
        for text, view in said:
            if view is None:
                self._odd['view'][text[:40]] += 1
        known = [view for _, view in said if view in ('PA', 'AP', 'lateral')]
        if known and 'lateral' in known:
            self._counts['lateral'] += 1
            return 'lateral'
        return known[0] if known else 'unknown'

    def _word(self, role: str, cell: dict[str, str], understand: Callable, unknown):
        value = understand(cell.get(role, ''))
        if value is None:
            self._odd[role][cell[role][:40]] += 1
        return unknown if value is None else value

    def _mask(self, cell: str, where: str):
        if not cell:
            raise UserError(
                f'{where}: no mask is named; give an all-black one where nothing is marked, or take the row out'
            )
        paths = tuple(self._finder.find(name.strip(), where) for name in cell.split('|'))
        return functools.partial(read_mask, paths)

    def report(self) -> list[str]:
        """A line for each rule that was applied and each thing that was not understood."""
        counts, lines = self._counts, []
        unsure = [f'{name} {n}' for name in self.findings.values() if (n := counts[f'uncertain {name}'])]
        if unsure:
            rule = self._config.uncertain
            how = 'left out, with their films' if rule == 'ignore' else f'stored as {rule}'
            lines.append(f'cells that are uncertain (-1) are {how} (option uncertain): {", ".join(unsure)}')
        if counts['left out']:
            lines.append(f'{counts["left out"]} films are left out, a finding being uncertain')
        if self.findings:
            lines.append('blank cells of findings are stored as negative')
        for i, sign in self._lists.items():
            if counts[f'list {i}']:
                lines.append(
                    f'{counts[f"list {i}"]} cells of {self._table.header[i]!r} are lists, cut at {sign!r}'
                )
        for role, cells in self._odd.items():
            examples = ', '.join(f'{text!r} ({n})' for text, n in cells.most_common(6))
            lines.append(
                f'{role}: {sum(cells.values())} cells were not understood and count as unknown: {examples}'
            )
        for key, text in (
            ('lateral', '{} films are lateral views by the table; they are kept, with view unknown'),
            ('patient DICOM headers', 'patients of {} films are those of their DICOM headers'),
            ('patient folders', 'patients of {} films are those that their folders name'),
            ('patient ', 'of {} films no patient is given: each of them counts as a patient'),
        ):
            if counts[key]:
                lines.append(text.format(counts[key]))
        return lines


def read_mask(paths: tuple[pathlib.Path, ...]) -> np.ndarray:
    """The union of mask files as bool [H, W]: what is brighter than half of a file's brightest."""
    masks = []
    for path in paths:
        mask = radiograph.read_image(path)
        masks.append(mask > mask.max() / 2)
    if len({mask.shape for mask in masks}) > 1:
        raise UserError(
            f'{paths[0]}: masks of one image differ in shape ({", ".join(str(mask.shape) for mask in masks)})'
        )
    return np.logical_or.reduce(masks)
