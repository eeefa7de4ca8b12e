"""The rows of the global batch, seen from a device that holds some of them.

For use inside the mapped function of `step.py`; nothing here depends on how many devices there are.
"""

import jax
import jax.numpy as jnp
from jax import lax

from mlvicx_jax.models.norm import AXIS


def own(count: int) -> jax.Array:
    """The places [count] in the global batch of this device's `count` rows."""
    return lax.axis_index(AXIS) * count + jnp.arange(count)


def permutation(key: jax.Array, count: int) -> jax.Array:
    """A random order [B] of the global batch, of which this device holds `count` rows.

    Args:
        key: the same on every device.
    """
    return jax.random.permutation(key, count * lax.axis_size(AXIS))


def permute(x: jax.Array, order: jax.Array) -> jax.Array:
    """This device's rows of x[order], x being the whole batch.

    Args:
        x: this device's rows [b, ...].
        order: a permutation [B] of the global batch, the same on every device.
    """
    return lax.all_gather(x, AXIS, tiled=True)[order[own(len(x))]]
