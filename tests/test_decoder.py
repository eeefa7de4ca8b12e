"""The U-Net's decoder: its channels and sizes, its blocks against PyTorch, its initial weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mlvicx_jax.models.decoder import Decoder, restoration_head
from mlvicx_jax.models.resnet import ResNet18

LEVELS = ('stage4', 'stage3', 'stage2', 'stage1', 'stem')
# Channels from below, of the skip, and out, at width 64: segmentation_models_pytorch
TABLE = (512, 256, 256), (256, 128, 128), (128, 64, 64), (64, 64, 32), (32, 0, 16)


def shapes(size, width, skips):
    """Of the decoder's maps and parameters, on what the encoder gives for images of `size`."""

    def run(key):
        encoder = ResNet18(width, context=False, axis_name=None)
        features, _ = encoder.init_with_output(key, jnp.zeros((2, size, size, 3)), False)
        return Decoder(width, skips, axis_name=None).init_with_output(key, features, size, False)

    maps, variables = jax.eval_shape(run, jax.random.key(0))
    return [x.shape for x in maps], variables['params']


@pytest.mark.parametrize('skips', [True, False])
@pytest.mark.parametrize(
    'size,sizes', [(224, [14, 28, 56, 112, 224]), (96, [6, 12, 24, 48, 96]), (80, [5, 10, 20, 40, 80])]
)
def test_maps_have_the_sizes_of_the_encoders_and_channels_of_the_table(size, sizes, skips):
    found, params = shapes(size, 64, skips)
    assert found == [(2, n, n, c) for n, (_, _, c) in zip(sizes, TABLE)]
    expected = {}
    for block, (below, skip, out) in enumerate(TABLE, 1):
        expected[f'block{block}_conv1'] = {'kernel': (3, 3, below + skips * skip, out)}
        expected[f'block{block}_conv2'] = {'kernel': (3, 3, out, out)}
        for layer in (1, 2):
            expected[f'block{block}_bn{layer}'] = {'scale': (out,), 'bias': (out,)}
    assert jax.tree.map(lambda x: x.shape, params) == expected


def test_channels_follow_the_encoders_width():
    found, _ = shapes(64, 16, True)
    assert [shape[-1] for shape in found] == [64, 32, 16, 8, 4]


@pytest.mark.parametrize('skips', [True, False])
def test_blocks_are_torchs(skips):
    size, width = 40, 4  # maps of 20, 10, 5, 3 and 2: two of them odd
    rng = np.random.default_rng(0)
    channels = [8 * width, 4 * width, 2 * width, width, width]
    features = {
        level: np.float32(rng.normal(size=(3, n, n, c)))
        for level, n, c in zip(LEVELS, (2, 3, 5, 10, 20), channels)
    }
    decoder = Decoder(width, skips, axis_name=None)
    variables = jax.jit(decoder.init, static_argnums=(2, 3))(jax.random.key(0), features, size, True)
    params = jax.tree.map(lambda x: x + np.float32(0.1 * rng.normal(size=x.shape)), variables['params'])
    maps, _ = jax.jit(
        lambda params: decoder.apply(
            variables | {'params': params}, features, size, True, mutable=['batch_stats']
        )
    )(params)

    tensor = lambda x: torch.tensor(np.float64(x))
    planes = {level: tensor(x).permute(0, 3, 1, 2) for level, x in features.items()}
    x = planes['stage4']
    for block, level in enumerate((*LEVELS[1:], None), 1):
        x = torch.nn.functional.interpolate(x, scale_factor=2, mode='nearest')
        side = planes[level].shape[-1] if level else size
        x = x[:, :, :side, :side]
        if skips and level:
            x = torch.cat([x, planes[level]], 1)
        for layer in (1, 2):
            kernel = tensor(params[f'block{block}_conv{layer}']['kernel']).permute(3, 2, 0, 1)
            scale, bias = (tensor(params[f'block{block}_bn{layer}'][name]) for name in ('scale', 'bias'))
            x = torch.nn.functional.conv2d(x, kernel, padding=1)
            x = torch.relu(torch.nn.functional.batch_norm(x, None, None, scale, bias, training=True))
        np.testing.assert_allclose(maps[block - 1], x.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-3)


def test_initial_weights_are_the_librarys():
    features = {
        level: jnp.zeros((1, n, n, c)) for level, n, c in zip(LEVELS, (1, 2, 4, 8, 16), (512, 256, 128, 64, 64))
    }
    params = jax.jit(Decoder(64, axis_name=None).init, static_argnums=(2, 3))(
        jax.random.key(0), features, 32, False
    )['params']
    for block, (below, skip, _) in enumerate(TABLE, 1):
        bound = (6 / (9 * (below + skip))) ** 0.5  # Kaiming, uniform, fan in, for ReLU
        kernel = params[f'block{block}_conv1']['kernel']
        assert 0.98 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.05)
    head = restoration_head(3, jnp.float32, 'restoration').init(jax.random.key(0), jnp.zeros((1, 8, 8, 16)))[
        'params'
    ]
    bound = (6 / (9 * (16 + 3))) ** 0.5  # Xavier
    assert head['kernel'].shape == (3, 3, 16, 3) and not head['bias'].any()
    assert 0.9 * bound < np.abs(head['kernel']).max() <= bound
