"""BYOL's loss and heads against NumPy; its target, which is drawn, averaged and never learns."""

import dataclasses

import heads
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import byol as recipe
from mlvicx_jax import optim
from mlvicx_jax.methods.byol import truncated_normal

OUT = [f'{name}_{view}' for name in ('embedding', 'prediction', 'target') for view in (1, 2)]


@pytest.fixture(scope='module')
def built():
    """The method, variables and a target, every leaf of them random."""
    method, variables = heads.method_on_pixels('byol', projector=(12, 6), predictor=(10, 6), momentum=0.9)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: method.init_state(jax.random.key(0), variables))
    return method, variables, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture(scope='module')
def views():
    return {'first': heads.pictures(5, 0), 'second': heads.pictures(5, 1)}


def random_out(seed=0, batch=5, width=7):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(batch, width)).astype(np.float32) for name in OUT}


def np_loss(out):
    """The squared distance of the unit vectors, example by example and direction by direction."""
    total = 0.0
    for p, t in ((out['prediction_1'], out['target_2']), (out['prediction_2'], out['target_1'])):
        for a, b in zip(np.float64(p), np.float64(t)):
            a, b = a / np.sqrt(np.sum(a * a)), b / np.sqrt(np.sum(b * b))
            total += np.sum((a - b) ** 2)
    return total / len(p)


def test_loss_is_the_sum_of_both_directions(built):
    out = random_out()
    np.testing.assert_allclose(built[0].loss(out, {})[0], np_loss(out), rtol=1e-5)


def test_loss_runs_from_0_to_8(built):
    out = random_out()
    same = out | {'target_1': 3 * out['prediction_2'], 'target_2': out['prediction_1'] / 5}
    opposite = same | {name: -same[name] for name in ('target_1', 'target_2')}
    np.testing.assert_allclose(built[0].loss(same, {})[0], 0, atol=1e-6)
    np.testing.assert_allclose(built[0].loss(opposite, {})[0], 8, rtol=1e-6)
    np.testing.assert_allclose(built[0].loss(random_out(1, 64, 4096), {})[0], 4, atol=0.05)


def test_no_gradient_reaches_a_target(built):
    gradient = jax.grad(lambda out: built[0].loss(out, {})[0])(random_out())
    for name, value in gradient.items():
        assert np.any(value) == name.startswith('prediction'), name


def test_each_network_sees_one_view_at_a_time(built, views):
    method, variables, state = built
    out, _, _ = method.forward(variables, state, views, None)
    params, target = variables['params'], state['target']['params']
    assert params['projector'].keys() == params['predictor'].keys() == {'linear1', 'bn1', 'linear2'}
    assert not any('bias' in head[linear] for head in params.values() for linear in ('linear1', 'linear2'))
    for number, view in enumerate(views.values(), 1):
        z = heads.np_mlp(params['projector'], heads.np_pixels(view), last_norm=False)
        expected = {
            'embedding': z,
            'prediction': heads.np_mlp(params['predictor'], z, False),
            'target': heads.np_mlp(target['projector'], heads.np_pixels(view), False),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(out[f'{name}_{number}'], value, rtol=1e-3, atol=1e-3)


def test_each_network_keeps_the_statistics_of_its_own_passes(built, views):
    method, variables, state = built
    _, stats, new = method.forward(variables, state, views, None)
    for old, after in ((variables, stats), (state['target'], new['target']['batch_stats'])):
        mean = old['batch_stats']['projector']['bn1']['mean']
        for view in views.values():
            hidden = heads.np_pixels(view) @ old['params']['projector']['linear1']['kernel']
            mean = 0.9 * mean + 0.1 * hidden.mean(0)
        np.testing.assert_allclose(after['projector']['bn1']['mean'], mean, rtol=1e-4, atol=1e-4)
    assert new['target']['params'] is state['target']['params']  # the update's to change


def test_only_the_online_network_learns(built, views):
    method, variables, state = built

    def loss(params, state, views):
        out, _, _ = method.forward(variables | {'params': params}, state, views, None)
        return method.loss(out, state)[0]

    online, target, pictures = jax.grad(loss, (0, 1, 2))(variables['params'], state, views)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(target))
    assert all(np.any(leaf) for leaf in jax.tree.leaves((online, pictures)))


def test_the_target_is_another_draw_without_a_predictor(built):
    method = built[0]
    variables, state = method.init(jax.random.key(0))
    target = state['target']
    assert variables['params'].keys() == {'projector', 'predictor'}
    assert target['params'].keys() == target['batch_stats'].keys() == {'projector'}
    for linear in ('linear1', 'linear2'):
        online, other = (
            np.ravel(params['projector'][linear]['kernel'])
            for params in (variables['params'], target['params'])
        )
        assert np.abs(np.corrcoef(online, other)[0, 1]) < 0.3
        np.testing.assert_allclose(online.std(), other.std(), rtol=0.2)


def test_linear_weights_are_haikus():
    weights = np.asarray(truncated_normal(jax.random.key(0), (400, 1000), jnp.float32)) * 20
    np.testing.assert_allclose(weights.std(), 0.8796, atol=2e-3)  # scipy.stats.truncnorm.std(-2, 2)
    np.testing.assert_allclose(np.abs(weights).max(), 2, atol=1e-3)


@pytest.mark.parametrize('progress,momentum', [(0, 0.9), (1 / 3, 0.925), (0.5, 0.95), (1, 1)])
def test_update_averages_with_a_momentum_that_rises_to_1(built, progress, momentum):
    rng = np.random.default_rng(0)
    draw = lambda *parts: {part: {'kernel': rng.normal(size=(3, 2)).astype(np.float32)} for part in parts}
    old, new, stats = draw('encoder', 'projector'), draw('encoder', 'projector', 'predictor'), {}
    before = {'target': {'params': old, 'batch_stats': stats}}
    target = built[0].update(before, new, {}, progress)['target']
    assert target['batch_stats'] is stats and target['params'].keys() == old.keys()
    for part in old:
        np.testing.assert_allclose(
            target['params'][part]['kernel'],
            momentum * old[part]['kernel'] + (1 - momentum) * new[part]['kernel'],
            rtol=1e-5,
        )


def test_recipe_is_the_preset_for_300_epochs():
    config = recipe.get_config()
    rate = optim.schedule(config.optim, config.batch_size, 1351, 300 * 1351, config.optim.final_factor)
    np.testing.assert_allclose(
        [rate(0), rate(5 * 1351), rate(10 * 1351), rate(300 * 1351)], [0, 0.0375, 0.075, 0], atol=1e-8
    )
    first, second = config.views.first, config.views.second
    assert (first.blur_probability, first.solarise_probability) == (1.0, 0.0)
    assert (second.blur_probability, second.solarise_probability) == (0.1, 0.2)
    assert first.area == second.area == (0.08, 1.0) and not config.model.zero_init_residual


@pytest.mark.parametrize(
    'change,named',
    [
        (dict(momentum=1.5), 'momentum=1.5'),
        (dict(projector=()), r'projector=\(\)'),
        (dict(predictor=(16, 0)), r'predictor=\(16, 0\)'),
        (dict(predictor=(16, 9)), 'ends in 9, expected the width of what it predicts, 6'),
    ],
)
def test_bad_options_are_named(built, change, named):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(built[0], **change)
