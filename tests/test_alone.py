"""Of several processes one ends by a mistake of its user: at once, and the others soon after, by its name."""

import re
import socket
import time

import pytest
import several

from mlvicx_jax.parallel import STALLED

LIMIT = 4.0  # seconds of the watchdog
PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import main
from mlvicx_jax import parallel
from mlvicx_jax.errors import UserError
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.run.watchdog import Watchdog

address, process, workdir, limit, victims = sys.argv[1:]

def train():
    parallel.start(address, 2, int(process))
    mesh = parallel.create_mesh(2)
    total = jax.jit(jax.shard_map(
        lambda x: jax.lax.psum(x, AXIS), mesh=mesh, in_specs=P(AXIS), out_specs=P()))
    with Watchdog(workdir, float(limit)) as watchdog:
        for step in range(1, 10**6):
            watchdog.enter(step)
            total(parallel.to_global({'x': jnp.ones(1)}, mesh)['x']).block_until_ready()
            if step == 20 and process in victims:
                raise UserError('the disk of this host is full; free some')

main.run(train)
"""


def end_of(workdir, victims):
    """[(exit code, what was said, seconds from the first end)] of both processes."""
    address, files = several.free_address(), [workdir / f'said{i}' for i in range(2)]
    ended, start = {}, time.monotonic()
    with several.processes(
        PROGRAM,
        [(address, i, workdir, LIMIT, victims) for i in range(2)],
        outputs=[file.open('w') for file in files],
    ) as processes:
        while len(ended) < 2 and time.monotonic() - start < 240:
            ended |= {
                i: time.monotonic()
                for i, process in enumerate(processes)
                if i not in ended and process.poll() is not None
            }
            time.sleep(0.05)
        assert len(ended) == 2, [file.read_text()[-3000:] for file in files]
    return [
        (process.returncode, file.read_text(), ended[i] - min(ended.values()))
        for i, (process, file) in enumerate(zip(processes, files))
    ]


MISTAKE = 'error: the disk of this host is full; free some\n'


@pytest.mark.slow
def test_the_other_ends_within_the_time_of_its_watchdog_and_names_it(tmp_path):
    (code_0, said_0, seconds), (code_1, said_1, _) = end_of(tmp_path, '1')
    assert code_1 == 1 and said_1.endswith(MISTAKE) and 'Traceback' not in said_1
    assert code_0 == STALLED and seconds < 3 * LIMIT, (code_0, seconds, said_0[-3000:])
    assert f'no sign of life from process 1 ({socket.gethostname()})' in said_0, said_0[-3000:]


@pytest.mark.slow
def test_where_it_is_process_0_the_other_ends_too(tmp_path):
    """With it goes what jax itself listens to, so that jax may end the other before its watchdog does."""
    (code_0, said_0, _), (code_1, said_1, seconds) = end_of(tmp_path, '0')
    assert code_0 == 1 and said_0.endswith(MISTAKE)
    assert code_1 == STALLED and seconds < 3 * LIMIT, (code_1, seconds, said_1[-3000:])


@pytest.mark.slow
def test_all_by_the_same_mistake_say_so(tmp_path):
    for code, said, _ in end_of(tmp_path, '01'):
        assert code == 1 and re.search(r'^error: the disk', said, re.MULTILINE), said[-3000:]
