"""Every bad input ends in one line that names it and the way out, through main.py itself."""

import json
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from nih_release import write_release

import tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]

# jax takes seconds to import and to tear down, so one process imports it, commands that end before
# anything is compiled run in a fork of it, and the fork skips the interpreter's own clearing. XLA
# may hang in a fork: what compiles is a process of its own.
SERVER = """
import atexit, json, os, runpy, sys, traceback
import mlvicx_jax.preview, mlvicx_jax.train
for line in sys.stdin:
    arguments, out, err = json.loads(line)
    pid = os.fork()
    if not pid:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ['main.py', *arguments]
        try:
            runpy.run_path('main.py', run_name='__main__')
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            code = traceback.format_exc()
        if isinstance(code, str):  # as the interpreter does
            print(code, file=sys.stderr)
            code = 1
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope='module')
def server():
    process = subprocess.Popen(
        [sys.executable, '-c', SERVER],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    yield process
    process.stdin.close()
    process.wait()


@pytest.fixture
def run(server, tmp_path):
    """Runs `python main.py ARGUMENTS`; returns exit code, standard output and standard error."""

    def run(*arguments, compiles=False, most_bytes=resource.RLIM_INFINITY):
        if compiles:
            ended = subprocess.run(
                [sys.executable, 'main.py', *arguments],
                cwd=ROOT,
                capture_output=True,
                text=True,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes,) * 2),
            )
            return ended.returncode, ended.stdout, ended.stderr
        paths = [str(tmp_path / 'stdout'), str(tmp_path / 'stderr')]
        print(json.dumps([arguments, *paths]), file=server.stdin, flush=True)
        return int(server.stdout.readline()), *(pathlib.Path(p).read_text() for p in paths)

    return run


@pytest.fixture
def refused(run):
    """Runs what must be refused; returns its one line."""

    def refused(*arguments, **options):
        code, out, err = run(*arguments, **options)
        lines = err.splitlines()
        assert code not in (0, 75) and 'Traceback' not in out + err, (code, out, err)
        assert lines and lines[-1].startswith('error: '), err
        assert sum(line.startswith('error: ') for line in lines) == 1, err
        return lines[-1]

    return refused


TINY = ('--config=tests/tiny.py', '--config.total_steps=2')

COMMANDS = {
    'no config': ([], ['--config is missing', 'configs/quickstart.py']),
    'no such recipe': (['--config=configs/none.py'], ['configs/none.py', 'No such file']),
    'no such recipe, a field': (
        ['--config=configs/none.py', '--config.seed=1'],
        ['configs/none.py', 'No such file'],
    ),
    'a folder': (['--config=configs'], ['configs', 'directory']),
    'no Python': (['--config=README.md'], ['README.md', 'not Python']),
    'unknown preset': (
        ['--config=configs/mlvicx.py:foo'],
        ['configs/mlvicx.py:foo', "'foo' is none of paper, released"],
    ),
    'no presets': (
        ['--config=configs/quickstart.py:foo'],
        ['quickstart.py:foo', 'expected one of barlow_twins'],
    ),
    'no method': (['--config=configs/base.py'], ['config.method.name is missing', 'recipe']),
    'unknown flag': ([*TINY, '--wrkdir=x'], ["'wrkdir'", 'workdir']),
    'not a flag': ([*TINY, 'config.seed=1'], ["'config.seed=1' is no flag", '--config.FIELD']),
    'unknown field': ([*TINY, '--config.typo=1'], ['--config.typo=1', 'no such field', 'base.py']),
    'unknown field below': (
        [*TINY, '--config.optim.learning_rat=1'],
        ['config.optim.learning_rat', 'mean learning_rate?'],
    ),
    'a field is no section': ([*TINY, '--config.seed.x=1'], ['--config.seed.x=1', 'no such field']),
    'unknown key of the method': ([*TINY, '--config.method.alpa=1'], ['config.method.alpa', 'mean alpha?']),
    'text for a number': ([*TINY, '--config.batch_size=abc'], ['config.batch_size', "'abc'", 'int']),
    'a number for a section': ([*TINY, '--config.model=3'], ['config.model=3', 'dict']),
    'text for a list': ([*TINY, '--config.method.widths=(a,b)'], ['config.method', 'widths', 'a,b']),
    'a word for a number flag': ([*TINY, '--process_id=a'], ['process_id', "'a'"]),
    'a process without the others': ([*TINY, '--num_processes=2'], ['--coordinator']),
    'unknown method': ([*TINY, '--config.method.name=vicreg2'], ["'vicreg2'", 'mlvicx']),
    'unknown data set': ([*TINY, '--config.data.name=chexpert5'], ["'chexpert5'", 'phantom_cxr']),
    'unknown type': ([*TINY, '--config.dtype=float8'], ['config.dtype', "'float8'", 'bfloat16']),
    'unknown optimiser': (
        [*TINY, '--config.optim.name=lion'],
        ['config.optim.name', "'lion'", 'lars, lars_simclr, sgd, adamw'],
    ),
    'unknown split': ([*TINY, '--config.eval.split=train'], ['config.eval.split', "'train'", 'test']),
    'unknown reading': ([*TINY, '--config.method.var_reduce=max'], ['config.method', "'max'"]),
    'unknown aggregation': ([*TINY, '--config.method.aggregation=mean'], ['config.method', "'mean'", 'concat']),
    'half an image': ([*TINY, '--config.batch_size=3.5'], ['config.batch_size', "'3.5'", 'int']),
    'neither yes nor no': ([*TINY, '--config.model.context=maybe'], ['config.model.context', "'maybe'"]),
    'unknown task': (
        [*TINY, '--config.task=pretraining'],
        ['config.task', "'pretraining'", 'classify, pretrain, segment'],
    ),
    'parts of a batch': (
        [*TINY, '--config.accumulation=3'],
        ['config.accumulation is 3', '4 devices', 'multiple of 12'],
    ),
    'not divisible': (
        [*TINY, '--config.batch_size=6'],
        ['config.batch_size is 6', '4 devices', 'multiple of 4'],
    ),
    'evaluation not divisible': (
        [*TINY, '--config.eval.batch_size=6'],
        ['config.eval.batch_size is 6', '4 devices', 'multiple of 4'],
    ),
    'a crop of nothing': ([*TINY, '--config.views.first.area=0.3'], ['config.views.first', 'area', 'low']),
    **{
        f'{field}={value}': ([*TINY, f'--config.{field}={value}'], [f'config.{field} is {value}', 'expected'])
        for field, values in {
            'batch_size': (-8, 0, 1),
            'total_steps': (-1,),
            'log_every_steps': (-1,),
            'optim.warmup_percent': ('nan',),
            'eval_every_steps': (-1,),
            'checkpoint.every_steps': (-1,),
            'data.image_size': (-1, 0),
            'data.stored_size': (0,),
            'model.width': (-1, 0),
            'optim.learning_rate': ('nan', -1.0),
            'seed': (-1, 2**32),
            'accumulation': (0,),
            'optim.final_factor': (2.0,),
            'watchdog_seconds': (-1.0, 'inf'),
            'max_skipped_steps': (0,),
            'checkpoint.keep_last': (0,),
            'data.num_workers': (-1,),
            'data.prefetch': (0,),
            'early_stopping.patience': (-1,),
            'data.labelled.share': (0.0, 1.5),
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize('case', COMMANDS)
def test_commands(case, refused, tmp_path):
    arguments, words = COMMANDS[case]
    line = refused(
        *arguments,
        f'--workdir={tmp_path}/run',
        *([f'--config.data.data_dir={tmp_path}/data'] if arguments else []),
    )
    for word in words:
        assert word in line, line
    assert not (tmp_path / 'data').exists()


def test_a_grid_has_no_preview(refused, tmp_path):
    line = refused(
        '--config=configs/tables.py', f'--preview={tmp_path}/views.png', f'--workdir={tmp_path}/grid'
    )
    assert '--preview' in line and 'grid' in line, line
    assert not (tmp_path / 'grid').exists()


def _replace(name, old, new):
    def spoil(root):
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return spoil


def _cut(path):
    path.write_bytes(path.read_bytes()[:-200])


TABLE, TRAIN, TEST = 'Data_Entry_2017_v2020.csv', 'train_val_list.txt', 'test_list.txt'
RELEASES = {
    'column': (_replace(TABLE, 'Patient ID', 'Patient'), [TABLE, "no column 'Patient ID'", 'use']),
    'absent image': (
        lambda root: (root / 'images/00000002_001.png').unlink(),
        [TRAIN, 'no image file for 00000002_001.png', 'unpack'],
    ),
    'truncated image': (
        lambda root: _cut(root / 'images/00000008_001.png'),
        ['00000008_001.png', 'the PNG is truncated', 'again'],
    ),
    'patient in two splits': (_replace(TABLE, ',1,7,', ',1,1,'), ['patient 1 both in', TRAIN, TEST]),
    'empty split': (lambda root: (root / TEST).write_text(''), [TEST, 'empty', 'expected']),
}


def _nih(tmp_path):
    return (
        *TINY,
        '--config.data.name=nih_chestxray14',
        '--config.data.options={}',
        '--config.batch_size=8',
        '--config.data.stored_size=32',
        '--config.data.image_size=32',
        f'--config.data.data_dir={tmp_path}/data',
        f'--config.data.manual_dir={tmp_path}/raw',
        f'--workdir={tmp_path}/run',
    )


@pytest.mark.parametrize('case', RELEASES)
def test_releases(case, refused, tmp_path):
    write_release(tmp_path / 'raw')
    spoil, words = RELEASES[case]
    spoil(tmp_path / 'raw')
    line = refused(*_nih(tmp_path))
    for word in words:
        assert word in line, line
    assert not list((tmp_path / 'data').rglob('1.0.0'))


@pytest.mark.parametrize('manual_dir', ['', 'absent'])
def test_no_release_says_where_to_get_it_and_what_runs_without(manual_dir, refused, tmp_path):
    line = refused(
        *_nih(tmp_path)[:-2],
        f'--workdir={tmp_path}/run',
        *([f'--config.data.manual_dir={tmp_path}/{manual_dir}'] if manual_dir else []),
    )
    for word in (
        'manual_dir',
        'NIH Clinical Center',
        '--config.data.name=phantom_cxr',
        'configs/quickstart.py',
    ):
        assert word in line, line


def _tiny(tmp_path, data_dir, *more, steps=2):
    return (
        '--config=tests/tiny.py',
        f'--config.total_steps={steps}',
        f'--config.data.data_dir={data_dir}',
        f'--workdir={tmp_path}/run',
        *more,
    )


@pytest.mark.parametrize(
    'fields,words',
    [
        (['data.validation_fraction=0.001'], ['validation split is empty', 'validation_fraction']),
        (['data.validation_fraction=0.0'], ['validation_fraction is 0.0', 'expected']),
        (['data.options.patients=2'], ['phantom_cxr: option patients is 2', '5 or more']),
        (["data.questions=('Mars',)"], ["'Mars'", 'phantom_cxr', 'Cardiomegaly']),
        (['data.within=Mars'], ["'Mars'", 'phantom_cxr', 'Cardiomegaly']),
        (["data.target=('hat',)"], ['hat', 'phantom_cxr', 'lungs']),
        (["optim.frozen=('encodr',)"], ['config.optim.frozen', "'encodr'", 'encoder']),
        (["optim.constant=('encodr',)"], ['config.optim.constant', "'encodr'", 'encoder']),
    ],
)
def test_config_that_does_not_fit_the_data(fields, words, refused, tmp_path, data_dir):
    line = refused(*_tiny(tmp_path, data_dir, *(f'--config.{field}' for field in fields)))
    for word in words:
        assert word in line, line


def test_batch_larger_than_the_training_split(refused, tmp_path, data_dir):
    line = refused(*_tiny(tmp_path, data_dir, '--config.batch_size=5000'))
    for word in ('batch_size is 5000', 'images of train', 'lower'):
        assert word in line, line


def test_a_refused_config_does_not_claim_the_workdir(refused, tmp_path, data_dir):
    for seed, fraction in enumerate((0.001, 0.002)):
        line = refused(
            *_tiny(tmp_path, data_dir, f'--config.seed={seed}', f'--config.data.validation_fraction={fraction}')
        )
        assert 'validation split is empty' in line, line


def test_workdir(refused, tmp_path, data_dir):
    arguments = _tiny(tmp_path, data_dir, '--config.seed=3')
    (tmp_path / 'file').write_text('')
    for workdir in (tmp_path / 'file/run', '/proc/run'):
        line = refused(*arguments, f'--workdir={workdir}')
        assert f'--workdir={workdir} can not be used' in line and 'give one' in line, line
    line = refused(*arguments, f'--config.data.data_dir={tmp_path}/file/data')
    assert f'{tmp_path}/file/data' in line and 'can not be written' in line, line
    folder = tmp_path / 'run'
    (folder / 'checkpoints/4').mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text('{"seed": 5, "batch_size": 8')
    line = refused(*arguments)
    assert f'{folder}/config.json: can not be read (JSONDecodeError' in line and 'new --workdir' in line, line
    earlier = json.loads(tiny.get_config().to_json_best_effort()) | {'seed': 5, 'batch_size': 8}
    (folder / 'config.json').write_text(json.dumps(earlier))
    line = refused(*arguments)
    for word in ('another config', 'config.seed: 5 -> 3', '--workdir'):
        assert word in line, line
    (folder / 'config.json').unlink()
    line = refused(*arguments)
    assert 'no config.json' in line and 'new --workdir' in line, line


@pytest.mark.parametrize('indexed', [False, True])
@pytest.mark.parametrize('damage', ['cut', 'bytes'])
def test_damaged_records(damage, indexed, refused, tmp_path, data_dir):
    copy = tmp_path / 'data'
    shutil.copytree(data_dir, copy)
    (records,) = copy.rglob('*train_val.array_record*')
    if not indexed:
        for index in copy.rglob('index_*.npz'):
            index.unlink()
    whole = records.read_bytes()
    records.write_bytes(
        whole[: len(whole) // 2] if damage == 'cut' else whole[:1000] + bytes(len(whole) - 2000) + whole[-1000:]
    )
    line = refused(*_tiny(tmp_path, copy))
    assert str(records.parent.parent) in line or 'record of image' in line, line
    assert 'delete' in line and 'again' in line, line


@pytest.mark.slow
def test_three_losses_in_a_row_that_are_not_finite_stop_with_step_and_images(refused, tmp_path, data_dir):
    line = refused(
        *_tiny(
            tmp_path,
            data_dir,
            '--config.optim.name=sgd',
            '--config.optim.learning_rate=1e30',
            '--config.checkpoint.every_steps=1',
            steps=4,
        ),
        compiles=True,
    )
    for word in (
        'at step 4',
        'the 2 steps before it',
        'images 0',
        'config.optim.learning_rate',
        'not_finite_process0.json',
    ):
        assert word in line, line
    reports = json.loads((tmp_path / 'run/not_finite_process0.json').read_text())
    assert [report['step'] for report in reports] == [2, 3, 4]
    assert all(len(set(report['image_ids'])) > 3 for report in reports)
    assert [p.name for p in (tmp_path / 'run/checkpoints').iterdir()] == ['1']
    assert not (tmp_path / 'run/results.json').exists()


@pytest.mark.slow
def test_full_disk(refused, tmp_path, data_dir):
    """A real full disk where this may mount one, else files that may not grow."""
    folder = tmp_path / 'run'
    folder.mkdir()
    mounted = (
        subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', folder], capture_output=True
        ).returncode
        == 0
    )
    try:
        line = refused(
            *_tiny(tmp_path, data_dir), compiles=True, most_bytes=resource.RLIM_INFINITY if mounted else 60_000
        )
        for word in ('checkpoint', str(folder), 'ree space', 'same command'):
            assert word in line, line
        assert not (folder / 'results.json').exists()
        assert not [p for p in (folder / 'checkpoints').glob('*') if p.name.isdigit()]
    finally:
        if mounted:
            subprocess.run(['umount', folder], check=True)


@pytest.mark.slow
def test_odd_images_train_and_a_corrupted_checkpoint_is_told(run, tmp_path):
    """16-bit and RGBA PNGs are read; then the newest checkpoint is spoilt."""
    lists = write_release(tmp_path / 'raw')  # every second image of it is RGBA
    for image_id in lists['train_val'][::4]:
        cv2.imwrite(
            str(tmp_path / 'raw/images' / image_id),
            np.random.default_rng(0).integers(0, 4096, (64, 64), np.uint16),
        )
    arguments = (
        *_nih(tmp_path),
        '--config.checkpoint.every_steps=1',
        '--config.data.stored_size=96',
        '--config.data.image_size=80',
    )
    code, out, err = run(*arguments, compiles=True)
    assert code == 0 and 'finished at step 2' in out, (out, err)
    for path in (tmp_path / 'run/checkpoints/2/state').rglob('*'):
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))
    code, out, err = run(*arguments, '--config.total_steps=1', compiles=True)
    assert code == 0 and 'finished at step 1' in out, (out, err)
    assert f'checkpoint {tmp_path}/run/checkpoints/2 is damaged' in err, err


@pytest.mark.slow
def test_killed_while_preparing_leaves_nothing_that_passes_for_whole(refused, tmp_path):
    """Two real processes, the first killed in the middle; the second prepares from scratch."""
    arguments = (
        *_tiny(tmp_path, tmp_path / 'data'),
        '--config.data.options.patients=40',
        '--config.data.validation_fraction=0.001',
    )
    process = subprocess.Popen(
        [sys.executable, 'main.py', *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list((tmp_path / 'data').rglob('*.array_record*')):
        assert process.poll() is None, 'it ended before it could be killed'
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / 'data/phantom_cxr/96_p40_s0/1.0.0').exists()
    assert 'validation split is empty' in refused(*arguments)  # said once the data is there
    (info,) = (tmp_path / 'data').rglob('dataset_info.json')
    splits = json.loads(info.read_text())['splits']
    assert sum(int(count) for split in splits for count in split['shardLengths']) > 40
    assert {path.name for path in info.parent.parent.iterdir()} <= {'1.0.0', 'prepare.lock'}


def test_a_person_sees_one_line(tmp_path):
    """The real process, to its end: nothing before the line or behind it."""
    command = [sys.executable, 'main.py', *_tiny(tmp_path, tmp_path, '--config.batch_size=6')]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stdout == ''
    assert ended.stderr == (
        'error: config.batch_size is 6, which 4 devices do not divide; take a multiple of 4\n'
    )
