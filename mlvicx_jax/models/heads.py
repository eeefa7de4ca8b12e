"""What stands on the encoder: the two ways to aggregate its levels, and the expander."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlvicx_jax.models.context import torch_uniform
from mlvicx_jax.models.norm import AXIS, batch_norm
from mlvicx_jax.models.resnet import LEVELS


class Concatenate(nn.Module):
    """The paper's aggregation: the five levels, each averaged over its positions, side by side."""

    @nn.compact
    def __call__(self, features):
        return jnp.concatenate(
            [features[level].astype(jnp.float32).mean((1, 2)) for level in LEVELS], -1)


def resize_then_pool(size: int, grid: int, cells: int) -> np.ndarray:
    """The [cells, size] matrix that resizes one axis to `grid` points, then averages into `cells`.

    The resize is bilinear with half-pixel centres, clamped at the edges and without antialiasing,
    as torch.nn.functional.interpolate(align_corners=False).
    """
    source = np.clip((np.arange(grid) + 0.5) * size / grid - 0.5, 0, size - 1)
    low = np.floor(source).astype(int)
    high = np.minimum(low + 1, size - 1)
    resize = np.zeros((grid, size))
    resize[np.arange(grid), low] += 1 - (source - low)
    resize[np.arange(grid), high] += source - low
    return resize.reshape(cells, grid // cells, size).mean(1)


class ResizeProjectSum(nn.Module):
    """The released aggregation: resize to `grid`, 1 x 1 convolution, sum, average to `cells`, flatten.

    All four steps are linear, so they commute. Pooling first (one fixed matrix on each spatial
    axis) and projecting the cells^2 positions that are left gives the same numbers for 0.0084
    instead of 2.15 GMAC per view at 224 px. The output is [b, cells * cells * features].
    """

    features: int = 512
    grid: int = 64
    cells: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features):
        total = 0
        for level in LEVELS:
            y = features[level]
            rows, columns = (jnp.asarray(resize_then_pool(n, self.grid, self.cells), y.dtype)
                             for n in y.shape[1:3])
            pooled = jnp.einsum('ph,bhwc,qw->bpqc', rows, y, columns)
            total += nn.Dense(self.features, dtype=self.dtype, kernel_init=torch_uniform,
                              name=f'project_{level}')(pooled)
        return total.reshape(total.shape[0], -1).astype(jnp.float32)


class Expander(nn.Module):
    """Linear layers with BatchNorm and ReLU between them; returns float32 embeddings.

    The last layer is linear (the paper, VICReg); `last_norm` puts a BatchNorm behind it as the
    release does, which starts every feature's standard deviation at 1 and so makes the variance
    hinge almost inert. Biases are left out: BatchNorm, or the loss, is blind to them.
    """

    widths: tuple[int, ...]
    last_norm: bool = False
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = AXIS

    @nn.compact
    def __call__(self, x, train: bool):
        norm = batch_norm(train, self.dtype, self.axis_name)
        for i, width in enumerate(self.widths, 1):
            x = nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=torch_uniform,
                         name=f'linear{i}')(x)
            if i < len(self.widths):
                x = nn.relu(norm(name=f'bn{i}')(x))
            elif self.last_norm:
                x = norm(name=f'bn{i}')(x)
        return x.astype(jnp.float32)
