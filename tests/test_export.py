"""The exported encoder is the encoder: in PyTorch, in ONNX, in other JAX programs, and back."""

import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for module in ('torch', 'safetensors', 'onnx', 'onnxruntime'):
    pytest.importorskip(module, reason=f'{module} is not installed: pip install -e .[export]')
import onnxruntime
import torch
from safetensors.numpy import load_file
from torch import nn

import tiny
from mlvicx_jax import methods, optim, parallel, train
from mlvicx_jax import state as states
from mlvicx_jax.commands import export as command
from mlvicx_jax.data import augment
from mlvicx_jax.errors import UserError
from mlvicx_jax.export import formats, mlvicx_torch
from mlvicx_jax.export.folder import export
from mlvicx_jax.files import write_json
from mlvicx_jax.models.resnet import LEVELS, ResNet18
from mlvicx_jax.run.checkpoints import Checkpoints
from mlvicx_jax.run.record import Run
from mlvicx_jax.weights import initial
from mlvicx_jax.weights import tensors as weights

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = (*LEVELS, 'pooled')


def full_width(workdir, data_dir, context):
    """A run of ResNet-18 at its full width after three training steps that move it."""
    config = tiny.get_config()
    config.total_steps, config.data.data_dir = 3, str(data_dir)
    config.model.update(width=64, context=context)
    if not context:  # running statistics of the last batch, to which many steps would have come
        config.model.momentum = 0.0
    config.optim.update(name='adamw', learning_rate=3e-3, scale_with_batch=False)
    assert train.train(config, workdir) == 0
    return workdir


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
    return full_width(tmp_path_factory.mktemp('run'), data_dir, context=True)


@pytest.fixture(scope='module')
def exported(run, tmp_path_factory):
    """{format: folder} of everything that can be exported of `run`."""
    parent = tmp_path_factory.mktemp('exported')
    return {form: export(run, form, parent / form, what='all') for form in formats.FORMATS}


@pytest.fixture(scope='module')
def original(run):
    """The encoder and its variables, as they are in the checkpoint."""
    read = Run.open(run).network()
    return read.encoder, read.encoder_variables


@pytest.fixture(scope='module')
def images():
    rng = np.random.default_rng(7)
    smooth = rng.integers(0, 256, (7, 12, 12, 1), np.uint8)
    return {size: np.asarray(augment.standardise(augment.resize(smooth, size))) for size in (96, 224, 256)}


@pytest.fixture(scope='module')
def expected(original, images):
    """{(context, size): features of seven images, [n, c, h, w]}."""
    encoder, variables = original
    found = {}
    for context, trees in ((True, variables), (False, weights.without_context(variables))):
        apply = jax.jit(encoder.clone(context=context).apply)
        for size, x in images.items():
            found[context, size] = channels_first(apply(trees, x))
    return found


def channels_first(features):
    return {
        name: np.moveaxis(np.asarray(y), -1, 1) if y.ndim == 4 else np.asarray(y)
        for name, y in features.items()
    }


def assert_parity(expected, call, images):
    """`call` on [n, 3, h, w] gives the expected features, for one image and for seven.

    Within `folder.TOLERANCE`, of the largest entry where that is above 1: without the bottlenecks that an
    encoder was trained with its features reach 1e3, of which float32 resolves 1e-4.
    """
    for count in (1, 7):
        found = call(np.ascontiguousarray(images[:count].transpose(0, 3, 1, 2)))
        for name in NAMES:
            a, b = expected[name][:count], np.asarray(found[name])
            assert a.shape == b.shape
            assert np.abs(a - b).max() <= 1e-4 * max(1, np.abs(a).max()), name
            a, b = (x.reshape(count, -1).astype(np.float64) for x in (a, b))
            cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
            assert cosine.min() >= 0.99999, name


