"""The launch files: what they do with each exit code, and that they name flags that exist."""

import os
import re
import subprocess

import pytest
import yaml
from conftest import ROOT

from mlvicx_jax import train
from mlvicx_jax.run import watchdog

FLAGS = set(re.findall(r"flags\.DEFINE_\w+\('(\w+)'", (ROOT / 'main.py').read_text())) | {'config'}


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stands for a cluster: {command: exit codes of its calls}; returns a reader of what was called."""

    def pretend(**codes):
        for name, of_calls in codes.items():
            path = tmp_path / name
            path.write_text(
                '#!/usr/bin/env bash\n'
                f'echo "{name} $*" >> {tmp_path}/calls\n'
                f'codes=({" ".join(map(str, of_calls))})\n'
                f'n=$(grep -c "^{name} " {tmp_path}/calls)\n'
                'exit ${codes[$(( n > ${#codes[@]} ? ${#codes[@]} - 1 : n - 1 ))]}\n'
            )
            path.chmod(0o755)
        monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
        return lambda: (tmp_path / 'calls').read_text().splitlines()

    return pretend


def run(script, *arguments, **environment):
    return subprocess.run(
        [ROOT / 'launch' / script, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize(
    'code,requeued', [(0, False), (1, False), (train.PREEMPTED, True), (watchdog.STALLED, True), (143, True)]
)
def test_slurm_requeues_what_a_restart_can_mend(code, requeued, commands):
    calls = commands(srun=[code], scontrol=[0])
    ended = run('slurm.sh', '--config=configs/mlvicx.py', SLURM_JOB_ID='7')
    assert ended.returncode == code
    assert calls()[0] == 'srun --kill-on-bad-exit=1 python main.py --config=configs/mlvicx.py'
    assert ('scontrol requeue 7' in calls()) == requeued


def test_slurm_does_not_requeue_for_ever(commands):
    calls = commands(srun=[75], scontrol=[0])
    run('slurm.sh', '--config=configs/mlvicx.py', SLURM_JOB_ID='7', SLURM_RESTART_COUNT='50')
    assert len(calls()) == 1


def test_tpu_pod_starts_again_until_the_run_is_finished(commands):
    calls = commands(gcloud=[75, 255, 70, 0])
    ended = run('tpu_pod.sh', 'pod', 'zone', '--config=configs/mlvicx.py', '--x=a b', PAUSE='0')
    assert ended.returncode == 0 and len(calls()) == 4
    assert '--worker=all' in calls()[0] and r'--x=a\ b' in calls()[0]
    assert run('tpu_pod.sh', 'pod').returncode == 2


def test_tpu_pod_gives_an_error_back(commands):
    calls = commands(gcloud=[1])
    assert run('tpu_pod.sh', 'pod', 'zone', '--config=x').returncode == 1 and len(calls()) == 1


def test_jobset_is_whole():
    job = yaml.safe_load((ROOT / 'launch/jobset.yaml').read_text())
    (workers,) = job['spec']['replicatedJobs']
    template = workers['template']['spec']
    (container,) = template['template']['spec']['containers']
    flags = dict(word.removeprefix('--').split('=', 1) for word in container['command'][2:])
    assert {name.partition('.')[0] for name in flags} <= FLAGS
    assert template['parallelism'] == template['completions'] == int(flags['num_processes'])
    name = job['metadata']['name']
    assert flags['coordinator'].startswith(f'{name}-{workers["name"]}-0-0.{name}:')
    assert flags['process_id'] == '$(JOB_COMPLETION_INDEX)'
