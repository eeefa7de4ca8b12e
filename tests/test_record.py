"""A damaged run: every reader gives one line that names the file, or what the file says."""

import contextlib
import copy
import json
import pathlib
import random
import shutil

import cv2
import jax
import numpy as np
import pytest
from ended_run import make_workdir
from fabricated import write_run
from test_report import classification, pretraining, segmentation

from mlvicx_jax.errors import UserError
from mlvicx_jax.files import write_json
from mlvicx_jax.grid import reading
from mlvicx_jax.grid.cell import Cell
from mlvicx_jax.report import page, sheets
from mlvicx_jax.run import results as run_results
from mlvicx_jax.run.record import Run
from mlvicx_jax.run.results import problem
from mlvicx_jax.weights import initial

HOSTILE = (
    b'',
    b'[]',
    b'[1]',
    b'3',
    b'null',
    b'"text"',
    b'{}',
    b'{"step": NaN}',
    b'{"step": 1e999}',
    b'[' * 100_000,
    b'{"a":' * 100_000,
    b'{"step": ' + b'9' * 5000 + b'}',
    b'{"step": "' + b'9' * 4000 + b'"}',
    b'\xff\xfe{',
    b'\x00' * 64,
    b'{"label_names": ["\\ud800"]}',
    '{"task": "²"}'.encode(),
    b'PK\x05\x06' + b'\x00' * 18,
)
VALUES = None, True, -1, 0, 1e300, 10**400, '', 'text', '²', [], [None], {}, {'': None}, [[1, 2]]


def places(tree, at=()):
    """The path of every value of a JSON tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


def damage(path: pathlib.Path, rng: random.Random) -> str:
    """Damages a file in one of many ways; returns which."""
    content = path.read_bytes()
    ways = ['cut', 'flipped', 'replaced', 'missing', 'a folder', 'a dead link']
    if path.suffix in ('.json', '.jsonl'):
        ways += 3 * ['a value', 'a field gone']
    if path.suffix == '.npz':
        ways += 3 * ['an array', 'an array gone']
    way = rng.choice(ways)
    if way == 'cut':
        path.write_bytes(content[: rng.randrange(len(content))])
    elif way == 'flipped':
        spoiled = bytearray(content)
        for _ in range(rng.choice((1, 1, 8, 64))):
            spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
        path.write_bytes(spoiled)
    elif way == 'replaced':
        path.write_bytes(rng.choice(HOSTILE))
    elif way in ('missing', 'a folder', 'a dead link'):
        path.unlink()
        if way == 'a folder':
            path.mkdir()
        elif way == 'a dead link':
            path.symlink_to(path)
    elif path.suffix == '.npz':
        with np.load(path) as file:
            arrays = dict(file)
        name = rng.choice(sorted(arrays))
        array = arrays.pop(name)
        if way == 'an array':
            changes = (
                array[:-1],
                array[..., None],
                array.astype('U8'),
                np.float64(0.5),
                np.full(array.shape, 7.5),
                np.full(array.shape, np.inf),
                np.zeros(array.shape, complex),
                array[:0],
            )
            arrays[name] = rng.choice(changes)
        np.savez(path, **arrays)
    else:
        lines = content.decode().splitlines() if path.suffix == '.jsonl' else [content.decode()]
        number = rng.randrange(len(lines))
        tree = json.loads(lines[number])
        *above, key = rng.choice(list(places(tree)))
        inner = tree
        for step in above:
            inner = inner[step]
        if way == 'a value':
            inner[key] = rng.choice(VALUES)
        else:
            del inner[key]
        lines[number] = json.dumps(tree)
        path.write_text('\n'.join(lines) + '\n')
    return way


@contextlib.contextmanager
def one_line():
    """Nothing but a UserError of one line, and that short enough to be read, may come out."""
    try:
        yield
    except UserError as error:
        text = str(error)
        assert '\n' not in text and len(text) < 1200, text


def add_pictures(folder):
    """What other commands leave in the folder of a run."""
    (folder / 'heatmaps').mkdir()
    picture = np.zeros((8, 8), np.uint8)
    cv2.imwrite(str(folder / 'views.png'), picture)
    cv2.imwrite(str(folder / 'heatmaps/heatmaps.png'), picture)
    measure = {
        f'{name}{ends}': [0.1, 0.3] if ends else 0.2
        for name in ('value', 'chance', 'above_chance', 'above_other_films')
        for ends in ('', '_interval')
    }
    found = {'films': 3, 'pointing': measure, 'iou': measure, 'energy': measure}
    told = {'name': 'a', 'localisation': {'Nodule': found, 'Mass': None}}
    write_json(
        folder / 'heatmaps/heatmaps.json',
        {'dataset': 'phantom_cxr', 'split': 'test', 'level': 'stage4', 'runs': [told]},
    )
    return folder


RUNS = {'pretraining': pretraining, 'classification': classification, 'segmentation': segmentation}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A finished run of each task, as a report reads it."""
    folder = tmp_path_factory.mktemp('whole')
    return {name: add_pictures(make(folder / name)) for name, make in RUNS.items()}


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('name', RUNS)
def test_a_damaged_run_is_told_in_one_line_or_read_right(name, seed, whole, tmp_path, monkeypatch):
    """300 of them. A report of 20 in each case is drawn; the others are read as far as a report does."""
    rng = random.Random(f'{name}{seed}')
    said = []
    monkeypatch.setattr('mlvicx_jax.run.goodput.say', said.append)
    monkeypatch.setattr('mlvicx_jax.run.metrics.say', said.append)
    files = sorted(str(path.relative_to(whole[name])) for path in whole[name].rglob('*') if path.is_file())
    for number in range(20):
        folder = tmp_path / str(number)
        shutil.copytree(whole[name], folder)
        file = rng.choice(files)
        way = damage(folder / file, rng)
        said.clear()
        try:
            with one_line():
                run = Run.open(folder)
                sheets.heatmaps(run), sheets.views(run)
                page.render(run) if number % 10 == 0 else (run.results, run.lines, run.goodput, run.predictions)
                assert run.goodput is None or min(run.goodput['seconds'].values(), default=0) >= 0
                assert run.results is None or problem(run.task, run.results) is None
                assert all('\n' not in line and str(folder) in line for line in said)
        except Exception as error:
            raise AssertionError(f'{file}: {way}, number {number}') from error


