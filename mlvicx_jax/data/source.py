"""A prepared data set as splits of random-access records, with everything but pixels in memory."""

import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mlvicx_jax.data.features import refuse_foreign_classes
from mlvicx_jax.data.prepare import prepare
from mlvicx_jax.errors import UserError

_COLUMNS = ('image_ids', 'patient_ids', 'labels', 'view', 'sex', 'age')


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One split of n images; entry i of every array is about source[records[i]].

    Attributes:
        name: train, validation or test.
        source: random access to the prepared records, images left as encoded bytes.
        records: int64 [n], indices into `source`.
        image_ids, patient_ids: str [n].
        labels: uint8 [n, L], multi-hot.
        view, sex: str [n].
        age: int32 [n], years; -1 where unknown.
        target: (feature, bits) of each structure whose mask is read along; see `with_target`.
    """

    name: str
    source: Sequence[Mapping[str, Any]]
    records: np.ndarray
    image_ids: np.ndarray
    patient_ids: np.ndarray
    labels: np.ndarray
    view: np.ndarray
    sex: np.ndarray
    age: np.ndarray
    target: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def record(self, position: int) -> Mapping[str, Any]:
        """The record of image `position`, pictures as encoded bytes.

        Raises:
            UserError: it is damaged.
        """
        try:
            return self.source[self.records[position]]
        except Exception as error:  # the reader raises bare errors of its own on damaged files
            raise UserError(
                f'record of image {self.image_ids[position]} ({self.name}): can not be '
                f'read ({error}); delete the prepared folder to have it prepared again'
            ) from error

    def take(self, chosen: np.ndarray, name: str | None = None) -> 'Split':
        """The part of the split that an index or mask array [n] chooses."""
        arrays = {key: getattr(self, key)[chosen] for key in ('records', *_COLUMNS)}
        return dataclasses.replace(self, name=name or self.name, **arrays)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the sorted image ids joined by newlines: which images a figure was made on."""
        return hashlib.sha256('\n'.join(sorted(self.image_ids.tolist())).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class RadiographSet:
    """A prepared set.

    Attributes:
        splits: train, validation and test.
        size: the side of the stored images in pixels.
        metadata: what the builder keeps of the release: its notes, the hashes of NIH's lists.
        folder: where the records lie.
        structures: {name: (feature, bits)} of what can be segmented: it lies where the feature, a
            picture beside the image, has any of the bits. None: the set was prepared before
            structures had names.
    """

    name: str
    label_names: tuple[str, ...]
    splits: dict[str, Split]
    size: int
    metadata: Mapping[str, Any]
    folder: pathlib.Path
    structures: Mapping[str, tuple[str, int]] | None

    def with_target(self, names: Sequence[str]) -> 'RadiographSet':
        """The set whose batches have a `target` uint8 [b, S, S, k] of 0 and 1, by structure.

        No names: the set as it is, no mask being read.

        Raises:
            UserError: a name that is no structure of the set, or is there twice.
        """
        if not names:
            return self
        wanted = f'config.data.target is {", ".join(names)}'
        if self.structures is None:
            raise UserError(
                f'{wanted}, but {self.folder} was prepared before structures had '
                'names; delete the folder to have it prepared again'
            )
        if not self.structures:
            raise UserError(
                f'{wanted}, but {self.name} has no masks; take a set that has, or '
                'prepare it with them (datasets/README.md)'
            )
        unknown = [name for name in names if name not in self.structures]
        if unknown or len(set(names)) < len(names):
            raise UserError(
                f'{wanted}, expected some of the structures of {self.name}, each once: '
                f'{", ".join(self.structures)}'
            )
        target = tuple(self.structures[name] for name in names)
        return dataclasses.replace(
            self,
            splits={name: dataclasses.replace(split, target=target) for name, split in self.splits.items()},
        )


def open_dataset(
    name: str,
    data_dir: str | os.PathLike,
    manual_dir: str | os.PathLike | None = None,
    options: Mapping[str, Any] | None = None,
    validation_fraction: float = 0.1,
    split_seed: int = 0,
) -> RadiographSet:
    """Opens data set `name`, preparing it first if need be.

    Validation is `validation_fraction` of the patients of train_val, with all their images; test
    is the set's own. Which patients depends on `split_seed` and their ids alone.

    Raises:
        UserError: see `prepare.prepare`; a patient or an image in two splits; an empty split.
    """
    _check_fraction(validation_fraction)  # before hours of preparing
    builder = prepare(name, data_dir, manual_dir, options)
    data = open_folder(builder.data_path, validation_fraction, split_seed)
    _check(name, data.splits)
    return data


def open_folder(
    folder: str | os.PathLike, validation_fraction: float = 0.1, split_seed: int = 0
) -> RadiographSet:
    """Opens the folder of a prepared set with its splits as they are: leaks are not refused here."""
    _check_fraction(validation_fraction)
    refuse_foreign_classes(folder)
    # A reader of the folder alone: unlike a set's own builder, it can be sent to worker processes.
    reader = tfds.builder_from_directory(folder)
    features, metadata = reader.info.features, dict(reader.info.metadata)
    decoders = {
        key: tfds.decode.SkipDecoding()
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }
    structures = (
        None
        if 'structures' not in metadata and len(decoders) > 1
        else {name: (feature, bits) for name, (feature, bits) in metadata.get('structures', {}).items()}
    )
    train_val, test = (
        _open_split(reader, split, reader.as_data_source(split, decoders=decoders))
        for split in ('train_val', 'test')
    )
    is_validation = _draw_patients(train_val.patient_ids, validation_fraction, split_seed)
    splits = {
        'train': train_val.take(~is_validation, 'train'),
        'validation': train_val.take(is_validation, 'validation'),
        'test': test,
    }
    return RadiographSet(
        name=reader.name,
        label_names=tuple(metadata['labels']),
        splits=splits,
        size=features['image'].shape[0],
        metadata=metadata,
        folder=pathlib.Path(folder),
        structures=structures,
    )


def _open_split(builder: tfds.core.DatasetBuilder, name: str, source: Sequence) -> Split:
    path = pathlib.Path(builder.data_path) / f'index_{name}.npz'
    index = _load_index(path, len(source))
    if index is None:
        try:
            index = _make_index(builder.info.features, source)
        except Exception as error:  # the reader raises bare errors of its own on damaged files
            raise UserError(
                f'{builder.data_path}: records of {name} can not be read ({error}); '
                'delete the folder to have it prepared again'
            ) from error
        _save_index(path, index)
    return Split(name=name, source=source, records=np.arange(len(source)), **index)


def _make_index(features: tfds.features.FeaturesDict, source: Sequence) -> dict[str, Any]:
    """Reads every record once, decoding no image."""
    rows = []
    for example in source:
        rows.append(
            (
                example['image_id'].decode(),
                example['patient_id'].decode(),
                example['labels'],
                features['view'].int2str(example['view']),
                features['sex'].int2str(example['sex']),
                example['age'],
            )
        )
    columns = zip(*rows) if rows else ((),) * len(_COLUMNS)
    kinds = (np.str_, np.str_, np.uint8, np.str_, np.str_, np.int32)
    return {key: np.array(column, kind) for key, column, kind in zip(_COLUMNS, columns, kinds)}


def _load_index(path: pathlib.Path, count: int) -> dict[str, Any] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            index = {key: file[key] for key in _COLUMNS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # absent, or an older program's, or damaged: it is made again
    return index if all(len(column) == count for column in index.values()) else None


def _save_index(path: pathlib.Path, index: dict[str, Any]) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix='.tmp', delete=False) as file:
            try:
                np.savez(file, **index)
                file.close()
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError:
        pass  # a folder that may not be written, or a full disk: the next run reads once more


def _draw_patients(patient_ids: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Bool [n]: images of the drawn patients, those whose seeded hashes come first."""

    def rank(patient: str) -> bytes:
        return hashlib.sha256(f'{seed}/{patient}'.encode()).digest()

    patients = sorted(set(patient_ids.tolist()), key=rank)
    return np.isin(patient_ids, patients[: round(fraction * len(patients))])


def _check_fraction(validation_fraction: float) -> None:
    if not 0 < validation_fraction < 1:
        raise UserError(f'validation_fraction is {validation_fraction}, expected above 0 and below 1')


def _check(name: str, splits: dict[str, Split]) -> None:
    for split in splits.values():
        if not len(split):
            raise UserError(
                f'{name}: the {split.name} split is empty; change '
                'validation_fraction or use a set with more patients'
            )
        ids, counts = np.unique(split.image_ids, return_counts=True)
        if len(ids) < len(split):
            raise UserError(
                f'{name}: image {_some(ids[counts > 1])} is more than once in '
                f'{split.name}; correct the lists of the release and prepare it again'
            )
    for one, other in itertools.combinations(splits.values(), 2):
        shared = np.intersect1d(one.patient_ids, other.patient_ids)
        if len(shared):
            raise UserError(
                f'{name}: patient {_some(shared)} both in {one.name} and {other.name}; correct the '
                'lists of the release and prepare it again'
            )


def _some(ids: np.ndarray) -> str:
    more = f' and {len(ids) - 3} more' if len(ids) > 3 else ''
    return ', '.join(ids[:3].tolist()) + more
