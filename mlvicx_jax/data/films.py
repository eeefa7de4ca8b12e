"""One film of a split, decoded for a person to see."""

import numpy as np

from mlvicx_jax.data.source import Split
from mlvicx_jax_datasets import radiograph


def read_film(split: Split, position: int) -> np.ndarray:
    """The image uint8 [S, S] at a position of the split."""
    return radiograph.decode_image(
        split.record(position)['image'], f'record of image {split.image_ids[position]} ({split.name})'
    )
