"""Our program against what the methods' official code gives (tests/golden/README.md).

`make_train_step` itself runs: the forward pass of the method, its loss and its gradient, the recipe's
optimiser and schedule, queues and averages, in double precision; only the views are given.
"""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util
from jax.sharding import AxisType

import golden_files as golden
import heads
from mlvicx_jax import optim, parallel, rows
from mlvicx_jax.export import weights
from mlvicx_jax.methods import pcrl_v1
from mlvicx_jax.methods.shared.contrast import new_queue
from mlvicx_jax.models.norm import AXIS, batch_norm
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
    metrics: list
    state: TrainState


def train(config, method, official, views, steps, total_steps, given_state=None, rearrange=lambda x: x):
    """`steps` steps of `total_steps`, an epoch each, from the official weights.

    `views` maps a step to its arrays; `given_state` the method's initial state, and `rearrange` the
    weights, to others.
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
    method_state = jax.jit(method.init_state)(jax.random.key(0), variables)
    if 'queue' in method_state:
        keys = golden.drawn('queue', method_state['queue']['keys'].shape)
        method_state['queue']['keys'] = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    if 'target' in method_state:
        method_state['target'] = official_weights(method_state['target'], official, 'target.')
    if given_state:
        method_state = given_state(method_state)
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
    run = Run(variables, [], {}, {}, [], state)
    for step in range(steps):
        arrays = parallel.to_global(views(step) | {'image': np.zeros(batch)}, mesh)
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
        if name == 'byol':  # its average is taken a step's progress later: docs/methods.md
            update = type(method).update
            type(method).update = lambda self, state, params, out, progress: update(
                self, state, params, out, progress - 1 / total
            )
        run = train(config, method, official, pair(12, heads.PIXELS), steps, total)
    compare(name, run, file, official, 1e-6)


@pytest.mark.parametrize('name', ['vicreg', 'barlow_twins'])
def test_loss_of_more_examples_than_features(name):
    """The products are those of the features then, not of the examples."""
    file = golden.load(f'{name}_loss')
    with jax.enable_x64(True):
        _, method = program(name, heads.Pixels(), heads.PIXELS)
        out = {f'embedding_{i}': jnp.array(file[f'z{i}']) for i in (1, 2)}
        loss, gradient = jax.value_and_grad(lambda out: method.loss(out, {})[0])(out)
    np.testing.assert_allclose(loss, file['loss'], rtol=1e-12)
    for i in (1, 2):
        np.testing.assert_allclose(gradient[f'embedding_{i}'], file[f'gradient{i}'], rtol=1e-9, atol=1e-12)


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


def test_moco_v2(monkeypatch):
    """On two GPUs: BatchNorm's two groups, the shuffled keys, the mean of both gradients."""
    file = golden.load('moco_v2')
    official = names(*mlp('projector', 'fc', 2, 2), ('encoder', ''))
    with jax.enable_x64(True), monkeypatch.context() as patch:
        patch.setattr(rows, 'permutation', lambda key, count: jnp.asarray(file['order']))
        config, method = program('moco_v2', Five(4), 64, widths=(32, 8), queue=32, momentum=0.9)
        run = train(config, method, official, pair(8, 64), 4, 10)
    compare('moco_v2', run, file, official, 1e-6)


def test_inter_moco():
    file = golden.load('inter_moco')
    official = names(('projector.linear1', 'fc'), ('encoder', ''))
    with jax.enable_x64(True):
        config, method = program('inter_moco', Five(4), 96, widths=(8,), queue=16)
        run = train(config, method, official, pair(4, 96), 3, 10)
    compare('inter_moco', run, file, official, 1e-6)


@pytest.mark.slow
def test_caid():
    """On one GPU; what several change is MoCo's."""
    file = golden.load('caid')
    pairs = mlp('projector', 'fc', 2, 2) + decoder('backbone.decoder')
    pairs += [('encoder', 'backbone.encoder'), ('restoration', 'backbone.segmentation_head.0')]
    with jax.enable_x64(True):
        config, method = program('caid', Five(4), 64, widths=(32, 8), queue=16, norm_groups=1)
        run = train(config, method, names(*pairs), pair(4, 64, 'target'), 2, 10)
    compare('caid', run, file, names(*pairs), 1e-6)


