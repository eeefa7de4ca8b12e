"""A command in a session of its own: what it has said, its death, and which of its processes outlive it."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[1]
MARK = 'MLVICX_SESSION'  # every process that a session starts inherits it, whatever session it makes


class Session:
    """A command at work.

    Args:
        command: its words.
        log: file that takes what it says.
        compiled: folder of compiled programs, shared by all starts.
        environment: further variables.
    """

    def __init__(self, command: Sequence[str], log: pathlib.Path, compiled: pathlib.Path, **environment: str):
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._mark = log, uuid.uuid4().hex
        environment = (
            os.environ
            | environment
            | {
                'JAX_COMPILATION_CACHE_DIR': str(compiled),
                'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
                'PYTHONUNBUFFERED': '1',
                MARK: self._mark,
            }
        )
        self.began = time.monotonic()
        with log.open('w') as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def said(self) -> str:
        return self._log.read_text(errors='replace')

    def steps(self) -> list[int]:
        """The training steps that it has told."""
        return [int(step) for step in re.findall(r'^step (\d+)/', self.said(), re.MULTILINE)]

    def kill(self, everyone: bool) -> None:
        """SIGKILL to its first process alone, or to all at once."""
        for pid in (self.process.pid, *(self._alive() if everyone else ())):
            with contextlib.suppress(ProcessLookupError):  # it died with the first
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def survivors(self, patience: float = 10.0) -> list[int]:
        """Its processes that are still there after `patience` seconds."""
        end = time.monotonic() + patience
        while (left := self._alive()) and time.monotonic() < end:
            time.sleep(0.1)
        return left

    def _alive(self) -> list[int]:
        found = []
        for folder in pathlib.Path('/proc').glob('[0-9]*'):
            try:
                if f'{MARK}={self._mark}'.encode() in (folder / 'environ').read_bytes().split(b'\0'):
                    found.append(int(folder.name))
            except OSError:  # another user's, or it has just ended
                continue
        return found
