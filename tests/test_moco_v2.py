"""MoCo v2's head and loss in NumPy; its keys: grouped, shuffled, averaged, without a gradient."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from configs import moco_v2 as recipe
from mlvicx_jax import methods, optim
from mlvicx_jax.data.augment import standardise

BATCH, KEY = 8, jax.random.key(7)


@pytest.fixture(scope='module')
def method():
    return methods.create(tiny.get_config('moco_v2'))


@pytest.fixture(scope='module')
def step(method):
    """One pass from the initial state: what went in, came out, and the gradient into both trees."""
    rng = np.random.default_rng(0)
    views = {
        name: jnp.asarray(rng.uniform(size=(BATCH, 80, 80, 1)), jnp.float32) for name in ('first', 'second')
    }
    return tiny.one_pass(method, views, KEY)


@pytest.fixture(scope='module')
def groups(method, step):
    """What the encoder gives for `images`, in two passes of half of them without a mesh."""
    encoder = method.encoder.clone(axis_name=None)
    variables = {collection: tree['encoder'] for collection, tree in step['variables'].items()}

    @jax.jit
    def half(images):
        features, stats = encoder.apply(variables, standardise(images), True, mutable=['batch_stats'])
        return features['pooled'], stats['batch_stats']

    def run(images):
        (first, first_stats), (second, second_stats) = map(half, np.split(np.asarray(images), 2))
        stats = jax.tree.map(lambda a, b: (a + b) / 2, first_stats, second_stats)
        return np.concatenate([first, second]), stats

    return run


def np_head(params, x):
    """Linear, ReLU, linear, and the length divided out."""
    assert {name: set(part) for name, part in params.items()} == {
        'linear1': {'kernel', 'bias'},
        'linear2': {'kernel', 'bias'},
    }
    params = jax.tree.map(np.float64, params)
    hidden = np.maximum(np.float64(x) @ params['linear1']['kernel'] + params['linear1']['bias'], 0)
    z = hidden @ params['linear2']['kernel'] + params['linear2']['bias']
    return z / np.sqrt((z**2).sum(-1, keepdims=True))


def random_out(method, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(2, BATCH, method.widths[-1]))
    z = np.float32(z / np.linalg.norm(z, axis=-1, keepdims=True))
    return {'embedding_1': z[0], 'embedding_2': z[1]}


def test_loss_finds_second_views_among_the_queue(method, step):
    out, queue = random_out(method), np.float64(step['state']['queue']['keys'])
    expected = 0
    for q, k in zip(np.float64(out['embedding_1']), np.float64(out['embedding_2'])):
        scores = np.array([q @ k, *(q @ other for other in queue)]) / 0.2
        expected += (math.log(sum(np.exp(scores))) - scores[0]) / BATCH
    loss, terms = method.loss(out, step['state'])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert terms['contrast'] == loss and 0 <= terms['contrast_accuracy'] <= 1


def test_no_gradient_reaches_keys_or_queue(method, step):
    out, key, queue = random_out(method), step['state']['key'], step['state']['queue']['keys']
    into_out, into_queue = jax.grad(
        lambda out, queue: method.loss(out, {'key': key, 'queue': {'keys': queue}})[0], (0, 1)
    )(out, queue)
    assert np.all(np.any(into_out['embedding_1'], -1))
    assert not np.any(into_out['embedding_2']) and not np.any(into_queue)


def test_only_the_query_network_learns(step):
    query, key = map(tiny.leaves, step['gradient'])
    assert not any(np.any(leaf) for leaf in key.values())
    assert all(np.any(leaf) for path, leaf in query.items() if 'kernel' in path)


def test_key_network_starts_as_a_copy_and_the_queue_as_directions(method, step):
    variables, state = step['variables'], step['state']
    tiny.assert_close(state['key'], variables, 0)
    keys = np.asarray(state['queue']['keys'])
    assert keys.shape == (64, 8) and state['queue']['cursor'] == 0
    np.testing.assert_allclose(np.linalg.norm(keys, axis=-1), 1, rtol=1e-5)
    assert np.abs(keys.mean(0)).max() < 0.2 and np.linalg.matrix_rank(keys) == 8


def test_head_starts_as_torchs(method):
    head = dataclasses.replace(method, widths=(512, 128)).projector
    params = head.init(jax.random.key(0), jnp.zeros((1, 512)), True)['params']
    for layer in params.values():
        for leaf in layer.values():
            assert 0.95 < np.abs(leaf).max() * 512**0.5 <= 1
            np.testing.assert_allclose(leaf.std() * 512**0.5, 3**-0.5, rtol=0.1)


def test_queries_are_normalised_in_the_two_halves_of_the_batch(step, groups):
    pooled, stats = groups(step['views']['first'])
    expected = np_head(step['variables']['params']['projector'], pooled)
    np.testing.assert_allclose(step['out']['embedding_1'], expected, rtol=1e-3, atol=1e-4)
    for path, leaf in tiny.leaves(step['stats']['encoder']).items():
        np.testing.assert_allclose(leaf, tiny.leaves(stats)[path], rtol=1e-3, atol=1e-4)


def test_keys_are_normalised_in_two_halves_of_a_shuffled_batch(step, groups):
    order = np.asarray(jax.random.permutation(KEY, BATCH))
    head = step['variables']['params']['projector']
    shuffled, stats = groups(step['views']['second'][order])
    expected = np.empty((BATCH, 8))
    for place, image in enumerate(order):
        expected[image] = np_head(head, shuffled[place])
    np.testing.assert_allclose(step['out']['embedding_2'], expected, rtol=1e-3, atol=1e-4)
    unshuffled = np_head(head, groups(step['views']['second'])[0])
    assert np.abs(unshuffled - expected).max() > 0.01
    new = step['new']['key']
    for path, leaf in tiny.leaves(new['batch_stats']['encoder']).items():
        np.testing.assert_allclose(leaf, tiny.leaves(stats)[path], rtol=1e-3, atol=1e-4)


def test_in_one_group_the_order_of_the_batch_changes_nothing(method, step):
    network = dataclasses.replace(
        method, norm_groups=1, encoder=method.encoder.clone(axis_name=None)
    ).key_network
    run = jax.jit(
        lambda images: network.apply(step['variables'], standardise(images), True, mutable=['batch_stats'])[0]
    )
    order = np.asarray(jax.random.permutation(KEY, BATCH))
    views = step['views']['second']
    np.testing.assert_allclose(run(views[order]), run(views)[order], rtol=1e-3, atol=1e-5)


def test_a_pass_changes_statistics_alone(step):
    before, after = tiny.leaves(step['state']), tiny.leaves(step['new'])
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    # The queue among them that the loss sees: a step's keys are not its own negatives.
    assert changed == {path for path in before if 'batch_stats' in path}


def test_update_follows_the_query_network_and_queues_the_keys(method, step):
    state, params = step['state'], step['variables']['params']
    moved = jax.tree.map(lambda x: x + 1, params)
    outs = [random_out(method, seed) for seed in range(3)]
    new = state
    for out in outs:
        new = method.update(new, moved, out, 0.5)
    assert new['key']['batch_stats'] is state['key']['batch_stats']
    before, after = tiny.leaves(params), tiny.leaves(new['key']['params'])
    for path in before:
        np.testing.assert_allclose(after[path], before[path] + 1 - 0.9**3, rtol=1e-4, atol=1e-5)
    expected = np.asarray(state['queue']['keys']).copy()
    expected[:24] = np.concatenate([out['embedding_2'] for out in outs])
    np.testing.assert_array_equal(new['queue']['keys'], expected)
    assert new['queue']['cursor'] == 24


def test_recipe_is_the_authors_at_a_batch_of_64():
    config = recipe.get_config()
    rate = optim.schedule(config.optim, config.batch_size, 1351, 300 * 1351, config.optim.final_factor)
    np.testing.assert_allclose([rate(0), rate(150 * 1351), rate(300 * 1351)], [0.0075, 0.00375, 0], atol=1e-8)
    for view in methods.create(config).recipes.values():
        assert (view.area, view.flip, view.rotation) == ((0.2, 1.0), 0.5, 0.0)
        assert (view.jitter_probability, view.brightness, view.contrast) == (0.8, 0.4, 0.4)
        assert (view.blur_probability, view.blur_sigma) == (0.5, (0.1, 2.0))
        assert view.solarise_probability == 0


@pytest.mark.parametrize(
    'change,named',
    [
        (dict(queue=0), 'queue=0'),
        (dict(momentum=1.5), 'momentum=1.5'),
        (dict(temperature=0.0), 'temperature=0.0'),
        (dict(norm_groups=0), 'norm_groups=0'),
        (dict(widths=(16, 0)), r'widths=\(16, 0\)'),
        (dict(widths=()), r'widths=\(\)'),
    ],
)
def test_bad_options_are_named(method, change, named):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(method, **change)
