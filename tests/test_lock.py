"""A folder is one process's, and nobody's once that is dead."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from mlvicx_jax import lock
from mlvicx_jax.errors import UserError
from mlvicx_jax.run import folder

HOLDER = """
import sys, time
from mlvicx_jax import lock
file = lock.take(sys.argv[1])
print('held', flush=True)
time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds run.lock of the folder."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(tmp_path / 'run.lock')], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.wait()


def test_who_comes_second_is_told_who_is_there(holder, tmp_path):
    with pytest.raises(UserError) as told:
        lock.take(tmp_path / 'run.lock')
    line = str(told.value)
    assert line.startswith(f'{tmp_path}: process {holder.pid} on {socket.gethostname()} is at work')
    assert '\n' not in line


def test_a_killed_process_holds_nothing(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with lock.take(tmp_path / 'run.lock') as file:
        file.seek(0)
        assert file.read() == f'process {os.getpid()} on {socket.gethostname()}\n'


def test_two_trainings_in_one_folder_are_refused(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, 'WAIT', 0.1)
    train = folder.alone(lambda config, workdir: pytest.fail('it ran'))
    with pytest.raises(UserError, match=f'process {holder.pid} on '):
        train(None, tmp_path)


def test_a_folder_is_free_when_a_run_has_ended_however(tmp_path):
    def fails(config, workdir):
        with pytest.raises(UserError, match=f'process {os.getpid()} on '):
            lock.take(workdir / 'run.lock')
        raise ValueError('as any')

    for _ in range(2):
        with pytest.raises(ValueError, match='as any'):
            folder.alone(fails)(None, tmp_path)


def test_a_folder_that_can_not_be_written_is_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='--workdir=.*can not be used'):
        folder.alone(lambda config, workdir: 0)(None, tmp_path / 'file')


def test_where_no_lock_is_possible_nobody_is_kept_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'fcntl', None)  # as on Windows
    with lock.take(tmp_path / 'a.lock'), lock.take(tmp_path / 'a.lock'):
        pass
