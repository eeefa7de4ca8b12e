"""docs/trust.md has every defect and leak, with tests that exist; and those no other file has."""

import ast
import fnmatch
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib

import golden_run
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from conftest import ROOT
from flax import linen as nn
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

import tiny
from configs import base, classify, mlvicx, segment
from mlvicx_jax import config as rules
from mlvicx_jax import durations, train
from mlvicx_jax.data import opening
from mlvicx_jax.evaluation import metrics
from mlvicx_jax.models.heads import ResizeProjectSum
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.models.resnet import LEVELS, ResNet18
from mlvicx_jax.run.record import Run
from mlvicx_jax.tasks import classify as classification
from mlvicx_jax.tasks import linear

RECIPES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
SOURCES = [
    ROOT / 'main.py',
    *(
        path
        for folder in ('mlvicx_jax', 'datasets', 'configs')
        for path in sorted((ROOT / folder).rglob('*.py'))
    ),
]
OURS = r'(mlvicx_jax|mlvicx_jax_datasets|configs)\b'


# The page


def rows():
    """{number: (what went wrong there, here, test)} of the tables of docs/trust.md."""
    found = {}
    for line in (ROOT / 'docs/trust.md').read_text().splitlines():
        if match := re.match(r'\| ([DL]\d+) \|', line):
            number, *cells = [cell.strip() for cell in line.strip('|').split(' | ')]
            assert match[1] == number.strip() and number.strip() not in found, line
            found[number.strip()] = cells
    return found


@functools.cache
def functions(path):
    return {
        node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)
    }


def test_the_page_has_every_defect_and_every_leak():
    assert list(rows()) == [f'D{i}' for i in range(1, 29)] + [f'L{i}' for i in range(1, 6)]
    for number, cells in rows().items():
        assert len(cells) == 3 and all(len(cell) > 10 for cell in cells), number


def test_every_row_names_tests_that_exist_or_says_why_there_is_none():
    for number, (_, _, named) in rows().items():
        tests = re.findall(r'`(tests/test_\w+\.py)::(test_\w+)`', named)
        assert tests or named.startswith('not applicable: '), number
        assert len(tests) == named.count('`') / 2, f'{number}: a test by another form of name'
        for path, name in tests:
            assert name in functions(path), f'{number}: {path} has no {name}'


# Method


