"""What a device can do at most: matrix products, reading and writing memory; what a step is held against.

  python -m benchmarks.ceilings

Each rate is the best of ten runs; the sizes are those at which it no longer grows.
"""

import json
import time

import jax
import jax.numpy as jnp

from mlvicx_jax import parallel

SIDE = 4096  # of the matrices
BYTES = 1 << 29  # that are read, and written


def fastest(function, *arguments) -> float:
    """Seconds of the fastest of ten calls."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def fastest_in_place(function, array) -> float:
    """The same where the result takes the place of `array`: no memory is asked for on the way."""
    compiled = jax.jit(function, donate_argnums=0)
    array = jax.block_until_ready(compiled(array))
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        array = jax.block_until_ready(compiled(array))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure() -> dict:
    """{'float32_flops', 'bfloat16_flops', 'bytes'} a second, and the device."""
    rates = {}
    for dtype in ('float32', 'bfloat16'):
        matrix = jnp.ones((SIDE, SIDE), dtype)
        rates[f'{dtype}_flops'] = 2 * SIDE ** 3 / fastest(jnp.matmul, matrix, matrix)
    rates['bytes'] = 2 * BYTES / fastest_in_place(lambda x: x + 1, jnp.ones(BYTES // 4, jnp.float32))
    return {'device': parallel.device_name(), **rates}


if __name__ == '__main__':
    print(json.dumps(measure()))
