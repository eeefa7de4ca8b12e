"""NIH ChestX-ray14 from the files of its public release, or of Kaggle's copy of it."""

import collections
import dataclasses
import pathlib
import re

import tensorflow_datasets.public_api as tfds

from mlvicx_jax.errors import UserError

from .. import discovery, nih_lists, release, schema, tables, words
from ..nih_lists import LISTS
from ..records import Box, Record, read_box, some

# The order of the data set's paper and CSV documentation; 'No Finding' is NIH's own fifteenth.
LABELS = (
    'Atelectasis',
    'Cardiomegaly',
    'Effusion',
    'Infiltration',
    'Mass',
    'Nodule',
    'Pneumonia',
    'Pneumothorax',
    'Consolidation',
    'Edema',
    'Emphysema',
    'Fibrosis',
    'Pleural_Thickening',
    'Hernia',
    'No Finding',
)
VIEWS, SEXES = schema.VIEWS, schema.SEXES
TABLES = ('Data_Entry_2017_v2020.csv', 'Data_Entry_2017.csv')  # the corrected one first
BOXES = 'BBox_List_2017.csv'
BOX_FRAME = 1024  # pixels: every image of the release is 1024 x 1024, and boxes are given in it
ARCHIVES = 12  # images_001.tar.gz to images_012.tar.gz

_COLUMNS = ('Image Index', 'Finding Labels', 'Patient ID', 'Patient Age', 'Patient Gender', 'View Position')


@dataclasses.dataclass(eq=False)
class Config(release.Config):
    """`size`: the side of the stored square images in pixels."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the table."""

    labels: tuple[str, ...]
    patient_id: str
    age: int
    sex: str
    view: str


class Builder(release.ReleaseBuilder):
    """Splits `train_val` and `test`, which are NIH's official lists."""

    BUILDER_CONFIGS = [Config()]
    published = True
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Get ChestX-ray14 from the NIH Clinical Center's public release: manual_dir holds "
        'images_001.tar.gz to images_012.tar.gz as downloaded, or unpacked images/ (or '
        'images_001/images .. images_012/images), and Data_Entry_2017_v2020.csv, '
        'train_val_list.txt, test_list.txt and BBox_List_2017.csv. Without any download, '
        '--config.data.name=phantom_cxr and configs/quickstart.py run on made-up radiographs.'
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return schema.info(self, LABELS, 'https://nihcc.app.box.com/v/ChestXray-NIHCC')

    def _read(self, root: pathlib.Path) -> dict[str, list[Record]]:
        # All of the text is checked here: a mistake should not cost half an hour of decoding.
        table = _read_table(root)
        lists = nih_lists.read_lists(root)
        paths = _find_images(root)
        if paths is None:
            self.archives = _find_archives(root, nih_lists.is_official(lists))
            self.note(f'images streamed from {len(self.archives)} tar archives')
        _check(root, table, lists, paths)
        boxes = _read_boxes(root / BOXES)
        nih_lists.describe(lists, self)

        def record(image_id: str) -> Record:
            return Record(
                image_id,
                path=paths and paths[image_id],
                boxes=tuple(boxes.get(image_id, ())),
                **dataclasses.asdict(table[image_id]),
            )

        return {split: [record(image_id) for image_id in ids] for split, ids in lists.items()}


def _read_table(root: pathlib.Path) -> dict[str, Entry]:
    """Reads the table by column name: its header splits into other names than its rows' fields."""
    path = next((root / name for name in TABLES if (root / name).exists()), root / TABLES[0])
    table = {}
    for where, row in tables.read_columns(path, _COLUMNS, 'use the table as NIH published it'):
        image_id, findings, patient_id, age, sex, view = row
        if image_id in table:
            raise UserError(f'{where}: {image_id} is there twice; remove one row')
        labels = tuple(_finding(f, where) for f in findings.split('|'))
        patient = words.whole(patient_id)
        if patient is None:
            raise UserError(f'{where}: Patient ID is {patient_id[:80]!r}, expected digits')
        table[image_id] = Entry(
            labels, patient, _age(age, where), words.sex(sex) or 'unknown', words.view(view) or 'unknown'
        )
    return table


