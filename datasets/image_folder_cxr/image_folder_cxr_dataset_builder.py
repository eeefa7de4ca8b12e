"""Anyone's own radiographs: a folder of films in any format, with or without a table."""

import collections
import dataclasses
import functools
import pathlib
import re

import tensorflow_datasets.public_api as tfds

from mlvicx_jax.errors import UserError

from .. import columns, discovery, identity, labels, release, schema, words
from ..columns import SPLITS
from ..copies import equal_files, of_one_patient
from ..records import Record, check, draw_test, some
from .folders import read_folders
from .table import UNCERTAIN, read_table

TABLES = ('.csv', '.tsv', '.tab')
WORKBOOKS = ('.xlsx', '.xls', '.ods')
NO_TABLE = 'none'


@dataclasses.dataclass(eq=False)
class Config(release.Config):
    """See README.md. `title` names the prepared set; where it is empty, `prepare` gives the folder's name."""

    title: str = ''
    table: str = ''
    columns: str = ''
    uncertain: str = 'negative'
    masks: bool = False
    split: str = 'given'
    test_fraction: float = 0.2
    split_seed: int = 0

    def __post_init__(self):
        if not re.fullmatch(r'[A-Za-z0-9_]*', self.title):
            raise UserError(
                f'image_folder_cxr: option title is {self.title!r}; name the set that '
                'your folder becomes, in letters, digits and _, such as title=mine'
            )
        if '/' in self.table:
            raise UserError(
                f'image_folder_cxr: option table is {self.table!r}, expected the name '
                'of a CSV file in manual_dir'
            )
        columns.parse_mapping(self.columns)
        self.expect('uncertain', UNCERTAIN)
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
        'manual_dir is your folder of films (PNG, JPEG, DICOM, TIFF, BMP or WebP), in any subfolders, with or '
        'without a CSV table; see the README of image_folder_cxr.'
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return schema.info(self, None, structures={'mask': ('mask', 1)} if self.builder_config.masks else {})

    def _read(self, root: pathlib.Path) -> dict[str, list[Record]]:
        config, table, films = self.builder_config, self._find_table(root), discovery.find_films(root)
        self.note_passed_over(films)
        if table is not None:
            entries, findings = read_table(root, table, config, films, self.note)
        elif config.masks or config.columns:
            raise UserError(f'{root}: options masks and columns need a CSV table with a column of images')
        else:
            entries, findings = read_folders(root, films, self.note), []
        entries = self._name_labels(self._without_one_for_all(entries), findings)
        return self._join_ids(self._split(root, entries))

    def _find_table(self, root: pathlib.Path) -> pathlib.Path | None:
        if self.builder_config.table:
            return None if self.builder_config.table == NO_TABLE else root / self.builder_config.table
        files = [path for path in sorted(root.iterdir()) if path.is_file() and not path.name.startswith('.')]
        tables = [path for path in files if path.suffix.lower() in TABLES]
        books = [path for path in files if path.suffix.lower() in WORKBOOKS and path.name[0] != '~']
        if len(tables) > 1:
            raise UserError(
                f'{root}: has {len(tables)} CSV files ({some(t.name for t in tables)}); say which is the table '
                f'of the images with option table=NAME.csv, or table={NO_TABLE} to read the folders alone'
            )
        if books and not tables:
            raise UserError(
                f'{books[0]}: workbooks are not read; save it as CSV, or give option table={NO_TABLE} to read '
                'the folders alone'
            )
        return tables[0] if tables else None

    def _name_labels(self, entries: list[tuple[Record, str]], findings: list[str]) -> list[tuple[Record, str]]:
        """Joins the spellings of each label, and names the labels of the set, also `findings` no film has."""
        counts = collections.Counter(name for record, _ in entries for name in record.labels)
        stored, notes = labels.join_spellings(dict.fromkeys(findings, 0) | counts)
        for line in notes:
            self.note(line)
        names = tuple(sorted({*stored.values()}))
        schema.set_labels(self.info, names)
        self.note(f'labels: {", ".join(names) or "none"}')
        if names and all(words.whole(name) for name in names):
            self.note('the labels are numbers; questions about them need to know what they mean')
        return [
            (dataclasses.replace(record, labels=tuple(stored[name] for name in record.labels)), split)
            for record, split in entries
        ]

    def _without_one_for_all(self, entries: list[tuple[Record, str]]) -> list[tuple[Record, str]]:
        """The entries, without a PatientID that all headers share: so exports are made anonymous."""
        films = [record for record, _ in entries]
        if (
            len(films) < 2
            or len({record.patient for record in films}) > 1
            or any(identity.of_header(record.path) != record.patient_id for record in films[:3])
        ):
            return entries
        self.note(
            'all films have one PatientID in their headers, so each of them counts as a patient; if it is one, '
            'nothing can be learnt from the test split',
            [films[0].patient_id],
        )
        return [(dataclasses.replace(record, patient_id=record.image_id), split) for record, split in entries]

    def _join_ids(self, splits: dict[str, list[Record]]) -> dict[str, list[Record]]:
        """Gives all films of a patient one spelling of its id, for whoever compares ids later."""
        check(self.name, splits)  # which tells the spellings
        known = [r for part in splits.values() for r in part if r.patient_id != r.image_id]
        chosen = identity.join((record.patient, record.patient_id) for record in known)
        several = {record.patient_id for record in known} - {*chosen.values()}
        if several:
            self.note(f'{len(several)} patient ids are spelled in several ways, which are joined', several)
        return {
            split: [dataclasses.replace(r, patient_id=chosen.get(r.patient, r.patient_id)) for r in part]
            for split, part in splits.items()
        }

    def _split(self, root: pathlib.Path, entries: list[tuple[Record, str]]) -> dict[str, list[Record]]:
        records, config = [record for record, _ in entries], self.builder_config
        if config.split == 'random' or all(words.is_blank(split) for _, split in entries):
            self.note(
                f'split: {config.test_fraction:.0%} of the patients are test, drawn with '
                f'seed {config.split_seed}'
            )
            self.draw = functools.partial(draw_test, fraction=config.test_fraction, seed=config.split_seed)
            return self.draw(records)
        splits: dict[str, list[Record]] = {'train_val': [], 'test': []}
        for record, split in entries:
            if words.plain(split) not in SPLITS:
                raise UserError(
                    f'{root}: the split of {some([record.image_id])} is {split[:80]!r}, expected one of '
                    f'{", ".join(SPLITS)}; or give split=random'
                )
            splits[SPLITS[words.plain(split)]].append(record)
        if not all(splits.values()):
            raise UserError(
                f'{root}: all images are in {next(s for s in splits if splits[s])}; '
                'put some into train and some into test, or give split=random'
            )
        counts = collections.Counter(split for _, split in entries)
        self.note('split: as given (' + ', '.join(f'{s}: {n}' for s, n in counts.items()) + ')')
        return {split: self._keep_together(part) for split, part in splits.items()}

    def _keep_together(self, part: list[Record]) -> list[Record]:
        """Equal files as one patient's, so that no film is in validation whose copy is in training."""
        by_path = {record.path: record.image_id for record in part}
        groups = ([by_path[path] for path in group] for group in equal_files(by_path))
        return of_one_patient(part, groups)
