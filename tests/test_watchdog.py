"""Real processes, one of which dies, freezes or dawdles: the others end soon and say which."""

import os
import socket
import subprocess
import sys
import time

import pytest
import several
from conftest import ROOT

from mlvicx_jax.run.watchdog import STALLED

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


@pytest.mark.parametrize(
    'count,victim,fate,words',
    [
        (2, 1, 'killed', 'no sign of life from process 1'),
        (2, 1, 'frozen', 'no sign of life from process 1'),
        (2, 1, 'slow', 'still at an earlier step: process 1'),
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
                assert words in said and socket.gethostname() in said, said[-3000:]
                assert ('most recent call first' in said) == (fate != 'killed'), said[-3000:]
    assert not list(tmp_path.rglob('*.partial'))


def test_a_run_that_ends_well_leaves_no_sign_of_life(tmp_path):
    with start(tmp_path, 2, 'none', '') as processes:
        assert [process.wait(120) for process in processes] == [0, 0]
    assert not list(tmp_path.iterdir())


def test_one_process_alone_ends_with_its_stacks(tmp_path):
    program = (
        'import sys, time\nfrom mlvicx_jax.run.watchdog import Watchdog\n'
        'with Watchdog(sys.argv[1], 1.0) as watchdog:\n'
        '    watchdog.enter(1)\n'
        '    time.sleep(2)  # compiles\n'
        '    watchdog.enter(2)\n'
        '    time.sleep(1000)\n'
    )
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, '-c', program, tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        timeout=120,
    )
    assert ended.returncode == STALLED and time.monotonic() - began > 3
    assert 'the last was step 2' in ended.stderr and 'File "<string>", line 7 in <module>' in ended.stderr
