"""Names of findings as people write them: lists in one cell, and spellings of one name joined."""

import collections
import re
from collections.abc import Iterable, Mapping

from . import words

NO_FINDING = 'No Finding'  # the label of images without any of the others, by which it is known everywhere
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
# Findings of the public sets, by which a column is known to hold findings whatever its name.
_PUBLIC = (
    'Atelectasis|Cardiomegaly|Effusion|Infiltration|Mass|Nodule|Pneumonia|Pneumothorax|Consolidation|Edema|'
    'Emphysema|Fibrosis|Pleural Thickening|Hernia|No Finding|Enlarged Cardiomediastinum|Lung Opacity|'
    'Lung Lesion|Pleural Effusion|Pleural Other|Fracture|Support Devices|Normal|Abnormal|Tuberculosis|COVID|'
    'COVID-19|Viral Pneumonia|Bacterial Pneumonia|Aortic enlargement|Calcification|ILD|Nodule/Mass|'
    'Other lesion|Pulmonary fibrosis|Infiltrate|Oedema|Granuloma|Scoliosis|Healthy|Sick'
)
KNOWN = frozenset(map(words.plain, _PUBLIC.split('|')))


def separator(cells: Iterable[str]) -> str:
    """What lists in the cells of a column are separated by: '|' if any cell has one, else ';', else ','.

    Cells written as Python or JSON lists are read as such, whatever this says.
    """
    signs = {sign for cell in cells if not _is_list(cell) for sign in '|;' if sign in cell}
    return '|' if '|' in signs else ';' if signs else ','


def split_cell(cell: str, sign: str) -> tuple[str, ...]:
    """The names in a cell, each once: 'Mass|Edema', "['Mass', 'Edema']"; () where it is blank.

    Names are as written but for spaces around them; a whole number stands as '1', not '1.0'.
    """
    if words.is_blank(cell):
        return ()
    if _is_list(cell):
        inside = cell[1:-1]
        quoted = [re.sub(r'\\(.)', r'\1', one or other) for one, other in _QUOTED.findall(inside)]
        parts = quoted or inside.split(',')
    else:
        parts = re.split(rf'[\n{re.escape(sign)}]', cell)
    names = (' '.join(part.split()) for part in parts)
    return tuple(dict.fromkeys(words.whole(name) or name for name in names if not words.is_blank(name)))


def join_spellings(counts: Mapping[str, int]) -> tuple[dict[str, str], list[str]]:
    """{a spelling: the one that is stored}, and a line for each name that has several.

    Spellings of one name differ in case, spaces and underscores only. The most frequent is stored, of
    equals the first by letters; 'No Finding' is stored in this spelling, by which it is known everywhere.
    """
    names = collections.defaultdict(list)
    for spelling in sorted(counts, key=lambda text: (-counts[text], text)):
        names[' '.join(spelling.casefold().replace('_', ' ').split())].append(spelling)
    stored, notes = {}, []
    for form, spellings in names.items():
        chosen = NO_FINDING if form == NO_FINDING.casefold() else spellings[0]
        stored.update(dict.fromkeys(spellings, chosen))
        if spellings != [chosen]:
            written = ', '.join(f'{text!r} ({counts[text]})' for text in spellings[:6])
            notes.append(f'label {chosen!r} joins the spellings {written}')
    return stored, notes


def _is_list(cell: str) -> bool:
    return len(cell) > 1 and cell[0] + cell[-1] in ('[]', '{}')
