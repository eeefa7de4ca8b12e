"""Runs a recipe of ours from the golden files' weights and views, and compares it with their results.

`make_train_step` itself runs: the forward pass of the method, its loss and its gradient, the recipe's
optimiser and schedule, queues and averages, in double precision; only the views are given.
"""

import dataclasses
import importlib

import golden_files as golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from jax.sharding import AxisType

from mlvicx_jax import optim, parallel
from mlvicx_jax.models.norm import AXIS, batch_norm
from mlvicx_jax.models.resnet import LEVELS
from mlvicx_jax.state import TrainState
from mlvicx_jax.step import make_train_step
from mlvicx_jax.weights import tensors as weights


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
    found = {official(name): golden.sample(x) for name, x in weights.to_torch(ours).items()}
    theirs = {name.removeprefix(kind + '/'): x for name, x in file.items() if name.startswith(kind + '/')}
    theirs = {name: x for name, x in theirs.items() if 'running' not in name}
    assert found.keys() <= theirs.keys(), found.keys() - theirs.keys()
    for name in theirs.keys() - found.keys():
        assert name.endswith('.bias'), name
        assert kind != 'gradient' or np.abs(theirs[name]).max() < 1e-9, name
    starts = {name: golden.sample(before[name]) if before else 0 for name in found}
    ways = {name: np.abs(theirs[name] - starts[name])[:-2].max() for name in found}
    least = 1e-6 * max(ways.values())  # some biases cancel in a loss: what moves them is rounding
    entries = [np.abs(found[name] - theirs[name])[:-2].max() / max(way, least) for name, way in ways.items()]
    wholes = [
        np.abs(found[name] - theirs[name])[-2:].max() / theirs[name][-1]
        for name, way in ways.items()
        if way > least
    ]
    return max(entries + wholes)


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
    state: TrainState


def train(config, method, official, views, steps, total_steps, given_state=None, rearrange=lambda x: x):
    """`steps` steps of `total_steps`, an epoch each, from the official weights.

    `views` maps a step to its arrays; `given_state` the method's initial state, and `rearrange` the
    weights, to others.
    """
    shapes = jax.eval_shape(method.init_network, jax.random.key(0))
    variables = rearrange(official_weights(shapes, official))
    method_state = jax.jit(method.init_state)(jax.random.key(0), variables)
    if 'queue' in method_state:
        keys = golden.drawn('queue', method_state['queue']['keys'].shape)
        method_state['queue']['keys'] = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    if 'target' in method_state:
        method_state['target'] = official_weights(method_state['target'], official, 'target.')
    if given_state:
        method_state = given_state(method_state)
    return _train(config, method, variables, method_state, views, steps, total_steps)


def train_own(config, method, views, steps):
    """`steps` of 100 steps, an epoch each, on the arrays `views`, from the method's own initial weights."""
    variables, method_state = jax.jit(method.init)(jax.random.key(0))
    return _train(config, method, variables, method_state, lambda step: views, steps, 100)


def _train(config, method, variables, method_state, views, steps, total_steps):
    record = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda gradient, _, __: (gradient, gradient)
    )
    batch = len(views(0)['first'])
    optimizer = optax.chain(record, optim.create(config.optim, batch, 1, total_steps))
    mesh = jax.make_mesh((1,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    train_step = make_train_step(method, optimizer, mesh, 0, total_steps)
    state = TrainState(
        np.int32(0),
        np.int32(0),
        variables['params'],
        variables['batch_stats'],
        jax.jit(optimizer.init)(variables['params']),
        method_state,
    )
    # Copies, as a step gives its state's buffers away; laid out as a step leaves them, for one compilation.
    state = jax.device_put(jax.tree.map(np.array, state), parallel.replicated(mesh))
    run = Run(variables, [], {}, {}, state)
    for step in range(steps):
        arrays = parallel.to_global(views(step) | {'image': np.zeros(batch)}, mesh)
        run.state, metrics, out = train_step(run.state, arrays)
        if not step:
            run.gradient, run.out = jax.tree.map(np.asarray, (run.state.opt_state[0], out))
        run.losses.append(float(metrics['loss']))
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
    """Asserts that losses of all steps, gradient of the first and weights after the last differ from the
    file's by less than `bound`; `pytest -s` shows by how much."""
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
        found['target'] = worst(target, file, 'target', official)
    print(name, {part: f'{error:.0e}' for part, error in found.items()})
    assert max(found.values()) < bound, found


class Five(nn.Module):
    """Five strided convolutions, in the place of stem and stages: of a method that is compared with its
    official code, the encoder does not matter. ResNet-18 itself is MLVICX's."""

    width: int
    norm_groups: int = 1
    dtype: jnp.dtype = jnp.float64
    axis_name: str | None = AXIS

    @nn.compact
    def __call__(self, x, train: bool):
        norm = batch_norm(train, self.dtype, self.axis_name, groups=self.norm_groups)
        features = {}
        for stage, level in enumerate(LEVELS):
            conv, bn = (f'layer{stage}_0', f'layer{stage}_1') if stage else ('conv1', 'bn1')
            channels = self.width * 2 ** max(0, stage - 1)
            x = nn.Conv(channels, (3, 3), 2, padding=1, use_bias=False, dtype=self.dtype, name=conv)(x)
            x = features[level] = nn.relu(norm(name=bn)(x))
        return features | {'pooled': x.mean((1, 2))}
