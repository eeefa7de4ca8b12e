"""Ends a run that stands still, so that a scheduler can start it again, and says who was waited for.

Where several processes train together each of them leaves a sign of life in `workdir/heartbeat/`,
which all of them see: a checkpoint needs the same. Nothing here depends on the network, which is what may
be gone, or on the hosts' clocks.
"""

import contextlib
import faulthandler
import json
import multiprocessing
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax

from mlvicx_jax.errors import UserError, first_line
from mlvicx_jax.files import write_json
from mlvicx_jax.parallel import STALLED

BEATS = 10  # signs of life within the time limit
SLOWEST = 10.0  # seconds between two of them, however long the limit is
BUSY = 10  # as many times the limit may evaluation, a checkpoint or a compilation take
LOWERED = '/jax/core/compile/jaxpr_to_mlir_module_duration'  # jax compiles next
COMPILED = '/jax/core/compile/backend_compile_duration'


class Watchdog:
    """Ends this process, with the stacks of all its threads, when no step begins for `limit` seconds.

    The second step arms it: the first, which compiles, may take its time. Within `busy()`, and while
    jax compiles, here or in a process that is waited for, the limit is `BUSY` times as long; a
    process that gives no sign of life for `limit` seconds ends the run all the same.

    Use it as a context manager around the loop; it also tells who is missing when a collective
    operation fails because a process died.

    Args:
        workdir: of the run.
        limit: seconds; 0 never ends a run.
    """

    def __init__(self, workdir, limit: float):
        self._folder = pathlib.Path(workdir) / 'heartbeat'
        self._limit = limit
        self._step, self._beats, self._armed = 0, 0, False
        self._busy, self._compiling = False, False
        self._entered = time.monotonic()
        self._ended = threading.Event()
        self._several = jax.process_count() > 1
        self._pause = min(limit / BEATS, SLOWEST) if limit else SLOWEST
        self._thread = threading.Thread(target=self._watch, daemon=True, name='watchdog')

    def enter(self, step: int) -> None:
        """Step `step` begins."""
        self._armed = self._step > 0
        self._compiling = False
        self._step, self._entered = step, time.monotonic()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """What is done within takes longer than a step: evaluation, a checkpoint."""
        self._busy, self._entered = True, time.monotonic()
        try:
            yield
        finally:
            self._busy, self._entered = False, time.monotonic()

    def __enter__(self):
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self._armed = False
        jax.monitoring.unregister_event_duration_listener(self._listen)
        if self._several and isinstance(error, Exception) and not isinstance(error, UserError):
            # Where a peer has died a collective operation fails, each kind of it with errors of its own.
            silent, behind = self._look()
            if silent or behind:
                self._end(f'step {self._step} failed ({first_line(error)})', silent or behind)
        self._ended.set()
        self._thread.join()
        if self._several and error is None:  # else the others find who has fallen silent, and where
            with contextlib.suppress(OSError):
                self._file(jax.process_index()).unlink()
                self._folder.rmdir()  # by the last one

    def _listen(self, event: str, duration_secs: float, **kwargs) -> None:
        if event in (LOWERED, COMPILED):
            self._compiling, self._entered = event == LOWERED, time.monotonic()

    def _file(self, process) -> pathlib.Path:
        return self._folder / f'process{process}.json'

    def _watch(self):
        self._beat()
        while not self._ended.wait(self._pause):
            self._beat()
            if not (self._limit and self._armed and self._quiet() > self._limit):
                continue
            step, (silent, behind) = self._step, self._look()
            if self._ended.is_set() or self._quiet() <= self._limit or self._step != step:
                continue  # it went on while this thread looked
            busy = self._is_busy() or any(beat['busy'] for beat in self._read().values())
            if silent or not busy or self._quiet() > BUSY * self._limit:
                faulthandler.dump_traceback()
                self._end(
                    f'no step has begun for {self._quiet():.0f} s (config.watchdog_seconds is '
                    f'{self._limit:g}), the last was step {self._step}',
                    silent or behind or 'the stacks above tell where it stands',
                )

    def _quiet(self) -> float:
        """Seconds since something happened."""
        return time.monotonic() - self._entered

    def _is_busy(self) -> bool:
        return self._busy or self._compiling

    def _beat(self, leaving: bool = False):
        if not self._several:
            return
        self._beats += 1
        with contextlib.suppress(OSError):  # a full disk is the loop's to report
            self._folder.mkdir(exist_ok=True)
            write_json(
                self._file(jax.process_index()),
                {
                    'beat': self._beats,
                    'step': self._step,
                    'host': socket.gethostname(),
                    'pid': os.getpid(),
                    'leaving': leaving,
                    'busy': self._is_busy(),
                },
            )

    def _end(self, what, who):
        """Says what happened and who is missing, and leaves without waiting for anybody."""
        print(
            f'error: {what}; {who}. Run the same command again on all hosts: it goes on from the last '
            'checkpoint',
            file=sys.stderr,
            flush=True,
        )
        for child in multiprocessing.active_children():  # that decode images
            child.kill()
        os._exit(STALLED)

    def _look(self) -> tuple[str, str]:
        """Who gives no sign of life within three beats, and who is at an earlier step; '' if nobody."""
        if not self._several:
            return '', ''
        before = self._read()
        for _ in range(3):
            time.sleep(self._pause)
            self._beat(leaving=True)  # the others may be asking the same
        after = self._read()
        others = [p for p in range(jax.process_count()) if p != jax.process_index()]
        name = lambda p: f'process {p} ({after.get(p, {}).get("host", "unknown host")})'
        sign = lambda found: found and (found['leaving'] or found['beat'])
        silent = [
            p for p in others if sign(after.get(p)) is not True and sign(after.get(p)) == sign(before.get(p))
        ]
        behind = [p for p in others if p in after and after[p]['step'] < self._step]
        return (
            'no sign of life from ' + ', '.join(map(name, silent)) if silent else '',
            'still at an earlier step: ' + ', '.join(map(name, behind)) if behind else '',
        )

    def _read(self) -> dict[int, dict]:
        found = {}
        for process in range(jax.process_count()):
            with contextlib.suppress(OSError, ValueError):
                found[process] = {'busy': False} | json.loads(self._file(process).read_text())
        return found
