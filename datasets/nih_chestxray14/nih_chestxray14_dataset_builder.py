"""NIH ChestX-ray14 from the files of its public release, or of Kaggle's copy of it."""

import collections
from collections.abc import Iterable, Iterator
import csv
import dataclasses
import os
import pathlib
import re

import numpy as np
import tensorflow_datasets.public_api as tfds

from mlvicx_jax.errors import UserError
from .. import radiograph

# The order of the data set's paper and CSV documentation; 'No Finding' is NIH's own fifteenth.
LABELS = (
    'Atelectasis', 'Cardiomegaly', 'Effusion', 'Infiltration', 'Mass', 'Nodule', 'Pneumonia',
    'Pneumothorax', 'Consolidation', 'Edema', 'Emphysema', 'Fibrosis', 'Pleural_Thickening',
    'Hernia', 'No Finding')
VIEWS = ('PA', 'AP', 'unknown')
SEXES = ('F', 'M', 'unknown')
LISTS = {'train_val': 'train_val_list.txt', 'test': 'test_list.txt'}
TABLES = ('Data_Entry_2017_v2020.csv', 'Data_Entry_2017.csv')  # the corrected one first
BOXES = 'BBox_List_2017.csv'
BOX_FRAME = 1024  # pixels: every image of the release is 1024 x 1024, and boxes are given in it
OLDEST = 120  # years; the first release has ages such as 414

