"""InfoNCE and its queue against loops in float64, and averages over time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlvicx_jax.errors import UserError
from mlvicx_jax.methods.shared.contrast import cosine, enqueue, info_nce, new_queue, normalise
from mlvicx_jax.methods.shared.teacher import average, cosine_momentum


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return np.float32(x / np.linalg.norm(x, axis=-1, keepdims=True))


def np_info_nce(query, key, negatives, temperature):
    """One softmax a query: its key in place 0, then every negative."""
    query, key, negatives = np.float64(query), np.float64(key), np.float64(negatives)
    total = hits = 0
    for q, k in zip(query, key):
        scores = [sum(q * other) / temperature for other in (k, *negatives)]
        total += math.log(sum(map(math.exp, scores))) - scores[0]
        hits += scores[0] > max(scores[1:])
    return total / len(query), hits / len(query)


@pytest.mark.parametrize('temperature', [0.07, 0.2, 1.0])
def test_info_nce_is_a_softmax_over_the_key_and_the_negatives(temperature):
    rng = np.random.default_rng(0)
    key, negatives = unit(rng, 12, 5), unit(rng, 40, 5)
    query = np.float32(normalise(key + 0.5 * rng.normal(size=key.shape)))
    loss, accuracy = info_nce(query, key, negatives, temperature)
    expected, hits = np_info_nce(query, key, negatives, temperature)
    assert 0 < hits < 1
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(accuracy, hits, rtol=1e-6)


def test_info_nce_of_keys_found_among_random_negatives():
    """On the sphere in three dimensions the cosine s is uniform: E[exp(s / T)] = T sinh(1 / T)."""
    rng = np.random.default_rng(0)
    temperature, count = 0.2, 65536
    query = unit(rng, 64, 3)
    loss, _ = info_nce(query, query, unit(rng, count, 3), temperature)
    among = math.exp(1 / temperature) + count * temperature * math.sinh(1 / temperature)
    np.testing.assert_allclose(loss, -1 / temperature + math.log(among), rtol=2e-3)


def test_info_nce_of_equal_embeddings_counts_the_keys():
    ones = normalise(np.ones((4, 8), np.float32))
    loss, accuracy = info_nce(ones, ones, normalise(np.ones((31, 8))), 0.2)
    np.testing.assert_allclose(loss, math.log(32), rtol=1e-6)
    assert accuracy == 0  # no nearer than the negatives


def test_info_nce_teaches_the_query_alone():
    rng = np.random.default_rng(0)
    arrays = unit(rng, 6, 4), unit(rng, 6, 4), unit(rng, 10, 4)
    query, key, negatives = jax.grad(lambda x: info_nce(*x, 0.2)[0])(arrays)
    assert np.all(np.any(query, -1)) and not np.any(key) and not np.any(negatives)


def test_directions_have_length_one_and_a_gradient_at_zero():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 7)).astype(np.float32) * 1e-6
    np.testing.assert_allclose(np.linalg.norm(normalise(a), axis=-1), 1, rtol=1e-5)
    expected = [sum(x * y) / math.sqrt(sum(x * x) * sum(y * y)) for x, y in zip(np.float64(a), np.float64(b))]
    np.testing.assert_allclose(cosine(a, b), expected, rtol=1e-4, atol=1e-6)
    gradient = jax.grad(lambda x: cosine(x, jnp.ones((2, 3))).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all()
    assert normalise(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32


def test_queue_forgets_the_oldest_keys_first():
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(12, 2)).astype(np.float32)
    queue, step = new_queue(jnp.asarray(expected)), jax.jit(enqueue)
    for number in range(5):
        keys = rng.normal(size=(4, 2)).astype(np.float32)
        queue = step(queue, keys)
        place = 4 * number % 12
        expected[place : place + 4] = keys
        np.testing.assert_array_equal(queue['keys'], expected)
        assert queue['cursor'] == (place + 4) % 12 and queue['cursor'].dtype == jnp.int32


def test_queue_refuses_batches_that_do_not_fill_it_evenly():
    with pytest.raises(UserError, match='12 keys, which batches of 5 .* multiple of 5'):
        enqueue(new_queue(jnp.zeros((12, 2))), jnp.zeros((5, 2)))


def test_average_forgets_geometrically():
    old, new = (
        {'a': jnp.ones(3), 'b': {'c': jnp.zeros((2, 2))}},
        {'a': jnp.zeros(3), 'b': {'c': jnp.full((2, 2), 5.0)}},
    )
    for _ in range(7):
        old = average(old, new, 0.9)
    np.testing.assert_allclose(old['a'], 0.9**7, rtol=1e-5)
    np.testing.assert_allclose(old['b']['c'], 5 * (1 - 0.9**7), rtol=1e-5)


@pytest.mark.parametrize('progress,expected', [(0, 0.99), (0.5, 0.995), (1, 1)])
def test_cosine_momentum_ends_at_one(progress, expected):
    np.testing.assert_allclose(cosine_momentum(0.99, progress), expected, rtol=1e-6)
