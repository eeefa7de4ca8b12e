"""VinBig-CXR (VinDr-CXR) from Kaggle's download or from PhysioNet's."""

import dataclasses
import functools
import pathlib

import tensorflow_datasets.public_api as tfds

from mlvicx_jax.errors import UserError

from .. import release, schema, tables, words
from ..labels import NO_FINDING
from ..records import Box, Record, draw_test, group, read_box

# Kaggle's fourteen classes by class_id; 14 is 'No finding'.
KAGGLE_LABELS = (
    'Aortic enlargement',
    'Atelectasis',
    'Calcification',
    'Cardiomegaly',
    'Consolidation',
    'ILD',
    'Infiltration',
    'Lung Opacity',
    'Nodule/Mass',
    'Other lesion',
    'Pleural effusion',
    'Pleural thickening',
    'Pneumothorax',
    'Pulmonary fibrosis',
    NO_FINDING,
)
# PhysioNet's 22 local findings and 6 diagnoses, the last of them 'No finding'.
PHYSIONET_LABELS = (
    'Aortic enlargement',
    'Atelectasis',
    'Calcification',
    'Cardiomegaly',
    'Clavicle fracture',
    'Consolidation',
    'Edema',
    'Emphysema',
    'Enlarged PA',
    'ILD',
    'Infiltration',
    'Lung Opacity',
    'Lung cavity',
    'Lung cyst',
    'Mediastinal shift',
    'Nodule/Mass',
    'Pleural effusion',
    'Pleural thickening',
    'Pneumothorax',
    'Pulmonary fibrosis',
    'Rib fracture',
    'Other lesion',
    'COPD',
    'Lung tumor',
    'Pneumonia',
    'Tuberculosis',
    'Other disease',
    NO_FINDING,
)
LABELS = {'kaggle': KAGGLE_LABELS, 'physionet': PHYSIONET_LABELS}
# How many of n readers must see a finding.
RULES = {'majority': lambda n: n // 2 + 1, 'any': lambda n: 1, 'all': lambda n: n}
TEST_FRACTION = 0.2  # of Kaggle's images, whose own test labels were never published

_CORNERS = ('x_min', 'y_min', 'x_max', 'y_max')
_SIDES = ('width', 'height')
_COPIES = ('.png', '.jpg', '.jpeg')  # of the DICOM files, mostly resized


@dataclasses.dataclass(eq=False)
class Config(release.Config):
    """`form`: kaggle or physionet; `rule`: majority, any or all of an image's readers;
    `split_seed`: which of Kaggle's images are test."""

    form: str = 'kaggle'
    rule: str = 'majority'
    split_seed: int = 0

    def __post_init__(self):
        self.expect('form', tuple(LABELS))
        self.expect('rule', tuple(RULES))
        super().__post_init__()


class Builder(release.ReleaseBuilder):
    """PhysioNet's own splits, or a seeded one of Kaggle's training images."""

    BUILDER_CONFIGS = [Config()]
    PROCESSES = True  # most files are JPEG 2000
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Get VinBigData Chest X-ray from Kaggle (train/*.dicom, or PNG or JPEG copies, and train.csv) or '
        'VinDr-CXR from PhysioNet (train/, test/, annotations/; then option form=physionet).'
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return schema.info(self, LABELS[self.builder_config.form], 'https://physionet.org/content/vindr-cxr/')

    def _read(self, root: pathlib.Path) -> dict[str, list[Record]]:
        config = self.builder_config
        self.note(f"a label is set where {config.rule} of an image's readers set it")
        self.note('the set has no patient ids: each image counts as a patient')
        if config.form == 'kaggle':
            return self._read_kaggle(root)
        self.published = True
        return {'train_val': self._read_physionet(root, 'train'), 'test': self._read_physionet(root, 'test')}

    def _read_kaggle(self, root: pathlib.Path) -> dict[str, list[Record]]:
        table = root / 'train.csv'
        if not table.exists() and _annotations(root, 'image_labels_train.csv').exists():
            raise UserError(f"{root}: this is PhysioNet's form; give option form=physionet")
        names = ('image_id', 'class_name', 'class_id', 'rad_id', *_CORNERS)
        if table.exists() and None not in map(tables.open_table(table).column, _SIDES):
            names += _SIDES  # of the original, as copies in PNG come with
        marks = {}  # image -> (reader, label, box)
        for where, row in tables.read_columns(table, names):
            image_id, name, number, reader, *corners = row
            label = _label(name, KAGGLE_LABELS, where)
            if words.whole(number) != str(KAGGLE_LABELS.index(label)):
                raise UserError(
                    f'{where}: class_id is {number[:80]!r}, expected {KAGGLE_LABELS.index(label)} for {name!r}'
                )
            box = None if label == NO_FINDING else _box(label, corners, where)
            marks.setdefault(image_id, []).append((reader, label, box))
        records = self._records(marks, {i: {m[0] for m in found} for i, found in marks.items()}, root / 'train')
        seed = self.builder_config.split_seed
        self.note(f'test: {TEST_FRACTION:.0%} of the images of train.csv, drawn with seed {seed}')
        self.draw = functools.partial(draw_test, fraction=TEST_FRACTION, seed=seed)
        return self.draw(records)

    def _read_physionet(self, root: pathlib.Path, part: str) -> list[Record]:
        table = _annotations(root, f'image_labels_{part}.csv')
        if not table.exists() and (root / 'train.csv').exists():
            raise UserError(f"{root}: this is Kaggle's form; give option form=kaggle")
        # The test set is one consensus of five readers and names no reader.
        reader_column = ('rad_id',) if part == 'train' else ()
        opened = tables.open_table(table)
        columns = {
            _label(name, PHYSIONET_LABELS, str(table)): name
            for name in opened.header
            if words.plain(name) not in ('imageid', 'radid', '')
        }
        absent = [label for label in PHYSIONET_LABELS if label not in columns]
        if absent:
            raise UserError(f'{table}: no column {absent[0]!r} ({tables.found(opened)})')
        marks, readers = {}, {}
        names = ('image_id', *reader_column, *(columns[label] for label in PHYSIONET_LABELS))
        for where, (image_id, *row) in tables.read_columns(table, names):
            reader = row.pop(0) if reader_column else 'consensus'
            if reader in readers.setdefault(image_id, set()):
                raise UserError(f'{where}: image {image_id} is there twice for {reader}; remove one row')
            readers[image_id].add(reader)
            found = marks.setdefault(image_id, [])
            for label, field in zip(PHYSIONET_LABELS, row):
                if words.flag(field) not in ('positive', 'negative'):
                    raise UserError(f'{where}: {label} is {field[:80]!r}, expected 0 or 1')
                if words.flag(field) == 'positive':
                    found.append((reader, label, None))
        for where, (image_id, name, *corners) in tables.read_columns(
            _annotations(root, f'annotations_{part}.csv'), ('image_id', 'class_name', *_CORNERS)
        ):
            label = _label(name, PHYSIONET_LABELS, where)
            if image_id not in marks:
                raise UserError(f'{where}: image {image_id} is not in {table}')
            if label != NO_FINDING:
                marks[image_id].append((None, label, _box(label, corners, where)))
        return self._records(marks, readers, root / part)

    def _records(self, marks: dict[str, list], readers: dict[str, set], folder: pathlib.Path) -> list[Record]:
        """One record per image of what its readers marked: (reader or None, label, box or None)."""
        files, records, unplaced = self.find_files(folder), [], 0
        for image_id, found in marks.items():
            needed = RULES[self.builder_config.rule](len(readers[image_id]))
            votes = group(
                {(label, reader) for reader, label, _ in found if reader is not None and label != NO_FINDING}
            )
            labels = tuple(sorted(n for n, voters in votes.items() if len(voters) >= needed))
            boxes = tuple(box for _, label, box in found if box and label in labels)
            path = files.get(image_id)
            if path and path.suffix.lower() in _COPIES and any(box.pixels for box in boxes):
                boxes, unplaced = (), unplaced + 1
            records.append(Record(image_id, image_id, path, labels or (NO_FINDING,), boxes=boxes))
        if unplaced:
            self.note(
                f'{unplaced} films are copies of unknown scale, so their boxes, in pixels of the '
                'originals, are left out; a table with the columns width and height of the originals keeps them'
            )
        return records


def _annotations(root: pathlib.Path, name: str) -> pathlib.Path:
    folder = root / 'annotations'
    return (folder if folder.is_dir() else root) / name


def _label(text: str, labels: tuple[str, ...], where: str) -> str:
    """The label that a file's spelling means; releases differ in case and in a plural."""
    wanted = text.lower().replace('diseases', 'disease')
    for label in labels:
        if label.lower() == wanted:
            return label
    raise UserError(f'{where}: unknown finding {text[:80]!r}, expected one of {", ".join(labels)}')


def _box(label: str, fields: list[str], where: str) -> Box | None:
    """A reader's box of two corners, and the sides of the picture where the table has them.

    None where the finding was marked without one.
    """
    corners, sides = fields[:4], fields[4:]
    if all(words.is_blank(field) for field in corners):
        return None
    box = read_box(label, corners, where, corners=True)
    if not sides:
        return box
    try:
        width, height = map(float, sides)
        parts = box.xmin / width, box.ymin / height, box.xmax / width, box.ymax / height
    except (ValueError, ZeroDivisionError):
        raise UserError(f'{where}: width and height are {", ".join(sides)[:80]!r}, expected pixels') from None
    return Box(label, *parts)
