"""SimSiam's loss and heads against NumPy, the fixed embedding, the predictor's constant rate."""

import dataclasses

import heads
import jax
import numpy as np
import optax
import pytest

from configs import simsiam as recipe
from mlvicx_jax import optim
from mlvicx_jax.methods.shared.prediction import spread


@pytest.fixture(scope='module')
def built():
    return heads.method_on_pixels('simsiam', projector=(12, 12, 8), predictor=(6, 8))


@pytest.fixture(scope='module')
def views():
    return {'first': heads.pictures(5, 0), 'second': heads.pictures(5, 1)}


def random_out(seed=0, batch=5, width=7):
    rng = np.random.default_rng(seed)
    return {
        f'{name}_{view}': rng.normal(size=(batch, width)).astype(np.float32)
        for name in ('embedding', 'prediction')
        for view in (1, 2)
    }


def np_loss(out):
    """Minus half the sum of both directions' mean cosine, example by example."""
    total = 0.0
    for p, z in ((out['prediction_1'], out['embedding_2']), (out['prediction_2'], out['embedding_1'])):
        for a, b in zip(np.float64(p), np.float64(z)):
            total -= np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)) / len(p)
    return total / 2


def test_loss_is_minus_the_mean_cosine(built):
    out = random_out()
    np.testing.assert_allclose(built[0].loss(out, {})[0], np_loss(out), rtol=1e-5)
    same = out | {'embedding_1': 3 * out['prediction_2'], 'embedding_2': out['prediction_1'] / 5}
    np.testing.assert_allclose(built[0].loss(same, {})[0], -1, rtol=1e-6)


def test_no_gradient_reaches_an_embedding_through_its_use_as_target(built):
    gradient = jax.grad(lambda out: built[0].loss(out, {})[0])(random_out())
    for name, value in gradient.items():
        assert np.any(value) == name.startswith('prediction'), name


def test_everything_learns(built, views):
    method, variables = built

    def loss(params, views):
        out, _, _ = method.forward(variables | {'params': params}, {}, views, None)
        return method.loss(out, {})[0]

    gradient = jax.grad(loss, (0, 1))(variables['params'], views)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_heads_see_one_view_at_a_time(built, views):
    method, variables = built
    params = variables['params']
    names = {part: {name: set(layer) for name, layer in params[part].items()} for part in params}
    affine = {'scale', 'bias'}
    assert names == {
        'projector': {
            'linear1': {'kernel'},
            'bn1': affine,
            'linear2': {'kernel'},
            'bn2': affine,
            'linear3': {'kernel'},
        },  # the last BatchNorm has no parameters
        'predictor': {'linear1': {'kernel'}, 'bn1': affine, 'linear2': {'kernel', 'bias'}},
    }
    out, _, _ = method.forward(variables, {}, views, None)
    for number, view in enumerate(views.values(), 1):
        z = heads.np_mlp(params['projector'], heads.np_pixels(view), last_norm=True)
        p = heads.np_mlp(params['predictor'], z, last_norm=False)
        p += params['predictor']['linear2']['bias']
        for name, value in (('embedding', z), ('prediction', p)):
            np.testing.assert_allclose(out[f'{name}_{number}'], value, rtol=1e-3, atol=1e-3)


def test_spread_tells_one_direction_from_all():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(256, 512)).astype(np.float32)
    unit = np.float64(z) / np.linalg.norm(np.float64(z), axis=1, keepdims=True)
    expected = np.mean([unit[:, j].std() for j in range(512)]) / (1 / np.sqrt(512))
    np.testing.assert_allclose(spread(z), expected, rtol=1e-5)
    np.testing.assert_allclose(expected, 1, atol=0.01)
    np.testing.assert_allclose(spread(np.arange(1.0, 6.0)[:, None] * z[:1]), 0, atol=1e-5)


def test_the_predictors_rate_is_constant_and_all_parameters_decay():
    """Torch's SGD: m <- 0.9 m + g + 1e-4 w, w <- w - rate m; the rest on a cosine from 0.0125."""
    config, total = recipe.get_config(), 10
    optimizer = optim.create(config.optim, config.batch_size, 1, total)
    rng = np.random.default_rng(0)
    params = {
        part: {'kernel': rng.normal(size=(3, 2)), 'scale': rng.normal(size=2)}
        for part in ('encoder', 'projector', 'predictor')
    }
    gradient = jax.tree.map(lambda w: rng.normal(size=w.shape), params)
    expected, buffer = params, jax.tree.map(np.zeros_like, params)
    with jax.enable_x64(True):
        state = optimizer.init(params)
        for step in range(total):
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            buffer = jax.tree.map(lambda m, g, w: 0.9 * m + g + 1e-4 * w, buffer, gradient, expected)
            cosine = 0.0125 * (1 + np.cos(np.pi * step / total)) / 2
            rates = {'encoder': cosine, 'projector': cosine, 'predictor': 0.0125}
            expected = {
                part: jax.tree.map(lambda w, m, rate=rate: w - rate * m, expected[part], buffer[part])
                for part, rate in rates.items()
            }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, expected)


def test_bad_widths_are_named(built):
    with pytest.raises(ValueError, match='ends in 9, expected the width of what it predicts, 8'):
        dataclasses.replace(built[0], predictor=(8, 9))
