"""A grid of runs, with a stand-in for main.py: kills, skips, refusals, failures."""

import json
import os
import pathlib
import random
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from ml_collections import ConfigDict

from configs import tables as recipe
from mlvicx_jax.errors import UserError
from mlvicx_jax.grid import processes as grid
from mlvicx_jax.grid.cell import read_cell
from mlvicx_jax.grid.plan import check, plan, refuse_another_config

# A recipe with the options of configs/classify.py. Without jax, so that a run starts in a moment.
RECIPE = """
from configs import base
from ml_collections import ConfigDict

def get_config(argument=''):
    options = dict(option.split('=') for option in argument.split(',') if option)
    config = base.get_config()
    config.method = ConfigDict(dict(name='supervised', labels=3))
    config.data.data_dir = {data_dir!r}
    config.data.options.patients = 25
    config.data.stored_size = 96
    config.task = options.get('task', 'pretrain')
    if config.task != 'pretrain':
        config.protocol = options.get('protocol', 'finetune')
    config.data.labelled.share = float(options.get('fraction', 1))
    return config
"""
# As main.py: config.json and metrics.jsonl first, results.json last; it goes on where it was. Its
# pid is left beside them. With an encoder called 'broken' it fails.
STUB = """
import json, os, pathlib, sys, time
from absl import flags
from ml_collections import config_flags
sys.path.insert(0, {root!r})
config_flags.DEFINE_config_file('config')
flags.DEFINE_string('workdir', None, '')
flags.FLAGS(sys.argv)
config, workdir = flags.FLAGS.config, pathlib.Path(flags.FLAGS.workdir)
workdir.mkdir(parents=True, exist_ok=True)
print('at work on', config.init, flush=True)
with (workdir.parent / 'started').open('a') as started:
    started.write(f'{{os.getpid()}} {{workdir.name}}\\n')
(workdir / 'config.json').write_text(config.to_json_best_effort())
if 'broken' in config.init:
    sys.exit('error: this encoder is broken')
progress = workdir / 'metrics.jsonl'
while not progress.exists() or progress.stat().st_size < {steps}:
    time.sleep({pause})
    with progress.open('a') as file:
        file.write('\\n')
results = {{'step': 1, 'task': 'pretrain'}}
if config.task != 'pretrain':
    import numpy as np
    value = 0.5 + 0.1 * ('encoder' in config.init) + 0.01 * config.seed * config.data.labelled.share
    labels = ['Nodule', 'Mass', 'No Finding']
    each = dict.fromkeys(labels, value)
    np.savez(workdir / 'predictions.npz', label_names=np.array(labels),
             test_image_ids=np.array(['a', 'b']), test_patient_ids=np.array(['a', 'b']),
             test_labels=np.eye(2, 3, dtype=np.uint8))
    results = {{
        'step': 1, 'task': 'classify', 'label_names': labels,
        'protocol': config.protocol, 'dataset': config.data.name, 'seed': config.seed,
        'share': config.data.labelled.share, 'labelled_images': 9, 'init': config.init,
        'labelled_hash': f'{{config.seed}}{{config.data.labelled.share}}',
        'init_proof': {{'tensors': 122, 'sha256': config.init}} if config.init else None,
        'context': config.model.context, 'data/test_hash': 't', 'data/validation_hash': 'v',
        'primary': 'linear', 'test': {{'linear': {{
            'auroc': each, 'means': {{'mean2': value, 'mean3': value}}, 'not_available': []}}}}}}
partial = workdir / 'partial'
partial.write_text(json.dumps(results))
os.replace(partial, workdir / 'results.json')
"""
# The grid as processes of its own, forked from one that has imported everything: a line of stdin
# starts one, its pid and then its exit status come back.
NURSERY = """
import json, os, sys
from jax._src import xla_bridge
from ml_collections import ConfigDict
from mlvicx_jax.grid import processes as grid
for line in sys.stdin:
    config, workdir, stub, output = json.loads(line)
    pid = os.fork()
    if not pid:
        grid._die_with()
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        code = 70
        try:
            code = grid.run(ConfigDict(config), workdir, [sys.executable, stub])
            print('backends of the grid:', len(xla_bridge._backends), flush=True)
        finally:
            os._exit(code)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Grid:
    """A grid at work in a process of its own, which nobody else may start meanwhile."""

    def __init__(self, nursery, place):
        self._nursery, self._output = nursery, place.folder / 'output'
        config = json.loads(place.config.to_json_best_effort())
        nursery.stdin.write(
            json.dumps([config, str(place.workdir), str(place.stub), str(self._output)]).encode() + b'\n'
        )
        self.pid = int(nursery.stdout.readline())

    def wait(self, seconds=120):
        """Its exit code, negative for a signal, and what it printed."""
        if not select.select([self._nursery.stdout], [], [], seconds)[0]:
            os.kill(self.pid, signal.SIGKILL)
            pytest.fail(f'the grid did not end: {self._output.read_text()}')
        status = int(self._nursery.stdout.readline())
        return os.waitstatus_to_exitcode(status), self._output.read_text()


@pytest.fixture(scope='module')
def nursery():
    with subprocess.Popen(
        [sys.executable, '-c', NURSERY], stdin=subprocess.PIPE, cwd=ROOT, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        yield process
        process.kill()  # and with it a grid that a failed test has left


class Place:
    """A folder with a recipe, a stand-in for main.py and a small grid of them."""

    def __init__(self, folder: pathlib.Path, data_dir, steps=1, pause=0.01):
        self.folder, self.workdir = folder, folder / 'grid'
        recipes = folder / 'recipe.py'
        recipes.write_text(RECIPE.format(data_dir=str(data_dir)))
        self.stub = folder / 'stub.py'
        self.stub.write_text(STUB.format(root=str(ROOT), steps=steps, pause=pause))
        config = recipe.get_config()
        config.grid.update(protocols=('frozen',), seeds=(0, 1))
        config.grid.pretrain = ConfigDict(dict(encoder=f'{recipes}:task=pretrain'))
        config.grid.sets = ConfigDict(dict(films=f'{recipes}:task=classify'))
        config.grid.fractions = ConfigDict(dict(classify=(0.1, 1.0)))
        config.tables.reference = 'encoder'
        self.config = config

    def run(self):
        """The grid within this process: its exit code."""
        return grid.run(self.config, self.workdir, [sys.executable, str(self.stub)])

    def started(self):
        """[(pid, name)] of the runs so far."""
        return [
            (int(pid), name)
            for path in self.workdir.glob('*/started')
            for pid, name in map(str.split, path.read_text().splitlines())
        ]

    def tables(self):
        """What the grid wrote, by name of file; without the folder's name, and how wide that is."""
        return {
            path.name: re.sub('[ -]+', ' ', path.read_text().replace(str(self.workdir), 'GRID'))
            for path in (self.workdir / 'tables').iterdir()
        }


