"""PCRLv2's network and terms against NumPy, its draws, what learns from what, its views."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import pcrl_v2 as recipe
from mlvicx_jax.data.augment import IMAGENET_MEAN, IMAGENET_STD, Recipe
from mlvicx_jax.data.corruption import MEAN_GREY
from mlvicx_jax.methods import pcrl_v2
from mlvicx_jax.models.resnet import LEVELS, ResNet18

BATCH, SIZE, LOCAL_SIZE, CROPS, WIDTH = 4, 40, 24, 2, 8


class Strides(nn.Module):
    """Stands in for an encoder: its features are the picture's own pixels, ever fewer of them."""

    width: int = WIDTH
    dtype: jnp.dtype = jnp.float64
    axis_name: str | None = None

    def __call__(self, images, train: bool):
        return {level: images[:, :: 2**i, :: 2**i] for i, level in enumerate(LEVELS, 1)}


@pytest.fixture(scope='module')
def method():
    quiet = Recipe(area=(0.3, 1.0), rotation=10.0, jitter_probability=0.0, blur_probability=0.0)
    return pcrl_v2.Method(
        encoder=Strides(),
        recipes={'first': quiet, 'second': quiet, 'local': quiet},
        image_size=SIZE,
        local_crops=CROPS,
        local_size=LOCAL_SIZE,
    )


