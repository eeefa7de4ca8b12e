"""PyTorch's two forms of the released program are one program, and ours."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for module in ('torch', 'safetensors'):
    pytest.importorskip(module, reason=f'{module} is not installed: pip install -e .[export]')
import torch

import tiny
from benchmarks import torch_reference as reference
from configs import mlvicx
from mlvicx_jax import methods, optim
from mlvicx_jax.data import augment
from mlvicx_jax.methods.shared.vicreg_loss import VICReg
from mlvicx_jax.weights import tensors as weights

ROOT = pathlib.Path(__file__).resolve().parents[1]
BATCH = 6


@pytest.fixture(scope='module')
def config():
    config = tiny.get_config('released')
    config.batch_size = BATCH
    config.data.image_size = 75  # whose levels are odd and even, and no divisors of the grid
    return config


@pytest.fixture(scope='module')
def views():
    """Two batches in [0, 1], grey, float64 [b, n, n, 1]."""
    return np.random.default_rng(0).random((2, BATCH, 75, 75, 1))


@pytest.fixture(scope='module')
def ours(config, views):
    """Parameters, loss and gradient of our program, in float64 up to the loss."""
    with jax.enable_x64():
        method = methods.create(config)
        method = dataclasses.replace(method, encoder=method.encoder.clone(dtype=jnp.float64, axis_name=None))
        variables, _ = jax.jit(method.init)(jax.random.key(0))
        variables = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
        pair = dict(zip(('first', 'second'), views))

        def loss(params):
            out, _, _ = method.forward(variables | {'params': params}, {}, pair, None)
            return method.loss(out, {})[0]

        value, gradient = jax.jit(jax.value_and_grad(loss))(variables['params'])
        return jax.tree.map(np.asarray, (variables['params'], value, gradient))


def to_torch(tree):
    """Our leaves under PyTorch's names: there cells follow channels, and a projection convolves."""
    tensors = {}
    for name, array in weights.to_torch(tree).items():
        if name.startswith('aggregation.') and array.ndim == 2:
            array = array[:, :, None, None]
        if name == 'expander_multi_level.linear1.weight':
            array = array.reshape(len(array), reference.CELLS**2, -1).swapaxes(1, 2)
            array = array.reshape(len(array), -1)
        tensors[name.replace('.project_', '.')] = torch.tensor(array)
    return tensors


def run(config, variant, views, ours):
    """Loss and {name: gradient} of a variant, uncompiled, with our weights and in float64."""
    images = np.zeros((BATCH, 80, 80), np.uint8)
    options = {'compiled': False} if variant == 'tuned' else {}
    program = reference.VARIANTS[variant](config, images, torch.device('cpu'), torch.float32, **options)
    missing, unexpected = program.network.double().load_state_dict(to_torch(ours[0]), strict=False)
    assert not unexpected
    assert all(name.endswith(('running_mean', 'running_var', 'num_batches_tracked')) for name in missing)
    pair = [reference.standardise(torch.tensor(view).permute(0, 3, 1, 2)) for view in views]
    loss = program.loss(*pair)
    loss.backward()
    return loss.item(), {name: leaf.grad for name, leaf in program.network.named_parameters()}


@pytest.fixture(scope='module')
def naive(config, views, ours):
    return run(config, 'naive', views, ours)


@pytest.fixture(scope='module')
def tuned(config, views, ours):
    return run(config, 'tuned', views, ours)


def worst(found, expected):
    """The greatest error of any leaf: of its greatest entry, of 1 at least for vectors, among
    which are the projections' biases. BatchNorm makes the loss blind to them."""
    assert found.keys() == expected.keys()
    return max(
        ((found[name] - leaf).abs().max() / max(leaf.abs().max(), leaf.ndim == 1)).item()
        for name, leaf in expected.items()
    )


def test_both_variants_have_one_loss_and_one_gradient(naive, tuned):
    assert abs(naive[0] / tuned[0] - 1) < 1e-12
    assert worst(naive[1], tuned[1]) < 1e-9


def test_they_are_ours(ours, tuned):
    _, loss, gradient = ours
    assert abs(tuned[0] / loss - 1) < 1e-6  # our loss is computed in float32
    assert worst(tuned[1], to_torch(gradient)) < 1e-4


@pytest.mark.parametrize('covariance', [reference.masked_covariance, reference.gram_covariance])
@pytest.mark.parametrize('batch,width', [(8, 20), (20, 8)])
def test_the_loss_is_ours(covariance, batch, width):
    z = np.float32(np.random.default_rng(0).normal(size=(2, batch, width))) * np.linspace(
        0.1, 1.5, width, dtype=np.float32
    )
    expected, _ = VICReg()(*z)
    found = reference.vicreg(*torch.tensor(z), (25.0, 25.0, 1.0), covariance)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize('lars', [reference.lars_by_leaf, reference.lars_together])