def alive(pid: int) -> bool:
    try:
        return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it never happened'
        time.sleep(0.02)


@pytest.fixture(scope='module')
def done(tmp_path_factory, data_dir):
    """A grid that ran in one go. Tests read it, or copy it first."""
    place = Place(tmp_path_factory.mktemp('done'), data_dir)
    assert place.run() == 0
    return place


def test_the_grid_pretrains_evaluates_and_fills_the_tables(done, capsys):
    names = [name for _, name in done.started()]
    assert sorted(names) == sorted(
        [f'encoder_{seed}' for seed in (0, 1)]
        + [
            f'films-frozen-{share}-{method}-seed{seed}'
            for share in ('0.1', '1')
            for method in ('random', 'encoder')
            for seed in (0, 1)
        ]
    )
    made = done.tables()
    assert set(made) == {f'table{i}.{kind}' for i in (1, 2) for kind in ('md', 'csv', 'html')}
    # value = 0.5 + 0.1 (encoder) + 0.01 seed share: the mean over seeds 0 and 1 at a share of 1
    assert '0.605 ± 0.007' in made['table2.md'] and '0.505 ± 0.007' in made['table2.md']
    log = done.workdir / 'runs/films-frozen-0.1-encoder-seed1.log'
    assert f'at work on {done.workdir}/pretrained/encoder_1' in log.read_text()


def test_what_is_done_is_not_run_again(done, capsys):
    before, tables_before = done.started(), done.tables()
    assert done.run() == 0
    assert done.started() == before and done.tables() == tables_before
    assert '10 runs' in (said := capsys.readouterr().out) and '10 of them done' in said


def test_each_run_gets_its_own_flags(done):
    jobs = {job.folder.name: job for job in plan(done.config, done.workdir)}
    job = jobs['films-frozen-0.1-encoder-seed1']
    assert job.config['seed'] == 1 and job.config['data']['labelled']['share'] == 0.1
    assert job.config['protocol'] == 'frozen'
    assert job.config['init'] == str(done.workdir / 'pretrained/encoder_1')
    assert job.after is jobs['encoder_1'] and jobs['films-frozen-1-random-seed0'].after is None


