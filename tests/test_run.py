"""main.py from end to end: what a run leaves, on two processes, killed, stopped and continued."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
import several
from absl import flags
from conftest import ROOT
from ml_collections import config_flags

import tiny
from configs import base
from mlvicx_jax import methods, optim, parallel, train
from mlvicx_jax import state as states
from mlvicx_jax.evaluation import baselines

# Runs main.py and writes the image ids of each step's batch to $IDS. When the batch of step
# $AT is asked for, and the checkpoint of step $AFTER is complete, it sends itself signal $SIGNAL.
DRIVER = """
import os, pathlib, runpy, time
from absl import flags
from mlvicx_jax.data import pipeline

original = pipeline.train_batches

def recorded(split, batch_size, seed, start_step=0, *rest, **named):
    stream = original(split, batch_size, seed, start_step, *rest, **named)
    try:
        for step, batch in enumerate(stream, start_step + 1):
            if seed == flags.FLAGS.config.seed:  # not one of the evaluation's
                with open(os.environ['IDS'], 'a') as file:
                    print(step, *split.image_ids[batch['record']], file=file)
                if step == int(os.environ.get('AT', 0)):
                    after = os.environ.get('AFTER')
                    saved = pathlib.Path(flags.FLAGS.workdir) / 'checkpoints' / str(after)
                    while after and not saved.exists():
                        time.sleep(0.01)
                    os.kill(os.getpid(), int(os.environ['SIGNAL']))
            yield batch
    finally:
        stream.close()

pipeline.train_batches = recorded
runpy.run_path('main.py', run_name='__main__')
"""


def start(workdir, data_dir, *arguments, program=('main.py',), **environment):
    command = [
        sys.executable,
        *program,
        '--config=tests/tiny.py',
        f'--workdir={workdir}',
        f'--config.data.data_dir={data_dir}',
        *arguments,
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(processes, codes):
    """Waits for all; kills every one of them before it lets go."""
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
        found = [process.returncode for process in processes]
        assert found == codes, '\n'.join(text[-5000:] for text in said)
        return said
    finally:
        for process in processes:
            process.kill()
            process.wait()


def driven(workdir, data_dir, ids, *arguments, code=0, **environment):
    process = start(
        workdir,
        data_dir,
        *arguments,
        program=('-c', DRIVER),
        IDS=str(ids),
        **{name: str(value) for name, value in environment.items()},
    )
    return finish([process], [code])[0]


def read_ids(path):
    """[(step, image ids)] in the order they were asked for."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return [(int(step), ids) for step, *ids in lines]


def read_log(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def restore(workdir, step):
    """The state that a run saved, on whatever devices it ran."""
    config = tiny.get_config()
    method = methods.create(config)
    optimizer = optim.create(config.optim, 16, 2, 12)
    mesh = parallel.create_mesh(config.batch_size)
    like = jax.eval_shape(lambda: states.create(method, optimizer, 0, None))
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.replicated(mesh)), like
    )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(workdir / f'checkpoints/{step}/state', like)


@pytest.fixture(scope='module')
def straight(tmp_path_factory, data_dir):
    """Twelve steps on four devices in one go, evaluated at the end: (workdir, ids, terminal)."""
    folder = tmp_path_factory.mktemp('straight')
    said = driven(folder / 'run', data_dir, folder / 'ids', '--config.eval_every_steps=12')
    return folder / 'run', folder / 'ids', said


@pytest.fixture(scope='module')
def interrupted(tmp_path_factory, data_dir):
    """The same run killed at step 8, stopped by SIGTERM at step 9, continued: as `straight`."""
    folder = tmp_path_factory.mktemp('interrupted')
    arguments = folder / 'run', data_dir, folder / 'ids', '--config.checkpoint.every_steps=5'
    driven(*arguments, code=-signal.SIGKILL, AT=8, AFTER=5, SIGNAL=int(signal.SIGKILL))
    lines = read_log(folder / 'run')
    stopped = driven(*arguments, code=train.PREEMPTED, AT=9, SIGNAL=int(signal.SIGTERM))
    saved = sorted(int(p.name) for p in (folder / 'run/checkpoints').iterdir())
    finished = driven(*arguments)
    return folder / 'run', folder / 'ids', (lines, stopped, saved, finished)


