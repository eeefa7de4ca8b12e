"""Runs what of a grid is not done, each run a process of main.py in a folder of its own.

A run is done when its results.json is there. The same command goes on after any kill: main.py
resumes a run that is half done. This process uses no accelerator, which is its runs' to use.
"""

import collections
import contextlib
import ctypes
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from mlvicx_jax.data import prepare
from mlvicx_jax.grid import lock
from mlvicx_jax.grid.book import Book
from mlvicx_jax.grid.cell import write_cell
from mlvicx_jax.grid.clock import Clock
from mlvicx_jax.grid.formats import markdown
from mlvicx_jax.grid.plan import Job, check, plan, refuse_another_config
from mlvicx_jax.terminal import duration

STOPPED = os.EX_TEMPFAIL  # exit code after SIGTERM or Ctrl-C, as that of a training run
GRACE = 120.0  # seconds that runs get to save before they are killed
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(config, workdir: str | os.PathLike, command: Sequence[str]) -> int:
    """Runs what of the grid is not done, writes the tables and prints them.

    Args:
        config: of configs/tables.py.
        workdir: the grid's folder.
        command: starts main.py; a run's own flags are put behind it.

    Returns:
        0 when every run is done, 1 when one has failed, `STOPPED` after SIGTERM or Ctrl-C.

    Raises:
        UserError: the config makes no grid; a folder holds a run of another config; another grid is
            at work in `workdir`; runs that can not stand in one table.
    """
    workdir = pathlib.Path(workdir)
    check(config)
    jobs = plan(config, workdir)
    with lock.hold(workdir) as held:
        for job in jobs:
            refuse_another_config(job)
            if job.cell:
                write_cell(job.folder, job.cell)
        book = Book(config, workdir, jobs)
        todo = [job for job in jobs if not job.done]
        _say(
            f'{len(jobs)} runs in {workdir}, {len(jobs) - len(todo)} of them done; the output of '
            'each is in the .log beside its folder'
        )
        _prepare(todo)
        with _Stop() as stop:
            failed = _work(todo, command, config.grid.parallel, held, stop, book)
            book.write()
    for table in book.tables:
        if table.name != 'table1':  # as wide as there are classes: in its file
            _say('\n' + markdown(table))
    for job, reason in failed.items():
        _say(f'failed: {job.name}: {reason}')
    if stop.asked:
        left = sum(not job.done for job in jobs)
        _say(f'stopped; {left} of {len(jobs)} runs are left, run the same command to go on')
        return STOPPED
    _say(f'tables in {book.folder}: ' + ', '.join(f'{table.name}.html' for table in book.tables))
    return 1 if failed else 0


def _prepare(jobs: list[Job]) -> None:
    """Prepares each data set that the jobs need, once."""
    seen = set()
    for job in jobs:
        data = job.config['data']
        options = {'size': data['stored_size'], **data['options']}
        place = data['name'], data['data_dir'], data['manual_dir']
        key = *place, json.dumps(options, sort_keys=True)
        if key not in seen:
            seen.add(key)
            prepare.prepare(*place, options)


def _work(todo, command, parallel, lock, stop, book) -> dict[Job, str]:
    """Runs the jobs, `parallel` at a time; returns those that failed and why."""
    waiting = collections.deque(todo)
    running: dict[subprocess.Popen, tuple[Job, float]] = {}
    failed: dict[Job, str] = {}
    clock = Clock(todo, parallel)
    try:
        while (waiting or running) and not stop.asked:
            for job in list(waiting):
                if job.after in failed:
                    waiting.remove(job)
                    failed[job] = f'not run, since "{job.after.name}" failed'
                elif len(running) < parallel and (job.after is None or job.after.done):
                    waiting.remove(job)
                    running[_start(job, command, lock)] = job, time.monotonic()
            time.sleep(0.05)
            for process, (job, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[process]
                seconds = time.monotonic() - began
                clock.ended(job, seconds)
                said = f'{duration(seconds)}  {clock.left()}'
                if process.returncode == 0 and job.done:
                    _say(f'{clock.place()} {job.name}  {book.enter(job)}  {said}')
                elif not stop.asked:  # else it was told to stop, too
                    failed[job] = f'exit code {process.returncode}: {_last_line(job.log)}; {job.log}'
                    _say(f'{clock.place()} {job.name}  FAILED  {said}')
    finally:
        _end(running, stop)
    return failed


def _start(job: Job, command, lock) -> subprocess.Popen:
    """Starts a job in a session of its own, its output appended to its log.

    It inherits the lock, so that the folder stays taken as long as any run of it is alive, and on
    Linux it is killed with this process.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    words = [*command, *job.words, f'--workdir={job.folder}']
    with job.log.open('ab') as log:
        log.write(f'$ {shlex.join(words)}\n'.encode())
        log.flush()
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock,),
            preexec_fn=_die_with,
        )


_PRCTL = getattr(ctypes.CDLL(None), 'prctl', None) if sys.platform == 'linux' else None


def _die_with() -> None:
    """In a child before its program: SIGKILL when the thread that started it ends."""
    if _PRCTL:
        _PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(running, stop) -> None:
    """SIGTERM to what still runs, so that it saves, then SIGKILL; to whole process groups."""
    for process in running:
        _signal(process, signal.SIGTERM)
    until = time.monotonic() + GRACE
    for process in running:
        while process.poll() is None and time.monotonic() < until and stop.times < 2:
            time.sleep(0.05)
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process, number) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _last_line(path: pathlib.Path) -> str:
    lines = [line.strip() for line in path.read_text(errors='replace').splitlines()]
    return next((line[:300] for line in reversed(lines) if line), 'no output')


class _Stop:
    """SIGTERM and Ctrl-C as a wish that is looked at between two things; a second one is urgent."""

    def __enter__(self):
        self.times = 0
        self._before = {
            number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        self.times += 1

    @property
    def asked(self) -> bool:
        return self.times > 0


def _say(line: str) -> None:
    """Not log.say, which asks jax which process this is and so takes the accelerator."""
    print(line, flush=True)
