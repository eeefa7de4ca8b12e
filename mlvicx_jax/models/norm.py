"""Batch normalisation with PyTorch's constants and statistics over the whole mesh, or groups of it."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from mlvicx_jax.errors import UserError
from mlvicx_jax.models.precision import wide

AXIS = 'data'  # the one mesh axis; BatchNorm averages its statistics over it
EPSILON = 1e-5
MOMENTUM = 0.9  # of the running statistics; torch's 0.1 is what the batch brings


def batch_norm(train: bool, dtype, axis_name: str | None, momentum: float = MOMENTUM, groups: int = 1):
    """A constructor of BatchNorm layers.

    In training the statistics are those of the batch over every device of `axis_name`; with
    `axis_name=None` they are those of the array itself. Running variances are the biased ones.
    `groups` > 1 gives every part of the global batch statistics of its own (`GroupedBatchNorm`).
    """
    layer = nn.BatchNorm if groups == 1 else functools.partial(GroupedBatchNorm, groups)
    return functools.partial(
        layer,
        use_running_average=not train,
        momentum=momentum,
        epsilon=EPSILON,
        dtype=dtype,
        axis_name=axis_name,
    )


class GroupedBatchNorm(nn.Module):
    """BatchNorm whose statistics are those of one of `groups` equal, consecutive parts of the batch.

    What BatchNorm does on `groups` GPUs that do not synchronise it, whatever the number of devices
    is: a device may hold several groups, or a group span several devices. Parameters and running
    statistics, the groups' mean, are those of `flax.linen.BatchNorm`.

    Raises:
        UserError: the batch is no multiple of the groups, or devices and groups do not divide.
    """

    groups: int
    use_running_average: bool
    momentum: float
    epsilon: float
    dtype: jnp.dtype
    axis_name: str | None
    use_bias: bool = True
    use_scale: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
        if self.use_running_average or self.is_initializing():
            groups = wide(x)[None]
            mean, var = running_mean.value[None], running_var.value[None]
        else:
            groups, mean, var = self._moments(x)
            for running, found in ((running_mean, mean), (running_var, var)):
                found = found.mean(0)
                if self.axis_name:
                    found = lax.pmean(found, self.axis_name)
                running.value = self.momentum * running.value + (1 - self.momentum) * found
        spread = (len(mean),) + (1,) * (x.ndim - 1) + (channels,)
        y = (groups - mean.reshape(spread)) * lax.rsqrt(var.reshape(spread) + self.epsilon)
        y = y.reshape(x.shape)
        if self.use_scale:
            y *= self.param('scale', self.scale_init, (channels,), jnp.float32)
        if self.use_bias:
            y += self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        return y.astype(self.dtype)

    def _moments(self, x):
        """x in float32 as [g, b / g, ...], g groups on this device, with their means and variances."""
        devices = lax.axis_size(self.axis_name) if self.axis_name else 1
        here = max(1, self.groups // devices)
        if max(self.groups, devices) % min(self.groups, devices) or len(x) % here:
            raise UserError(
                f'{self.groups} BatchNorm groups do not fit {devices} devices with '
                f'{len(x)} rows each; devices and groups must divide one another, and '
                'the groups the batch'
            )
        groups = wide(x).reshape(here, -1, *x.shape[1:])
        axes = tuple(range(1, groups.ndim - 1))
        moments = jnp.stack([groups.mean(axes), jnp.square(groups).mean(axes)])
        if devices > self.groups:
            of_devices = lax.all_gather(moments[:, 0], self.axis_name, axis=1)
            of_groups = of_devices.reshape(2, self.groups, -1, x.shape[-1]).mean(2)
            mine = lax.axis_index(self.axis_name) * self.groups // devices
            moments = jax.lax.dynamic_slice_in_dim(of_groups, mine, 1, 1)
        mean, square = moments
        return groups, mean, jnp.maximum(square - jnp.square(mean), 0)