@pytest.mark.parametrize('number', range(len(HOSTILE)))
def test_hostile_content_in_the_place_of_each_file_is_one_line(number, whole, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mlvicx_jax.run.goodput.say', said.append)
    folder = shutil.copytree(whole['classification'], tmp_path / 'run')
    for file, read in (
        ('goodput.json', lambda run: run.goodput),
        ('predictions.npz', lambda run: run.predictions),
        ('results.json', lambda run: run.results),
        ('config.json', lambda run: run.config),
    ):
        (folder / file).write_bytes(HOSTILE[number])
        if file == 'goodput.json':
            assert read(Run.open(folder)) is None and len(said) == 1 and '\n' not in said[0]
        else:
            with pytest.raises(UserError) as told:
                read(Run.open(folder))
            assert file in str(told.value) and '\n' not in str(told.value) and len(str(told.value)) < 600


class Evil:
    """What would write a file if it were unpickled."""

    def __init__(self, path):
        self._path = str(path)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self._path),)


@pytest.mark.parametrize('name', ['test_patient_ids', 'test_labels', 'label_names', 'test_linear'])
def test_arrays_that_do_not_fit_each_other_are_refused_and_nothing_is_unpickled(name, whole, tmp_path):
    folder = shutil.copytree(whole['classification'], tmp_path / 'run')
    with np.load(folder / 'predictions.npz') as file:
        arrays = dict(file)
    np.savez(folder / 'predictions.npz', **arrays | {name: arrays[name][1:]})
    with pytest.raises(UserError, match='predictions.npz: '):
        _ = Run.open(folder).predictions
    np.savez(folder / 'predictions.npz', **arrays | {name: np.array([Evil(tmp_path / 'done')])})
    with pytest.raises(UserError, match='predictions.npz: can not be read'):
        _ = Run.open(folder).predictions
    assert not (tmp_path / 'done').exists()