def test_bottlenecks_are_used_where_the_encoder_was_trained_with_them(done):
    config = done.config.copy_and_resolve_references()
    config.grid.pretrain.encoder += ' --config.model.context=False'
    config.grid.inits = ConfigDict(dict(random='', given='w/{seed} --config.model.context=False'))
    jobs = {job.folder.name: job for job in plan(config, done.workdir)}
    assert not jobs['films-frozen-1-encoder-seed0'].config['model']['context']
    assert jobs['films-frozen-1-random-seed0'].config['model']['context']
    given = jobs['films-frozen-1-given-seed1'].config
    assert given['init'] == 'w/1' and not given['model']['context']


def test_one_pretraining_serves_all_seeds(done):
    config = done.config.copy_and_resolve_references()
    config.grid.pretrain_seeds = (7,)
    jobs = plan(config, done.workdir)
    assert [job.folder.name for job in jobs if not job.cell] == ['encoder_7']
    of_encoder = [job for job in jobs if job.cell and job.cell.method == 'encoder']
    assert {(job.cell.seed, job.cell.encoder_seed) for job in of_encoder} == {(0, 7), (1, 7)}
    assert {job.config['init'] for job in of_encoder} == {str(done.workdir / 'pretrained/encoder_7')}
    config.grid.pretrain_seeds = (8, 9)
    jobs = {job.folder.name: job for job in plan(config, done.workdir)}
    assert jobs['films-frozen-1-encoder-seed1'].after is jobs['encoder_9']


def test_each_run_says_in_its_folder_what_it_is_of(done):
    for job in plan(done.config, done.workdir):
        assert read_cell(job.folder) == job.cell
    (done.workdir / 'damaged').mkdir()
    (done.workdir / 'damaged/cell.json').write_text('{"set": 1}')
    with pytest.raises(UserError, match=r'damaged/cell\.json'):
        read_cell(done.workdir / 'damaged')


@pytest.mark.parametrize('begun', ['results.json', 'metrics.jsonl'])
def test_a_run_of_another_config_is_refused_not_mixed_in(tmp_path, data_dir, begun):
    place = Place(tmp_path, data_dir)
    name = 'films-frozen-1-random-seed0'
    job = next(job for job in plan(place.config, place.workdir) if job.folder.name == name)
    job.folder.mkdir(parents=True)
    (job.folder / 'config.json').write_text(json.dumps(job.config))
    (job.folder / begun).touch()
    refuse_another_config(job)  # its own: fine
    place.config.grid.overrides = '--config.optim.learning_rate=0.5 --config.data.num_threads=9'
    with pytest.raises(UserError, match=r'config\.optim\.learning_rate: 0\.2 -> 0\.5') as error:
        place.run()
    assert name in str(error.value) and 'num_threads' not in str(error.value)
    assert not place.started()


def test_a_folder_where_nothing_was_done_belongs_to_nobody(tmp_path, data_dir):
    place = Place(tmp_path, data_dir)
    job = plan(place.config, place.workdir)[0]
    job.folder.mkdir(parents=True)
    (job.folder / 'config.json').write_text('{"seed": 77}')
    refuse_another_config(job)


def test_a_failing_run_is_told_at_the_end_and_stops_no_other(tmp_path, data_dir, capsys):
    place = Place(tmp_path, data_dir)
    place.config.grid.pretrain = ConfigDict(
        dict(encoder=f'{place.folder}/recipe.py:task=pretrain --config.init=broken')
    )
    place.config.grid.seeds, place.config.tables.reference = (0,), 'random'
    assert place.run() == 1
    said = capsys.readouterr().out
    *_, first, second, third, _ = said.strip().splitlines()
    assert re.match(
        r'failed: pretrain encoder seed 0: exit code 1: error: this encoder is broken; '
        r'.*encoder_0\.log',
        first,
    )
    assert 'films frozen 10 % encoder seed 0: not run, since "pretrain encoder seed 0"' in second
    assert third.startswith('failed: films frozen 100 % encoder')
    assert sorted(name for _, name in place.started()) == [
        'encoder_0',
        'films-frozen-0.1-random-seed0',
        'films-frozen-1-random-seed0',
    ]
    assert 'not run' in place.tables()['table2.md'] and '0.500' in place.tables()['table2.md']