@pytest.fixture(scope='module')
def forward(method):
    """(views, key) -> out, compiled, with variables whose every leaf is random, and those."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        image = jnp.zeros((1, SIZE, SIZE, 3))
        shapes = jax.eval_shape(lambda: method.network.init(jax.random.key(0), image, train=True))
        variables = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
        apply = jax.jit(lambda views, key: method.forward(variables, {}, views, key)[0])

    def in_double(views, key):
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, apply(views, key))

    return in_double, variables


@pytest.fixture(scope='module')
def views():
    rng = np.random.default_rng(1)
    sizes = {
        'first': SIZE,
        'second': SIZE,
        'target': SIZE,
        **{f'local_{i}': LOCAL_SIZE for i in range(1, CROPS + 1)},
    }
    return {name: rng.random((BATCH, n, n, 1)) for name, n in sizes.items()}


def levels_of(keys):
    """The draws [..., 1 + 2 * CROPS] of steps with these keys."""
    with jax.enable_x64(True):  # they depend on the type, which is the forward pass's
        draw = lambda key: jax.random.randint(key, (1 + 2 * CROPS,), 0, 5)
        return np.asarray((jax.vmap(draw) if keys.ndim else draw)(keys))


# In float64, from the description of the heads and of the decoder of segmentation_models_pytorch.


def np_standardise(images):
    return np.concatenate([(images - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD)], -1)


def np_norm(x, params):
    axes = tuple(range(x.ndim - 1))
    x = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5)
    return x * params['scale'] + params['bias']


def np_conv(x, params):
    """A 3 x 3 or 1 x 1 convolution with zeros around the map."""
    kernel, (height, width) = params['kernel'], x.shape[1:3]
    reach = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    y = sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(len(kernel))
        for j in range(len(kernel))
    )
    return y + params.get('bias', 0)


def np_network(params, grey):
    x, size = np_standardise(grey)[:, ::32, ::32], grey.shape[1]
    pairs, pictures = [], []
    for block in range(1, 6):
        side = -(-size // 2 ** (5 - block))
        x = np.stack([np.stack([x[:, i // 2, j // 2] for j in range(side)], 1) for i in range(side)], 1)
        for layer in (1, 2):
            x = np_conv(x, params['decoder'][f'block{block}_conv{layer}'])
            x = np.maximum(np_norm(x, params['decoder'][f'block{block}_bn{layer}']), 0)
        z = np_norm(x.mean((1, 2)), params[f'embedding{block}'])
        p = z @ params[f'predictor{block}_linear1']['kernel']
        p = np.maximum(np_norm(p, params[f'predictor{block}_bn']), 0)
        last = params[f'predictor{block}_linear2']
        pairs.append((z, p @ last['kernel'] + last['bias']))
        y = np_norm(np_conv(x, params[f'picture{block}_conv1']), params[f'picture{block}_bn'])
        pictures.append(np_conv(np.maximum(y, 0), params[f'picture{block}_conv2']))
    return pairs, pictures, np_conv(x, params['restoration'])


def np_enlarge(x, size):
    """Bilinear, pixel centres at a half, the edge's value beyond the edge's centre."""
    for axis in (1, 2):
        count, lines = x.shape[axis], []
        for i in range(size):
            place = min(max((i + 0.5) * count / size - 0.5, 0), count - 1)
            low = min(int(place), max(count - 2, 0))
            high = min(low + 1, count - 1)
            lines.append((1 - place + low) * x.take(low, axis) + (place - low) * x.take(high, axis))
        x = np.stack(lines, axis)
    return x


def np_siamese(a, b):
    """[b] from the pairs (z, p) of one level."""
    cosine = lambda x, y: np.array([u @ v / np.sqrt(u @ u * (v @ v)) for u, v in zip(x, y)])
    return -(cosine(a[1], b[0]) + cosine(b[1], a[0])) / 2


def test_every_term_follows_the_description(forward, views):
    apply, variables = forward
    params, key = variables['params'], jax.random.key(10)
    level = levels_of(key)
    assert set(level) == set(range(5))
    first, pictures, restored = np_network(params, views['first'])
    second, _, _ = np_network(params, views['second'])
    # One pass of all crops: BatchNorm sees them together.
    local, _, _ = np_network(params, np.concatenate([views['local_1'], views['local_2']]))
    crop = lambda i, number: [x[BATCH * i : BATCH * (i + 1)] for x in local[number]]
    target = np_standardise(views['target'])
    expected = {
        'embedding_1': first[0][0],
        'siamese': np_siamese(first[level[0]], second[level[0]]),
        'local': np.mean(
            [
                np_siamese(view[level[1 + CROPS * v + i]], crop(i, level[1 + CROPS * v + i]))
                for v, view in enumerate((first, second))
                for i in range(CROPS)
            ],
            0,
        ),
        'restoration': ((restored - target) ** 2).mean((1, 2, 3)),
        'deep_supervision': ((np_enlarge(pictures[level[0]], SIZE) - target) ** 2).mean((1, 2, 3)),
    }
    out = apply(views, key)
    assert out.keys() == expected.keys()
    for name, value in expected.items():
        assert out[name].shape == value.shape
        np.testing.assert_allclose(out[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_level_is_drawn_for_every_comparison(forward, views):
    """Uniformly, each its own; the deep picture's is that of the two views' comparison."""
    apply, _ = forward
    keys = jax.random.split(jax.random.key(0), 2000)
    levels = levels_of(keys)
    share = np.array([(levels == level).mean(0) for level in range(5)])
    np.testing.assert_allclose(share, 1 / 5, atol=0.04)
    np.testing.assert_allclose(np.corrcoef(levels.T), np.eye(1 + 2 * CROPS), atol=0.08)
    outs = [[apply(views, key) for key in keys[levels[:, 0] == level][:2]] for level in range(5)]
    for name in ('siamese', 'deep_supervision'):
        assert all(np.array_equal(one[name], other[name]) for one, other in outs)
        assert len({tuple(one[name]) for one, _ in outs}) == 5


def test_nothing_learns_through_an_embedding_as_target():
    rng = np.random.default_rng(0)
    draw = lambda count: [
        (rng.normal(size=(count, BATCH, c)), rng.normal(size=(count, BATCH, c))) for c in (16, 8, 4, 2, 2)
    ]
    first, second, levels = draw(1), draw(3), jnp.array([4, 0, 4])
    gradients = jax.jit(jax.grad(lambda *pairs: pcrl_v2.siamese(*pairs, levels).sum(), (0, 1)))(first, second)
    for pairs in gradients:
        for level, (embedding, prediction) in enumerate(pairs):
            assert not np.any(embedding)
            assert np.any(prediction) == (level in levels)
    assert not np.any(gradients[1][4][1][1])  # of the comparison at another level


def test_the_pictures_are_the_first_views_alone(method, forward, views):
    with jax.enable_x64(True):

        def pictures(params, views):
            out = method.forward(forward[1] | {'params': params}, {}, views, jax.random.key(3))[0]
            return out['restoration'].sum() + out['deep_supervision'].sum()

        of_params, of_views = jax.jit(jax.grad(pictures, (0, 1)))(forward[1]['params'], views)
    for name, value in of_views.items():
        assert np.any(value) == (name in ('first', 'target')), name
    drawn = 1 + levels_of(jax.random.key(3))[0]
    learning = {name for name, part in of_params.items() if any(np.any(leaf) for leaf in jax.tree.leaves(part))}
    assert learning == {
        'decoder',
        'restoration',
        *(f'picture{drawn}_{part}' for part in ('conv1', 'bn', 'conv2')),
    }


def test_loss_weighs_the_deep_picture_less_and_less(method):
    rng = np.random.default_rng(0)
    weights = {'restoration': 1, 'siamese': 1, 'local': 1, 'deep_supervision': None}
    out = {name: rng.normal(size=BATCH).astype(np.float32) for name in weights}
    state = method.init_state(None, None)
    for progress, beta in ((0, 1), (1 / 4, (1 + np.sqrt(1 / 2)) / 2), (1 / 2, 1 / 2), (1, 0)):
        state = method.update(state, None, None, jnp.float32(progress)) if progress else state
        loss, terms = method.loss(out, state)
        expected = sum(
            np.float64(out[name]).mean() * (beta if weight is None else weight)
            for name, weight in weights.items()
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(terms['beta'], beta, atol=1e-7)
        for name in weights:
            np.testing.assert_allclose(terms[name], out[name].mean(), rtol=1e-6)


def test_views_share_no_draw_and_the_target_is_the_first_before_it_was_damaged(method):
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 48, 48, 1), np.uint8)
    keys = jax.random.split(jax.random.key(0), BATCH)
    views = jax.tree.map(np.asarray, jax.jit(method.views)(keys, {'image': images}))
    assert {name: view.shape for name, view in views.items()} == {
        **dict.fromkeys(('first', 'second', 'target'), (BATCH, SIZE, SIZE, 1)),
        **dict.fromkeys(('local_1', 'local_2'), (BATCH, LOCAL_SIZE, LOCAL_SIZE, 1)),
    }
    hole = {name: view == np.float32(MEAN_GREY) for name, view in views.items()}
    for name in views:
        assert hole[name].any((1, 2, 3)).all() == (name in ('first', 'second')), name
    assert (hole['first'] != hole['second']).any((1, 2, 3)).all()
    np.testing.assert_array_equal(np.where(hole['first'], views['target'], views['first']), views['target'])

    large = dataclasses.replace(method, local_size=SIZE)
    large = jax.jit(large.views)(keys, {'image': images})
    for a, b in itertools.combinations(('target', 'second', 'local_1', 'local_2'), 2):
        assert np.median(np.abs(large[a] - large[b])) > 0.03, (a, b)


def test_local_blur_is_in_the_crops_own_pixels():
    config = recipe.get_config()
    scaled = np.array(config.views.local.blur_sigma) * config.method.local_size / 224
    np.testing.assert_allclose(scaled, config.views.first.blur_sigma)


def test_heads_have_the_codes_shapes_and_scales():
    network = pcrl_v2.Network(ResNet18(context=False, axis_name=None))
    image = jnp.zeros((1, 64, 64, 3))
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), image, train=True))['params']
    shapes = {
        part: {name: leaf.shape for name, leaf in leaves.items()}
        for part, leaves in params.items()
        if part not in ('encoder', 'decoder')
    }
    expected = {'restoration': {'kernel': (3, 3, 16, 3), 'bias': (3,)}}
    for block, c in enumerate((256, 128, 64, 32, 16), 1):
        affine = lambda width: {'scale': (width,), 'bias': (width,)}
        expected |= {
            f'embedding{block}': affine(c),
            f'predictor{block}_bn': affine(2 * c),
            f'predictor{block}_linear1': {'kernel': (c, 2 * c)},
            f'predictor{block}_linear2': {'kernel': (2 * c, c), 'bias': (c,)},
            f'picture{block}_conv1': {'kernel': (3, 3, c, c)},
            f'picture{block}_bn': affine(c),
            f'picture{block}_conv2': {'kernel': (1, 1, c, 3), 'bias': (3,)},
        }
    assert shapes == expected

    network = pcrl_v2.Network(Strides(width=64, dtype=jnp.float32))
    params = jax.jit(lambda: network.init(jax.random.key(0), image, train=True))()['params']
    for part, bound in (
        ('predictor2_linear1', np.sqrt(6 / (128 + 256))),  # Glorot
        ('predictor2_linear2', np.sqrt(6 / (256 + 128))),
        ('picture2_conv1', np.sqrt(6 / (9 * 128))),  # He, of the fan-in
        ('picture2_conv2', np.sqrt(6 / 128)),
        ('restoration', np.sqrt(6 / (9 * (16 + 3)))),
    ):
        kernel = params[part]['kernel']
        np.testing.assert_allclose(np.abs(kernel).max(), bound, rtol=0.02, err_msg=part)
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.1, err_msg=part)
        assert not np.any(params[part].get('bias', 0))


@pytest.mark.parametrize('field,value', [('local_crops', 0), ('local_size', 96.0)])
def test_bad_values_are_named(method, field, value):
    with pytest.raises(ValueError, match=f'{field}={value}, expected a positive whole number'):
        dataclasses.replace(method, **{field: value})
