"""Real processes, one of which dies, freezes or dawdles: the others end soon and say which."""

import os
import socket
import subprocess
import sys
import time

import jax
import pytest
import several
from conftest import ROOT

from mlvicx_jax.parallel import STALLED
from mlvicx_jax.run.watchdog import COMPILED, LOWERED, Watchdog

LIMIT = 4.0  # seconds
PROGRAM = """
import os, signal, sys, time
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from mlvicx_jax import parallel
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.run.watchdog import Watchdog

address, count, process, workdir, limit, victim, fate = sys.argv[1:]
parallel.start(address, int(count), int(process))
mesh = parallel.create_mesh(jax.device_count())
total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, AXIS), mesh=mesh, in_specs=P(AXIS), out_specs=P()))
with Watchdog(workdir, float(limit)) as watchdog:
    for step in range(1, 30 if victim == 'none' else 10**6):
        watchdog.enter(step)
        total(parallel.to_global({'x': jnp.ones(1)}, mesh)['x']).block_until_ready()
        time.sleep(0.02)
        if process == victim and step == 20:
            time.sleep(1.5)  # until all have left a sign of life
            if fate == 'slow':
                time.sleep(1000)
            os.kill(os.getpid(), signal.SIGKILL if fate == 'killed' else signal.SIGSTOP)
"""


def start(workdir, count, victim, fate):
    address = several.free_address()
    return several.processes(PROGRAM, [(address, count, i, workdir, LIMIT, victim, fate) for i in range(count)])


GONE = 'process 0 or another one is gone'


@pytest.mark.slow
@pytest.mark.parametrize(
    'count,victim,fate,words',
    [
        (2, 1, 'killed', 'no sign of life from process 1'),
        (2, 1, 'frozen', 'no sign of life from process 1'),
        (2, 1, 'slow', 'still at an earlier step: process 1'),
        (2, 0, 'killed', GONE),  # with jax's coordinator
        (2, 0, 'frozen', 'no sign of life from process 0'),
        (2, 0, 'slow', 'still at an earlier step: process 0'),
        (4, 2, 'killed', 'no sign of life from process 2'),
        (4, 2, 'frozen', 'no sign of life from process 2'),
    ],
)
def test_the_others_end_and_name_it(count, victim, fate, words, tmp_path):
    with start(tmp_path, count, victim, fate) as processes:
        for i, process in enumerate(processes):
            if i != victim:
                said, _ = process.communicate(timeout=120)
                assert process.returncode == STALLED, said[-3000:]
                if fate == 'slow' and GONE in said:
                    continue  # jax's host was ended first, by its own watchdog
                assert words in said, said[-3000:]
                assert (socket.gethostname() in said) == ((victim, fate) != (0, 'killed')), said[-3000:]
                assert ('most recent call first' in said) == (fate != 'killed'), said[-3000:]
    assert not list(tmp_path.rglob('*.partial'))


@pytest.mark.slow
def test_a_run_that_ends_well_leaves_no_sign_of_life(tmp_path):
    with start(tmp_path, 2, 'none', '') as processes:
        assert [process.wait(120) for process in processes] == [0, 0]
    assert not list(tmp_path.iterdir())


def alone(program, folder):
    """Runs the program with `watchdog` of one second; the ended process and its seconds."""
    program = 'import sys, time, jax\nfrom mlvicx_jax.run import watchdog as module\n' + program
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, '-c', program, folder],
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        timeout=120,
    )
    return ended, time.monotonic() - began


@pytest.mark.slow
def test_one_process_alone_ends_with_its_stacks(tmp_path):
    ended, seconds = alone(
        'with module.Watchdog(sys.argv[1], 1.0) as watchdog:\n'
        '    watchdog.enter(1)\n'
        '    time.sleep(2)  # compiles\n'
        '    watchdog.enter(2)\n'
        '    time.sleep(1000)\n',
        tmp_path,
    )
    assert ended.returncode == STALLED and seconds > 3
    assert 'the last was step 2' in ended.stderr and 'File "<string>", line 7 in <module>' in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize('ends', [False, True])
def test_compiling_and_evaluating_are_no_silence_but_have_an_end(tmp_path, ends):
    ended, _ = alone(
        f'module.BUSY = {3 if ends else 10}\n'
        'with module.Watchdog(sys.argv[1], 1.0) as watchdog:\n'
        '    watchdog.enter(1)\n'
        '    watchdog.enter(2)\n'
        '    jax.monitoring.record_event_duration_secs(module.LOWERED, 0.1)\n'
        '    time.sleep(2.5)\n'
        '    jax.monitoring.record_event_duration_secs(module.COMPILED, 2.5)\n'
        '    watchdog.enter(3)\n'
        '    with watchdog.busy():\n'
        '        time.sleep(5)\n'
        'print("ended well")\n',
        tmp_path,
    )
    assert ended.returncode == (STALLED if ends else 0), ended.stderr
    assert ('ended well' in ended.stdout) != ends


def test_jax_tells_the_watchdog_when_it_compiles(tmp_path):
    heard = []
    watchdog = Watchdog(tmp_path, 0)
    watchdog._listen = lambda event, seconds, **_: heard.append(event)
    with watchdog:
        jax.jit(lambda x: x * 3.25 + len(heard))(1.0)
    assert heard.index(LOWERED) < heard.index(COMPILED)


def test_an_abort_of_jax_ends_with_the_promised_code():
    program = (
        'import ctypes\nfrom mlvicx_jax import parallel\n'
        'parallel._end_with_stalled_where_jax_aborts()\nctypes.CDLL(None).abort()\n'
    )
    ended = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert ended.returncode == STALLED and 'is gone' in ended.stderr