def test_lars_is_ours(config, lars):
    rng = np.random.default_rng(0)
    leaves = lambda: {
        'a': rng.normal(size=(5, 3, 2)),
        'b': rng.normal(size=4),
        'c': np.zeros((2, 2)),
        'd': rng.normal(size=(3, 3)),
    }
    params, config = leaves(), config.optim.copy_and_resolve_references()
    config.weight_decay = 0.1  # for what ought not decay to be seen if it does
    with jax.enable_x64():
        optimizer = optim.create(config, 256, 10, 40)
        rate = optim.schedule(config, 256, 10, 40, config.final_factor)
        state, mine = optimizer.init(params), params
        theirs = [torch.tensor(leaf) for leaf in params.values()]
        momenta = [torch.zeros_like(leaf) for leaf in theirs]
        for step in range(6):
            gradient = leaves()
            updates, state = optimizer.update(gradient, state, mine)
            mine = {name: np.asarray(mine[name] + updates[name]) for name in mine}
            lars(
                theirs,
                [torch.tensor(leaf) for leaf in gradient.values()],
                momenta,
                torch.tensor(float(rate(step)), dtype=torch.float64),
                config.weight_decay,
            )
    assert np.abs(mine['a'] - params['a']).max() > 1e-6
    for name, leaf in zip(mine, theirs):
        np.testing.assert_allclose(leaf, mine[name], rtol=1e-6, atol=1e-12, err_msg=name)


def draws_of(keys):
    """Our uniform numbers for these keys, but the rotation's, which the recipe does without."""
    area, aspect, top, left, flip, _, *rest = np.asarray(augment._draws(keys))
    numbers = np.stack([area, aspect, top, left, flip, *rest])
    return dict(zip(reference.DRAWS, torch.tensor(numbers)))


@pytest.mark.parametrize('view', ['first', 'second'])
def test_tuned_views_are_ours(config, view):
    images = np.random.default_rng(0).integers(0, 256, (40, 96, 96, 1), np.uint8)
    keys = jax.random.split(jax.random.key(0), len(images))
    recipe = config.views[view]
    expected = augment.augment(keys, images, 64, methods.create(config).recipes[view])
    found = reference.batched_views(torch.tensor(images[..., 0]), draws_of(keys), 64, dict(recipe))
    np.testing.assert_allclose(found[:, 0], expected[..., 0], atol=2e-5)


@pytest.mark.parametrize('view', ['first', 'second'])
def test_naive_views_are_the_tuned_ones_of_whole_boxes(config, view):
    """Away from the border, where a blur of OpenCV reflects the view and ours ends."""
    draws = draws_of(jax.random.split(jax.random.key(1), 40))
    draws['area'] = torch.ones(40)  # the whole image: both boxes are the same
    images = np.random.default_rng(0).integers(0, 256, (40, 96, 96), np.uint8)
    recipe = dict(config.views[view])
    expected = reference.batched_views(torch.tensor(images), draws, 64, recipe)
    for row, image in enumerate(images):
        one = {name: numbers[row] for name, numbers in draws.items()}
        found = reference.one_view(image, one, 64, recipe)
        inner = np.s_[0, 4:-4, 4:-4]
        np.testing.assert_allclose(found[inner], expected[row][inner], atol=2e-3)


def test_as_many_parameters_as_ours():
    config = mlvicx.get_config('released')
    variables, _ = jax.eval_shape(methods.create(config).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    with torch.device('meta'):
        network = reference.Network(config, reference.ResizeFirst)
    assert sum(leaf.numel() for leaf in network.parameters()) == count


@pytest.mark.parametrize('variant', ['naive', 'tuned'])
def test_worker_answers(variant, tmp_path):
    """Of `tuned`, without a C++ compiler: it says so and steps uncompiled."""
    process = subprocess.run(
        [
            sys.executable,
            '-m',
            'benchmarks.torch_reference',
            '--variant',
            variant,
            '--batch',
            '4',
            '--size',
            '64',
            '--stored',
            '72',
            '--width',
            '2',
            '--expander',
            '8',
        ],
        cwd=ROOT,
        input='step\nstep\n',
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ
        | {'CXX': str(tmp_path / 'none'), 'TORCHINDUCTOR_CACHE_DIR': str(tmp_path), 'CUDA_VISIBLE_DEVICES': ''},
    )
    assert process.returncode == 0, process.stderr
    ready, *steps, end = map(json.loads, process.stdout.splitlines())
    assert not ready['compiled'] and ready['first_step_s'] > 0
    assert ('torch.compile failed' in process.stderr) == (variant == 'tuned')
    assert len(steps) == 2
    assert all(0 < step['parts']['augmentation'] < step['seconds'] for step in steps)
    assert end['memory_bytes'] > 1e7
