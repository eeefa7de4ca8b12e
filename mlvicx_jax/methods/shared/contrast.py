"""Directions, InfoNCE against a queue of keys, and the queue (MoCo, arXiv:1911.05722)."""

import jax
import jax.numpy as jnp

from mlvicx_jax.errors import UserError
from mlvicx_jax.models.precision import wide


def normalise(x):
    """Rows of x divided by their length, in float32; a row of zeros stays one."""
    x = wide(x)
    # The epsilon stands inside the root: the gradient of a plain norm at 0 is NaN.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def cosine(a, b):
    """Cosine between the rows of a and b [..., d], in float32."""
    return (normalise(a) * normalise(b)).sum(-1)


def similarities(query, key, negatives):
    """Cosines [B, 1 + K] of each query with its key, then with every negative.

    Args:
        query, key: unit rows [B, d]; no gradient goes into `key` or `negatives`.
        negatives: unit rows [K, d].
    """
    key, negatives = jax.lax.stop_gradient((key, negatives))
    positive = (query * key).sum(-1, keepdims=True)
    negative = jnp.matmul(query, negatives.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([positive, negative], -1)


def info_nce(query, key, negatives, temperature: float):
    """Cross-entropy of finding each query's key among the negatives, meaned over the batch.

    Returns:
        The loss, and the share of queries that are nearer to their key than to any negative; arguments
        as in `similarities`.
    """
    cosines = similarities(query, key, negatives)
    logits = cosines / temperature
    loss = (jax.nn.logsumexp(logits, -1) - logits[:, 0]).mean()
    return loss, (cosines[:, 0] > cosines[:, 1:].max(-1)).mean()


def enqueue(queue, keys):
    """The queue with `keys` [B, d] written at its cursor, the oldest overwritten.

    Args:
        queue: {'keys': [K, d], 'cursor': int32 scalar}.

    Raises:
        UserError: K is no multiple of B.
    """
    length = len(queue['keys'])
    if length % len(keys):
        raise UserError(
            f'the queue holds {length} keys, which batches of {len(keys)} do not fill '
            f'evenly; give --config.method.queue= a multiple of {len(keys)}'
        )
    keys = keys.astype(queue['keys'].dtype)
    return {
        'keys': jax.lax.dynamic_update_slice_in_dim(queue['keys'], keys, queue['cursor'], 0),
        'cursor': (queue['cursor'] + len(keys)) % length,
    }


def new_queue(keys):
    """A queue that holds `keys` [K, d], which must be drawn at random: unlike any image's."""
    return {'keys': keys, 'cursor': jnp.zeros((), jnp.int32)}