class TorchBlock(nn.Module):
    """torchvision's BasicBlock, from its published architecture."""

    def __init__(self, inplanes, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(inplanes, planes, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class TorchResNet18(nn.Module):
    """torchvision's resnet18 with its fc; `refine` may change each level."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = nn.Sequential(TorchBlock(64, 64, 1), TorchBlock(64, 64, 1))
        self.layer2 = nn.Sequential(TorchBlock(64, 128, 2), TorchBlock(128, 128, 1))
        self.layer3 = nn.Sequential(TorchBlock(128, 256, 2), TorchBlock(256, 256, 1))
        self.layer4 = nn.Sequential(TorchBlock(256, 512, 2), TorchBlock(512, 512, 1))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512, 1000)

    def features(self, x, refine=lambda name, y: y):
        found = {}
        x = found['stem'] = refine('stem', self.relu(self.bn1(self.conv1(x))))
        x = self.maxpool(x)
        for number, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), 1):
            x = found[f'stage{number}'] = refine(f'stage{number}', layer(x))
        found['pooled'] = torch.flatten(self.avgpool(x), 1)
        return found


def cbam(tensors, name, y):
    """Eq. 1 and 2 of arXiv:2403.11504 by hand, from the exported tensors."""
    squeeze, excite, spatial = (
        torch.from_numpy(tensors[f'context_{name}.{part}.weight'])
        for part in ('channel_squeeze', 'channel_excite', 'spatial')
    )
    mlp = lambda p: torch.relu(p @ squeeze.T) @ excite.T
    b, c = y.shape[:2]
    flat = y.reshape(b, c, -1)
    k = torch.sigmoid(mlp(flat.mean(-1)) + mlp(flat.max(-1).values)).reshape(b, c, 1, 1) * y
    pools = torch.cat([k.mean(1, keepdim=True), k.max(1, keepdim=True).values], 1)
    return torch.sigmoid(nn.functional.conv2d(pools, spatial, padding=3)) * k


def torch_features(model, refine=lambda name, y: y):
    def call(x):
        with torch.inference_mode():
            return {k: v.numpy() for k, v in model.features(torch.from_numpy(x), refine).items()}

    return call


@pytest.mark.parametrize('size', (96, 224, 256))
def test_torchvision_resnet18_loads_it_strictly_and_agrees(exported, expected, images, size):
    tensors = load_file(exported['torchvision'] / 'model.safetensors')
    model = TorchResNet18().eval()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=True)
    assert model.bn1.running_var.sub(1).abs().max() > 0.05, 'statistics at their initial values'
    assert not model.fc.weight.any() and not model.fc.bias.any()
    assert_parity(expected[False, size], torch_features(model), images[size])


def test_torchvision_resnet18_is_an_encoder_trained_without_bottlenecks(data_dir, images, tmp_path):
    workdir = full_width(tmp_path / 'run', data_dir, context=False)
    tensors = load_file(export(workdir, 'torchvision', tmp_path / 'out') / 'model.safetensors')
    model = TorchResNet18().eval()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=True)
    read = Run.open(workdir).network()
    for x in images.values():
        assert_parity(channels_first(read.encoder.apply(read.encoder_variables, x)), torch_features(model), x)


@pytest.mark.parametrize('size', (96, 224, 256))
def test_context_bottlenecks_agree_with_equations_1_and_2(exported, expected, images, size):
    tensors = load_file(exported['mlvicx'] / 'model.safetensors')
    model = TorchResNet18().eval()
    plain = {k: torch.from_numpy(v) for k, v in tensors.items() if not k.startswith('context_')}
    missing, unexpected = model.load_state_dict(plain, strict=False)
    assert (missing, unexpected) == (['fc.weight', 'fc.bias'], [])
    refine = lambda name, y: cbam(tensors, name, y)
    assert_parity(expected[True, size], torch_features(model, refine), images[size])


@pytest.mark.parametrize('size', (96, 224, 256))
def test_the_file_that_comes_along_and_onnx_agree(exported, expected, images, size):
    encoder = mlvicx_torch.load(exported['mlvicx'])
    with torch.inference_mode():
        assert_parity(expected[True, size], lambda x: encoder(torch.from_numpy(x)), images[size])
    session = onnxruntime.InferenceSession(exported['onnx'] / 'model.onnx')
    run = lambda x: dict(zip(NAMES, session.run(list(NAMES), {'image': x})))
    assert_parity(expected[True, size], run, images[size])


def test_preprocessing_is_the_evaluations():
    rng = np.random.default_rng(0)
    for height, width, size in ((256, 256, 224), (90, 131, 96), (64, 64, 96)):
        image = rng.integers(0, 256, (2, height, width), np.uint8)
        ours = np.asarray(augment.standardise(augment.resize(image[..., None], size)))
        theirs = mlvicx_torch.preprocess(image, size).numpy()
        assert np.abs(ours.transpose(0, 3, 1, 2) - theirs).max() <= 2e-5
    pil = pytest.importorskip('PIL.Image', reason='Pillow is not installed').fromarray
    assert torch.equal(mlvicx_torch.preprocess(pil(image[0]), size), mlvicx_torch.preprocess(image[0], size))
    for wrong in (image.astype(np.float32), image[..., None], pil(image[0].astype(np.uint16))):
        with pytest.raises(ValueError):
            mlvicx_torch.preprocess(wrong, size)


@pytest.mark.parametrize('form', ('flax', 'mlvicx', 'torchvision'))
def test_what_comes_back_is_bit_identical(exported, original, form):
    _encoder, variables = original
    if form == 'torchvision':
        variables = weights.without_context(variables)
    like = jax.tree.map(np.zeros_like, variables)
    back, _ = weights.fill(like, initial.read(str(exported[form])), form)
    before, after = tiny.leaves(variables), tiny.leaves(back)
    assert before.keys() == after.keys()
    assert all(before[path].tobytes() == after[path].tobytes() for path in before)


def test_heads_and_teachers(exported):
    heads = load_file(exported['mlvicx'] / 'heads.safetensors')
    assert heads['expander_global.linear1.weight'].shape == (16, 512)
    assert heads['expander_multi_level.bn1.num_batches_tracked'].shape == ()
    assert load_file(exported['flax'] / 'heads.safetensors')['params/expander_global/linear1/kernel'].shape == (
        512,
        16,
    )
    teacher = {
        'method_state': {
            'teacher': {'params': {'encoder': {'layer1_0': {'conv1': {'kernel': np.zeros((3, 3, 4, 8))}}}}},
            'queue': np.zeros((5, 6)),
        }
    }
    assert {name: x.shape for name, x in weights.to_torch(teacher).items()} == {
        'method_state.teacher.encoder.layer1.0.conv1.weight': (8, 4, 3, 3),
        'method_state.queue': (5, 6),
    }


def test_card_and_config_say_what_it_is(run, exported):
    data_hash = json.loads((run / 'results.json').read_text())['data/train_hash']
    for form, path in exported.items():
        card = (path / 'README.md').read_text()
        config = json.loads((path / 'config.json').read_text())
        assert card.startswith('---\nlibrary_name: ') and '\nlicense' not in card and data_hash in card
        assert 'not for diagnosis' in card
        assert config['train_split_sha256'] == data_hash and config['step'] == 3
        assert config['preprocessing']['size'] == 80
        assert config['preprocessing']['mean'] == list(mlvicx_torch.MEAN)
        assert str(run.parent) not in card + json.dumps(config), 'a path of this machine'
        assert {p.name for p in path.iterdir()} >= {'README.md', 'config.json', 'heads.safetensors'}
        assert len(re.findall(r'\| \d\.\de[-+]\d\d \|', card)) == len(NAMES)
        assert ('not the whole encoder' in card) == (form == 'torchvision')


def test_loss_without_bottlenecks_is_measured(run, tmp_path):
    command.main([f'--workdir={run}', '--format=torchvision', f'--out={tmp_path}/out', '--data'])
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert re.search(r'\| linear probe \| 0\.\d{3} \| 0\.\d{3} \| [-+]0\.\d{3} \|', card)


def narrow(workdir, data_dir, change=lambda state: state):
    """A checkpoint of an untrained narrow run; returns its config."""
    config = tiny.get_config()
    config.data.data_dir = str(data_dir)
    method = methods.create(config)
    optimizer = optim.create(config.optim, 16, 1, 1)
    mesh = parallel.create_mesh(4)
    state = states.create(method, optimizer, config.seed, parallel.replicated(mesh))
    checkpoints = Checkpoints(workdir / 'checkpoints', 1, 1, 0, 'hash')
    checkpoints.save(change(state))
    checkpoints.wait()
    checkpoints.close()
    write_json(workdir / 'config.json', json.loads(config.to_json_best_effort()))
    return config


def with_nan(state):
    params = jax.tree.map(lambda x: x, state.params)
    bn1 = params['encoder']['bn1']
    bn1['scale'] = bn1['scale'].at[1].set(jnp.nan)
    return state.replace(params=params)


def largest_file(workdir):
    return max((p for p in (workdir / 'checkpoints').rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def set_method(workdir, name):
    config = json.loads((workdir / 'config.json').read_text())
    config['method']['name'] = name
    write_json(workdir / 'config.json', config)


REFUSED = {
    'unknown format': (['--format=keras'], None, ["'keras'", 'torchvision']),
    'unknown part': (['--what=head'], None, ["'head'", 'all']),
    'existing output': (['--out={tmp}/run'], None, ['run exists']),
    'no such step': (['--step=7'], None, ['checkpoint of step 7', '[0]']),
    'no run': (['--workdir={tmp}/none'], None, ['none: no run is there', 'config.json', '--workdir']),
    'width': (['--format=torchvision'], None, ['4 channels wide', '--format=mlvicx']),
    'unknown method': ([], lambda w: set_method(w, 'vicreg2'), ["'vicreg2'", 'mlvicx']),
    'broken config': ([], lambda w: (w / 'config.json').write_text('{'), ['config.json']),
    'truncated checkpoint': ([], lambda w: os.truncate(largest_file(w), 1000), ['0 is damaged']),
    'a missing file': ([], lambda w: largest_file(w).unlink(), ['0 is damaged']),
    'a flipped bit': ([], lambda w: flip(largest_file(w)), ['0 is damaged']),
    'never finished': (
        [],
        lambda w: (w / 'checkpoints' / '0').rename(w / 'checkpoints' / '0.orbax-checkpoint-tmp'),
        ['no checkpoint'],
    ),
}


@pytest.fixture(scope='module')
def narrow_run(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('narrow')
    narrow(workdir, data_dir)
    return workdir


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs the export that must be refused; returns its line. Nothing new may lie there."""

    def refused(*arguments):
        before = sorted(tmp_path.rglob('*'))
        capsys.readouterr()
        code = command.main(
            [
                f'--workdir={tmp_path}/run',
                '--format=mlvicx',
                f'--out={tmp_path}/out',
                *(a.format(tmp=tmp_path) for a in arguments),
            ]
        )
        line = capsys.readouterr().err.rstrip('\n')
        assert code == 2 and line.startswith('error: ') and '\n' not in line
        assert sorted(tmp_path.rglob('*')) == before
        return line

    return refused


@pytest.mark.parametrize('case', REFUSED)
def test_refused(case, narrow_run, refused, tmp_path):
    arguments, damage, words = REFUSED[case]
    os.system(f'cp -r {narrow_run} {tmp_path}/run')
    if damage:
        damage(tmp_path / 'run')
    line = refused(*arguments)
    for word in words:
        assert word in line, line


def test_weights_that_are_not_finite_are_refused(refused, data_dir, tmp_path):
    narrow(tmp_path / 'run', data_dir, with_nan)
    assert "'bn1'" in refused() and 'finite' in refused('--format=flax')


def test_an_encoder_that_differs_is_refused(narrow_run, refused, tmp_path, monkeypatch):
    os.system(f'cp -r {narrow_run} {tmp_path}/run')

    def wrong(tensors):  # as if the running variance were read as another one
        found = to_torch(tensors)
        found['layer3.0.bn2.running_var'] = found['layer3.0.bn2.running_var'] * 1.01
        return found

    to_torch = weights.to_torch
    monkeypatch.setattr(weights, 'to_torch', wrong)
    for form in ('mlvicx', 'onnx'):
        assert 'differs from the original' in refused(f'--format={form}')


class Malicious:
    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return os.system, (f'touch {self._path}',)


def test_a_pickle_that_would_run_code_is_not_opened(tmp_path):
    trace = tmp_path / 'it_ran'
    for number, content in enumerate((Malicious(trace), {'conv1.weight': Malicious(trace)})):
        path = tmp_path / f'{number}.pth'
        torch.save(content, path)
        with pytest.raises(UserError, match='run code'):
            weights.read_tensors(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), 'the file would not have done anything'


@pytest.fixture(scope='module')
def state(data_dir, tmp_path_factory):
    """A state of a run with ResNet-18, and a teacher as other methods keep one."""
    config = tiny.get_config()
    config.model.width = 64
    config.seed = 11
    state = states.create(
        methods.create(config),
        optim.create(config.optim, 16, 1, 1),
        config.seed,
        parallel.replicated(parallel.create_mesh(4)),
    )
    return state.replace(
        method_state={
            'teacher': {'params': state.params, 'batch_stats': state.batch_stats},
            'queue': jnp.ones((2, 3)),
        }
    )


def torchvision_file(path, change=lambda tensors: tensors):
    torch.manual_seed(1)
    model = TorchResNet18()
    for name, tensor in model.state_dict().items():
        if 'running_mean' in name:
            tensor.uniform_(-0.3, 0.3)
        elif 'running_var' in name:
            tensor.uniform_(0.5, 1.5)
    torch.save(change(model.state_dict()), path)
    return model.eval()


def test_torchvision_weights_are_the_initial_encoder(state, images, tmp_path, capsys):
    model = torchvision_file(tmp_path / 'resnet18.pth')
    new = initial.initialise(state, str(tmp_path / 'resnet18.pth'))
    said = capsys.readouterr().out
    assert 'no context bottlenecks: their 15 tensors stay at their initialisation' in said
    assert 'fc, the classifier, is left out' in said
    variables = {'params': new.params['encoder'], 'batch_stats': new.batch_stats['encoder']}
    plain = jax.jit(ResNet18(context=False, axis_name=None).apply)(
        weights.without_context(variables), images[96]
    )
    assert_parity(channels_first(plain), torch_features(model), images[96])

    teacher = new.method_state['teacher']
    assert all(
        map(
            np.array_equal,
            jax.tree.leaves(teacher),
            jax.tree.leaves({'params': new.params, 'batch_stats': new.batch_stats}),
        )
    )
    before, after = tiny.leaves(state.params), tiny.leaves(new.params)
    for path in before:
        kept = "['encoder']" not in path or 'context' in path
        if 'bn' not in path and 'downsample_1' not in path:  # scale 1 and bias 0 on both sides
            assert kept == (before[path].tobytes() == after[path].tobytes()), path
    assert all(
        leaf.sharding == old.sharding
        for leaf, old in zip(jax.tree.leaves(new.params), jax.tree.leaves(state.params))
    )


def release_of(tensors):
    """The exported encoder laid out as the authors' checkpoint."""
    modules = {'conv1': '0', 'bn1': '1', 'layer1': '4', 'layer2': '5', 'layer3': '6', 'layer4': '7'}
    parts = {'channel_squeeze': 'cam.fc.0', 'channel_excite': 'cam.fc.2', 'spatial': 'sam.conv1'}
    online = {}
    for name, array in tensors.items():
        head, _, rest = name.partition('.')
        tensor = torch.from_numpy(array)
        if head in modules:
            online[f'encoder.{modules[head]}.{rest}'] = tensor
        else:
            part = rest.partition('.')[0]
            level = LEVELS.index(head.removeprefix('context_')) + 1
            online[f'cbt{level}.{parts[part]}.weight'] = (
                tensor if part == 'spatial' else tensor[:, :, None, None]
            )
    return {'online': online}


def test_the_authors_layout_is_read(exported, original, state, tmp_path):
    release = release_of(load_file(exported['mlvicx'] / 'model.safetensors'))
    assert {'encoder.0.weight', 'encoder.4.0.conv1.weight', 'cbt1.cam.fc.0.weight'} <= set(release['online'])
    torch.save(release, tmp_path / 'release.pth')
    new = initial.initialise(state, str(tmp_path / 'release.pth'))
    before = tiny.leaves(original[1])
    after = tiny.leaves({kind: getattr(new, kind)['encoder'] for kind in original[1]})
    assert all(before[path].tobytes() == after[path].tobytes() for path in before)


WRONG = {
    'a tensor is missing': (
        lambda t: {k: v for k, v in t.items() if k != 'layer3.1.bn2.bias'},
        'missing: layer3.1.bn2.bias; unexpected: none',
    ),
    'another network': (
        lambda t: t | {'layer1.2.conv1.weight': t['layer1.0.conv1.weight']},
        'missing: none; unexpected: layer1.2.conv1.weight',
    ),
    'another width': (lambda t: t | {'bn1.bias': t['bn1.bias'][:32]}, r'bn1.bias has shape \(32,\)'),
    'not finite': (lambda t: t | {'bn1.bias': t['bn1.bias'] + torch.nan}, 'bn1.bias .* finite'),
    'no tensors': (lambda t: {'epoch': 3}, 'no state dict'),
    'half a bottleneck': (
        lambda t: t | {'context_stem.spatial.weight': torch.zeros(1, 2, 7, 7)},
        'missing: context_stage1',
    ),
}


@pytest.mark.parametrize('case', WRONG)
def test_weights_that_do_not_fit_stop_the_run(case, state, tmp_path):
    change, message = WRONG[case]
    torchvision_file(tmp_path / 'w.pth', change=change)
    with pytest.raises(UserError, match=message):
        initial.initialise(state, str(tmp_path / 'w.pth'))


def test_files_that_are_no_weights_stop_the_run(state, tmp_path):
    for name, content in (('a.pth', b''), ('b.pth', b'\x80\x04junk'), ('c.safetensors', b'{}')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            initial.initialise(state, str(tmp_path / name))
    for number, tensor in enumerate(
        (torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr(), torch.empty(3, device='meta'))
    ):
        torch.save({'conv1.weight': tensor}, tmp_path / f'odd{number}.pth')
        with pytest.raises(UserError, match=f'odd{number}.pth: .*(no plain tensor|can not be read)'):
            initial.initialise(state, str(tmp_path / f'odd{number}.pth'))
    with pytest.raises(UserError, match='none.pth.*No such file'):
        initial.initialise(state, str(tmp_path / 'none.pth'))


def test_a_run_starts_from_another_runs_encoder(narrow_run, data_dir, tmp_path, monkeypatch):
    config = tiny.get_config()
    config.seed, config.total_steps, config.data.data_dir = 4, 1, str(data_dir)
    config.init = str(narrow_run)
    monkeypatch.setattr(
        train,
        'make_train_step',
        lambda *_: (
            lambda state, batch: (
                state.replace(step=state.step + 1),
                {'loss': 1.0, 'gradient_norm': 1.0, 'skipped': 0},
                {key: np.eye(16, dtype=np.float32) for key in methods.create(config).embeddings.values()},
            )
        ),
    )
    assert train.train(config, tmp_path / 'run') == 0
    found, given = (
        tiny.leaves(Run.open(path).network().encoder_variables) for path in (tmp_path / 'run', narrow_run)
    )
    assert all(found[path].tobytes() == given[path].tobytes() for path in given)
    config.init = ''
    with pytest.raises(UserError, match='config.init'):
        train.train(config, tmp_path / 'run')


def test_the_documents_example_runs(run, exported, data_dir, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'export.md').read_text(), re.S)
    example = blocks[0]
    assert len(example.splitlines()) <= 30
    (tmp_path / 'encoder').symlink_to(exported['mlvicx'])
    (tmp_path / 'data').symlink_to(data_dir)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / 'encoder'))
    exec(compile(example, 'docs/export.md', 'exec'), {'__name__': 'example'})
    assert re.search(r'mean AUROC 0\.\d{3}', capsys.readouterr().out)
