"""The context bottleneck: channel, then spatial attention (CBAM), Eq. 1 and 2 of MLVICX."""

import jax.numpy as jnp
from flax import linen as nn

# torch's default for convolutions, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as a variance scaling
torch_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


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
            width, use_bias=False, dtype=self.dtype, kernel_init=torch_uniform, name=name)
        squeeze = dense(max(1, channels // self.reduction), 'channel_squeeze')
        excite = dense(channels, 'channel_excite')
        shared = lambda pooled: excite(nn.relu(squeeze(pooled)))
        channel_map = nn.sigmoid(shared(y.mean((1, 2))) + shared(y.max((1, 2))))
        y = y * channel_map[:, None, None, :]
        pools = jnp.stack([y.mean(-1), y.max(-1)], -1)
        spatial = nn.Conv(1, (7, 7), padding=3, use_bias=False, dtype=self.dtype,
                          kernel_init=torch_uniform, name='spatial')
        return y * nn.sigmoid(spatial(pools))