@pytest.mark.slow
def test_killed_five_times_at_random_it_ends_with_the_same_tables(tmp_path, data_dir, done, nursery):
    place = Place(tmp_path, data_dir, steps=3, pause=0.03)
    chance = random.Random(8)
    for _ in range(5):
        seen = len(place.started())
        running = Grid(nursery, place)
        until(lambda seen=seen: len(place.started()) > seen)
        time.sleep(chance.uniform(0, 0.8))
        os.kill(running.pid, signal.SIGKILL)
        assert running.wait()[0] == -signal.SIGKILL, 'it had ended before it was killed'
        until(lambda: not any(alive(pid) for pid, _ in place.started()), 5)  # no stray process
    code, said = Grid(nursery, place).wait()
    assert code == 0, said
    assert place.tables() == done.tables()
    names = [name for _, name in place.started()]
    assert len(names) > len(set(names)) == 10  # some run was killed half-way and gone on with


def test_sigterm_stops_the_runs_and_the_same_command_goes_on(tmp_path, data_dir, nursery):
    place = Place(tmp_path, data_dir, pause=30)
    place.config.grid.parallel = 2
    running = Grid(nursery, place)
    until(lambda: len(place.started()) == 2)
    os.kill(running.pid, signal.SIGTERM)
    code, said = running.wait()
    assert code == grid.STOPPED and 'run the same command to go on' in said
    assert 'failed' not in said and '10 of 10 runs are left' in said
    assert not any(alive(pid) for pid, _ in place.started())


def test_two_grids_do_not_run_in_one_folder(tmp_path, data_dir, nursery, monkeypatch):
    place = Place(tmp_path, data_dir, pause=30)
    running = Grid(nursery, place)
    until(place.started)
    monkeypatch.setattr(grid.lock, 'WAIT', 0.1)
    with pytest.raises(UserError, match=f'process {running.pid} .*at work in this folder'):
        place.run()
    os.kill(running.pid, signal.SIGTERM)
    running.wait()


def test_the_grid_leaves_the_accelerator_to_its_runs(tmp_path, data_dir, nursery):
    place = Place(tmp_path, data_dir)
    place.config.grid.seeds = (0,)
    code, said = Grid(nursery, place).wait()
    assert code == 0 and 'backends of the grid: 0' in said, said


@pytest.mark.parametrize(
    'field,value,said',
    [
        ('grid.protocols', ('frosen',), 'finetune, frozen'),
        ('grid.seeds', (0, 0), 'none twice'),
        ('grid.parallel', 0, '1 or more'),
        ('tables.reference', 'nobody', 'encoder'),
        ('tables.reference', 1, 'expected one of the methods'),
        ('grid.sets.films', '', r"sets\.films is ''"),
        ('grid.sets.films', "configs/classify.py '", 'No closing quotation'),
        ('grid.pretrain.encoder', ' ', r"pretrain\.encoder is ' '"),
        ('grid.pretrain_seeds', (0, 1, 2), 'one for each of grid.seeds'),
        ('grid.fractions.classify', ('all',), 'shares above 0'),
        ('grid.fractions.classify', (0.1, 0.10000001), 'would both lie in'),
        ('grid.overrides', '--config.no_such_field=1', 'no_such_field'),
        ('grid.overrides', '--config.batch_size=0', 'batch_size is 0'),
    ],
)
def test_a_wrong_config_is_refused_before_anything_runs(tmp_path, data_dir, field, value, said):
    place = Place(tmp_path, data_dir)
    with place.config.ignore_type():
        place.config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=said):
        place.run()
    assert not place.started()


@pytest.mark.parametrize('which', ['phantom', 'ablation', pytest.param('paper', marks=pytest.mark.slow)])
def test_the_recipe_is_a_grid_whose_every_run_main_would_accept(which, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = recipe.get_config(which)
    check(config)
    jobs = plan(config, pathlib.Path('grid'))
    assert len({job.folder for job in jobs}) == len(jobs)
    tasks = {job.config['task'] for job in jobs}
    assert tasks == {'pretrain', 'classify', 'segment'}
    assert all(job.after or job.config['init'] == '' for job in jobs)
    pretrained = {job.folder.name: job.config for job in jobs if not job.cell}
    if which == 'paper':
        assert {job.cell.seed for job in jobs if job.cell} == set(range(10))
        assert len(pretrained) == len(config.grid.pretrain)
    if which != 'phantom':
        assert pretrained['mlvicx_global_only_0']['method']['loss_heads'] == 'global'
    for job in jobs:  # an encoder fits the network that it goes into
        if job.after:
            assert job.config['model']['width'] == job.after.config['model']['width']
