"""The one feature schema of every set here; datasets/README.md documents it for users."""

from collections.abc import Mapping

import numpy as np
import tensorflow_datasets.public_api as tfds

VIEWS = ('PA', 'AP', 'unknown')
SEXES = ('F', 'M', 'unknown')


def info(
    builder: tfds.core.DatasetBuilder,
    labels: tuple[str, ...] | None,
    homepage: str = '',
    structures: Mapping[str, tuple[str, int]] | None = None,
) -> tfds.core.DatasetInfo:
    """The info of a set whose images are `builder.builder_config.size` pixels wide.

    Args:
        labels: the names of the multi-hot labels; None where the files tell them, by `set_labels`.
        structures: {name: (feature, bits)} of all that the masks outline. A structure lies where
            any of its bits is set; its feature is made, beside `image`.
    """
    features, size = tfds.features, builder.builder_config.size
    structures = structures or {}

    def picture() -> tfds.features.Image:
        return features.Image(shape=(size, size, 1), encoding_format='png')

    count = None if labels is None else len(labels)
    return builder.dataset_info_from_configs(
        features=features.FeaturesDict(
            {
                'image': picture(),
                'image_id': features.Text(),
                'patient_id': features.Text(),
                'labels': features.Tensor(shape=(count,), dtype=np.uint8),
                'view': features.ClassLabel(names=VIEWS),
                'sex': features.ClassLabel(names=SEXES),
                'age': np.int32,
                'bboxes': features.Sequence(
                    {'bbox': features.BBoxFeature(), 'label': features.ClassLabel(names=labels)}
                ),
                **{name: picture() for name, _ in structures.values()},
            }
        ),
        metadata=tfds.core.MetadataDict(
            {
                'labels': list(labels or ()),
                'structures': {name: list(place) for name, place in structures.items()},
            }
        ),
        homepage=homepage or None,
    )


def set_labels(info_: tfds.core.DatasetInfo, labels: tuple[str, ...]) -> None:
    """Names the labels of a set whose files had to be read first."""
    info_.metadata['labels'] = list(labels)
    info_.features['bboxes'].feature['label'].names = list(labels)
