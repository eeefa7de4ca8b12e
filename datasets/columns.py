"""Which column of anyone's table is what: by its name, by its cells, or by what the user says."""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

from mlvicx_jax.errors import UserError

from . import discovery, labels, words
from .tables import Table, found

# What a column may be called, case, spaces and underscores aside; the first that is there is taken.
ROLES = {
    'image': words.listed(
        'image imagepath imagefile imagefilename imagename imageindex imageid img imgpath imgname imgid path '
        'filepath file filename film dicom dicompath dicomfile dcm sopinstanceuid bild bilddatei bildname '
        'dateiname datei pfad'
    ),
    'label': words.listed(
        'labels label findinglabels findings finding findinglabel class classes classname diagnosis diagnoses '
        'pathology pathologies disease diseases target befund befunde diagnose diagnosen'
    ),
    'patient': words.listed(
        'patientid patient subjectid subject patientno patientnr patientnumber patientkey patid pid mrn '
        'personid caseid anonymizedpatientid patientenid patientennummer patientennr pat'
    ),
    'split': words.listed('split fold set subset partition'),
    'mask': words.listed('mask maskpath masks maskfile maskfilename'),
    'view': words.listed('view viewposition appa paap projection frontallateral ansicht strahlengang'),
    'sex': words.listed('sex gender patientsex patientgender geschlecht'),
    'age': words.listed('age patientage ageyears ageinyears ageatstudy alter patientenalter'),
}
SEVERAL = ('label', 'view', 'ignore')  # roles that several columns may have
SPLITS = {
    **dict.fromkeys(words.listed('train training trainval val valid validation dev'), 'train_val'),
    **dict.fromkeys(words.listed('test testing'), 'test'),
}
_COUNTERS = {'', 'unnamed0', 'index', 'id', 'row', 'nr', 'no', 'number', 'followup', 'followupno'}
# Names by which a column looks like a role that nothing has yet.
_LOOKS = {
    'patient': re.compile(
        r'(?:patient|subject|person|participant|individual|proband|mrn|medicalrecord|^pat(?!h|t)|^case)'
        r'(?!.*(?:name|age|sex|gender|weight|height|birth|size|position|history|comment|status|type))'
    ),
    'split': re.compile(r'split|(?<!mani)fold|partition|subset|traintest|trainortest|^phase$|^usage$'),
    'label': re.compile(
        r'label|finding|diagnos|pathol|disease|class|target|categor|outcome|annotation|groundtruth|befund|^gt$|^y$'
    ),
}
# Names of ids; where the ids repeat, they say which films belong together.
_GROUP = re.compile(
    r'(?:(?:^|[^a-zA-Z])(?:[iI][dD]|[uU][iI][dD]|[nN][oO])|(?<=[a-z])(?:U?ID|Id|No)|[nN][rR]|[nN]ummer|[nN]umber)\W*$'
)
_STUDY = re.compile(r'^(?:study|exam|accession|encounter|admission|hadm)')
_NO_GROUP = re.compile(
    r'class|label|reader|rad|device|station|site|hospital|institution|image|img|modality|file|follow|visit|'
    r'series|slice|row|order|count'
)
_MANY = 10_000  # different cells of a column that are counted; beyond, it is a text


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where things stand in the rows of a table.

    Attributes:
        roles: positions by role, of those that are there.
        findings: position of each column that holds one finding as 0 and 1: its name.
        cells: how often each cell occurs, by position; cut at `_MANY` different ones.
        notes: a line for each thing that the user should know.
    """

    roles: dict[str, tuple[int, ...]]
    findings: dict[int, str]
    cells: list[collections.Counter]
    notes: list[str]


def parse_mapping(text: str) -> dict[str, list[str]]:
    """'patient=Patient ID;ignore=site' as {'patient': ['Patient ID'], 'ignore': ['site']}.

    Raises:
        UserError: a part that is no ROLE=NAME, an unknown role, or a role twice that can be had once.
    """
    mapping: dict[str, list[str]] = {}
    for part in filter(None, (part.strip() for part in text.split(';'))):
        role, _, name = (piece.strip() for piece in part.partition('='))
        if not name or role not in (*ROLES, 'ignore'):
            raise UserError(
                f'--column {part!r} (option columns): expected ROLE=NAME, such as patient="Patient ID", '
                f'where ROLE is one of {", ".join(ROLES)} or ignore'
            )
        mapping.setdefault(role, []).append(name)
        if len(mapping[role]) > 1 and role not in SEVERAL:
            raise UserError(f'--column {role} is given twice ({", ".join(mapping[role])}); give one column')
    return mapping


def understand(table: Table, asked: Mapping[str, list[str]], needed: Iterable[str], split: bool) -> Columns:
    """Says what each column is.

    First what `asked` says; then names; then columns of 0, 1, -1 and blanks are findings, where no column
    of labels is named. A column that looks like patients, labels or the split, while nothing else is, is
    not passed over: it has to be mapped or ignored by the user.

    Args:
        asked: names of columns by role, or by 'ignore'; see `parse_mapping`.
        needed: roles that have to be there.
        split: whether the table's split is wanted.

    Raises:
        UserError: a column that is asked for or needed is not there, or one that has to be mapped.
    """
    roles = {role: tuple(_position(table, role, name) for name in names) for role, names in asked.items()}
    names, cells = [words.plain(name) for name in table.header], _count(table)
    taken = {i for positions in roles.values() for i in positions}
    for role, known in ROLES.items():
        here = [names.index(name) for name in known if name in names and names.index(name) not in taken]
        if role == 'image':
            here.sort(key=lambda i: _share(cells[i], _is_path) < 0.9)  # paths rather than ids
        if role not in roles and here:
            roles[role] = tuple(here) if role == 'view' else (here[0],)
            taken.update(roles[role])
    rest = [
        i for i in range(len(names)) if i not in taken and any(not words.is_blank(cell) for cell in cells[i])
    ]
    if 'image' not in roles and (
        paths := [i for i in rest if _share(cells[i], _is_path) > 0.9 and not _is_path(table.header[i])]
    ):
        roles['image'] = (paths[0],)
        rest.remove(paths[0])
    for role in needed:
        if role not in roles:
            raise UserError(
                f'{table.path}: no column of {role}s ({found(table)}); say which it is with '
                f'--column {role}=NAME, '
                f'or call it {ROLES[role][0]}{_headerless(table)}'
            )
    flags = [
        i
        for i in rest
        if _is_flags(cells[i])
        and names[i] not in _COUNTERS
        and not any(_LOOKS[role].search(names[i]) for role in ('patient', 'split'))
    ]
    findings = {}
    if 'label' not in asked:
        copies = {words.plain(n) for i in roles.get('label', ()) for cell in cells[i] for n in cell.split('|')}
        own = [i for i in flags if names[i] not in copies]
        if 'label' in roles and own:
            raise _unused(table, own[0], 'a finding (0 and 1)', 'label', table.header[roles['label'][0]])
        findings = {i: table.header[i] for i in own}
    rest = [i for i in rest if i not in findings]
    _refuse_unused(table, roles, rest, names, cells, split, bool(findings))
    return Columns(roles, findings, cells, _describe(table, roles, findings, rest))


def _position(table: Table, role: str, name: str) -> int:
    position = table.column(name)
    if position is None:
        raise UserError(f'{table.path}: no column {name!r}, which --column {role} names ({found(table)})')
    return position


def _count(table: Table) -> list[collections.Counter]:
    """How often each cell occurs in each column; refuses rows that do not fit the header."""
    width = len(table.header)
    least = max((i + 1 for i, name in enumerate(table.header) if name), default=0)  # Excel leaves empty ones
    counts: list[collections.Counter] = [collections.Counter() for _ in range(width)]
    full = [False] * width
    for n, (where, row) in enumerate(table.rows()):
        if len(row) < least:
            raise UserError(f'{where}: {len(row)} fields, the header has {width} names; fill the row up')
        if any(row[width:]):
            raise UserError(
                f'{where}: {len(row)} fields, the header has {width} names; put a cell that holds the '
                f'separator into quotes ({found(table)})'
            )
        for i, cell in enumerate(row[:width]):
            if not full[i]:
                counts[i][cell[:200]] += 1
        if n % 1000 == 0:
            full = [len(counter) > _MANY for counter in counts]
    return counts


def _share(cells: collections.Counter, holds: Callable[[str], object]) -> float:
    """The share of cells for which something holds, of those that are not blank."""
    known = {cell: count for cell, count in cells.items() if not words.is_blank(cell)}
    return sum(count for cell, count in known.items() if holds(cell)) / max(sum(known.values()), 1)


def _is_path(cell: str) -> bool:
    return cell.lower().endswith(discovery.SUFFIXES)


def _is_flags(cells: collections.Counter) -> bool:
    return len(cells) <= 50 and all(words.flag(cell) is not None for cell in cells)


def _headerless(table: Table) -> str:
    is_row = any(_is_path(name) for name in table.header)
    return '; the first line has to hold the names of the columns, and looks like a row' if is_row else ''


def _refuse_unused(table, roles, rest, names, cells, split, has_findings) -> None:
    """Refuses a column that looks like a role which no column has."""
    for i in rest:
        rows = sum(cells[i].values())
        repeated = 1 < len(cells[i]) < 0.9 * rows
        is_group = _GROUP.search(table.header[i]) or _STUDY.search(names[i])
        is_group = is_group and repeated and not _NO_GROUP.search(names[i])
        if 'patient' not in roles and (is_group or _LOOKS['patient'].search(names[i])):
            raise _unused(table, i, 'patients', 'patient')
        sides = {SPLITS.get(words.plain(cell)) for cell in cells[i] if not words.is_blank(cell)}
        if (
            split
            and 'split' not in roles
            and (_LOOKS['split'].search(names[i]) or sides == {'train_val', 'test'})
        ):
            raise _unused(table, i, 'the split', 'split')
        if 'label' in roles:
            continue
        odd = sum(count for cell, count in cells[i].items() if words.flag(cell) is None)
        is_finding = names[i] in labels.KNOWN or (0 < odd < 0.1 * rows and _share(cells[i], words.flag) > 0.5)
        if is_finding and odd:
            examples = [repr(cell[:40]) for cell in cells[i] if words.flag(cell) is None]
            kind = f'a finding, but {odd} cells are {", ".join(examples[:3])} rather than 0, 1, -1 or blank'
            raise _unused(table, i, kind, 'label')
        named = _share(cells[i], lambda cell: words.plain(re.split(r'[|;,]', cell)[0]) in labels.KNOWN) > 0.5
        if named or (_LOOKS['label'].search(names[i]) and not has_findings):
            raise _unused(table, i, 'labels', 'label')


def _unused(table: Table, i: int, kind: str, role: str, instead: str = '') -> UserError:
    name = table.header[i]
    other = f', or that only {instead!r} is meant with --column {role}="{instead}"' if instead else ''
    return UserError(
        f'{table.path}: column {name!r} looks like {kind} and would not be used; say that it is meant with '
        f'--column {role}="{name}"{other}, or that it is not needed with --column ignore="{name}" '
        '(in a config: data.options.columns)'
    )


def _describe(table: Table, roles: dict, findings: dict[int, str], rest: list[int]) -> list[str]:
    used = ', '.join(
        f'{role} = ' + ' and '.join(repr(table.header[i]) for i in positions)
        for role, positions in roles.items()
        if role != 'ignore'
    )
    notes = [f'columns of {table.path.name}: {used}']
    if findings:
        notes.append(f'findings, a column each: {", ".join(findings.values())}')
    unused = [repr(table.header[i][:60]) for i in (*roles.get('ignore', ()), *rest)]
    if unused:
        more = f' and {len(unused) - 12} more' if len(unused) > 12 else ''
        notes.append(f'{len(unused)} columns not used: {", ".join(unused[:12])}{more}')
    return [text for text in (table.describe(),) if text] + notes
