"""The context bottleneck: channel, then spatial attention (CBAM), Eq. 1 and 2 of MLVICX."""

import jax
import jax.numpy as jnp
from flax import linen as nn

# torch's default for convolutions, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as a variance scaling
torch_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def greatest(y, axis):
    """`y.max(axis)` whose gradient goes to the first of the greatest entries, as torch's.

    The gradient of `max` divides by the number of entries that equal the maximum. XLA may compute
    both sides of that comparison anew and round them differently: none is equal, and 0 / 0 is NaN.
    """
    first = jnp.argmax(y, axis, keepdims=True)
    chosen = jax.lax.broadcasted_iota(first.dtype, y.shape, axis % y.ndim) == first
    return jnp.where(chosen, y, 0).sum(axis)


class ContextBottleneck(nn.Module):
    """Refines a feature map [b, h, w, c] by attention over its channels, then over its positions.

    a_ch = sigmoid(F(avg) + F(max)) with one shared two-layer F, c -> c / reduction -> c (Eq. 1);
    a_s = sigmoid(Conv7x7([avg_c; max_c])) on the channel-refined map (Eq. 2). The output,
    a_s * a_ch * y, replaces y for the next stage.
    """

    reduction: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, y):
        channels = y.shape[-1]
        dense = lambda width, name: nn.Dense(
            width, use_bias=False, dtype=self.dtype, kernel_init=torch_uniform, name=name
        )
        squeeze = dense(max(1, channels // self.reduction), 'channel_squeeze')
        excite = dense(channels, 'channel_excite')
        shared = lambda pooled: excite(nn.relu(squeeze(pooled)))
        channel_map = nn.sigmoid(shared(y.mean((1, 2))) + shared(greatest(y.reshape(len(y), -1, channels), 1)))
        y = y * channel_map[:, None, None, :]
        pools = jnp.stack([y.mean(-1), greatest(y, -1)], -1)
        spatial = nn.Conv(
            1, (7, 7), padding=3, use_bias=False, dtype=self.dtype, kernel_init=torch_uniform, name='spatial'
        )
        return y * nn.sigmoid(spatial(pools))
