"""SimCLR: its loss and projector against NumPy, and the one BatchNorm batch of both views."""

import heads
import jax
import numpy as np
import pytest

from mlvicx_jax.methods.simclr import Method

WIDTHS, TEMPERATURE = (12, 12, 6), 0.3


@pytest.fixture(scope='module')
def built():
    return heads.method_on_pixels('simclr', widths=WIDTHS, temperature=TEMPERATURE)


def unit(shape, seed=0):
    z = np.random.default_rng(seed).normal(size=shape)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def np_loss(z1, z2, temperature):
    """For each view: find the partner among the other view's N and the own view's other N - 1."""
    n, total = len(z1), 0
    for mine, others in ((z1, z2), (z2, z1)):
        for i in range(n):
            logits = [mine[i] @ others[j] / temperature for j in range(n)]
            logits += [mine[i] @ mine[j] / temperature for j in range(n) if j != i]
            total += (np.log(np.exp(logits).sum()) - logits[i]) / n
    return total


def loss_of(method, z1, z2):
    return method.loss({'embedding_1': z1, 'embedding_2': z2}, {})


def test_loss_and_its_gradient_follow_the_formula(built):
    method, z = built[0], unit((2, 5, 3))
    loss, gradient = jax.value_and_grad(lambda z: loss_of(method, *z)[0])(np.float32(z))
    np.testing.assert_allclose(loss, np_loss(*z, TEMPERATURE), rtol=1e-5)
    # Through anchors, partners and negatives alike: nothing is held constant.
    numeric, step = np.zeros((2, 5, 3)), 1e-6
    for index in np.ndindex(2, 5, 3):
        change = np.zeros((2, 5, 3))
        change[index] = step
        up, down = (np_loss(*(z + sign * change), TEMPERATURE) for sign in (1, -1))
        numeric[index] = (up - down) / (2 * step)
    np.testing.assert_allclose(gradient, numeric, atol=1e-4 * np.abs(numeric).max())


def test_levels_and_symmetry(built):
    method = built[0]
    same, (z1, z2) = np.ones((64, 1), np.float32), np.float32(unit((2, 64, 512)))
    np.testing.assert_allclose(loss_of(method, same, same)[0], 2 * np.log(127), rtol=1e-5)
    random = loss_of(method, z1, z2)[0]
    assert 2 * np.log(127) < random < 2 * np.log(127) + 0.1
    np.testing.assert_allclose(loss_of(method, z2, z1)[0], random, rtol=1e-6)


def test_accuracy_counts_views_that_are_nearest_to_their_partner(built):
    method = built[0]
    z1 = np.eye(4, dtype=np.float32)
    z2 = z1[[0, 1, 3, 2]]
    assert loss_of(method, z1, z1)[1]['contrast_accuracy'] == 1
    assert loss_of(method, z1, z2)[1]['contrast_accuracy'] == 0.5


def test_embeddings_are_those_of_one_batch_of_both_views(built):
    method, variables = built
    views = {'first': heads.pictures(5, 1), 'second': heads.pictures(5, 2)}
    out, stats, state = method.forward(variables, {}, views, None)
    x = heads.np_pixels(np.concatenate(list(views.values())))
    z = heads.np_mlp(variables['params']['projector'], x, last_norm=True)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    found = np.concatenate([out['embedding_1'], out['embedding_2']])
    np.testing.assert_allclose(found, z, atol=1e-4)
    assert state == {}
    # One update of the running statistics a step.
    first = x @ np.float64(variables['params']['projector']['linear1']['kernel'])
    np.testing.assert_allclose(
        stats['projector']['bn1']['mean'],
        0.9 * variables['batch_stats']['projector']['bn1']['mean'] + 0.1 * first.mean(0),
        atol=1e-4,
    )


def test_projector_has_the_officials_parameters():
    method = Method(encoder=heads.Pixels(), recipes={}, image_size=heads.PIXELS)
    params = method.init_network(jax.random.key(0))['params']['projector']
    shapes = jax.tree.map(np.shape, params)
    inputs = 3 * heads.PIXELS**2
    affine = {'scale': (512,), 'bias': (512,)}
    assert shapes == {
        'linear1': {'kernel': (inputs, 512)},
        'linear2': {'kernel': (512, 512)},
        'linear3': {'kernel': (512, 128)},
        'bn1': affine,
        'bn2': affine,
        'bn3': {'scale': (128,)},
    }
    for i in (1, 2, 3):
        kernel = np.asarray(params[f'linear{i}']['kernel'])
        np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.02)
        assert abs(kernel).max() > 0.03  # a normal distribution: it has tails


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match='temperature=0'):
        heads.method_on_pixels('simclr', temperature=0)
