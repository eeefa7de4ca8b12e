"""The network against torchvision's list of tensors, and its own parts against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from configs import mlvicx
from mlvicx_jax import methods
from mlvicx_jax.models.context import ContextBottleneck, greatest
from mlvicx_jax.models.heads import MLP, Concatenate, ResizeProjectSum
from mlvicx_jax.models.norm import AXIS, batch_norm
from mlvicx_jax.models.resnet import LEVELS, ResNet18, max_pool


def shapes(tree):
    return {
        '/'.join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def init(module, *arguments):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments))


def test_features_have_the_levels_channels_and_grids():
    encoder = ResNet18(axis_name=None)
    image = jnp.zeros((2, 224, 224, 3))
    features = jax.eval_shape(lambda: encoder.init_with_output(jax.random.key(0), image)[0])
    assert {name: y.shape for name, y in features.items()} == {
        'stem': (2, 112, 112, 64),
        'stage1': (2, 56, 56, 64),
        'stage2': (2, 28, 28, 128),
        'stage3': (2, 14, 14, 256),
        'stage4': (2, 7, 7, 512),
        'pooled': (2, 512),
    }


def torchvision_resnet18():
    """{key: shape} of torchvision's resnet18, but for fc: parameters, then BatchNorm's buffers."""
    parameters, buffers = {}, {}

    def conv(key, out, into, kernel):
        parameters[f'{key}.weight'] = (out, into, kernel, kernel)

    def norm(key, width):
        parameters.update({f'{key}.weight': (width,), f'{key}.bias': (width,)})
        buffers.update({f'{key}.running_mean': (width,), f'{key}.running_var': (width,)})

    conv('conv1', 64, 3, 7)
    norm('bn1', 64)
    into = 64
    for stage, out in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            key = f'layer{stage}.{block}'
            conv(f'{key}.conv1', out, into, 3)
            norm(f'{key}.bn1', out)
            conv(f'{key}.conv2', out, out, 3)
            norm(f'{key}.bn2', out)
            if into != out:
                conv(f'{key}.downsample.0', out, into, 1)
                norm(f'{key}.downsample.1', out)
            into = out
    return parameters, buffers


def as_torch(found):
    """Our names and layouts in torch's."""
    leaf = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
    result = {}
    for name, shape in found.items():
        *path, last = name.split('/')
        path = [part.replace('_', '.') for part in path]
        result['.'.join([*path, leaf[last]])] = shape[::-1][:2] + shape[:2] if len(shape) == 4 else shape
    return result


def test_parameters_are_torchvisions():
    variables = init(ResNet18(context=False), jnp.zeros((1, 64, 64, 3)))
    parameters, buffers = torchvision_resnet18()
    assert as_torch(shapes(variables['params'])) == parameters
    assert as_torch(shapes(variables['batch_stats'])) == buffers
    assert len(parameters) == 60  # 62 with fc's two
    assert size(variables['params']) == 11_176_512


def test_context_bottlenecks_are_all_that_context_adds():
    image = jnp.zeros((1, 64, 64, 3))
    plain, full = (shapes(init(ResNet18(context=on), image)['params']) for on in (False, True))
    assert {full[name] == shape for name, shape in plain.items()} == {True}
    expected = {}
    for level, c in zip(LEVELS, (64, 64, 128, 256, 512)):
        expected |= {
            f'context_{level}/channel_squeeze/kernel': (c, c // 2),
            f'context_{level}/channel_excite/kernel': (c // 2, c),
            f'context_{level}/spatial/kernel': (7, 7, 2, 1),
        }
    assert {name: full[name] for name in full.keys() - plain.keys()} == expected


def test_context_bottleneck_follows_equations_1_and_2():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(2, 5, 6, 8))
    w1, w2, w7 = rng.normal(size=(8, 4)), rng.normal(size=(4, 8)), rng.normal(size=(7, 7, 2, 1))
    sigma = lambda x: 1 / (1 + np.exp(-x))
    shared = lambda pooled: np.maximum(pooled @ w1, 0) @ w2
    expected = np.zeros_like(y)
    for n, image in enumerate(y):
        flat = image.reshape(-1, 8)
        k = sigma(shared(flat.mean(0)) + shared(flat.max(0))) * image
        pools = np.zeros((5 + 6, 6 + 6, 2))  # three zeros on each side
        pools[3:-3, 3:-3] = np.stack([k.mean(-1), k.max(-1)], -1)
        for i in range(5):
            for j in range(6):
                a = sigma(np.sum(pools[i : i + 7, j : j + 7] * w7[..., 0]))
                expected[n, i, j] = a * k[i, j]
    params = {'channel_squeeze': {'kernel': w1}, 'channel_excite': {'kernel': w2}, 'spatial': {'kernel': w7}}
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), params)
    actual = ContextBottleneck(reduction=2).apply({'params': params}, jnp.float32(y))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('axis', [0, 1, -1])