def test_a_run_leaves_its_config_curves_and_results(straight):
    workdir, _, said = straight
    assert json.loads((workdir / 'config.json').read_text())['method']['name'] == 'mlvicx'
    lines = read_log(workdir)
    training = [line for line in lines if 'train/loss' in line]
    assert [line['step'] for line in training] == list(range(1, 13))
    keys = {
        f'train/{name}'
        for name in ('loss', 'learning_rate', 'gradient_norm', 'level/floor', 'level/share_nothing')
    }
    keys |= {
        f'train/{head}/{term}'
        for head in ('global', 'multi_level')
        for term in ('loss', 'invariance', 'variance', 'covariance')
    }
    keys |= {f'train/{name}/{head}' for name in ('std', 'rankme') for head in ('global', 'multi_level')}
    timing = {f'time/{n}' for n in ('images_per_second', 'step_seconds', 'data_wait_share')}
    assert all(timing <= line.keys() for line in training[1:])  # the first step compiles
    for line in training:
        assert keys <= line.keys(), keys - line.keys()
        assert abs(line['train/loss'] - line['train/global/loss'] - line['train/multi_level/loss']) < 1e-3
    assert 0 <= training[0]['train/learning_rate'] < training[1]['train/learning_rate']
    results = json.loads((workdir / 'results.json').read_text())
    assert results['step'] == 12 and results['images_per_second'] > 0
    probes = {'probe/auroc', 'probe/auroc_init', 'knn/auroc', 'knn/auroc_init'}
    assert all(0 <= results[name] <= 1 for name in probes)
    assert results['line_to_beat'] in said and 'held-out patients' in said
    best = max(results[f'probe/auroc{ending}'] for ending in baselines.ENDINGS.values())
    assert results['probe/gain'] == pytest.approx(results['probe/auroc'] - best)
    assert {'probe/gain_low', 'probe/gain_high'} <= results.keys()
    assert results['train/loss'] == pytest.approx(training[-1]['train/loss'])
    at = {name: line['step'] for line in lines for name in probes & line.keys()}
    assert at == {'probe/auroc': 12, 'knn/auroc': 12, 'probe/auroc_init': 0, 'knn/auroc_init': 0}
    assert next(iter(workdir.glob('events.out.tfevents.*'))).stat().st_size > 1000
    assert sorted(p.name for p in (workdir / 'checkpoints').iterdir()) == ['12', '6']
    for part in ('devices ', ' 4 x ', 'encoder/conv1/kernel', 'sha256', 'step 12/12', 'left'):
        assert part in said


def run_two(workdir, data_dir):
    address = several.free_address()
    return [
        start(
            workdir,
            data_dir,
            f'--coordinator={address}',
            '--num_processes=2',
            f'--process_id={i}',
            JAX_NUM_CPU_DEVICES='2',
        )
        for i in range(2)
    ]


@pytest.mark.slow
def test_two_processes_train_as_one_and_write_once(straight, tmp_path, data_dir):
    try:
        said = finish(run_two(tmp_path / 'run', data_dir), [0, 0])
    except AssertionError as error:
        # Each compiles for itself, and gloo waits 30 s for the other: too short on a machine with
        # much else to do. What was compiled is in the cache by now.
        if 'Gloo context initialization failed' not in str(error):
            raise
        shutil.rmtree(tmp_path / 'run')
        said = finish(run_two(tmp_path / 'run', data_dir), [0, 0])
    assert re.search(r'devices +4 x (?i:cpu).*2 process', said[0]) and 'step 12/12' not in said[1]
    # In float32 rounding grows with the steps; tests/test_step.py compares every leaf in double.
    for two, one in zip(read_log(tmp_path / 'run')[1:3], read_log(straight[0])[1:3]):
        assert two['train/loss'] == pytest.approx(one['train/loss'], rel=1e-4)
    # One process writes, and once.
    assert [line['step'] for line in read_log(tmp_path / 'run') if line['step']] == list(range(1, 13))
    assert len(list(tmp_path.glob('run/events.out.tfevents.*'))) == 1


def test_killed_and_continued_is_straight_bit_for_bit(straight, interrupted):
    tiny.assert_close(restore(interrupted[0], 12), restore(straight[0], 12), 0)


def test_killed_and_continued_sees_the_same_images(straight, interrupted):
    expected = dict(read_ids(straight[1]))
    assert set(expected) == set(range(1, 13)) and len({*map(tuple, expected.values())}) == 12
    found = read_ids(interrupted[1])
    assert all(ids == expected[step] for step, ids in found)
    starts = [1] + [b for (a, _), (b, _) in itertools.pairwise(found) if b != a + 1]
    assert starts == [1, 6] and found[-1][0] == 12  # and 10, which follows 9


