"""Read-outs: which numbers of an encoder's maps are the features of a film.

Pure functions of the dict of named features that an encoder gives (`models/resnet.py`), the same for
trained and untrained encoders, so that a comparison has one read-out.
"""

import jax.numpy as jnp
import numpy as np

from mlvicx_jax.models.precision import wide
from mlvicx_jax.models.resnet import LEVELS

GRID = {'stage2': 6, 'stage3': 3}  # cells along each side of a level's map


def pooled(features):
    """The global average of the last level [b, 8 width]: the papers' read-out."""
    return wide(features['pooled'])


def levels(features):
    """The global averages of the five levels, one after another [b, 16 width]."""
    return jnp.concatenate([wide(features[level]).mean((1, 2)) for level in LEVELS], 1)


def grid(features):
    """Averages of `stage2` and `stage3` over the cells of a coarse grid [b, 108 width].

    A finding has a place on a frontal film, which a global average gives away. Levels and cells were
    chosen on a phantom of another seed than the one that figures are reported of: docs/results.md.
    """
    cells = [cell_averages(features[level], side) for level, side in GRID.items()]
    return jnp.concatenate([cell.reshape(len(cell), -1) for cell in cells], 1)


READOUTS = {'pooled': pooled, 'levels': levels, 'grid': grid}


def read(features, name: str):
    """The read-out [b, d] of that name, float32; or else the feature map of that name, as it is."""
    return READOUTS[name](features) if name in READOUTS else features[name]


def cell_averages(maps, side: int):
    """Averages of maps [b, h, w, c] over side x side equal cells, float32 [b, side, side, c].

    A pixel on the border of two cells counts in each by its share, so h and w may be any.
    """
    rows, columns = (_shares(size, side) for size in maps.shape[1:3])
    return jnp.einsum('ph,bhwc,qw->bpqc', rows, wide(maps), columns, precision='highest')


def _shares(size: int, cells: int) -> np.ndarray:
    """[cells, size]: the share of each pixel in the average of each cell along one axis."""
    edge = np.arange(cells + 1) * size / cells
    pixel = np.arange(size)
    overlap = np.minimum(edge[1:, None], pixel + 1) - np.maximum(edge[:-1, None], pixel)
    return (overlap.clip(0) * cells / size).astype(np.float32)