def test_greatest_is_the_maximum_and_gives_its_gradient_to_one_entry(axis):
    y = jnp.asarray(np.random.default_rng(0).integers(-9, 0, size=(6, 7, 8)), jnp.float32)  # ties
    np.testing.assert_array_equal(greatest(y, axis), y.max(axis))
    gradient = jax.grad(lambda y: greatest(y, axis).sum())(y)
    expected = np.zeros_like(y)
    np.put_along_axis(expected, np.expand_dims(np.argmax(y, axis), axis), 1, axis)
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize('shape', [(2, 8, 6, 3), (1, 7, 5, 2)])
def test_max_pool_is_that_of_flax_with_its_gradient(shape):
    """Many equal pixels, as behind a ReLU, and a map of nothing but negative ones."""
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 3, shape), jnp.float32)
    x = jnp.concatenate([jnp.maximum(x, 0), -1 - jnp.abs(x)])
    flax = lambda x: nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    (ours, pull), (expected, pull_expected) = jax.vjp(max_pool, x), jax.vjp(flax, x)
    np.testing.assert_array_equal(ours, expected)
    cotangent = jnp.asarray(np.random.default_rng(1).integers(1, 9, ours.shape), jnp.float32)
    np.testing.assert_array_equal(pull(cotangent)[0], pull_expected(cotangent)[0])
    spoiled = x.at[0, 2, 3].set(jnp.nan)
    np.testing.assert_array_equal(max_pool(spoiled), flax(spoiled))
    assert jnp.isnan(max_pool(spoiled)).any()


@pytest.mark.parametrize('grids', [(112, 56, 28, 14, 7), (40, 20, 10, 5, 3)], ids=str)
def test_commuted_aggregation_equals_the_naive_order(grids):
    rng = np.random.default_rng(0)
    features = {
        level: jnp.asarray(rng.normal(size=(2, n, n, c)), jnp.float32)
        for level, n, c in zip(LEVELS, grids, (4, 4, 8, 16, 32))
    }
    module = ResizeProjectSum(features=24)
    params = module.init(jax.random.key(0), features)['params']
    params = jax.tree.map(lambda w: w + 0.1, params)  # biases too are not 0
    total = 0
    for level, y in features.items():
        y = jax.image.resize(y, (2, 64, 64, y.shape[-1]), 'linear', antialias=False)
        w = params[f'project_{level}']
        total += jnp.matmul(y, w['kernel'], precision='highest') + w['bias']
    naive = total.reshape(2, 4, 16, 4, 16, 24).mean((2, 4)).reshape(2, -1)
    actual = module.apply({'params': params}, features)
    np.testing.assert_allclose(actual, naive, rtol=1e-5, atol=1e-5)


def test_concatenation_averages_each_level_in_order():
    features = {
        level: jnp.full((2, 3, 3, c), i, jnp.bfloat16)
        for i, (level, c) in enumerate(zip(LEVELS, (4, 4, 8, 16, 32)))
    }
    expected = np.repeat(np.arange(5.0), (4, 4, 8, 16, 32))
    actual = Concatenate().apply({}, features)
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual, np.stack([expected] * 2))


@pytest.mark.parametrize(
    'last_norm,last',
    [
        ('none', {}),
        ('plain', {}),
        ('scale', {'bn3/scale': (5,)}),
        ('affine', {'bn3/scale': (5,), 'bn3/bias': (5,)}),
    ],
)
def test_mlp_has_its_widths_and_normalises_the_last_layer_only_if_told(last_norm, last):
    x = 7 + jax.random.normal(jax.random.key(0), (32, 6))
    mlp = MLP((10, 12, 5), last_norm=last_norm, axis_name=None)
    out, variables = mlp.init_with_output(jax.random.key(1), x, True)
    expected = {'linear1/kernel': (6, 10), 'linear2/kernel': (10, 12), 'linear3/kernel': (12, 5)}
    for number, width in ((1, 10), (2, 12)):
        expected |= {f'bn{number}/scale': (width,), f'bn{number}/bias': (width,)}
    assert shapes(variables['params']) == expected | last
    assert np.allclose(np.std(out, axis=0), 1, atol=0.01) == (last_norm != 'none')
    assert np.allclose(np.mean(out, axis=0), 0, atol=1e-5) == (last_norm != 'none')


