"""The decoder of a U-Net on the encoder's named features, with or without its skips."""

import jax.numpy as jnp
from flax import linen as nn

from mlvicx_jax.models.norm import AXIS, batch_norm

he_uniform = nn.initializers.variance_scaling(2.0, 'fan_in', 'uniform')


class Decoder(nn.Module):
    """From `stage4` back to the image's size in five blocks, those of segmentation_models_pytorch.

    A block doubles the map (nearest), puts the encoder's map of that size beside it if there are
    skips, and applies twice a 3 x 3 convolution, BatchNorm and ReLU. A map that was odd before the
    encoder halved it is cut to its size again.

    Attributes:
        width: of the encoder; the blocks have 4, 2, 1, 1/2 and 1/4 times as many channels, 256 to 16
            in ResNet-18.
        skips: whether blocks 1 to 4 see `stage3`, `stage2`, `stage1` and `stem`.
        dtype, axis_name, norm_groups: as in `ResNet18`.
    """

    width: int = 64
    skips: bool = True
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = AXIS
    norm_groups: int = 1

    @nn.compact
    def __call__(self, features, size: int, train: bool):
        """The five blocks' maps, the last [b, size, size, width / 4]."""
        norm = batch_norm(train, self.dtype, self.axis_name, groups=self.norm_groups)
        x, maps = features['stage4'].astype(self.dtype), []
        for block, level in enumerate(('stage3', 'stage2', 'stage1', 'stem', None), 1):
            height, width = features[level].shape[1:3] if level else (size, size)
            x = x.repeat(2, 1).repeat(2, 2)[:, :height, :width]
            if self.skips and level:
                x = jnp.concatenate([x, features[level].astype(self.dtype)], -1)
            for layer in (1, 2):
                x = nn.Conv(
                    max(1, 8 * self.width >> block),
                    (3, 3),
                    use_bias=False,
                    dtype=self.dtype,
                    kernel_init=he_uniform,
                    name=f'block{block}_conv{layer}',
                )(x)
                x = nn.relu(norm(name=f'block{block}_bn{layer}')(x))
            maps.append(x)
        return maps


def restoration_head(channels: int, dtype, name: str) -> nn.Conv:
    """The 3 x 3 convolution from the last block's map to a picture, as in the same library."""
    return nn.Conv(channels, (3, 3), dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)
