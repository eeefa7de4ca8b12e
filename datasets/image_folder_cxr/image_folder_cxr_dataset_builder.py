"""Anyone's own radiographs: a folder of PNG, JPEG and DICOM files, with or without a table."""

import collections
import dataclasses
import functools
import pathlib
import re

import numpy as np
import tensorflow_datasets.public_api as tfds

from mlvicx_jax.errors import UserError

from .. import radiograph, release, schema

SUFFIXES = ('.png', '.jpg', '.jpeg', '.dcm', '.dicom')
# What a column may be called, in any case; the first that is there is taken.
COLUMNS = {
    'image': ('image', 'image_path', 'path', 'file', 'filename', 'image_id'),
    'label': ('labels', 'label', 'finding', 'findings', 'class'),
    'patient': ('patient_id', 'patientid', 'patient', 'subject_id'),
    'split': ('split', 'fold', 'set'),
    'mask': ('mask', 'mask_path', 'masks'),
    'view': ('view', 'view_position'),
    'sex': ('sex', 'gender'),
    'age': ('age',),
}
SPLITS = {
    'train': 'train_val',
    'training': 'train_val',
    'val': 'train_val',
    'valid': 'train_val',
    'validation': 'train_val',
    'train_val': 'train_val',
    'dev': 'train_val',
    'test': 'test',
    'testing': 'test',
}


@dataclasses.dataclass(eq=False)
class Config(release.Config):
    """See README.md. `title` names the prepared set and has to be given."""

    title: str = ''
    table: str = ''
    masks: bool = False
    split: str = 'given'
    test_fraction: float = 0.2
    split_seed: int = 0

    def __post_init__(self):
        if not re.fullmatch(r'[A-Za-z0-9_]+', self.title):
            raise UserError(
                f'image_folder_cxr: option title is {self.title!r}; name the set that '
                'your folder becomes, in letters, digits and _, such as title=mine'
            )
        if '/' in self.table:
            raise UserError(
                f'image_folder_cxr: option table is {self.table!r}, expected the name '
                'of a CSV file in manual_dir'
            )
        self.expect('split', ('given', 'random'))
        if not 0 < self.test_fraction < 1:
            raise UserError(
                f'image_folder_cxr: option test_fraction is {self.test_fraction}, expected above 0 and below 1'
            )
        super().__post_init__()


