"""Inter_MoCo's pooling against PyTorch, its loss against NumPy, its views, and who learns."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from configs import inter_moco as recipe
from mlvicx_jax import methods, optim
from mlvicx_jax.data.augment import resize, standardise
from mlvicx_jax.methods.inter_moco import CELLS, adaptive_average

BATCH = 4


@pytest.fixture(scope='module')
def method():
    """On one device, without a mesh."""
    method = methods.create(tiny.get_config('inter_moco'))
    return dataclasses.replace(method, encoder=method.encoder.clone(axis_name=None))


@pytest.fixture(scope='module')
def step(method):
    """One pass from the initial state: what went in, came out, the gradients of the loss and of the
    maps' part of it, and the encoder's features of both views."""
    variables, state = jax.jit(method.init)(jax.random.key(0))
    # As if trained for a while: the blocks are more than their shortcuts, the networks two.
    variables['params'] = jax.tree.map(lambda x: jnp.where(x == 0, 0.5, x), variables['params'])
    state['key']['params'] = jax.tree.map(lambda x: 0.9 * x, variables['params'])
    rng = np.random.default_rng(0)
    views = {
        name: jnp.asarray(rng.uniform(size=(BATCH, 80, 80, 1)), jnp.float32) for name in ('first', 'second')
    }

    @jax.jit
    def run(variables, state):
        def loss(params, key_params):
            key = state['key'] | {'params': key_params}
            out, _stats, new = method.forward(variables | {'params': params}, state | {'key': key}, views, None)
            total, terms = method.loss(out, state)
            return jnp.stack([total, total - terms['contrast']]), (out, new)

        arguments = variables['params'], state['key']['params']
        _, back, (out, new) = jax.vjp(loss, *arguments, has_aux=True)
        gradients = [back(jnp.array(weights)) for weights in ([1.0, 0.0], [0.0, 1.0])]
        features = [
            method.encoder.apply(
                {name: part['encoder'] for name, part in tree.items()},
                standardise(view),
                True,
                mutable=['batch_stats'],
            )[0]
            for tree, view in ((variables, views['first']), (state['key'], views['second']))
        ]
        return out, new, gradients, features

    out, new, gradients, features = jax.tree.map(np.asarray, run(variables, state))
    return dict(variables=variables, state=state, out=out, new=new, gradients=gradients, features=features)


def np_pool(x, cells):
    """Adaptive average pooling of [b, h, w, c] by the definition of its windows."""
    windows = [
        [slice(math.floor(i * size / cells), math.ceil((i + 1) * size / cells)) for i in range(cells)]
        for size in x.shape[1:3]
    ]
    return np.array(
        [
            [[image[rows, columns].mean((0, 1)) for columns in windows[1]] for rows in windows[0]]
            for image in np.float64(x)
        ]
    )


def random_out(method):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, BATCH, method.widths[0]))
    z = np.float32(z / np.linalg.norm(z, axis=-1, keepdims=True))
    return {'embedding_1': z[0], 'embedding_2': z[1]} | {
        stage: rng.uniform(size=BATCH).astype(np.float32) for stage in CELLS
    }


@pytest.mark.parametrize(
    'height,width,cells',
    [(56, 56, 16), (28, 28, 16), (14, 14, 4), (7, 7, 4), (128, 64, 16), (3, 5, 16), (3, 2, 4)],
)
def test_pooling_has_torchs_windows(height, width, cells):
    torch = pytest.importorskip('torch')
    x = np.random.default_rng(0).normal(size=(2, 3, height, width))
    found = adaptive_average(height, cells) @ x @ adaptive_average(width, cells).T
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x), cells).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(
        np_pool(x.transpose(0, 2, 3, 1), cells).transpose(0, 3, 1, 2), expected, atol=1e-12
    )


def test_errors_are_those_of_the_pooled_maps_of_the_four_stages(step):
    queries, keys = step['features']
    for stage, cells in {'stage1': 16, 'stage2': 16, 'stage3': 4, 'stage4': 4}.items():
        difference = np_pool(queries[stage], cells) - np_pool(keys[stage], cells)
        assert difference.shape[1:3] == (cells, cells)
        np.testing.assert_allclose(step['out'][stage], (difference**2).mean((1, 2, 3)), rtol=1e-3)


def test_head_is_one_linear_layer(step):
    for number, tree in enumerate((step['variables'], step['state']['key'])):
        layer = tree['params']['projector']['linear1']
        assert set(tree['params']['projector']) == {'linear1'} and np.any(layer['bias'])
        z = step['features'][number]['pooled'] @ np.float64(layer['kernel']) + layer['bias']
        z /= np.sqrt((z**2).sum(-1, keepdims=True))
        np.testing.assert_allclose(step['out'][f'embedding_{number + 1}'], z, rtol=1e-3, atol=1e-4)


def test_loss_adds_a_quarter_of_each_stage_to_the_contrast(method, step):
    out, queue = random_out(method), np.float64(step['state']['queue']['keys'])
    expected = 0
    for q, k in zip(np.float64(out['embedding_1']), np.float64(out['embedding_2'])):
        scores = np.array([q @ k, *(q @ other for other in queue)]) / 0.07
        expected += (math.log(sum(np.exp(scores))) - scores[0]) / BATCH
    loss, terms = method.loss(out, step['state'])
    np.testing.assert_allclose(terms['contrast'], expected, rtol=1e-5)
    for stage in CELLS:
        np.testing.assert_allclose(terms[stage], out[stage].mean(), rtol=1e-5)
        expected += 0.25 * sum(np.float64(out[stage])) / BATCH
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    weighted = dataclasses.replace(method, stage_weights=(1.0, 2.0, 3.0, 4.0))
    loss, _ = weighted.loss(out, step['state'])
    np.testing.assert_allclose(
        loss, terms['contrast'] + sum(weight * terms[stage] for weight, stage in enumerate(CELLS, 1)), rtol=1e-5
    )


def test_only_the_query_network_learns(step):
    for (query, key), learning in zip(step['gradients'], (('encoder', 'projector'), ('encoder',))):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(key))
        for path, leaf in tiny.leaves(query).items():
            if 'kernel' in path:
                assert np.any(leaf) == any(part in path for part in learning), path


def test_update_follows_the_query_network_and_queues_the_keys(method, step):
    state, out = step['state'], step['out']
    new = method.update(step['new'], step['variables']['params'], out, 0.5)
    np.testing.assert_array_equal(new['queue']['keys'][:BATCH], out['embedding_2'])
    np.testing.assert_array_equal(new['queue']['keys'][BATCH:], state['queue']['keys'][BATCH:])
    params, key = (tiny.leaves(tree['params']) for tree in (step['variables'], new['key']))
    for path in params:  # 0.9 of the key network's 0.9, and 0.1 of the query network's 1
        np.testing.assert_allclose(key[path], 0.91 * params[path], rtol=1e-5, err_msg=path)


def test_views_are_turns_of_the_whole_frame():
    config = recipe.get_config()
    for view in (config.views.first, config.views.second):
        assert (view.jitter_probability, view.brightness, view.contrast) == (0.8, 0.4, 0.4)
        assert (view.blur_probability, view.solarise_probability, view.rotation) == (0.5, 0.0, 30.0)
        view.update(jitter_probability=0.0, blur_probability=0.0, rotation=0.0)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 256, 256, 1)), jnp.uint8)
    views = methods.create(config).views(jax.random.split(jax.random.key(0), 3), {'image': images})
    for name in ('first', 'second'):
        np.testing.assert_allclose(views[name], resize(images, 224), atol=1e-4)


def test_learning_rate_is_constant_and_blind_to_the_batch():
    config = recipe.get_config()
    rate = optim.schedule(config.optim, config.batch_size, 1351, 300 * 1351, config.optim.final_factor)
    np.testing.assert_allclose([rate(0), rate(150 * 1351), rate(300 * 1351)], 0.03, rtol=1e-6)


@pytest.mark.parametrize(
    'change,named',
    [
        (dict(stage_weights=(1.0,)), r'stage_weights=\(1.0,\), expected 4'),
        (dict(widths=()), r'widths=\(\), expected positive'),
        (dict(queue=0), 'queue=0'),
    ],
)
def test_bad_options_are_named(method, change, named):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(method, **change)
