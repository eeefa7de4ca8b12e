"""Where a run's time went, over all its starts: the share that was training, and the rest by its cause."""

import json
import pathlib
import time

import jax

from mlvicx_jax.files import write_json
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


class Goodput:
    """Seconds of each phase, kept in `workdir/goodput.json` from one start to the next.

    Process 0 writes; the others count for themselves.
    """

    def __init__(self, workdir):
        self._path = pathlib.Path(workdir) / 'goodput.json'
        self._mark = time.monotonic()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._starts = 1
        self._saved = {}  # step of a checkpoint: seconds of training until then

    def resume(self, step: int) -> None:
        """Takes over the counts of earlier starts, of whose training that up to `step` is kept."""
        if not self._path.exists():
            return
        try:
            earlier = json.loads(self._path.read_text())
        except ValueError:  # no reason to stop a run
            return
        kept = earlier['saved'].get(str(step), 0.0)
        earlier['seconds']['repeated'] += earlier['seconds']['training'] - kept
        earlier['seconds']['training'] = kept
        # Clocks of two hosts, or one that was set: never less than nothing.
        earlier['seconds']['down'] += max(0.0, time.time() - (time.monotonic() - self._mark) - earlier['time'])
        for phase, seconds in earlier['seconds'].items():
            self._seconds[phase] += seconds
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
                self._path,
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
