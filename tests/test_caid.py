"""CAiD's loss in NumPy; what is restored, and from what; a key network that only contrasts."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from configs import caid as recipe
from mlvicx_jax import methods, optim
from mlvicx_jax.data import augment

BATCH, KEY = 8, jax.random.key(7)


@pytest.fixture(scope='module')
def method():
    """One group of BatchNorm; more, with shuffled keys, are tested for MoCo: test_moco_v2.py."""
    return dataclasses.replace(methods.create(tiny.get_config('caid')), norm_groups=1)


@pytest.fixture(scope='module')
def step(method):
    """One pass from the initial state: what went in, came out, and the gradient into both trees."""
    rng = np.random.default_rng(0)
    views = {name: np.float32(rng.uniform(size=(BATCH, 80, 80, 1))) for name in ('first', 'second', 'target')}
    return tiny.one_pass(method, views, KEY)


def random_out():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, BATCH, 8))
    z = np.float32(z / np.linalg.norm(z, axis=-1, keepdims=True))
    return {'embedding_1': z[0], 'embedding_2': z[1], 'restoration': np.float32(rng.uniform(size=BATCH))}


def test_loss_is_contrast_and_ten_times_restoration(method, step):
    out, queue = random_out(), np.float64(step['state']['queue']['keys'])
    contrast = 0
    for q, k in zip(np.float64(out['embedding_1']), np.float64(out['embedding_2'])):
        scores = np.array([q @ k, *(q @ other for other in queue)]) / 0.2
        contrast += (math.log(sum(np.exp(scores))) - scores[0]) / BATCH
    restoration = np.float64(out['restoration']).mean()
    loss, terms = method.loss(out, step['state'])
    np.testing.assert_allclose(loss, contrast + 10 * restoration, rtol=1e-5)
    np.testing.assert_allclose(terms['contrast'], contrast, rtol=1e-5)
    np.testing.assert_allclose(terms['restoration'], restoration, rtol=1e-5)


def test_the_query_network_restores_the_target_from_the_first_view(method, step):
    network = dataclasses.replace(method, encoder=method.encoder.clone(axis_name=None)).network
    images = (step['views']['first'] - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])

    @jax.jit
    def run(images):
        def pictures(network, images):
            maps = network.encoder(images, True)
            return maps['pooled'], network.restoration(network.decoder(maps, 80, True)[-1])

        return network.apply(step['variables'], images, method=pictures, mutable=['batch_stats'])[0]

    pooled, logits = map(np.float64, run(images))
    assert logits.shape == (BATCH, 80, 80, 1)
    pictures = 1 / (1 + np.exp(-logits))
    expected = ((pictures - step['views']['target']) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(step['out']['restoration'], expected, rtol=1e-3)
    head = jax.tree.map(np.float64, step['variables']['params']['projector'])
    hidden = np.maximum(pooled @ head['linear1']['kernel'] + head['linear1']['bias'], 0)
    z = hidden @ head['linear2']['kernel'] + head['linear2']['bias']
    np.testing.assert_allclose(
        step['out']['embedding_1'], z / np.linalg.norm(z, axis=-1, keepdims=True), rtol=1e-3, atol=1e-4
    )


def test_pictures_are_grey_between_black_and_white(method, step):
    network = dataclasses.replace(method, encoder=method.encoder.clone(axis_name=None)).network
    (_, pictures), _ = jax.eval_shape(
        lambda images: network.apply(step['variables'], images, True, mutable=['batch_stats']),
        jnp.zeros((BATCH, 80, 80, 3), jnp.bfloat16),
    )
    assert pictures.shape == (BATCH, 80, 80, 1) and pictures.dtype == jnp.float32
    assert step['out']['restoration'].min() > 0 and step['out']['restoration'].max() < 1


def test_only_the_query_network_learns(step):
    query, key = map(tiny.leaves, step['gradient'])
    assert not any(np.any(leaf) for leaf in key.values())
    kernels = {path for path in query if 'kernel' in path}
    assert all(np.any(query[path]) for path in kernels)
    for part in ('encoder', 'projector', 'decoder', 'restoration'):
        assert any(part in path for path in kernels)


def test_no_gradient_reaches_keys_or_queue(method, step):
    key, queue = step['state']['key'], step['state']['queue']['keys']
    into_out, into_queue = jax.grad(
        lambda out, queue: method.loss(out, {'key': key, 'queue': {'keys': queue}})[0], (0, 1)
    )(random_out(), queue)
    assert np.all(np.any(into_out['embedding_1'], -1)) and np.all(into_out['restoration'])
    assert not np.any(into_out['embedding_2']) and not np.any(into_queue)


def test_key_network_is_encoder_and_head_of_the_query_network(step):
    parts = {'params': ('encoder', 'projector'), 'batch_stats': ('encoder',)}
    tiny.assert_close(
        step['state']['key'],
        {
            collection: {part: step['variables'][collection][part] for part in names}
            for collection, names in parts.items()
        },
        0,
    )


def test_a_pass_changes_statistics_alone(step):
    before, after = tiny.leaves(step['state']), tiny.leaves(step['new'])
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if 'batch_stats' in path}
    old, new = tiny.leaves(step['variables']['batch_stats']), tiny.leaves(step['stats'])
    assert all(not np.array_equal(old[path], new[path]) for path in old)


@pytest.mark.parametrize('flipped', [False, True])
def test_target_is_the_first_views_clean_crop(method, flipped):
    recipes = {
        name: dataclasses.replace(r, flip=1.0, jitter_probability=0.0, blur_probability=0.0)
        for name, r in method.recipes.items()
    }
    method = dataclasses.replace(method, recipes=recipes, flip_target=flipped)
    images = np.random.default_rng(0).integers(0, 256, (64, 96, 96, 1), np.uint8)
    keys = jax.random.split(KEY, 64)
    views = jax.tree.map(np.asarray, jax.jit(method.views)(keys, {'image': images}))
    clean = jax.jit(lambda: augment.views(keys, images, 80, recipes))()
    target = views['target'] if flipped else views['target'][:, :, ::-1]
    np.testing.assert_allclose(target, clean['first'], atol=1e-4)
    for name in ('first', 'second'):  # both are corrupted, about two in three
        whole = (np.abs(views[name] - clean[name]) < 1e-4).all((1, 2, 3))
        assert 0.15 < whole.mean() < 0.55
    assert np.any((views['first'] == 0).mean((1, 2, 3)) > 0.05)


def test_jitter_and_blur_are_not_in_the_target(method):
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 96, 96, 1), np.uint8)
    keys = jax.random.split(KEY, BATCH)
    target = jax.jit(method.views)(keys, {'image': images})['target']
    crop = dataclasses.replace(method.recipes['first'], flip=0.0, jitter_probability=0.0, blur_probability=0.0)
    expected = jax.jit(lambda: augment.views(keys, images, 80, {'first': crop}))()['first']
    np.testing.assert_allclose(target, expected, atol=1e-4)


def test_recipe_is_the_authors_at_a_batch_of_64():
    config = recipe.get_config()
    rate = optim.schedule(config.optim, config.batch_size, 1351, 300 * 1351, config.optim.final_factor)
    np.testing.assert_allclose([rate(0), rate(150 * 1351), rate(300 * 1351)], [0.0075, 0.00375, 0], atol=1e-8)
    method = methods.create(config)
    network = method.network
    assert network.encoder.norm_groups == network.decoder.norm_groups == 2
    assert network.decoder.skips and network.restoration.features == 1
    for view in method.recipes.values():
        assert (view.area, view.flip, view.rotation) == ((0.2, 1.0), 0.5, 0.0)
        assert (view.jitter_probability, view.brightness, view.contrast) == (0.8, 0.4, 0.4)
        assert (view.blur_probability, view.blur_sigma) == (0.5, (0.1, 2.0))
        assert view.solarise_probability == 0


def test_a_weight_below_zero_is_named(method):
    with pytest.raises(ValueError, match='restoration=-1'):
        dataclasses.replace(method, restoration=-1.0)