@pytest.mark.parametrize('task', ['classify', 'segment'])
def test_a_damaged_run_is_never_in_a_table(task, tmp_path):
    """A finished run that a table takes in has every number that a table asks for."""
    cell = Cell('films', task, 'frozen', 0.1, 'mlvicx', 0, 0)
    write_run(tmp_path / 'whole', cell, [0.5, 0.6, 0.7])
    expected = reading.read_finished(tmp_path / 'whole', cell)
    rng = random.Random(task)
    for number in range(40):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / 'whole', folder)
        damage(folder / rng.choice(('results.json', 'predictions.npz', 'config.json')), rng)
        with one_line():
            found = reading.read_finished(folder, cell)
            assert found.labels == expected.labels and reading.headline(found)
            if task == 'classify':
                assert found.head['auroc'].keys() == expected.head['auroc'].keys()
                assert found.means == expected.means and set(found.head['means']) == set(found.means)


@pytest.fixture(scope='module')
def classifier(tmp_path_factory, data_dir):
    """A run with a checkpoint, and the bits of its network."""
    names = [f'label {k}' for k in range(9)]
    folder = make_workdir(tmp_path_factory.mktemp('run'), 'supervised', data_dir, names)
    network = Run.open(folder).network()
    return folder, jax.tree.leaves(network.variables), jax.tree.leaves(Run.open(folder).encoder())


@pytest.mark.slow
def test_a_network_of_a_damaged_run_is_the_runs_own_or_one_line(classifier, tmp_path):
    """config.json, results.json and the checkpoint, damaged in turn; read for prediction and `config.init`."""
    folder, network, encoder = classifier
    rng = random.Random(0)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())
    for number in range(16):
        copied = tmp_path / str(number)
        shutil.copytree(folder, copied)
        file = rng.choice(['config.json', 'results.json', *rng.sample(files, 2)])
        way = damage(copied / file, rng) if (copied / file).stat().st_size else 'nothing'
        try:
            with one_line():
                found = Run.open(copied).network()
                found.require_classifier()
                assert len(found.run.label_names) == 9
                assert all(map(np.array_equal, jax.tree.leaves(found.variables), network))
            with one_line():
                found = Run.open(copied).encoder()
                assert all(map(np.array_equal, jax.tree.leaves(found), encoder))
                initial.read(str(copied))
        except Exception as error:
            raise AssertionError(f'{file}: {way}, number {number}') from error


@pytest.mark.parametrize('name', ['²', '٣', '-1', '1_0', ' 2', '0x1', '1.5'])
def test_a_folder_whose_name_is_no_step_is_passed_over(name, classifier, tmp_path):
    shutil.copytree(classifier[0], tmp_path / 'run')
    (tmp_path / 'run/checkpoints' / name).mkdir()
    assert Run.open(tmp_path / 'run').network().step == 0


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(classifier, tmp_path):
    shutil.copytree(classifier[0], tmp_path / 'run')
    config = json.loads((tmp_path / 'run/config.json').read_text())
    (tmp_path / 'run/config.json').write_text(json.dumps(config | {'seed': 5}))
    for read in (Run.network, Run.encoder):
        with pytest.raises(UserError, match='is of another run: config.seed: 2 -> 5'):
            read(Run.open(tmp_path / 'run'))


def test_results_are_held_to_one_form_when_written_and_when_read(whole):
    results = copy.deepcopy(Run.open(whole['classification']).results)
    assert problem('classify', results) is None
    assert problem('segment', results) == "task is 'classify', config.json has segment"
    config = Run.open(whole['classification']).config
    for field, value in (('protocol', 'finetune'), ('seed', 9), ('data', {'labelled': {'share': 0.5}})):
        with pytest.raises(UserError, match='results.json: .* config.json has'):
            run_results.read(whole['classification'], config | {field: value})
    del results['labelled_hash']
    assert problem('classify', results) == 'labelled_hash is missing'
