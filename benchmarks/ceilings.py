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


def seconds(function, *arguments) -> float:
    """That a call takes, to the end of its work on the device."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def fastest(function, *arguments) -> float:
    """Seconds of the fastest of ten calls, after one that compiles."""
    return min([seconds(function, *arguments) for _ in range(11)][1:])


def measure() -> dict:
    """{'float32_flops', 'bfloat16_flops', 'bytes'} a second, and the device."""
    rates, product = {}, jax.jit(jnp.matmul)
    for dtype in ('float32', 'bfloat16'):
        matrix = jnp.ones((SIDE, SIDE), dtype)
        rates[f'{dtype}_flops'] = 2 * SIDE**3 / fastest(product, matrix, matrix)
    array, add = jnp.ones(BYTES // 4, jnp.float32), jax.jit(lambda x: x + 1, donate_argnums=0)

    def add_in_place():  # a result in new memory would cost its pages, too
        nonlocal array
        array = add(array)
        return array

    rates['bytes'] = 2 * BYTES / fastest(add_in_place)
    return {'device': parallel.device_name(), **rates}


if __name__ == '__main__':
    print(json.dumps(measure()))