def _read_boxes(path: pathlib.Path) -> dict[str, list[Box]]:
    """Boxes per image; the header has four names too few, of which three are empty."""
    table = tables.open_table(path)
    image, label = table.column('Image Index'), table.column('Finding Label')
    start = next((i for i, name in enumerate(table.header) if name.lower().startswith('bbox')), None)
    for name, column in (('Image Index', image), ('Finding Label', label), ('Bbox [x,y,w,h]', start)):
        if column is None:
            raise UserError(f'{path}: no column {name!r} ({tables.found(table)})')
    boxes = collections.defaultdict(list)
    for where, row in table.rows():
        if len(row) <= max(image, label):
            raise UserError(f'{where}: {",".join(row)[:80]!r}, expected an image, a finding and four numbers')
        name, finding = row[image], row[label]
        boxes[name].append(read_box(_finding(finding, where), row[start : start + 4], where, BOX_FRAME))
    return boxes


def _find_images(root: pathlib.Path) -> dict[str, pathlib.Path] | None:
    """Every film by its PNG's name: under images/, or Kaggle's images_001/ and its siblings, at any depth."""
    folders = [f for f in sorted(root.glob('images*')) if f.is_dir()]
    paths = discovery.find_films(folders).paths
    return {f'{path.stem}.png': path for path in reversed(paths)} or None


def _find_archives(root: pathlib.Path, official: bool) -> list[pathlib.Path]:
    archives = sorted([*root.glob('images_*.tar.gz'), *root.glob('images_*.tgz')])
    if not archives:
        raise UserError(
            f'{root}: neither images_001.tar.gz nor images/ nor images_001/images is '
            'there; put the image archives into manual_dir, or unpack them there'
        )
    if official:  # then every image is needed, and which archive is missing can be told at once
        numbers = {int(m[1]) for a in archives if (m := re.match(r'images_0*(\d+)', a.name))}
        absent = [f'images_{n:03}.tar.gz' for n in range(1, ARCHIVES + 1) if n not in numbers]
        if absent:
            raise UserError(f'{root}: {some(absent)} not there; fetch all {ARCHIVES} image archives')
    return archives


def _check(
    root: pathlib.Path,
    table: dict[str, Entry],
    lists: dict[str, list[str]],
    paths: dict[str, pathlib.Path] | None,
) -> None:
    """What only several files together can tell."""
    for split, ids in lists.items():
        unknown = [i for i in ids if i not in table]
        if unknown:
            raise UserError(
                f'{root / LISTS[split]}: {some(unknown)} not in the table '
                f'({" or ".join(TABLES)}); use lists and table of one release'
            )
        # What archives hold is known only once they are read.
        absent = [] if paths is None else [i for i in ids if i not in paths]
        if absent:
            raise UserError(
                f'{root / LISTS[split]}: no image file for {some(absent)}; unpack all '
                'twelve image archives, or take the names off the list'
            )
    shared = set(lists['train_val']) & set(lists['test'])
    if shared:
        raise UserError(
            f'{root}: {some(shared)} both in {LISTS["train_val"]} and '
            f'{LISTS["test"]}; an image may be in one list only'
        )
    patients = [{table[i].patient_id for i in ids} for ids in lists.values()]
    shared = patients[0] & patients[1]
    if shared:
        raise UserError(
            f'{root}: patient {some(shared)} both in {LISTS["train_val"]} and '
            f'{LISTS["test"]}; a patient may be in one list only'
        )


def _finding(text: str, where: str) -> str:
    text = text.strip()
    finding = {'Infiltrate': 'Infiltration'}.get(text, text)  # the box file's spelling
    if finding not in LABELS:
        raise UserError(f'{where}: unknown finding {text[:80]!r}, expected one of {", ".join(LABELS)}')
    return finding


def _age(text: str, where: str) -> int:
    """Whole years of '58' or Kaggle's '058Y', '011M', '020D'; -1 where unknown or impossible."""
    age = words.years(text)
    if age is None:
        raise UserError(f'{where}: Patient Age is {text[:80]!r}, expected years such as 58 or 058Y')
    return age