@pytest.mark.slow
def test_pcrl_v1(monkeypatch):
    """On one GPU, the normaliser Z of the contrast given: the code cuts it to a whole number."""
    file = golden.load('pcrl_v1')
    clean, mixed, images = file['ratios'][[0, 2, 1]]
    pairs = [('projector.linear1', 'fc1'), ('projector.linear2', 'fc2'), ('encoder', 'model.encoder')]
    pairs += [('gate.linear1', 'aug_fc1'), ('gate.linear2', 'aug_fc2'), *decoder('model.decoder')]
    official = names(*pairs, ('restoration', 'model.segmentation_head.0'))
    shown = pair(
        4, 64, *(f'{name}_{kind}' for name in ('first', 'second') for kind in ('transformed', 'target'))
    )

    def views(step):
        return shown(step) | dict(zip(('first_code', 'second_code'), file['codes'][step]))

    def uniform(key, shape=(), *more, **options):
        is_ratios = shape == (3,)
        return jnp.array([images, clean, mixed]) if is_ratios else drawn(key, shape, *more, **options)

    drawn = jax.random.uniform

    def given(state):
        return state | {'log_normaliser': np.log(float(file['z']))}

    with jax.enable_x64(True), monkeypatch.context() as patch:
        patch.setattr(rows, 'permutation', lambda key, count: jnp.asarray(file['order']))
        patch.setattr(jax.random, 'uniform', uniform)
        config, method = program('pcrl_v1', Five(4), 64, widths=(8, 8), queue=48, norm_groups=1)
        config.optim.final_factor = 1.0  # both steps in one epoch
        run = train(config, method, official, views, 2, 10, given)
    compare('pcrl_v1', run, file, official, 1e-5)


def test_pcrl_v1_contrast():
    """With the code's n, the number of ChestX-ray14's batches: its Z is cut, and it adds 1e-5 to every
    probability. Both are lost in float32 training; the gradients differ by 1e-4 of their size."""
    file = golden.load('pcrl_v1_contrast')
    with jax.enable_x64(True):
        _, method = program('pcrl_v1', Five(4), 64, widths=(8, 8), queue=48, norm_groups=1)
        keys = golden.drawn('queue', (48, 8))
        state = {
            'queue': new_queue(jnp.array(keys / np.linalg.norm(keys, axis=1, keepdims=True))),
            'log_normaliser': jnp.array(-jnp.inf),
        }
        out = {
            name.removeprefix('input/'): jnp.array(x) for name, x in file.items() if name.startswith('input/')
        }
        losses, left = method.contrasts(out, state)
        gradient = jax.grad(lambda out: sum(method.contrasts(out, state)[0]) / 3)(out)
    assert int(np.exp(left['log_normaliser']) * file['batches']) == file['z']
    np.testing.assert_allclose(losses, file['losses'].ravel() - 1e-5 * file['batches'], atol=1e-3)
    np.testing.assert_allclose(left['queue']['keys'], file['queue'], atol=1e-12)
    for name in ('embedding_1', 'mixed_1'):
        np.testing.assert_allclose(gradient[name], file[f'gradient/{name}'], atol=3e-4)


def test_pcrl_v1_turns():
    """All codes: flips and quarter turns as the code's data set makes them."""
    file = golden.load('pcrl_v1_turned')
    pictures = np.moveaxis(golden.drawn('pictures', (16, 1, 5, 5)), 1, -1)
    turned = pcrl_v1.transform(jnp.array(file['codes']), jnp.array(pictures, jnp.float32))
    np.testing.assert_allclose(np.moveaxis(turned, -1, 1), file['turned'], rtol=1e-6)


