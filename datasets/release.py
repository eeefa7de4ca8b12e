"""What the builders of downloaded sets share: reading text, splits, and images into examples.

A builder reads the text of its release into `Record`s, a list per split; the rest is here. A
mistake in the text is raised at once, before any image is read. An image that can not be read is
noted in `bad` and left out, so that one file does not end hours of work; `mlvicx_jax.prepare`
decides whether so many may be missing.
"""

import abc
import collections
import csv
import dataclasses
import functools
import hashlib
import os
import pathlib
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets.public_api as tfds

from mlvicx_jax.errors import UserError

from . import dicom, radiograph, schema
from .progress import progress


@dataclasses.dataclass(frozen=True)
class Box:
    """A finding's rectangle: edges in parts of the picture, or in its pixels where `pixels`."""

    label: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    pixels: bool = False


@dataclasses.dataclass(frozen=True)
class Record:
    """One image as the text of a release describes it.

    path: the image file; None where the release lacks it; with `Builder.archives` not looked at.
    view, sex, age: where unknown, the DICOM header's.
    mask: returns the bool mask [H, W] of the image.
    """

    image_id: str
    patient_id: str
    path: pathlib.Path | None = None
    labels: tuple[str, ...] = ()
    view: str = 'unknown'
    sex: str = 'unknown'
    age: int = -1
    boxes: tuple[Box, ...] = ()
    mask: Callable[[], np.ndarray] | None = None


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """`size`: the side of the stored square images in pixels. The name derives from the fields."""

    name: str = ''
    size: int = 256

    def __post_init__(self):
        if not isinstance(self.size, int) or self.size < 1:
            raise UserError(f'option size is {self.size!r}; give a number of pixels')
        parts = [f'size{self.size}']
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in _GENERAL and field.name != 'size' and value != field.default:
                parts.append(f'{field.name}={value}')
        self.name = '-'.join(parts)
        self.description = f'8-bit grey, {self.size} x {self.size} pixels'

    def expect(self, option: str, values: Sequence) -> None:
        """Refuses an option's value that is not one of `values`."""
        value = getattr(self, option)
        if value not in values:
            raise UserError(f'option {option} is {value!r}, expected one of {", ".join(map(str, values))}')


_GENERAL = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}


class ReleaseBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Splits `train_val` and `test` from a release on disk.

    Attributes:
        bad: {'file', 'reason'} of every image left out, once prepared.
        archives: tar files to stream instead of `Record.path`.
    """

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First release.'}
    PROCESSES = False  # decode in processes: for sets whose decoders keep the interpreter's lock

    bad: list[dict[str, str]]
    archives: Sequence[pathlib.Path] = ()

    @abc.abstractmethod
    def _read(self, root: pathlib.Path) -> dict[str, list[Record]]:
        """The records of each split; checks all of the release but the pixels."""

    def note(self, text: str) -> None:
        """Keeps a line in the metadata of the prepared set, for the user to read."""
        self.info.metadata.setdefault('notes', []).append(text)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        self.bad = []
        splits = self._read(pathlib.Path(dl_manager.manual_dir))
        _check(self.name, splits)
        if self.archives:
            stream = _Stream(self, splits)
            return {
                split: self._examples(split, records, stream.pictures(split))
                for split, records in splits.items()
            }
        return {
            split: self._examples(split, records, self._pictures(records)) for split, records in splits.items()
        }

    def _generate_examples(self):
        raise NotImplementedError('_split_generators returns the examples')

    def _pictures(self, records: list[Record]) -> Iterator[tuple[Record, Any]]:
        picture = functools.partial(_picture, size=self.builder_config.size)
        workers = os.cpu_count() or 1
        processes = self.PROCESSES and workers > 1 and len(records) > 100 * workers
        return zip(records, radiograph.parallel_map(picture, records, workers, processes=processes))

    def _examples(self, split: str, records: list[Record], pictures: Iterable) -> Iterator[tuple[str, dict]]:
        labels, stored = np.array(self.info.metadata['labels'], str), 0
        for record, picture in progress(pictures, len(records), f'{self.name} {split}'):
            if isinstance(picture, str):
                self.bad.append({'file': str(record.path or record.image_id), 'reason': picture})
                continue
            example = {
                'image': picture.png,
                'image_id': record.image_id,
                'patient_id': record.patient_id,
                'labels': np.isin(labels, record.labels).astype(np.uint8),
                'view': _known(schema.VIEWS, record.view, picture.view),
                'sex': _known(schema.SEXES, record.sex, picture.sex),
                'age': record.age if record.age >= 0 else picture.age,
                'bboxes': [
                    {'bbox': tfds.features.BBox(ymin, xmin, ymax, xmax), 'label': label}
                    for label, xmin, ymin, xmax, ymax in picture.boxes
                ],
            }
            if picture.mask is not None:
                example['mask'] = picture.mask
            stored += 1
            yield record.image_id, example
        if not stored:
            raise UserError(
                f'{self.name}: no image of {split} can be used; the last reason: {self.bad[-1]["reason"]}'
            )


@dataclasses.dataclass(frozen=True)
class _Picture:
    png: bytes
    mask: bytes | None
    view: str
    sex: str
    age: int
    boxes: list[tuple[str, float, float, float, float]]


def _picture(record: Record, size: int, data: bytes | None = None) -> _Picture | str:
    """Reads, resizes and encodes one image; says why where that can not be done."""
    try:
        if data is not None:
            shot = radiograph.decode_radiograph(data, record.image_id)
        elif record.path is None:
            raise UserError(f'{record.image_id}: the release on disk has no image file of this id')
        else:
            shot = radiograph.read_radiograph(record.path)
        mask = None
        if record.mask is not None:
            cover = record.mask()
            if cover.shape != shot.image.shape:
                raise UserError(
                    f'{record.path or record.image_id}: the image is '
                    f'{shot.image.shape}, its mask {cover.shape}; they must agree'
                )
            mask = radiograph.encode_png(shrink_mask(cover, size))
        boxes = [_scaled(box, shot.image.shape, record) for box in record.boxes]
    except dicom.NotInstalled:
        raise
    except UserError as error:
        return str(error)
    return _Picture(
        radiograph.encode_png(radiograph.resize(shot.image, size)),
        mask,
        shot.view,
        shot.sex,
        -1 if (age := schema.years(shot.age)) is None else age,
        boxes,
    )


def _scaled(box: Box, shape: tuple[int, int], record: Record) -> tuple:
    height, width = shape if box.pixels else (1, 1)
    edges = np.clip([box.xmin / width, box.ymin / height, box.xmax / width, box.ymax / height], 0, 1).tolist()
    if not (edges[0] < edges[2] and edges[1] < edges[3]):
        raise UserError(
            f'{record.path or record.image_id}: the box {box.xmin:g}..{box.xmax:g}, '
            f'{box.ymin:g}..{box.ymax:g} is outside the {width} x {height} image'
        )
    return box.label, *edges


def shrink_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Bool [H, W] -> uint8 [size, size] of 0 and 1: set where half of a pixel is covered.

    A mask too thin for that keeps its most covered pixels, so that none becomes empty.
    """
    if mask.shape == (size, size) or not mask.any():
        return mask.astype(np.uint8) if mask.any() else np.zeros((size, size), np.uint8)
    shrinks = size <= min(mask.shape)
    cover = cv2.resize(
        mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return (cover >= min(0.5, float(cover.max()))).astype(np.uint8)


def _known(names: tuple[str, ...], *said: str) -> str:
    return next((name for name in said if name in names[:-1]), names[-1])


class _Stream:
    """Pictures of all splits from tar archives, each of them read once from front to end.

    gzip has no random access, and TFDS asks for one split after the other: while the first is
    read, the pictures of the others, small by then, wait in a file beside the records.
    """

    def __init__(self, builder: ReleaseBuilder, splits: dict[str, list[Record]]):
        self.builder = builder
        self.splits = splits
        self.first = next(iter(splits))
        self.kept: dict[str, dict[str, tuple[int, int] | str]] = {split: {} for split in splits}

    def pictures(self, split: str) -> Iterator[tuple[Record, Any]]:
        if split == self.first:
            # Inside the unfinished set's folder, which goes with a killed run.
            self.file = tempfile.TemporaryFile(dir=self.builder.data_path)
            return self._read_all()
        return self._read_kept(split)

    def _read_all(self) -> Iterator[tuple[Record, Any]]:
        wanted = {r.image_id: (split, r) for split, rs in self.splits.items() for r in rs}
        seen = set()

        def jobs():
            for name, data in stream_tar(self.builder.archives):
                if name in wanted and name not in seen:
                    seen.add(name)
                    yield *wanted[name], data

        def work(job):
            split, record, data = job
            return split, record, _picture(record, self.builder.builder_config.size, data)

        for split, record, picture in radiograph.parallel_map(work, jobs(), os.cpu_count() or 1):
            if split == self.first:
                yield record, picture
            elif isinstance(picture, str):
                self.kept[split][record.image_id] = picture
            else:
                start = self.file.tell()
                self.file.write(picture.png)
                self.kept[split][record.image_id] = (
                    dataclasses.replace(picture, png=b''),
                    start,
                    len(picture.png),
                )
        for name, (split, record) in wanted.items():
            if name not in seen:
                reason = f'{name}: none of the {len(self.builder.archives)} archives has this image'
                if split == self.first:
                    yield record, reason
                else:
                    self.kept[split][name] = reason

    def _read_kept(self, split: str) -> Iterator[tuple[Record, Any]]:
        for record in self.splits[split]:
            kept = self.kept[split][record.image_id]
            if isinstance(kept, str):
                yield record, kept
                continue
            picture, start, length = kept
            self.file.seek(start)
            yield record, dataclasses.replace(picture, png=self.file.read(length))


def stream_tar(paths: Iterable[pathlib.Path]) -> Iterator[tuple[str, bytes]]:
    """Yields (file name without folders, content) of every file of the archives, in their order.

    Raises:
        UserError: an archive is truncated or damaged: what follows in it is lost.
    """
    for path in paths:
        try:
            with tarfile.open(path, 'r|*') as archive:
                for member in archive:
                    if member.isfile():
                        yield pathlib.PurePosixPath(member.name).name, (archive.extractfile(member).read())
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise UserError(f'{path}: the archive is truncated or damaged ({error}); fetch it again') from error


def _check(name: str, splits: dict[str, list[Record]]) -> None:
    """What must hold of every set, told before its images are read."""
    everything = [record for records in splits.values() for record in records]
    twice = [i for i, n in collections.Counter(r.image_id for r in everything).items() if n > 1]
    if twice:
        raise UserError(
            f'{name}: image {some(twice)} is there twice; an image may be in one split only, and once'
        )
    for split, records in splits.items():
        if not records:
            raise UserError(f'{name}: no image is in the {split} split')
    shared = set.intersection(*({r.patient_id for r in records} for records in splits.values()))
    if shared:
        raise UserError(
            f'{name}: patient {some(shared)} both in {" and ".join(splits)}; a patient may be in one split only'
        )


def draw_test(records: list[Record], fraction: float, seed: int) -> dict[str, list[Record]]:
    """Splits by patient: `fraction` of them to test, those whose seeded hashes come first.

    Which patients those are depends on the seed and the ids alone, not on their order.
    """

    def rank(patient: str) -> bytes:
        return hashlib.sha256(f'test/{seed}/{patient}'.encode()).digest()

    patients = sorted({record.patient_id for record in records}, key=rank)
    test = set(patients[: max(1, round(fraction * len(patients)))])
    return {
        'train_val': [r for r in records if r.patient_id not in test],
        'test': [r for r in records if r.patient_id in test],
    }


def find_files(folder: pathlib.Path, suffixes: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """Files below a folder by their names without suffix.

    Raises:
        UserError: there is none, or two have one name.
    """
    found: dict[str, pathlib.Path] = {}
    for path in sorted(folder.rglob('*')):
        if path.suffix.lower() in suffixes:
            if path.stem in found:
                raise UserError(f'{path}: {found[path.stem]} has the same name; remove one of them')
            found[path.stem] = path
    if not found:
        raise UserError(
            f'{folder}: no {" or ".join(suffixes)} file is there; unpack the images '
            'of the release into manual_dir'
        )
    return found


def read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding='utf-8-sig')
    except FileNotFoundError:
        raise UserError(f'{path}: the file does not exist; it is part of the release') from None
    except UnicodeDecodeError as error:
        raise UserError(
            f'{path}: not UTF-8 text (byte {error.start}); save it as UTF-8 or fetch it again'
        ) from None
    except OSError as error:
        raise UserError(f'{path}: can not be read ({error.strerror})') from error


def read_csv(path: pathlib.Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and, with their line numbers, the rows; names and fields are stripped."""
    reader = csv.reader(read_text(path).splitlines())
    try:
        rows = [(reader.line_num, [field.strip() for field in row]) for row in reader if row]
    except csv.Error as error:
        raise UserError(f'{path}, line {reader.line_num}: not a CSV row ({error})') from None
    if len(rows) < 2:
        raise UserError(f'{path}: the file has no rows')
    return rows[0][1], rows[1:]


def read_columns(
    path: pathlib.Path, names: Sequence[str], way_out: str = 'use the table as it was published'
) -> Iterator[tuple[str, list[str]]]:
    """Yields ('file, line n', the named fields) of each row, by the header's names.

    Rows may have more fields than the header has names, as NIH's do; a short row is refused.
    """
    header, rows = read_csv(path)
    missing = [name for name in names if name not in header]
    if missing:
        raise UserError(f'{path}: no column {missing[0]!r} (found: {", ".join(header)}); {way_out}')
    columns = [header.index(name) for name in names]
    for line, row in rows:
        if len(row) <= max(columns):
            raise UserError(f'{path}, line {line}: {len(row)} fields, expected at least {max(columns) + 1}')
        yield f'{path}, line {line}', [row[i] for i in columns]


def read_box(
    label: str, fields: Sequence[str], where: str, frame: float | None = None, corners: bool = False
) -> Box:
    """A box of four numbers: x, y, width, height, or with `corners` x, y of two corners.

    Args:
        frame: the side of the square picture that they are pixels of; None: the image's own.

    Raises:
        UserError: not four numbers, or an empty box, or one outside the picture.
    """
    try:
        x, y, a, b = map(float, fields)
    except ValueError:
        raise UserError(f'{where}: the box is {",".join(fields)!r}, expected four numbers') from None
    edges = np.array([x, y, a, b] if corners else [x, y, x + a, y + b])
    edges = np.clip(edges / (frame or 1), 0, 1 if frame else np.inf)
    xmin, ymin, xmax, ymax = edges.tolist()
    if not (ymin < ymax and xmin < xmax and np.isfinite(edges).all()):
        limit = f' or outside the {frame:g} x {frame:g} frame' if frame else ''
        raise UserError(f'{where}: the box {x:g},{y:g},{a:g},{b:g} is empty{limit}')
    return Box(label, xmin, ymin, xmax, ymax, pixels=frame is None)


def group(rows: Iterable[tuple[Hashable, Any]]) -> dict[Hashable, list]:
    """Collects (key, value) pairs by key, in the order they come."""
    groups: dict[Hashable, list] = {}
    for key, value in rows:
        groups.setdefault(key, []).append(value)
    return groups


def list_hash(names: Iterable[str]) -> str:
    """SHA-256 of the sorted names joined by newlines, the identity of a list."""
    return hashlib.sha256('\n'.join(sorted(names)).encode()).hexdigest()


def some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return ', '.join(names[:3]) + more
