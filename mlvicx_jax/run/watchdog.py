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

import jax

from mlvicx_jax.errors import UserError, first_line
from mlvicx_jax.files import write_json

STALLED = 70  # exit code of a run that was ended here (sysexits' EX_SOFTWARE)
BEATS = 10  # signs of life within the time limit


class Watchdog:
    """Ends this process, with the stacks of all its threads, when no step begins for `limit` seconds.

    It is armed by the second step: the first, which compiles, may take its time. Use it as a context
    manager around the loop; it also tells who is missing when a collective operation fails because a
    process died.

    Args:
      workdir: of the run.
      limit: seconds; 0 never ends a run.
    """

    def __init__(self, workdir, limit: float):
        self._folder = pathlib.Path(workdir) / 'heartbeat'
        self._limit = limit
        self._step, self._beats, self._armed = 0, 0, False
        self._entered = time.monotonic()
        self._ended = threading.Event()
        self._several = jax.process_count() > 1
        self._pause = limit / BEATS if limit else 1.0
        self._thread = threading.Thread(target=self._watch, daemon=True, name='watchdog')

    def enter(self, step: int) -> None:
        """Step `step` begins."""
        self._armed = self._step > 0
        self._step, self._entered = step, time.monotonic()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self._armed = False
        if self._several and isinstance(error, Exception) and not isinstance(error, UserError):
            # Where a peer has died a collective operation fails, each kind of it with errors of its own.
            if missing := self._missing():
                self._end(f'step {self._step} failed ({first_line(error)})', missing)
        self._ended.set()
        self._thread.join()
        if self._several and error is None:  # else the others find who has fallen silent, and where
            with contextlib.suppress(OSError):
                self._file(jax.process_index()).unlink()
                self._folder.rmdir()  # by the last one

    def _file(self, process) -> pathlib.Path:
        return self._folder / f'process{process}.json'

    def _watch(self):
        self._beat()
        while not self._ended.wait(self._pause):
            self._beat()
            if self._limit and self._armed and time.monotonic() - self._entered > self._limit:
                faulthandler.dump_traceback()
                self._end(
                    f'no step has begun for {self._limit:g} s (config.watchdog_seconds), the last was '
                    f'step {self._step}',
                    self._missing() or 'the stacks above tell where it stands',
                )

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

    def _missing(self) -> str:
        """Who shows no sign of life within three beats, or else who is behind; '' if nobody."""
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
        if silent:
            return 'no sign of life from ' + ', '.join(map(name, silent))
        behind = [p for p in others if p in after and after[p]['step'] < self._step]
        return 'still at an earlier step: ' + ', '.join(map(name, behind)) if behind else ''

    def _read(self) -> dict[int, dict]:
        found = {}
        for process in range(jax.process_count()):
            with contextlib.suppress(OSError, ValueError):
                found[process] = json.loads(self._file(process).read_text())
        return found