class Builder(release.ReleaseBuilder):
    """Splits as the folder or its table gives them, else a seeded one by patient."""

    BUILDER_CONFIGS = []
    OWN_FILES = True  # one title is one folder's
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'manual_dir is your folder of PNG, JPEG and DICOM files, in any subfolders, with or '
        'without a CSV table; see the README of image_folder_cxr.'
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return schema.info(self, None, structures={'mask': ('mask', 1)} if self.builder_config.masks else {})

    def _read(self, root: pathlib.Path) -> dict[str, list[release.Record]]:
        table = self._find_table(root)
        entries = self._read_folders(root) if table is None else self._read_table(root, table)
        labels = tuple(sorted({name for record, _ in entries for name in record.labels}))
        schema.set_labels(self.info, labels)
        self.note(f'labels: {", ".join(labels) or "none"}')
        if all(record.patient_id == record.image_id for record, _ in entries):
            self.note('no patient ids are given: each image counts as a patient')
        return self._split(root, entries)

    def _find_table(self, root: pathlib.Path) -> pathlib.Path | None:
        if self.builder_config.table:
            return root / self.builder_config.table
        tables = sorted(root.glob('*.csv'))
        if len(tables) > 1:
            raise UserError(
                f'{root}: has {len(tables)} CSV files '
                f'({release.some(t.name for t in tables)}); say which is the table of '
                'the images with option table=NAME.csv'
            )
        return tables[0] if tables else None

    def _read_folders(self, root: pathlib.Path) -> list[tuple[release.Record, str]]:
        """<split>/<class>/image, <class>/image, <split>/image or images alone, with their splits."""
        if self.builder_config.masks:
            raise UserError(f'{root}: option masks needs a CSV table with the columns image and mask')
        self.note('read from folders')
        entries = []
        for path in sorted(root.rglob('*')):
            if path.suffix.lower() not in SUFFIXES:
                continue
            name = path.relative_to(root).as_posix()
            split, *folders = [*path.relative_to(root).parts[:-1]] or ['']
            if split.lower() not in SPLITS:
                split, folders = '', [split, *folders]
            label = folders[0] if folders and folders[0] != 'images' else ''
            entries.append((release.Record(name, name, path, (label,) if label else ()), split))
        if not entries:
            raise UserError(f'{root}: no image is there (looked for {", ".join(SUFFIXES)} in all its folders)')
        return entries

    def _read_table(self, root: pathlib.Path, table: pathlib.Path) -> list[tuple[release.Record, str]]:
        header = release.read_csv(table)[0]
        lower = [name.lower() for name in header]
        columns = {
            key: header[lower.index(found)]
            for key, names in COLUMNS.items()
            if (found := next((n for n in names if n in lower), None))
        }
        for key in ('image', 'mask') if self.builder_config.masks else ('image',):
            if key not in columns:
                raise UserError(
                    f'{table}: no column of {key}s (found: {", ".join(header)}; it may '
                    f'be called {", ".join(COLUMNS[key])})'
                )
        used = ', '.join(f'{key} = {name!r}' for key, name in columns.items())
        self.note(f'columns of {table.name}: {used}')
        if 'mask' in columns and not self.builder_config.masks:
            self.note(f'{table.name} has masks, which are not used; give option masks=True for them')
        entries, lines = [], {}
        for where, fields in release.read_columns(table, list(columns.values())):
            row = dict(zip(columns, fields))
            name = row['image']
            if not name:
                raise UserError(f'{where}: no image is named')
            if name in lines:
                raise UserError(
                    f'{where}: {name} is there twice ({lines[name]}); join its labels with | in one row'
                )
            lines[name] = where.rpartition(', ')[2]
            age = schema.years(re.sub(r'\.0$', '', row.get('age', '')))
            if age is None:
                raise UserError(f'{where}: age is {row["age"]!r}, expected years such as 58 or 058Y')
            record = release.Record(
                name,
                row.get('patient') or name,
                _inside(root, name, where),
                tuple(filter(None, (text.strip() for text in row.get('label', '').split('|')))),
                row.get('view', ''),
                row.get('sex', ''),
                age,
                mask=self._mask(root, row, where),
            )
            entries.append((record, row.get('split', '')))
        if not any(record.path.exists() for record, _ in entries):
            raise UserError(
                f'{table}: no image of column {columns["image"]!r} exists below '
                f'{root}; give paths relative to manual_dir'
            )
        return entries

    def _mask(self, root: pathlib.Path, row: dict[str, str], where: str):
        if not self.builder_config.masks:
            return None
        if not row['mask']:
            raise UserError(
                f'{where}: no mask is named; give an all-black one where nothing is marked, or take the row out'
            )
        return functools.partial(
            read_mask, tuple(_inside(root, name.strip(), where) for name in row['mask'].split('|'))
        )

    def _split(
        self, root: pathlib.Path, entries: list[tuple[release.Record, str]]
    ) -> dict[str, list[release.Record]]:
        records, config = [record for record, _ in entries], self.builder_config
        if config.split == 'random' or not any(split for _, split in entries):
            self.note(
                f'split: {config.test_fraction:.0%} of the patients are test, drawn with '
                f'seed {config.split_seed}'
            )
            return release.draw_test(records, config.test_fraction, config.split_seed)
        splits: dict[str, list[release.Record]] = {'train_val': [], 'test': []}
        for record, split in entries:
            if split.lower() not in SPLITS:
                raise UserError(
                    f'{root}: the split of {record.image_id} is {split!r}, expected '
                    f'one of {", ".join(SPLITS)}; or give split=random'
                )
            splits[SPLITS[split.lower()]].append(record)
        if not all(splits.values()):
            raise UserError(
                f'{root}: all images are in {next(s for s in splits if splits[s])}; '
                'put some into train and some into test, or give split=random'
            )
        counts = collections.Counter(split for _, split in entries)
        self.note('split: as given (' + ', '.join(f'{s}: {n}' for s, n in counts.items()) + ')')
        return splits


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


def _inside(root: pathlib.Path, name: str, where: str) -> pathlib.Path:
    path = pathlib.PurePosixPath(name.replace('\\', '/'))
    if path.is_absolute() or '..' in path.parts:
        raise UserError(f'{where}: {name!r} leads out of manual_dir; give a path relative to it')
    return root / path
