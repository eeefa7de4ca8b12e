"""RSNA Pneumonia Detection Challenge (Kaggle, 2018, stage 2)."""

import dataclasses
import functools
import json
import pathlib
import re

import tensorflow_datasets.public_api as tfds

from mlvicx_jax.errors import UserError

from .. import nih_lists, release, schema, tables, words
from ..records import Box, Record, draw_test, read_box

LABELS = ('Pneumonia', 'No Finding')
BOXES, CLASSES = 'stage_2_train_labels.csv', 'stage_2_detailed_class_info.csv'
IMAGES = 'stage_2_train_images'
FRAME = 1024  # pixels, of every image and its boxes
# RSNA's three classes as labels; the second is neither pneumonia nor a normal film.
MEANING = {'Lung Opacity': ('Pneumonia',), 'No Lung Opacity / Not Normal': (), 'Normal': ('No Finding',)}
MAPPING = '*mapping*'  # RSNA's table of its ids and NIH's, JSON, or made a CSV
TEST_FRACTION = 0.2  # without the mapping


@dataclasses.dataclass(eq=False)
class Config(release.Config):
    """`split`: nih (needs the id mapping and NIH's lists), random, or auto: nih where they are
    there; `split_seed`: of a random split."""

    split: str = 'auto'
    split_seed: int = 0

    def __post_init__(self):
        self.expect('split', ('auto', 'nih', 'random'))
        super().__post_init__()


class Builder(release.ReleaseBuilder):
    """Split by NIH's official lists, or at random by patient."""

    BUILDER_CONFIGS = [Config()]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Get Kaggle's RSNA Pneumonia Detection Challenge: manual_dir holds {IMAGES}/*.dcm (or its "
        f"films as PNG or JPEG), {BOXES} and {CLASSES}; for a split that does not leak NIH's images, "
        "also RSNA's id mapping (pneumonia-challenge-dataset-mappings_2018.json) and NIH's train_val_list.txt "
        'and test_list.txt.'
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return schema.info(self, LABELS, 'https://www.kaggle.com/c/rsna-pneumonia-detection-challenge')

    def _read(self, root: pathlib.Path) -> dict[str, list[Record]]:
        classes = {}
        for where, (image_id, name) in tables.read_columns(root / CLASSES, ('patientId', 'class')):
            if name not in MEANING:
                raise UserError(f'{where}: unknown finding {name!r}, expected one of {", ".join(MEANING)}')
            if classes.setdefault(image_id, name) != name:  # one row per box, all alike
                raise UserError(f'{where}: {image_id} is {name!r} here and {classes[image_id]!r} above')
        boxes = _read_boxes(root / BOXES, classes)
        files = self.find_files(root / IMAGES)
        records = [
            Record(image_id, image_id, files.get(image_id), MEANING[classes[image_id]], boxes=tuple(found))
            for image_id, found in boxes.items()
        ]
        mapping = next(iter(sorted(p for p in root.glob(MAPPING) if p.is_file())), None)
        split, seed = self.builder_config.split, self.builder_config.split_seed
        if split == 'nih' and mapping is None:
            raise UserError(
                f"{root}: option split=nih needs RSNA's id mapping there "
                '(pneumonia-challenge-dataset-mappings_2018.json); or give '
                'split=random'
            )
        if split == 'random' or mapping is None:
            self.note(
                f'split: {TEST_FRACTION:.0%} of the images are test, drawn with seed {seed}. '
                'All are NIH images, so an encoder that was pretrained on NIH has seen test '
                'images: use the id mapping (split=nih) for such a one'
            )
            self.note('without the mapping no patient is known: each image counts as a patient')
            self.draw = functools.partial(draw_test, fraction=TEST_FRACTION, seed=seed)
            return self.draw(records)
        return self._split_by_nih(records, mapping, nih_lists.read_lists(root))

    def _split_by_nih(
        self, records: list[Record], mapping: pathlib.Path, lists: dict[str, list[str]]
    ) -> dict[str, list[Record]]:
        self.published = True
        nih_lists.describe(lists, self)
        self.note("split: by NIH's lists; no test image is in NIH's train_val")
        nih_ids, where_listed = (
            _read_mapping(mapping),
            {name: split for split, names in lists.items() for name in names},
        )
        splits: dict[str, list[Record]] = {split: [] for split in lists}
        for record in records:
            nih_id = nih_ids.get(record.image_id)
            if nih_id is None:
                raise UserError(
                    f'{mapping}: {record.image_id} of {BOXES} is not in it; use the mapping of stage 2'
                )
            if nih_id not in where_listed:
                raise UserError(
                    f'{mapping}: NIH image {nih_id} of {record.image_id} is in neither '
                    f'{" nor ".join(nih_lists.LISTS.values())}'
                )
            patient = str(int(nih_id[:8]))  # NIH names an image <patient>_<visit>.png
            splits[where_listed[nih_id]].append(dataclasses.replace(record, patient_id=patient))
        return splits


def _read_boxes(path: pathlib.Path, classes: dict[str, str]) -> dict[str, list[Box]]:
    """The boxes of every image, none for a negative one; a positive one has a row per box."""
    images: dict[str, list[Box]] = {}
    names = ('patientId', 'x', 'y', 'width', 'height', 'Target')
    for where, (image_id, *box, target) in tables.read_columns(path, names):
        if image_id not in classes:
            raise UserError(f'{where}: {image_id} is not in {CLASSES}')
        said, positive = words.flag(target), classes[image_id] == 'Lung Opacity'  # 1.0 is pandas' way
        if said != ('positive' if positive else 'negative'):
            raise UserError(f'{where}: Target is {target[:80]!r}, {CLASSES} says {classes[image_id]!r}')
        if not positive and image_id in images:
            raise UserError(f'{where}: {image_id} is there twice; remove one row')
        found = images.setdefault(image_id, [])
        if positive:
            found.append(read_box('Pneumonia', box, where, FRAME))
    return images


def _read_mapping(path: pathlib.Path) -> dict[str, str]:
    """Kaggle's patientId to the NIH image name."""
    columns = ('subset_img_id', 'img_id')
    if path.suffix == '.csv':
        rows = [row for _, row in tables.read_columns(path, columns)]
    else:
        try:
            rows = [[str(row[name]) for name in columns] for row in json.loads(tables.read_text(path))]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f'{path}: not the id mapping, a JSON list of objects with '
                f'{" and ".join(columns)} ({type(error).__name__}: {error})'
            ) from None
    mapping = {}
    for image_id, nih_id in rows:
        nih_id = nih_id if nih_id.endswith('.png') else f'{nih_id}.png'
        if not re.fullmatch(r'\d{8}_\d{3}\.png', nih_id):
            raise UserError(f'{path}: {nih_id!r} of {image_id} is no name of an NIH image')
        mapping[image_id] = nih_id
    return mapping
