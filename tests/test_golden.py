"""Our program against what the methods' official code gives (tests/golden/README.md).

`make_train_step` itself runs: the forward pass of the method, its loss and its gradient, the recipe's
optimiser and schedule, queues and averages, in double precision; only the views are given.
"""

import contextlib
import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from jax.sharding import AxisType

import golden_files as golden
import heads
from mlvicx_jax import methods, optim, rows
from mlvicx_jax.export import weights
from mlvicx_jax.methods import pcrl_v1
from mlvicx_jax.methods.shared.contrast import new_queue
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.models.resnet import LEVELS, ResNet18
from mlvicx_jax.state import TrainState
from mlvicx_jax.step import make_train_step


def names(*pairs):
    """A function from our name of a tensor, in PyTorch's style, to its official one."""

    def official(name):
        for ours, theirs in pairs:
            if name.startswith(ours + '.'):
                return (theirs + name[len(ours) :]).lstrip('.')
        return name

    return official


def mlp(ours, theirs, layers, step):
    """Pairs of names of an MLP's linear layers and, where `step` leaves room, its BatchNorms."""
    pairs = []
    for i in range(layers):
        pairs.append((f'{ours}.linear{i + 1}', f'{theirs}.{i * step}'))
        pairs.append((f'{ours}.bn{i + 1}', f'{theirs}.{i * step + 1}'))
    return pairs


def decoder(theirs):
    """Pairs of names of a U-Net's decoder, from segmentation_models_pytorch."""
    return [
        (f'decoder.block{block}_{kind}{layer}', f'{theirs}.blocks.{block - 1}.conv{layer}.{place}')
        for block in range(1, 6)
        for layer in (1, 2)
        for place, kind in enumerate(('conv', 'bn'))
    ]


def official_weights(shapes, official, prefix=''):
    """{'params', 'batch_stats'} in float64 under our names, of the official names' numbers."""

    def leaf(path, like):
        name = official(weights.torch_name(path[1:]))
        shape = weights.to_torch_layout(path[-1], np.empty(like.shape)).shape
        return weights.from_torch_layout(path[-1], golden.weight(prefix + name, shape))

    flat = traverse_util.flatten_dict(shapes)
    return traverse_util.unflatten_dict({path: leaf(path, like) for path, like in flat.items()})


def worst(ours, file, kind, official, before=None):
    """The largest difference of any leaf of the tree `ours` from the official <kind>/..., over that
    leaf's largest entry; with `before`, the weights at the start, over the way it went from there.

    All official tensors must be there but biases that a BatchNorm cancels, whose gradient is 0.
    """
    found = {official(name): x for name, x in weights.to_torch(ours).items() if 'num_batches' not in name}
    theirs = {name.removeprefix(kind + '/'): x for name, x in file.items() if name.startswith(kind + '/')}
    assert found.keys() <= theirs.keys(), found.keys() - theirs.keys()
    for name in theirs.keys() - found.keys():
        assert name.endswith('.bias'), name
        if kind == 'gradient':
            assert np.abs(theirs[name]).max() < 1e-9, name
    largest = 0.0
    for name, array in found.items():
        expected, array = theirs[name], golden.sample(array)
        scale = expected[:-2]
        if before:
            scale = scale - golden.sample(before[name])[:-2]
        difference = np.abs(array - expected)[:-2].max() / np.abs(scale).max()
        whole = np.abs(array - expected)[-2:].max() / max(expected[-1], 1)
        largest = max(largest, difference, whole)
    return largest


def program(name, encoder, image_size, argument='', **smaller):
    """The recipe `name` and its method, smaller and on `encoder`; a batch's arrays are its views."""
    config = importlib.import_module(f'configs.{name}').get_config(*filter(None, [argument]))
    fields = dict(config.method) | smaller
    method = importlib.import_module(f'mlvicx_jax.methods.{fields.pop("name")}').Method
    given = lambda self, keys, batch: {view: x for view, x in batch.items() if view != 'image'}
    method = type('Given', (method,), {'views': given})
    return config, method(encoder=encoder, recipes=dict.fromkeys(config.views), image_size=image_size, **fields)


@dataclasses.dataclass
class Run:
    """What a run began with and left behind, as NumPy arrays."""

    variables: dict
    losses: list
    gradient: dict  # of the first step
    out: dict  # of the first step
    metrics: list
    state: TrainState


