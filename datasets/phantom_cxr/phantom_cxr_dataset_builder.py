"""The embedded data set: procedural chest radiographs with exact labels, masks and boxes."""

import dataclasses
import os
from collections.abc import Iterable, Iterator

import tensorflow_datasets.public_api as tfds

from mlvicx_jax.errors import UserError

from .. import radiograph, release, schema
from . import render
from .findings import FINDINGS, LABELS

# Feature and bits of each; `anatomy` has the lungs apart, in bits 0 and 1.
STRUCTURES = {finding: ('mask', 1 << k) for k, finding in enumerate(FINDINGS)} | {
    'lungs': ('anatomy', 0b011),
    'heart': ('anatomy', 0b100),
}
TEST_EVERY = 5  # each fifth patient's number is a test patient's, whatever the number of patients


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """Side of the images in pixels, number of patients (1 to 4 images each), and seed.

    `test_patients` is how many of the test patients' unending row are rendered; 0: a fifth of
    `patients`. It does not change who is trained on.
    """

    name: str = ''
    size: int = 256
    patients: int = 800
    test_patients: int = 0
    seed: int = 0

    def __post_init__(self):
        for field, least in (('size', 16), ('patients', TEST_EVERY), ('test_patients', 0), ('seed', 0)):
            value = getattr(self, field)
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f'phantom_cxr: option {field} is {value!r}; give a whole number, {least} or more'
                )
        self.name = f'{self.size}_p{self.patients}_s{self.seed}'
        self.description = f'{self.patients} patients, {self.size} x {self.size} pixels, seed {self.seed}'
        if self.test_patients:
            self.name += f'_t{self.test_patients}'
            self.description += f', {self.test_patients} test patients'

    def split(self) -> dict[str, list[int]]:
        """The numbers of the patients of each split; which one a number is in never changes."""
        train_val = [p for p in range(self.patients) if p % TEST_EVERY != TEST_EVERY - 1]
        count = self.test_patients or self.patients // TEST_EVERY
        return {'train_val': train_val, 'test': [TEST_EVERY * (i + 1) - 1 for i in range(count)]}


class Builder(tfds.core.GeneratorBasedBuilder):
    """Splits `train_val` (four patients in five) and `test`; nothing is downloaded."""

    VERSION = tfds.core.Version('1.0.0')  # of the pictures: an option more changes none of them
    RELEASE_NOTES = {'1.0.0': 'First release.'}
    BUILDER_CONFIGS = [Config()]

    def _info(self) -> tfds.core.DatasetInfo:
        return schema.info(self, LABELS, structures=STRUCTURES)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        splits = self.builder_config.split()
        return {name: self._generate_examples(name, patients) for name, patients in splits.items()}

    def _generate_examples(self, split: str, patients: Iterable[int]) -> Iterator[tuple[str, dict]]:
        size, seed = self.builder_config.size, self.builder_config.seed

        def example(number: tuple[int, int]) -> tuple[str, dict]:
            patient, image = number
            shot = render.render(seed, patient, image, size)
            image_id = f'{patient:06d}_{image:03d}'
            return image_id, {
                'image': radiograph.encode_png(shot.image),
                'image_id': image_id,
                'patient_id': f'{patient:06d}',
                'labels': shot.labels,
                'view': shot.view,
                'sex': shot.sex,
                'age': shot.age,
                'bboxes': [{'bbox': tfds.features.BBox(*box), 'label': LABELS[k]} for k, *box in shot.boxes],
                'mask': radiograph.encode_png(shot.mask),
                'anatomy': radiograph.encode_png(shot.anatomy),
            }

        numbers = [
            (patient, image) for patient in patients for image in range(render.person(seed, patient).images)
        ]
        examples = radiograph.parallel_map(example, numbers, os.cpu_count() or 1)
        yield from release.progress(examples, len(numbers), f'{self.name} {split}')