@pytest.mark.slow
def test_pcrl_v2(monkeypatch):
    file = golden.load('pcrl_v2')
    levels = file['levels']  # of (first, second), then of (first, crop) and (second, crop) of each crop
    ours = np.concatenate([levels[:1], levels[1::2], levels[2::2]])
    pairs = decoder('model.decoder') + [
        ('encoder', 'model.encoder'),
        ('restoration', 'model.segmentation_head.0'),
    ]
    for block in range(1, 6):
        for mine, theirs in {
            'embedding{}': 'bn',
            'predictor{}_linear1': 'predictor_head.0',
            'predictor{}_bn': 'predictor_head.1',
            'predictor{}_linear2': 'predictor_head.3',
            'picture{}_conv1': 'deep_supervision_head.0',
            'picture{}_bn': 'deep_supervision_head.1',
            'picture{}_conv2': 'deep_supervision_head.3',
        }.items():
            pairs.append((mine.format(block), f'model.decoder.blocks.{block - 1}.{theirs}'))

    def views(step):
        return pair(4, 32, 'local_1', 'local_2')(step) | pair(4, 64, 'target')(step)

    def given(state):  # the code's epoch, of 240, in which beta falls to 0
        return {'progress': file['epoch'] / 240}

    with jax.enable_x64(True), monkeypatch.context() as patch:
        patch.setattr(jax.random, 'randint', lambda key, *_: jnp.asarray(ours))
        config, method = program('pcrl_v2', Five(4), 64, local_crops=2, local_size=32)
        type(method).update = lambda self, state, params, out, progress: state
        config.optim.final_factor = 1.0  # both steps in one epoch
        run = train(config, method, names(*pairs), views, 2, 10, given)
    compare('pcrl_v2', run, file, names(*pairs), 1e-6)


@pytest.mark.slow
def test_mlvicx_released():
    """Encoder with its bottlenecks, aggregation, both expanders, loss, gradient, LARS."""
    file = golden.load('mlvicx')
    modules = dict(zip(('conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4'), '014567'))
    pairs = [(f'encoder.{ours}', f'encoder.encoder.{theirs}') for ours, theirs in modules.items()]
    for i, level in enumerate(LEVELS):
        for ours, theirs in (
            ('channel_squeeze', 'cam.fc.0'),
            ('channel_excite', 'cam.fc.2'),
            ('spatial', 'sam.conv1'),
        ):
            pairs.append((f'encoder.context_{level}.{ours}', f'encoder.cbt{i + 1}.{theirs}'))
        pairs.append((f'aggregation.project_{level}', f'encoder.resize_project.convs.{i}'))
    for i in range(3):
        for ours, place in ('linear', 0), ('bn', 1):
            pairs.append((f'expander_global.{ours}{i + 1}', f'encoder.projetion.l{i + 1}.{place}'))
            head = f'encoder.resize_project.conv_head.projection.{2 + 3 * i + place}'
            pairs.append((f'expander_multi_level.{ours}{i + 1}', head))
    official = names(*pairs)

    def rearranged(before, after):
        """Theirs flattens [channels, cells], ours [cells, channels]."""

        def rearrange(tree):
            flat = traverse_util.flatten_dict(tree)
            for path in flat:
                if path[-3:] == ('expander_multi_level', 'linear1', 'kernel'):
                    cells = np.asarray(flat[path]).reshape(before, after, -1)
                    flat[path] = cells.swapaxes(0, 1).reshape(flat[path].shape)
            return traverse_util.unflatten_dict(flat)

        return rearrange

    with jax.enable_x64(True):
        config, method = program(
            'mlvicx', ResNet18(width=4, dtype=jnp.float64), 80, 'released', widths=(24, 24, 24)
        )
        config.optim.update(learning_rate=0.05, scale_with_batch=False, warmup_epochs=0.0, final_factor=1.0)
        run = train(config, method, official, pair(6, 80), 2, 10, rearrange=rearranged(32, 16))
    for head in ('global_1', 'multi_level_1', 'global_2', 'multi_level_2'):
        np.testing.assert_allclose(run.out[head], file[f'embedding/{head}'], rtol=1e-9, atol=1e-9, err_msg=head)
    compare('mlvicx', run, file, official, 1e-6, rearranged(16, 32))
