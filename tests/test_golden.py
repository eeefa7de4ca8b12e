"""Our program against what the methods' official code gives: tests/golden/README.md."""

import golden_files as golden
import heads
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden_run import Five, compare, decoder, mlp, names, pair, program, train

from mlvicx_jax import rows
from mlvicx_jax.methods import pcrl_v1
from mlvicx_jax.methods.shared.contrast import new_queue
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.models.resnet import LEVELS, ResNet18
from mlvicx_jax.weights import tensors as weights

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
    """Encoder with its bottlenecks, aggregation, both expanders, loss, gradient, LARS; its checkpoint."""
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
    shapes = {name.removeprefix('shape/'): x for name, x in file.items() if name.startswith('shape/')}
    checkpoint = {name: golden.weight(f'encoder.{name}', tuple(shape)) for name, shape in shapes.items()}
    encoder = {kind: run.variables[kind]['encoder'] for kind in run.variables}
    read, _ = weights.fill(encoder, checkpoint, 'the released checkpoint', whole=True)
    jax.tree.map(np.testing.assert_array_equal, read, encoder)
    for head in ('global_1', 'multi_level_1', 'global_2', 'multi_level_2'):
        np.testing.assert_allclose(run.out[head], file[f'embedding/{head}'], rtol=1e-9, atol=1e-9, err_msg=head)
    compare('mlvicx', run, file, official, 1e-6, rearranged(16, 32))
