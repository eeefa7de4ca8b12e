"""ResNet-18 in torchvision's form, with a context bottleneck in line at each of its five levels.

Names are chosen so that a PyTorch key is a string substitution away:
`layer1_0/conv1/kernel` <-> `layer1.0.conv1.weight`, `layer2_0/downsample_0` <-> `layer2.0.downsample.0`.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from mlvicx_jax.models.context import ContextBottleneck
from mlvicx_jax.models.norm import AXIS, MOMENTUM, batch_norm
from mlvicx_jax.models.precision import wide

LEVELS = ('stem', 'stage1', 'stage2', 'stage3', 'stage4')

he_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')  # as torchvision


def max_pool(x):
    """The greatest of 3 x 3 pixels at every second pixel of [b, h, w, c]; -inf around the map.

    Values, NaN included, and gradient, which goes to the first of equal pixels, are those of
    `nn.max_pool`. That one's gradient is a scatter, which a CPU does one element after another.
    """
    height, width = ((size - 1) // 2 + 1 for size in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    shifted = (x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] for i in range(3) for j in range(3))
    return functools.reduce(
        lambda first, then: jnp.where((then > first) | jnp.isnan(then), then, first), shifted
    )


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, projected only where the shape changes."""

    features: int
    stride: int
    dtype: jnp.dtype
    norm: Callable[..., nn.Module]
    zero_init_residual: bool

    @nn.compact
    def __call__(self, x):
        conv = lambda size, stride, name: nn.Conv(
            self.features,
            (size, size),
            stride,
            padding=size // 2,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=he_fan_out,
            name=name,
        )
        last = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        y = nn.relu(self.norm(name='bn1')(conv(3, self.stride, 'conv1')(x)))
        y = self.norm(name='bn2', scale_init=last)(conv(3, 1, 'conv2')(y))
        if x.shape != y.shape:
            x = self.norm(name='downsample_1')(conv(1, self.stride, 'downsample_0')(x))
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """Maps standardised images [b, h, w, 3] to a dict of named features.

    Returns `stem` [b, h/2, w/2, width], `stage1` (h/4), `stage2` (h/8, 2 width), `stage3` (h/16,
    4 width), `stage4` (h/32, 8 width), each already refined by its context bottleneck, and
    `pooled` [b, 8 width] in float32, the global average of `stage4`.

    A level that the collection `perturbations` has is added to the level of that name: with zeros
    there, a gradient with respect to them is that with respect to the level. No other call has
    this collection, `init` neither.

    Attributes:
        width: channels of the stem, 64 in ResNet-18; smaller for CPUs.
        context: whether the five context bottlenecks are there.
        reduction: their channel reduction r (2 in the release, 16 in CBAM).
        dtype: compute type; parameters and statistics stay float32.
        axis_name: mesh axis of the batch statistics; None takes those of the array itself.
        momentum: of the running statistics; 0 keeps those of the last batch alone.
        zero_init_residual: whether each block starts as its shortcut alone (Goyal et al., 2017).
        norm_groups: parts of the global batch with BatchNorm statistics of their own.
        remat: whether the inside of stem, blocks and bottlenecks (of the encoder alone) is computed
            once more in the backward pass instead of kept: the same numbers for a third more arithmetic
            and less memory.
    """

    width: int = 64
    context: bool = True
    reduction: int = 2
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = AXIS
    momentum: float = MOMENTUM
    zero_init_residual: bool = False
    norm_groups: int = 1
    remat: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        norm = batch_norm(train, self.dtype, self.axis_name, self.momentum, self.norm_groups)
        part = nn.remat if self.remat else lambda module: module
        features = {}

        def level(name, y):
            if self.context:
                y = part(ContextBottleneck)(self.reduction, self.dtype, name=f'context_{name}')(y)
            if self.has_variable('perturbations', name):
                y += self.get_variable('perturbations', name)
            features[name] = y
            return y

        @part
        def stem(module, x):
            x = nn.Conv(
                self.width,
                (7, 7),
                2,
                padding=3,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=he_fan_out,
                name='conv1',
            )(x.astype(self.dtype))
            return nn.relu(norm(name='bn1')(x))

        x = level('stem', stem(self, x))
        x = max_pool(x)
        for stage in range(4):
            for block in range(2):
                x = part(BasicBlock)(
                    self.width * 2**stage,
                    2 if stage and not block else 1,
                    self.dtype,
                    norm,
                    self.zero_init_residual,
                    name=f'layer{stage + 1}_{block}',
                )(x)
            x = level(f'stage{stage + 1}', x)
        features['pooled'] = wide(x).mean((1, 2))
        return features