def test_mlp_without_batchnorm_has_torchs_biases():
    mlp = MLP((400, 5), norm=False, bias=True)
    params = mlp.init(jax.random.key(1), jnp.ones((1, 100)), True)['params']
    assert set(shapes(params)) == {f'linear{i}/{kind}' for i in (1, 2) for kind in ('kernel', 'bias')}
    for kind in ('kernel', 'bias'):
        values = np.abs(params['linear1'][kind])  # U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))
        assert 0.09 < values.max() <= 0.1 and abs(values.mean() - 0.05) < 0.005


@pytest.mark.parametrize('devices', [1, 2, 4])
@pytest.mark.parametrize('groups', [2, 4])
def test_grouped_batchnorm_is_one_batchnorm_a_group_on_any_number_of_devices(devices, groups):
    x = jax.random.normal(jax.random.key(0), (8, 3, 3, 5)) * (1 + jnp.arange(8)[:, None, None, None])
    mesh = jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    layer = lambda axis: batch_norm(True, jnp.float32, axis, groups=groups)()
    variables = layer(AXIS).init(jax.random.key(0), x)
    apply = lambda x: layer(AXIS).apply(variables, x, mutable=['batch_stats'])
    y, new = jax.jit(jax.shard_map(apply, mesh=mesh, in_specs=P(AXIS), out_specs=(P(AXIS), P())))(x)

    alone = batch_norm(True, jnp.float32, None)()
    parts = [alone.apply(variables, part, mutable=['batch_stats']) for part in jnp.split(x, groups)]
    np.testing.assert_allclose(y, jnp.concatenate([part for part, _ in parts]), atol=1e-5)
    for name in ('mean', 'var'):
        running = [stats['batch_stats'][name] for _, stats in parts]
        np.testing.assert_allclose(new['batch_stats'][name], np.mean(running, 0), rtol=1e-5, atol=1e-6)


def test_remat_gives_the_same_numbers():
    x = jax.random.normal(jax.random.key(0), (4, 64, 64, 3))
    variables = ResNet18(8, axis_name=None).init(jax.random.key(1), x)

    def loss(remat, params):
        features, new = ResNet18(8, axis_name=None, remat=remat).apply(
            variables | {'params': params}, x, True, mutable=['batch_stats']
        )
        return jnp.square(features['stage4']).sum(), new

    gradient = lambda remat: jax.jit(jax.grad(functools.partial(loss, remat), has_aux=True))
    again, kept = (jax.tree.leaves(gradient(remat)(variables['params'])) for remat in (True, False))
    for a, b in zip(again, kept):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_remat_hands_the_backward_pass_a_quarter():
    images = jax.ShapeDtypeStruct((16, 224, 224, 3), jnp.float32)

    def residuals(remat):
        encoder = ResNet18(axis_name=None, remat=remat)
        variables = init(encoder, jnp.zeros((1, 224, 224, 3)))

        def backward(variables, images):
            loss = lambda params: encoder.apply(
                variables | {'params': params}, images, True, mutable=['batch_stats']
            )[0]['pooled'].sum()
            return jax.vjp(loss, variables['params'])[1]

        return size(jax.eval_shape(backward, variables, images))

    assert residuals(True) < 0.3 * residuals(False)


def test_zero_initialised_blocks_start_as_their_shortcuts():
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    plain, zero = (ResNet18(4, context=False, axis_name=None, zero_init_residual=z) for z in (False, True))
    variables = zero.init(jax.random.key(1), x)
    assert shapes(variables['params']) == shapes(plain.init(jax.random.key(1), x)['params'])
    scales = {
        '/'.join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables['params'])
        if path[-1].key == 'scale'
    }
    assert {path for path, scale in scales.items() if not scale.any()} == {
        f'layer{stage}_{block}/bn2/scale' for stage in (1, 2, 3, 4) for block in (0, 1)
    }


CONTEXT = sum(c * c + 98 for c in (64, 64, 128, 256, 512))
EXPANDER = {  # both heads' three matrices and BatchNorms
    'paper': (512 + 1024) * 2048 + 2 * (2 * 2048**2 + 2 * 2 * 2048),
    'released': (512 + 8192) * 4096 + 2 * (2 * 4096**2 + 3 * 2 * 4096),
}
PROJECTIONS = sum((c + 1) * 512 for c in (64, 64, 128, 256, 512))


@pytest.mark.parametrize('preset,extra', [('paper', 0), ('released', PROJECTIONS)])
def test_presets_have_their_number_of_parameters(preset, extra):
    method = methods.create(mlvicx.get_config(preset))
    variables, _ = jax.eval_shape(method.init, jax.random.key(0))
    assert size(variables['params']['encoder']) == 11_176_512 + CONTEXT
    assert size(variables['params']) == 11_176_512 + CONTEXT + EXPANDER[preset] + extra
