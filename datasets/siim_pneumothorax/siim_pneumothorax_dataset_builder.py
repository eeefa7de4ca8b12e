"""SIIM-ACR Pneumothorax Segmentation, Kaggle's stage 1 or stage 2 form."""

import dataclasses
import functools
import hashlib
import pathlib

import numpy as np
import tensorflow_datasets.public_api as tfds

from mlvicx_jax.errors import UserError

from .. import release, schema, tables
from ..records import Record, draw_test

LABELS = ('Pneumothorax',)
FRAME = 1024  # pixels, the side of every image and mask
TABLES = ('train-rle.csv', 'stage_2_train.csv')
IMAGES = ('dicom-images-train', 'stage_2_images')
TEST_FRACTION = 0.2  # the challenge's own test masks came out piecemeal


@dataclasses.dataclass(eq=False)
class Config(release.Config):
    """`balanced`: keep only as many images without a pneumothorax as there are with one, in each
    split; `split_seed`: of the split and of that choice."""

    balanced: bool = False
    split_seed: int = 0


class Builder(release.ReleaseBuilder):
    """A seeded split; the mask's first bit is the pneumothorax."""

    BUILDER_CONFIGS = [Config()]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Get the SIIM-ACR Pneumothorax Segmentation data: manual_dir holds dicom-images-train/ and '
        "train-rle.csv, or Kaggle's stage_2_images/ and stage_2_train.csv; the films may be PNG or JPEG copies."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return schema.info(
            self,
            LABELS,
            structures={LABELS[0]: ('mask', 1)},
            homepage=('https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation'),
        )

    def _read(self, root: pathlib.Path) -> dict[str, list[Record]]:
        folder = next((root / name for name in IMAGES if (root / name).is_dir()), root / IMAGES[0])
        runs = _read_runs(next((root / name for name in TABLES if (root / name).exists()), root / TABLES[0]))
        files = self.find_files(folder)
        records = [
            Record(
                image_id,
                image_id,
                files.get(image_id),
                LABELS if found else (),
                mask=functools.partial(decode_mask, tuple(found)),
            )
            for image_id, found in runs.items()
        ]
        config = self.builder_config
        unread = len(files.keys() - runs.keys())
        if unread:
            self.note(f'{unread} image files have no row in the table and are not used')
        self.note('the set has no patient ids: each image counts as a patient')
        self.note(
            f'split: {TEST_FRACTION:.0%} of the images are test, drawn with seed '
            f'{config.split_seed}. All are NIH images, of which NIH pretraining may have '
            'seen some'
        )
        draw = functools.partial(draw_test, fraction=TEST_FRACTION, seed=config.split_seed)
        if config.balanced:
            return {split: self._balance(split, part) for split, part in draw(records).items()}
        self.draw = draw
        return draw(records)

    def _balance(self, split: str, records: list[Record]) -> list[Record]:
        def rank(record: Record) -> bytes:
            seed = self.builder_config.split_seed
            return hashlib.sha256(f'balance/{seed}/{record.image_id}'.encode()).digest()

        positive = [r for r in records if r.labels]
        negative = sorted((r for r in records if not r.labels), key=rank)
        kept = negative[: len(positive)]
        self.note(
            f'balanced: {split} keeps {len(kept)} of {len(negative)} images without a '
            f'pneumothorax beside {len(positive)} with one'
        )
        return positive + kept


def decode_mask(rows: tuple[str, ...], side: int = FRAME) -> np.ndarray:
    """The union of run-length rows as bool [side, side].

    A row holds pairs (gap since the end of the last run, length), pixels counted down the columns;
    COCO's and Kaggle's usual format has absolute starts instead.
    """
    mask = np.zeros(side * side, bool)
    for row in rows:
        for start, end in _runs(row):
            mask[start:end] = True
    return mask.reshape(side, side).T


def _runs(row: str) -> np.ndarray:
    """int64 [n, 2]: first and one past the last pixel of each run."""
    ends = np.cumsum(np.array(row.split(), np.int64))  # gap, length, gap, length, ...
    return np.stack([ends[::2], ends[1::2]], 1)


def _read_runs(path: pathlib.Path) -> dict[str, list[str]]:
    """The run-length rows of every image, none where there is no pneumothorax.

    The header says ' EncodedPixels', and the fields too start with a space; both are stripped.
    """
    images: dict[str, list[str]] = {}
    empty = set()
    for where, (image_id, row) in tables.read_columns(path, ('ImageId', 'EncodedPixels')):
        found = images.setdefault(image_id, [])
        if row == '-1' or not row:
            if found:
                raise UserError(f'{where}: {image_id} is -1 here and has a mask above; remove one row')
            empty.add(image_id)
            continue
        if image_id in empty:
            raise UserError(f'{where}: {image_id} is -1 above and has a mask here; remove one row')
        fields = row.split()
        if len(fields) % 2 or not all(f.isdecimal() for f in fields):
            raise UserError(
                f'{where}: EncodedPixels has {len(fields)} fields ({row[:20]!r}...), '
                'expected pairs of whole numbers, or -1'
            )
        last = sum(map(int, fields))
        if last > FRAME * FRAME:
            raise UserError(
                f'{where}: the mask ends at pixel {last}, beyond {FRAME} x {FRAME}; '
                'its numbers must be relative gaps and lengths'
            )
        if row not in found:
            found.append(row)
    return images