def test_metrics_have_every_step_once_whatever_happened(straight, interrupted):
    lines = [line for line in read_log(interrupted[0]) if 'train/loss' in line]
    assert [line['step'] for line in lines] == list(range(1, 13))
    before = interrupted[2][0]
    assert max(line['step'] for line in before) > 5  # the kill did leave lines to be dropped
    expected = [line for line in read_log(straight[0]) if 'train/loss' in line]
    for a, b in zip(lines, expected):
        assert a['train/loss'] == b['train/loss']


def test_sigterm_saves_the_step_and_says_how_to_go_on(interrupted):
    _, stopped, saved, finished = interrupted[2]
    assert 'resumed from' in stopped and 'checkpoints/5' in stopped
    assert 'step 9 is saved, run the same command' in stopped and saved[-1] == 9
    assert 'checkpoints/9' in finished and 'finished at step 12' in finished


def test_a_finished_run_has_nothing_left_to_do(straight, data_dir, capsys):
    before = restore(straight[0], 12)
    results = (straight[0] / 'results.json').read_bytes()
    config = tiny.get_config()
    config.data.data_dir = str(data_dir)
    assert train.train(config, straight[0]) == 0
    assert 'finished at step 12' in capsys.readouterr().out
    tiny.assert_close(restore(straight[0], 12), before, 0)
    assert (straight[0] / 'results.json').read_bytes() == results
    assert [x['step'] for x in read_log(straight[0]) if 'train/loss' in x] == list(range(1, 13))


def test_preview_writes_a_sheet_of_views(tmp_path, data_dir):
    sheet = tmp_path / 'views.png'
    finish([start(tmp_path / 'run', data_dir, f'--preview={sheet}')], [0])
    image = cv2.imread(str(sheet), cv2.IMREAD_GRAYSCALE)
    assert image.shape[0] > 1000 and image.std() > 20
    assert not (tmp_path / 'run').exists()


# tables.py is a grid of runs: tests/test_grid.py.
OPTIONS = {
    'base.py': [],
    'tables.py': [],
    'mlvicx.py': [
        '',
        'paper',
        'released',
        'loss=global',
        'loss=multi_level',
        'loss=both',
        'context=off',
        'context=on',
        'released,loss=global,context=off',
    ],
    'quickstart.py': base.methods(),
    'classify.py': ['', 'protocol=frozen', 'dataset=phantom_cxr,size=small'],
    'segment.py': ['', 'protocol=frozen', 'dataset=phantom_cxr,size=small'],
}


@pytest.mark.parametrize(
    'name,option',
    [
        (path.name, option)
        for path in sorted((ROOT / 'configs').glob('*.py'))
        for option in OPTIONS.get(path.name, [None])
    ],
)
def test_every_config_builds_its_method_and_optimiser(name, option):
    path = f'{ROOT}/configs/{name}' + (f':{option}' if option is not None else '')
    holder = config_flags.DEFINE_config_file('config', flag_values=(values := flags.FlagValues()))
    values(['test', f'--config={path}'])
    config = values[holder.name].value
    if config.method.get('labels') == 0:
        config.method.labels = 9
    method = methods.create(config)
    optimizer = optim.create(config.optim, config.batch_size, 10, 100)
    state = jax.eval_shape(lambda: states.create(method, optimizer, config.seed, None))
    assert state.params['encoder'] and state.step.dtype == jnp.int32
    levels = method.reference_levels(config.batch_size)
    assert all(value > 0 for value in levels.values()) and (levels or option or name != 'mlvicx.py')
    heads = {key.removeprefix('expander_') for key in state.params if 'expander' in key}
    if name == 'mlvicx.py' and option:
        wanted = re.search(r'loss=(\w+)', option)
        wanted = wanted.group(1) if wanted else 'both'
        assert heads == ({'global', 'multi_level'} if wanted == 'both' else {wanted})
        assert any('context' in key for key in state.params['encoder']) == ('context=off' not in option)


def test_an_unknown_option_of_a_config_is_named():
    from configs import mlvicx

    with pytest.raises(Exception, match='loss=gobal'):
        mlvicx.get_config('loss=gobal')
