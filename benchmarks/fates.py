"""What becomes of a training on two processes of which one is killed, freezes or dawdles?

  python -m benchmarks.fates [--out workdirs/fates]

`main.py` with the tests' tiny recipe on two processes of this machine: once in peace, then six times
with one of them, process 0 included, killed (SIGKILL), frozen (SIGSTOP) or slow (it asks for the batch
of step 9 and never gets it) at step 9 of 12, the newest checkpoint being that of step 5. What is left after
the other has ended is killed, as a scheduler does, and the same command goes on. Prints exit codes, seconds
from the fate to the end of the other process, and whether the run that went on ends in the same bits
as that in peace; exits non-zero where a code or a bit is not what docs promise.
"""

import argparse
import datetime
import pathlib
import shutil
import socket
import sys
import time

from benchmarks import ends
from benchmarks.sessions import Session
from mlvicx_jax import parallel

FATES = 'killed', 'frozen', 'slow'
LIMIT = 15.0  # config.watchdog_seconds
LINE = 'its fate: '
# main.py, where the process that has a FATE meets it when it asks for the batch of step 9.
DRIVER = f"""
import os, pathlib, runpy, signal, time
from absl import flags
from mlvicx_jax.data import pipeline

original, fate = pipeline.train_batches, os.environ.get('FATE')

def recorded(split, batch_size, seed, start_step=0, *rest, **named):
    stream = original(split, batch_size, seed, start_step, *rest, **named)
    try:
        for step, batch in enumerate(stream, start_step + 1):
            if fate and step == 9:
                while not (pathlib.Path(flags.FLAGS.workdir) / 'checkpoints' / '5').exists():
                    time.sleep(0.01)
                print('{LINE}' + fate, flush=True)
                if fate == 'slow':
                    time.sleep(1000)
                os.kill(os.getpid(), signal.SIGKILL if fate == 'killed' else signal.SIGSTOP)
            yield batch
    finally:
        stream.close()

pipeline.train_batches = recorded
runpy.run_path('main.py', run_name='__main__')
"""


def start(
    out: pathlib.Path, name: str, attempt: int, victim: int | None = None, fate: str = ''
) -> list[Session]:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    fields = {'data.data_dir': out / 'data', 'checkpoint.every_steps': 5, 'watchdog_seconds': LIMIT}
    return [
        Session(
            [
                sys.executable,
                '-c',
                DRIVER,
                '--config=tests/tiny.py',
                f'--workdir={out / name}',
                f'--coordinator={address}',
                '--num_processes=2',
                f'--process_id={i}',
                *(f'--config.{field}={value}' for field, value in fields.items()),
            ],
            out / 'logs' / f'{name}_{attempt}_{i}.txt',
            out.parent / 'compiled',
            FATE=fate if i == victim else '',
        )
        for i in range(2)
    ]


def to_their_ends(sessions: list[Session]) -> None:
    for session in sessions:
        if session.process.wait(600):
            sys.exit(f'error: it failed by itself:\n{session.said()[-5000:]}')


def meet(out: pathlib.Path, victim: int, fate: str) -> tuple[list[str], list[str]]:
    """A row of the table, and what is wrong with it."""
    name = f'{fate}{victim}'
    sessions = start(out, name, 1, victim, fate)
    other = sessions[1 - victim]
    while LINE not in sessions[victim].said():
        if not other.running:
            sys.exit(f'error: process {1 - victim} ended before:\n{other.said()[-5000:]}')
        time.sleep(0.01)
    met = time.monotonic()
    code = other.process.wait(600)
    seconds = time.monotonic() - met
    if fate == 'slow':  # its own watchdog ends it
        sessions[victim].process.wait(600)
    own = 'stays' if sessions[victim].running else str(sessions[victim].process.returncode)
    for session in sessions:
        session.kill(everyone=True)
    wrong = [] if code == parallel.STALLED else [f'{name}: exit code {code}']
    again = start(out, name, 2)
    to_their_ends(again)
    if 'checkpoints/5\n' not in again[0].said():
        wrong.append(f'{name}: did not go on from step 5')
    different = ends.of_runs(out / 'straight', out / name) + ends.left(out / name)
    wrong += [f'{name}: {what}' for what in different]
    same = 'the same bits' if not different else '; '.join(different)
    return [f'process {victim} {fate}', str(code), f'{seconds:.1f} s', own, same], wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('workdirs/fates'))
    out = parser.parse_args().out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    to_their_ends(start(out, 'straight', 1))
    rows, wrong = [], []
    for fate in FATES:
        for victim in (0, 1):
            row, faults = meet(out, victim, fate)
            rows.append('| ' + ' | '.join(row) + ' |')
            wrong += faults
            print(rows[-1], flush=True)
    print(
        f'two processes of 1 x {parallel.device_name()}, {datetime.date.today()}, watchdog_seconds {LIMIT:.0f}'
    )
    print('| fate | code of the other | after | own code | restarted, it ends in |\n|---|---|---|---|---|')
    print('\n'.join(rows))
    if wrong:
        sys.exit('error: ' + '; '.join(wrong))


if __name__ == '__main__':
    main()