_COLUMNS = ('Image Index', 'Finding Labels', 'Patient ID', 'Patient Age', 'Patient Gender',
            'View Position')


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """`size`: the side of the stored square images in pixels; the config's name derives from it."""
    name: str = ''
    size: int = 256

    def __post_init__(self):
        if self.size < 1:
            raise UserError(f'nih_chestxray14: option size is {self.size}; give a number of pixels')
        self.name = f'size{self.size}'
        self.description = f'8-bit grey, {self.size} x {self.size} pixels'


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the table."""
    labels: tuple[str, ...]
    patient_id: str
    age: int
    sex: str
    view: str


class Builder(tfds.core.GeneratorBasedBuilder):
    """Splits `train_val` and `test`, which are NIH's official lists."""

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First release.'}
    BUILDER_CONFIGS = [Config()]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Get ChestX-ray14 from the NIH Clinical Center's public release and unpack it: manual_dir "
        'holds images/ (or images_001/images .. images_012/images), Data_Entry_2017_v2020.csv, '
        'train_val_list.txt, test_list.txt and BBox_List_2017.csv. Without any download, '
        '--config.data.name=phantom_cxr and configs/quickstart.py run on made-up radiographs.')

    def _info(self) -> tfds.core.DatasetInfo:
        size, features = self.builder_config.size, tfds.features
        return self.dataset_info_from_configs(
            features=features.FeaturesDict({
                'image': features.Image(shape=(size, size, 1), encoding_format='png'),
                'image_id': features.Text(),
                'patient_id': features.Text(),
                'labels': features.Tensor(shape=(len(LABELS),), dtype=np.uint8),
                'view': features.ClassLabel(names=VIEWS),
                'sex': features.ClassLabel(names=SEXES),
                'age': np.int32,
                'bboxes': features.Sequence({
                    'bbox': features.BBoxFeature(),
                    'label': features.ClassLabel(names=LABELS),
                }),
            }),
            metadata=tfds.core.MetadataDict({'labels': list(LABELS)}),
            homepage='https://nihcc.app.box.com/v/ChestXray-NIHCC',
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        root = pathlib.Path(dl_manager.manual_dir)
        # All of the text is checked here: a mistake should not cost half an hour of decoding.
        table = _read_table(root)
        lists = {split: _read_list(root / name) for split, name in LISTS.items()}
        paths = _find_images(root)
        _check(root, table, lists, paths)
        boxes = _read_boxes(root / BOXES)
        return {split: self._generate_examples(ids, table, boxes, paths)
                for split, ids in lists.items()}

    def _generate_examples(self, ids: list[str], table: dict[str, Entry], boxes: dict,
                           paths: dict[str, pathlib.Path]) -> Iterator[tuple[str, dict]]:
        def png(image_id: str) -> bytes:
            image = radiograph.read_image(paths[image_id])
            return radiograph.encode_png(radiograph.resize(image, self.builder_config.size))

        pngs = radiograph.parallel_map(png, ids, os.cpu_count() or 1)
        for image_id, data in zip(ids, pngs):
            entry = table[image_id]
            yield image_id, {
                'image': data,
                'image_id': image_id,
                'patient_id': entry.patient_id,
                'labels': np.isin(LABELS, entry.labels).astype(np.uint8),
                'view': entry.view,
                'sex': entry.sex,
                'age': entry.age,
                'bboxes': boxes.get(image_id, []),
            }


def _read_table(root: pathlib.Path) -> dict[str, Entry]:
    """Reads the table by column name: its header splits into other names than its rows' fields."""
    path = next((root / name for name in TABLES if (root / name).exists()), root / TABLES[0])
    header, rows = _read_csv(path)
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise UserError(f'{path}: no column {missing[0]!r} (found: {", ".join(header)}); '
                        'use the table as NIH published it')
    columns = [header.index(name) for name in _COLUMNS]
    table = {}
    for line, row in rows:
        if len(row) <= max(columns):
            raise UserError(f'{path}, line {line}: {len(row)} fields, expected at least '
                            f'{max(columns) + 1}')
        image_id, findings, patient_id, age, sex, view = (row[i] for i in columns)
        if image_id in table:
            raise UserError(f'{path}, line {line}: {image_id} is there twice; remove one row')
        labels = tuple(_finding(f, f'{path}, line {line}') for f in findings.split('|'))
        if not patient_id.isdecimal():
            raise UserError(f'{path}, line {line}: Patient ID is {patient_id!r}, expected digits')
        table[image_id] = Entry(labels, str(int(patient_id)), _age(age, f'{path}, line {line}'),
                                sex if sex in SEXES else 'unknown',
                                view if view in VIEWS else 'unknown')
    return table


def _read_list(path: pathlib.Path) -> list[str]:
    ids = _read_text(path).split()
    if not ids:
        raise UserError(f'{path}: the list is empty, expected one image name per line')
    twice = [i for i, count in collections.Counter(ids).items() if count > 1]
    if twice:
        raise UserError(f'{path}: {_some(twice)} listed twice; remove the repeated line')
    return ids


def _read_boxes(path: pathlib.Path) -> dict[str, list[dict]]:
    """Boxes per image; the file gives x, y, width, height, TFDS stores shares of the frame."""
    header, rows = _read_csv(path)
    start = next((i for i, name in enumerate(header) if name.startswith('Bbox')), None)
    for name, found in (('Image Index', 'Image Index' in header),
                        ('Finding Label', 'Finding Label' in header),
                        ('Bbox [x,y,w,h]', start is not None)):
        if not found:
            raise UserError(f'{path}: no column {name!r} (found: {", ".join(header)})')
    boxes = collections.defaultdict(list)
    for line, row in rows:
        try:
            x, y, width, height = (float(field) for field in row[start:start + 4])
            name, finding = row[header.index('Image Index')], row[header.index('Finding Label')]
        except (ValueError, IndexError):
            raise UserError(f'{path}, line {line}: {",".join(row)!r}, expected an image, '
                            'a finding and four numbers') from None
        corners = np.array([y, x, y + height, x + width]) / BOX_FRAME
        ymin, xmin, ymax, xmax = np.clip(corners, 0, 1).tolist()
        if not (ymin < ymax and xmin < xmax):  # also where a number is not finite
            raise UserError(f'{path}, line {line}: the box {x:g},{y:g},{width:g},{height:g} is '
                            f'empty or outside the {BOX_FRAME} x {BOX_FRAME} frame')
        boxes[name].append({
            'bbox': tfds.features.BBox(ymin=ymin, xmin=xmin, ymax=ymax, xmax=xmax),
            'label': _finding(finding, f'{path}, line {line}')})
    return boxes


def _find_images(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Every PNG by name: under images/, or under Kaggle's images_001/images and its siblings."""
    folders = [f for f in (root / 'images', *sorted(root.glob('images_*/images'))) if f.is_dir()]
    if not folders:
        raise UserError(f'{root}: neither images/ nor images_001/images is there; '
                        'unpack the image archives into manual_dir')
    return {path.name: path for folder in folders for path in folder.iterdir()}


def _check(root: pathlib.Path, table: dict[str, Entry], lists: dict[str, list[str]],
           paths: dict[str, pathlib.Path]) -> None:
    """What only several files together can tell."""
    for split, ids in lists.items():
        unknown = [i for i in ids if i not in table]
        if unknown:
            raise UserError(f'{root / LISTS[split]}: {_some(unknown)} not in the table '
                            f'({" or ".join(TABLES)}); use lists and table of one release')
        absent = [i for i in ids if i not in paths]
        if absent:
            raise UserError(f'{root / LISTS[split]}: no image file for {_some(absent)}; unpack all '
                            'twelve image archives, or take the names off the list')
    shared = set(lists['train_val']) & set(lists['test'])
    if shared:
        raise UserError(f'{root}: {_some(shared)} both in {LISTS["train_val"]} and '
                        f'{LISTS["test"]}; an image may be in one list only')
    patients = [{table[i].patient_id for i in ids} for ids in lists.values()]
    shared = patients[0] & patients[1]
    if shared:
        raise UserError(f'{root}: patient {_some(shared)} both in {LISTS["train_val"]} and '
                        f'{LISTS["test"]}; a patient may be in one list only')


def _finding(text: str, where: str) -> str:
    text = text.strip()
    finding = {'Infiltrate': 'Infiltration'}.get(text, text)  # the box file's spelling
    if finding not in LABELS:
        raise UserError(f'{where}: unknown finding {text!r}, expected one of {", ".join(LABELS)}')
    return finding


def _age(text: str, where: str) -> int:
    """Whole years of '58' or Kaggle's '058Y', '011M', '020D'; -1 where unknown or impossible."""
    if not text:
        return -1
    match = re.fullmatch(r'(\d+)([YMD]?)', text)
    if not match:
        raise UserError(f'{where}: Patient Age is {text!r}, expected years such as 58 or 058Y')
    years = int(match[1]) // {'': 1, 'Y': 1, 'M': 12, 'D': 365}[match[2]]
    return years if years <= OLDEST else -1


def _read_csv(path: pathlib.Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and, with their line numbers, the rows; fields are stripped."""
    reader = csv.reader(_read_text(path).splitlines())
    try:
        rows = [(reader.line_num, [field.strip() for field in row]) for row in reader if row]
    except csv.Error as error:
        raise UserError(f'{path}, line {reader.line_num}: not a CSV row ({error})') from None
    if len(rows) < 2:
        raise UserError(f'{path}: the file has no rows')
    return rows[0][1], rows[1:]


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding='utf-8-sig')
    except FileNotFoundError:
        raise UserError(f'{path}: the file does not exist; it is part of the release') from None
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: not UTF-8 text (byte {error.start}); save it as UTF-8 or '
                        'fetch it again') from None
    except OSError as error:
        raise UserError(f'{path}: can not be read ({error.strerror})') from error


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return ', '.join(names[:3]) + more