def train(config, method, official, views, steps, total_steps, rearrange=lambda x: x):
    """`steps` steps of `total_steps`, an epoch each, from the official weights.

    `views` maps a step to its arrays; `rearrange` the weights to others.
    """
    record = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda gradient, _, __: (gradient, gradient)
    )
    batch = len(views(0)['first'])
    optimizer = optax.chain(record, optim.create(config.optim, batch, 1, total_steps))
    mesh = jax.make_mesh((1,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    train_step = make_train_step(method, optimizer, mesh, 0, total_steps)
    shapes = jax.eval_shape(method.init_network, jax.random.key(0))
    variables = rearrange(official_weights(shapes, official))
    method_state = method.init_state(jax.random.key(0), variables)
    if 'queue' in method_state:
        keys = golden.drawn('queue', method_state['queue']['keys'].shape)
        method_state['queue']['keys'] = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    if 'target' in method_state:
        method_state['target'] = official_weights(method_state['target'], official, 'target.')
    state = TrainState(
        0, 0, variables['params'], variables['batch_stats'], optimizer.init(variables['params']), method_state
    )
    state = jax.tree.map(jnp.array, state)  # copies: a step gives its state's buffers away
    run = Run(variables, [], {}, {}, [], state)
    for step in range(steps):
        arrays = views(step) | {'image': np.zeros(batch)}
        run.state, metrics, out = train_step(run.state, arrays)
        if not step:
            run.gradient, run.out = jax.tree.map(np.asarray, (run.state.opt_state[0], out))
        run.metrics.append({name: float(x) for name, x in metrics.items()})
    run.losses = [metrics['loss'] for metrics in run.metrics]
    run.state = jax.tree.map(np.asarray, run.state)
    return run


def pair(batch, side, *more):
    """A step's views: the first and the second, and `more`, [batch, side, side, 1] each."""

    def views(step):
        return {
            name: golden.drawn(f'{name}/{step}', (batch, side, side, 1), 'random_sample')
            for name in ('first', 'second', *more)
        }

    return views


def compare(name, run, file, official, bound, rearrange=lambda x: x):
    """Losses of all steps, gradient of the first, weights after the last."""
    before = {official(k): x for k, x in weights.to_torch(rearrange(run.variables)).items()}
    found = {
        'loss': np.abs(np.array(run.losses) / file['losses'] - 1).max(),
        'gradient': worst(rearrange(run.gradient), file, 'gradient', official),
        'weights': worst(rearrange(run.state.params), file, 'after', official, before),
    }
    if 'key' in run.state.method_state:
        key, queue = (run.state.method_state[part] for part in ('key', 'queue'))
        found['key'] = worst(key['params'], file, 'key', official, before)
        found['queue'] = np.abs(queue['keys'] - file['queue']).max()
        assert queue['cursor'] == file['cursor']
    if 'target' in run.state.method_state:
        target = run.state.method_state['target']['params']
        found['target'] = worst(target, file, 'target', official, before)
    print(name, {part: f'{error:.0e}' for part, error in found.items()})
    assert max(found.values()) < bound, found


PIXEL = {  # the official names, the steps of an official schedule, and what is smaller
    'vicreg': (mlp('projector', 'projector', 3, 3), 14, 100, dict(widths=(24, 20, 16))),
    'barlow_twins': (mlp('projector', 'projector', 3, 3), 14, 100, dict(widths=(24, 20, 16))),
    'simsiam': (
        mlp('projector', 'encoder.fc', 3, 3) + mlp('predictor', 'predictor', 2, 3),
        4,
        10,
        dict(projector=(192, 192, 16), predictor=(10, 16)),
    ),
    'simclr': ([], 14, 101, dict(widths=(192, 192, 16))),
    'byol': ([], 14, 100, dict(projector=(24, 16), predictor=(20, 16))),
}


@pytest.mark.parametrize('name', PIXEL)
def test_heads_loss_and_optimiser(name):
    """Of the methods whose encoder is but an encoder: pictures of 8 x 8 stand in for its features."""
    pairs, steps, total, smaller = PIXEL[name]
    file, official = golden.load(name), names(*pairs)
    with jax.enable_x64(True):
        encoder = heads.Pixels(dtype=jnp.float64, axis_name=AXIS)
        config, method = program(name, encoder, heads.PIXELS, **smaller)
        run = train(config, method, official, pair(12, heads.PIXELS), steps, total)
    compare(name, run, file, official, 1e-5)