class Levels(nn.Module):
    """Stands in for an encoder: five levels, small, each of one linear layer."""

    width: int = 2
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train: bool):
        features = {}
        for i, level in enumerate(LEVELS):
            step = 2**i
            features[level] = nn.Dense(self.width * max(1, step // 2), name=level)(images[:, ::step, ::step])
        return features | {'pooled': features['stage4'].mean((1, 2))}


@pytest.mark.parametrize('preset', ['paper', 'released'])
def test_every_matrix_of_mlvicx_learns(preset):
    """The 1 x 1 convolutions of the aggregation among them (D1).

    A gradient is not enough: the release's had one, and were unknown to its optimiser, so they stayed
    where they were. So the training step itself is taken.
    """
    config, method = golden_run.program('mlvicx', Levels(axis_name=AXIS), 16, preset, widths=(6, 6, 6))
    rng = np.random.default_rng(0)
    views = {name: rng.random((8, 16, 16, 1), np.float32) for name in ('first', 'second')}
    run = golden_run.train_own(config, method, views, steps=3)  # the warm-up's first rate is 0
    before, after, gradient = map(tiny.leaves, (run.variables['params'], run.state.params, run.gradient))
    matrices = [path for path, leaf in gradient.items() if leaf.ndim > 1]
    aggregated = [path for path in matrices if 'project_' in path]
    assert len(matrices) == 5 + 2 * 3 + len(aggregated)
    assert len(aggregated) == (5 if preset == 'released' else 0)
    for path in matrices:
        assert np.abs(gradient[path]).max() > 1e-5, path
        assert not np.array_equal(before[path], after[path]), path


def shapes(jaxpr):
    """Of all that a program computes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in equation.params.values():
            if inner := getattr(value, 'jaxpr', None):
                yield from shapes(inner)


def test_the_released_aggregation_never_makes_its_common_grid():
    features = {
        level: jnp.zeros((1, n, n, c)) for level, n, c in zip(LEVELS, (112, 56, 28, 14, 7), (4, 4, 8, 16, 32))
    }
    module = ResizeProjectSum(features=24)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), features))
    found = list(shapes(jax.make_jaxpr(module.apply)(variables, features).jaxpr))
    assert (1, 4, 4, 24) in found and not [shape for shape in found if 64 in shape]


def test_presets_have_the_values_of_the_paper_and_of_the_release():
    """As far as they state them; docs/results.md: why the paper's learning rate is not its own."""
    shared = dict(alpha=25, beta=25, gamma=1, multi_level_weight=1, inv_reduce='mean', loss_heads='both')
    stated = {
        'paper': (dict(aggregation='concat', widths=(2048,) * 3, last_norm=False, var_reduce='sum'), 1e-5, 10),
        'released': (dict(aggregation='sum', widths=(4096,) * 3, last_norm=True, var_reduce='mean'), 1e-6, 0),
    }
    for preset, (method, decay, degrees) in stated.items():
        config = mlvicx.get_config(preset)
        found = dict(config.method)
        assert found.pop('name') == 'mlvicx' and found == shared | method
        assert (config.batch_size, config.total_epochs, config.model.reduction) == (64, 300, 2)
        assert (config.optim.name, config.optim.weight_decay) == ('lars', decay)
        assert config.optim.learning_rate * config.batch_size / 256 == pytest.approx(0.05)
        assert {view.rotation for view in config.views.values()} == {degrees}


def test_initial_convolutions_are_kaiming_normal_over_their_outputs():
    encoder, image = ResNet18(16, context=False, axis_name=None), jnp.zeros((1, 80, 80, 3))
    params = jax.jit(lambda key: encoder.init(key, image)['params'])(jax.random.key(0))
    kernels = {path: w for path, w in tiny.leaves(params).items() if w.ndim == 4}
    assert len(kernels) == 20
    for path, w in kernels.items():
        expected = (2 / (w.shape[0] * w.shape[1] * w.shape[3])) ** 0.5
        assert w.std() == pytest.approx(expected, rel=5 / w.size**0.5), path
        assert abs(w.mean()) < 5 * expected / w.size**0.5, path


# Entry point and configs


def documents():
    return [
        ROOT / 'README.md',
        *sorted((ROOT / 'docs').glob('*.md')),
        *sorted((ROOT / 'datasets').rglob('README.md')),
    ]


COMMAND = r'{}((?: \\+\n +| [^\s`()]+)+)'


def commands(program, paths):
    for path in paths:
        for found in re.findall(COMMAND.format(program), path.read_text()):
            if '<' not in found:  # a place that the reader fills
                yield path.name, shlex.split(found.replace('\\', ' '))


def test_commands_of_the_documents_are_ones_that_main_takes():
    own = re.findall(r"flags\.DEFINE_[si]\w+\('(\w+)'", (ROOT / 'main.py').read_text())
    count = 0
    for where, words in commands(r'python main\.py', [*documents(), *(ROOT / 'configs').glob('*.py')]):
        words = [
            f'--config={ROOT}/{word.removeprefix("--config=")}' if word.startswith('--config=') else word
            for word in words
        ]
        rest = [word for word in words if not re.match(f'--({"|".join(own)})=', word)]
        values, argv = flags.FlagValues(), ['main.py', *rest]
        rules.define(values, argv)
        assert not values(argv)[1:], (where, words)
        rules.keep_given(values['config'])
        if values['config'].value.task != 'tables':
            rules.check(values['config'].value)
        count += 1
    assert count > 25


def test_commands_of_the_documents_have_flags_of_their_modules():
    count = 0
    for where, (name, *words) in commands('(?m)^mlvicx', documents()):
        code = (ROOT / f'mlvicx_jax/commands/{name}.py').read_text()
        for flag in re.findall(r'^--[\w-]+', '\n'.join(words), re.M):
            assert f"'{flag}'" in code, f'{where}: mlvicx {name} has no {flag}'
            count += 1
    assert count > 15


@pytest.mark.parametrize('name', RECIPES)
def test_no_recipe_starts_from_given_weights_or_has_a_path_of_a_machine(name):
    config = importlib.import_module(f'configs.{name}').get_config()
    if config.task != 'tables':
        assert config.init == '' and config.data.manual_dir is None
    assert not re.search(r'[\'"](/|~|[A-Z]:\\)', (ROOT / f'configs/{name}.py').read_text())


def leaves(tree, prefix=''):
    for name, value in tree.items():
        yield from leaves(value) if hasattr(value, 'items') and len(value) else [name]


def test_every_field_of_a_config_is_read_somewhere():
    """Elsewhere than where its value is checked and where an older run's is filled in."""
    code = '\n'.join(
        path.read_text()
        for path in (ROOT / 'mlvicx_jax').rglob('*.py')
        if path.relative_to(ROOT / 'mlvicx_jax').as_posix() not in ('config.py', 'run/folder.py')
    )
    units = {
        field.rpartition('.')[2]
        for section, name, _ in durations.DURATIONS
        if len(re.findall(rf"'{section}', '{name}'", code)) > 1  # beside its line in DURATIONS
        for field in durations.fields(section, name)
    }
    unread = {name for name in leaves(base.get_config()) if not re.search(rf'\b{name}\b', code)} - units
    assert not unread


def test_all_that_is_imported_from_this_project_exists():
    """Also what a function imports, which no import of its module would show (D23)."""
    count = 0
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not re.match(OURS, node.module or ''):
                continue
            try:
                module = importlib.import_module(node.module)
            except ModuleNotFoundError as error:  # of an extra that is not installed
                assert not re.match(OURS, error.name), (path, error)
                continue
            for alias in node.names:
                name = f'{node.module}.{alias.name}'
                assert hasattr(module, alias.name) or (
                    hasattr(module, '__path__') and importlib.util.find_spec(name)
                ), (path, name)
                count += 1
    assert count > 200


def project():
    return tomllib.loads((ROOT / 'pyproject.toml').read_text())


def test_every_import_is_declared():
    declared = [*project()['project']['dependencies']]
    for extra in project()['project']['optional-dependencies'].values():
        declared += extra
    plain = lambda name: re.match(r'[\w.-]+', name)[0].lower().replace('_', '-')
    declared = {plain(name) for name in declared}
    distributions = importlib.metadata.packages_distributions()
    missing = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            for name in {name.partition('.')[0] for name in names}:
                known = {plain(d) for d in distributions.get(name, [name])}
                if not known & declared and not re.match(OURS, name) and (name not in sys.stdlib_module_names):
                    missing.add(f'{path.relative_to(ROOT)}: {name}')
    assert not missing


def test_an_installation_has_every_file_that_the_program_reads():
    setuptools, absent = project()['tool']['setuptools'], []
    patterns = ['*.py', *setuptools['package-data']['*']]
    for folder in setuptools['package-dir'].values():
        for path in (ROOT / folder).rglob('*'):
            if path.is_file() and '__pycache__' not in path.parts:
                # setup.py takes every folder with an __init__.py whose parents have one.
                inside = [path.parent, *path.parent.parents]
                inside = inside[: inside.index(ROOT / folder) + 1]
                if not all((parent / '__init__.py').exists() for parent in inside) or not any(
                    fnmatch.fnmatch(path.name, pattern) for pattern in patterns
                ):
                    absent.append(str(path.relative_to(ROOT)))
    assert not absent


def test_the_licence_is_there_and_is_the_one_that_is_said():
    assert 'Apache License' in (ROOT / 'LICENSE').read_text()
    assert project()['project']['license'] == 'Apache-2.0'
    assert 'Apache-2.0' in (ROOT / 'README.md').read_text()


# Evaluation


def test_downstream_recipes_have_the_papers_values_and_keep_the_bottlenecks():
    for name, values in {
        'nih_chestxray14': (64, 1e-5),
        'vinbig_cxr': (16, 1e-3),
        'rsna_pneumonia': (16, 1e-3),
    }.items():
        config = classify.get_config(f'dataset={name}')
        assert (config.batch_size, config.optim.learning_rate) == values
        assert not config.optim.scale_with_batch and config.optim.final_factor == 1
        assert config.early_stopping.patience == 10 and config.eval_every_epochs == 1
        assert config.model.context
    assert segment.get_config().model.context


def test_labelled_images_are_drawn_with_the_seed_of_the_run(data_dir):
    config = tiny.get_config('supervised')
    config.task, config.data.data_dir, config.data.labelled.share = 'classify', str(data_dir), 0.3
    whole, drawn = opening.open_set(config), {}
    for seed in (0, 1, 2, 0):
        config.seed = seed
        asked = opening.asked(config, whole).splits
        assert drawn.setdefault(seed, asked['train'].hash) == asked['train'].hash
        assert set(asked['train'].image_ids) < set(whole.splits['train'].image_ids)
        for name in ('validation', 'test'):
            assert asked[name].hash == whole.splits[name].hash
    assert len(set(drawn.values())) == 3


def test_each_figure_is_the_metric_of_its_name_at_thresholds_of_validation():
    rng = np.random.default_rng(0)
    names = ['Nodule', 'Mass']
    labels, held = rng.integers(0, 2, (2, 60, 2))
    scores, test = (0.4 * rng.random((60, 2)) + 0.3 * y for y in (labels, held))
    test = test**2  # another scale: thresholds of the test images would be others
    found = classification.judge(names, labels, scores, held, test, np.arange(60).astype(str))
    for i, name in enumerate(names):
        assert found['auroc'][name] == pytest.approx(roc_auc_score(held[:, i], test[:, i]))
        assert found['auprc'][name] == pytest.approx(average_precision_score(held[:, i], test[:, i]))
        for metric, oracle in (('f1', f1_score), ('accuracy', accuracy_score)):
            cut = getattr(metrics, f'{metric}_threshold')(labels, scores)[i]
            assert found[metric][name] == pytest.approx(oracle(held[:, i], test[:, i] >= cut))


def test_the_best_of_a_run_that_got_worse_is_read_back_and_judged(data_dir, tmp_path, monkeypatch):
    config = tiny.get_config('supervised')
    config.task, config.protocol, config.data.data_dir = 'classify', 'finetune', str(data_dir)
    config.data.validation_fraction = 0.3
    config.batch_size, config.total_steps, config.eval_every_steps = 8, 4, 1
    validation, params, judged = [0.5, 0.9, 0.1, 0.2], [], []

    def at(self, state, step):
        params.append(jax.device_get(state.params))
        return {self.monitor: validation[step - 1]}

    def results(self, state, numbers, initial):
        judged.append((jax.device_get(state.params), numbers))
        means = {'mean8': 0.5, 'mean9': 0.5}
        head = {'auroc': dict.fromkeys(self._data.label_names, 0.5), 'means': means, 'not_available': []}
        return {'primary': 'classifier', 'test': {'classifier': head}}

    monkeypatch.setattr(classification.Task, 'at', at)
    monkeypatch.setattr(classification.Task, 'results', results)
    assert train.train(config, tmp_path) == 0
    ((state, numbers),) = judged
    assert numbers['validation/auroc'] == 0.9
    assert json.loads((tmp_path / 'results.json').read_text())['step'] == 2
    kept = Run.open(tmp_path).network().variables['params']
    for found in (state, kept):
        for path, leaf in tiny.leaves(found).items():
            assert leaf.tobytes() == tiny.leaves(params[1])[path].tobytes(), path
    assert not np.array_equal(params[1]['encoder']['conv1']['kernel'], params[3]['encoder']['conv1']['kernel'])


def test_the_best_linear_layer_is_the_one_that_comes_back():
    """On noise validation soon gets worse."""
    rng = np.random.default_rng(3)
    x = {name: rng.normal(size=(40, 8)).astype(np.float32) for name in ('train', 'validation')}
    y = {name: rng.integers(0, 2, (40, 2)).astype(np.uint8) for name in x}
    config = tiny.get_config('supervised')
    config.batch_size, config.total_steps, config.eval_every_steps = 8, 60, 5
    config.optim.learning_rate = 0.1
    seen = {}

    class Log:
        write = staticmethod(lambda step, numbers: seen.update({step: numbers['validation/auroc']}))

    layer, numbers = linear.fit(config, x, y, ('Nodule', 'Mass'), Log)
    auroc = numbers['validation/auroc']
    assert len(seen) == 12 and layer.step == max(seen, key=seen.get) < 60 and auroc == seen[layer.step]
    scores = layer.probabilities(x['validation'])
    assert metrics.auroc(y['validation'], scores).mean() == pytest.approx(auroc)


RUNS = {
    'classify': [
        '--config=configs/classify.py:dataset=phantom_cxr,protocol=frozen,fraction=0.6',
        '--config.optim.learning_rate=0.01',
    ],
    'segment': ['--config=configs/segment.py:dataset=phantom_cxr,protocol=frozen,structures=heart'],
}


@pytest.mark.slow
@pytest.mark.parametrize('task', RUNS)
def test_a_downstream_task_runs_from_its_command_to_its_results(task, data_dir, tmp_path):
    small = tiny.get_config()
    fields = {
        'data.data_dir': data_dir,
        'data.options.patients': small.data.options.patients,
        'data.stored_size': small.data.stored_size,
        'data.image_size': small.data.image_size,
        'data.validation_fraction': 0.3,
        'model.width': small.model.width,
        'batch_size': 8,
        'eval.batch_size': 8,
        'total_steps': 2,
        'eval_every_steps': 1,
    }
    ended = subprocess.run(
        [
            sys.executable,
            'main.py',
            *RUNS[task],
            f'--workdir={tmp_path}',
            *(f'--config.{name}={value}' for name, value in fields.items()),
        ],
        cwd=ROOT,
        env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    results = json.loads((tmp_path / 'results.json').read_text())
    assert (results['task'], results['protocol'], results['init']) == (task, 'frozen', '')
    assert results['test'] and (tmp_path / 'predictions.npz').exists()
