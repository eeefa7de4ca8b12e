"""TiCo against a NumPy transcription of the paper's Algorithm 1, example by example."""

import heads
import jax
import numpy as np
import pytest

BETA, RHO, MOMENTUM = 0.9, 20.0, 0.95


@pytest.fixture(scope='module')
def built():
    """The method, its variables and a state, every leaf of them random."""
    method, variables = heads.method_on_pixels(
        'tico', widths=(12, 6), covariance_momentum=BETA, covariance_weight=RHO, momentum=MOMENTUM
    )
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: method.init_state(jax.random.key(0), variables))
    return method, variables, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def directions(seed, batch=5, width=6):
    z = np.random.default_rng(seed).normal(size=(batch, width))
    return (z / np.sqrt(np.sum(z * z, 1, keepdims=True))).astype(np.float32)


def np_loss(z1, z2, before):
    """The loss and the covariance after the step, one example after the other."""
    now = sum(np.outer(z, z) for z in np.float64(z1)) / len(z1)
    covariance = BETA * np.float64(before) + (1 - BETA) * now
    each = [1 - np.dot(a, b) + RHO * a @ covariance @ a for a, b in zip(np.float64(z1), np.float64(z2))]
    return np.mean(each), covariance


def test_loss_and_covariance_are_those_of_the_paper(built):
    method, variables, state = built
    out = {'embedding_1': directions(0), 'embedding_2': directions(1)}
    loss, covariance = np_loss(*out.values(), state['covariance'])
    np.testing.assert_allclose(method.loss(out, state)[0], loss, rtol=1e-5)
    new = method.update(state, variables['params'], out, 0.5)
    np.testing.assert_allclose(new['covariance'], covariance, rtol=1e-5, atol=1e-6)


def test_the_gradient_passes_through_the_covariance(built):
    method, _, state = built
    z1, z2 = directions(0), directions(1)
    gradient = jax.grad(lambda z: method.loss({'embedding_1': z, 'embedding_2': z2}, state)[0])(z1)
    for place in ((0, 0), (3, 4)):
        step = np.zeros(z1.shape)
        step[place] = 1e-5
        slope = (
            np_loss(z1 + step, z2, state['covariance'])[0] - np_loss(z1 - step, z2, state['covariance'])[0]
        ) / 2e-5
        np.testing.assert_allclose(gradient[place], slope, rtol=1e-3)


def test_what_collapses_is_dearer_than_what_spreads(built):
    method, variables, _ = built
    state = method.init_state(jax.random.key(0), variables)
    assert not state['covariance'].any()
    same, apart = np.tile(np.eye(6, dtype=np.float32)[:1], (6, 1)), np.eye(6, dtype=np.float32)
    for z, contrast in ((same, 1), (apart, 1 / 6)):
        loss, terms = method.loss({'embedding_1': z, 'embedding_2': z}, state)
        np.testing.assert_allclose(loss, RHO * (1 - BETA) * contrast, rtol=1e-5)
        np.testing.assert_allclose(terms['invariance'], 0, atol=1e-6)


def test_second_views_go_through_the_teacher_which_follows_on_a_cosine(built):
    method, variables, state = built
    views = {'first': heads.pictures(5, 0), 'second': heads.pictures(5, 1)}
    out, _, new = method.forward(variables, state, views, None)
    (expected,), stats = method.embed(method.network, state['teacher'], views['second'])
    expected = np.asarray(expected) / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(out['embedding_2'], expected, rtol=1e-4, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, new['teacher']['batch_stats'], stats)
    updated = method.update(new, variables['params'], out, 0.5)['teacher']['params']
    momentum = 1 - (1 - MOMENTUM) / 2  # half-way on the cosine
    for after, before, trained in zip(
        *map(jax.tree.leaves, (updated, state['teacher']['params'], variables['params']))
    ):
        np.testing.assert_allclose(after, momentum * before + (1 - momentum) * trained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('field', ['momentum', 'covariance_momentum'])
def test_an_average_that_is_none_is_refused(field):
    with pytest.raises(ValueError, match=r'1\.5.*expected numbers from 0 to 1'):
        heads.method_on_pixels('tico', widths=(12, 6), **{field: 1.5})
