"""What ends a run before its last step: numbers that are not finite, and a request to stop."""

import math
import pathlib
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils

from mlvicx_jax.errors import UserError
from mlvicx_jax.files import write_json
from mlvicx_jax.terminal import say

PREEMPTED = 75  # exit code after SIGTERM: saved, run the same command again (sysexits' EX_TEMPFAIL)
INTERRUPTED = 128 + signal.SIGINT  # exit code after Ctrl-C: saved too, but nobody is to start it again


class NonFiniteGuard:
    """Reports the steps that the training step skipped, and ends a run that does little else.

    Attributes:
        skipping: whether the step checked last was skipped.
    """

    def __init__(self, workdir, most: int):
        self._path = pathlib.Path(workdir) / f'not_finite_process{jax.process_index()}.json'
        self._most = most
        self._reports: list[dict] = []
        self.skipping = False

    def check(self, step, metrics, image_ids) -> None:
        """Raises a UserError at the last of `most` steps in a row that were not finite."""
        self.skipping = metrics['skipped'] > 0
        if not self.skipping:
            return
        bad = next(name for name in ('loss', 'gradient_norm') if not math.isfinite(metrics[name]))
        self._reports.append(
            {'step': step, 'metrics': {k: str(v) for k, v in metrics.items()}, 'image_ids': image_ids.tolist()}
        )
        write_json(self._path, self._reports)
        what = (
            f'{bad} is {metrics[bad]} at step {step}; images {", ".join(image_ids[:3])} ... '
            f'(all in {self._path})'
        )
        if metrics['skipped'] < self._most:
            say(f'{what}; this step is skipped')
            return
        raise UserError(
            f'{what}, as in the {self._most - 1} steps before it. Lower config.optim.learning_rate or '
            'look at these images, then run the same command: it goes on from the last checkpoint'
        )


class StopRequest:
    """Whether SIGTERM or Ctrl-C has asked this run to save and stop; a context manager around the loop.

    With several processes jax's preemption service listens to SIGTERM and makes all of them stop at
    the same step. A second Ctrl-C ends the process at once.
    """

    def __init__(self):
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self):
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        self._received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
            say('stopping after this step; once more ends the run at once, without saving')

    def requested(self, step: int) -> bool:
        """Whether to save and stop after this step; every process calls it at every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None

    def stopped(self, saved: int | None) -> int:
        """Says that the run stops with step `saved` on disk; returns the exit code."""
        interrupted = self._received == signal.SIGINT
        say(
            f'stopped by {"Ctrl-C" if interrupted else "SIGTERM"}; '
            f'step {saved} is saved, run the same command to go on'
        )
        return INTERRUPTED if interrupted else PREEMPTED
