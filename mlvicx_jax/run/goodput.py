"""Where a run's time went, over all its starts: the share that was training, and the rest by its cause."""

import pathlib
import time
from typing import Any, TypedDict, cast

import jax

from mlvicx_jax.errors import UserError
from mlvicx_jax.files import read_json, write_json
from mlvicx_jax.run.schema import mismatch
from mlvicx_jax.terminal import duration, say

# In the order they are told. `training` is what a run is for; the others are its price.
PHASES = {
    'training': 'steps whose result was kept',
    'start': 'data set, state, restoring, initial evaluation',
    'compile': 'the first step of each start',
    'data wait': 'the device waited for images',
    'checkpoint': 'the loop waited for a save',
    'evaluation': 'probes during and after training',
    'repeated': 'steps lost with a start that ended before it could save',
    'down': 'between the last sign of one start and the next',
}


FILE = 'goodput.json'


class Counts(TypedDict):
    """What the file holds; `saved` is {step of a checkpoint: seconds of training until then}."""

    seconds: dict[str, float]
    starts: int
    saved: dict[str, float]
    time: float


def read(workdir) -> Counts | None:
    """goodput.json of a run; None where there is none, or where it is damaged, which is said."""
    path = pathlib.Path(workdir) / FILE
    if not path.exists():
        return None
    try:
        counts = read_json(path, 'the times of earlier starts are not counted')
    except UserError as error:
        say(str(error))
        return None
    found = mismatch(counts, Counts) or _problem(counts)
    if found:
        say(f'{path}: {found}; the times of earlier starts are not counted')
        return None
    return cast(Counts, counts)  # as `mismatch` found


def _problem(counts: dict[str, Any]) -> str | None:
    if min(counts['seconds'].values(), default=0) < 0:
        return 'seconds has a time below 0'
    if not all(step.isascii() and step.isdigit() for step in counts['saved']):
        return 'saved has a key that is no step'
    return None


class Goodput:
    """Seconds of each phase, kept in `workdir/goodput.json` from one start to the next.

    Process 0 writes; the others count for themselves.
    """

    def __init__(self, workdir):
        self._workdir = pathlib.Path(workdir)
        self._mark = time.monotonic()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._starts = 1
        self._saved = {}  # step of a checkpoint: seconds of training until then

    def resume(self, step: int) -> None:
        """Adds the counts of earlier starts; training after `step` counts as repeated."""
        earlier = read(self._workdir)
        if earlier is None:
            return
        seconds = dict.fromkeys(PHASES, 0.0) | earlier['seconds']
        kept = earlier['saved'].get(str(step), 0.0)
        seconds['repeated'] += seconds['training'] - kept
        seconds['training'] = kept
        # Clocks of two hosts, or one that was set: never less than nothing.
        seconds['down'] += max(0.0, time.time() - (time.monotonic() - self._mark) - earlier['time'])
        for phase in PHASES:
            self._seconds[phase] += seconds[phase]
        self._starts, self._saved = earlier['starts'] + 1, earlier['saved']

    def spent(self, phase: str, waited: float = 0.0) -> float:
        """Counts the seconds since the last call as `phase`, but for those that were waited for data."""
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        self._seconds[phase] += seconds - waited
        self._seconds['data wait'] += waited
        return seconds

    def saved(self, step: int) -> None:
        """What was trained so far is in the checkpoint of `step`, or will be."""
        newest = sorted(self._saved, key=int)[-20:]
        self._saved = {s: self._saved[s] for s in newest} | {str(step): self._seconds['training']}
        self.write()

    def write(self) -> None:
        """Keeps the counts."""
        if jax.process_index() == 0:
            write_json(
                self._workdir / FILE,
                {'seconds': self._seconds, 'starts': self._starts, 'saved': self._saved, 'time': time.time()},
            )

    def shares(self) -> dict[str, float]:
        """{'goodput/<phase>': share of the wall time of all starts}."""
        total = sum(self._seconds.values())
        return {
            f'goodput/{phase.replace(" ", "_")}': seconds / total for phase, seconds in self._seconds.items()
        }

    def tell(self) -> None:
        """Prints the table."""
        total = sum(self._seconds.values())
        say(f'{duration(total)} in {self._starts} start(s), of which')
        for phase, meaning in PHASES.items():
            seconds = self._seconds[phase]
            say(f'  {phase:<11} {seconds / total:6.1%}  {duration(seconds):>12}  {meaning}')
