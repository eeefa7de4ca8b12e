"""Where bfloat16 is not enough."""

import jax.numpy as jnp


def wide(x):
    """x in float32, or as it is where that is wider: for averages, statistics and losses."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
