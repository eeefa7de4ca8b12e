"""Is a command that is killed again and again the command it would have been?

  python -m benchmarks.reliability --task pretrain [--kills 20] [--seed 0] [--out workdirs/reliability]

Tasks: pretrain, frozen, finetune, segment, grid (a pretraining and 24 frozen runs, two at a time) and
predict (2,000 films, 1 % of them damaged), each as small as the tests'. The command runs once in peace,
and then, from nothing, data set included, under `kill -9`: each start is dealt one, in the phases one
after the other, at a moment drawn over as long as the phase took in peace, or at its end; half of them
hit the first process alone, half the first and all that it started. The same command goes on each
time, and a run that gets to its end is followed by another.

What must hold is counted and printed: the same bits as in peace; nothing lost that an earlier start
had finished; no error told, no process left, no half file, no lock held.

Prints rows for docs/results.md, writes every kill to OUT/TASK/reliability.json, and exits non-zero if
something did not hold.
"""

import argparse
import collections
import datetime
import json
import math
import pathlib
import shutil
import sys
import time

import numpy as np

from benchmarks import ends
from benchmarks.killed import TASKS, TROUBLE, Task
from benchmarks.sessions import Session
from mlvicx_jax import parallel
from mlvicx_jax.files import write_json
from mlvicx_jax.terminal import duration

POLL = 0.02  # seconds


class Dealer:
    """Starts a task's command over and over and kills it."""

    def __init__(self, task: Task, seed: int):
        self.task, self.kills, self.problems = task, [], []
        self.starts = self.runs = 0
        self._rng = np.random.default_rng(seed)
        self._lengths: dict[str, float] = collections.defaultdict(float)

    def in_peace(self) -> float:
        """Runs it whole; returns its seconds."""
        self._clear()
        session = self._start('straight')
        before, began = '', time.monotonic()
        while session.running:
            if (phase := self.task.phase(session, 'straight')) != before:
                before, began = phase, time.monotonic()
            self._lengths[phase] = max(self._lengths[phase], time.monotonic() - began)
            time.sleep(POLL)
        if session.process.returncode != self.task.code:
            sys.exit(f'error: the run in peace failed:\n{session.said()[-5000:]}')
        print(f'in peace {session.seconds():.0f} s: {dict(self._lengths)}', flush=True)
        return session.seconds()

    def deal(self, kills: int) -> None:
        while len(self.kills) < kills:
            self.runs += 1
            name = f'killed{self.runs}'
            self._clear()
            targets = list(self.task.phases)
            while not self._one_start(name, targets.pop(0) if targets and len(self.kills) < kills else None):
                pass
            found = self.task.differences('straight', name)
            found += ends.left(self.task.out / name, self.task.out / 'data')
            self._note(name, found)

    def _one_start(self, name: str, target: str | None) -> bool:
        """Kills a start in a phase, None: lets it be; returns whether it came to its end."""
        task = self.task
        kept = task.kept(name)
        session = self._start(name)
        entered, due = '', math.inf
        while session.running and target:
            phase = task.phase(session, name)
            if not entered and task.phases.index(phase) >= task.phases.index(target):
                entered, due = phase, time.monotonic() + self._rng.uniform(0, self._lengths[phase])
            # No later than the phase's end: in peace it may have taken longer.
            if entered and (phase != entered or time.monotonic() >= due):
                break
            time.sleep(POLL)
        if not target:
            session.process.wait()
        ended = not session.running
        if not ended:
            kill = {'run': self.runs, 'phase': task.phase(session, name), 'seconds': session.seconds()}
            everyone = bool(self._rng.random() < 0.5)
            session.kill(everyone)
            self.kills.append(kill | {'everyone': everyone})
            print(f'kill {len(self.kills)}: {json.dumps(self.kills[-1])}', flush=True)
        elif session.process.returncode != task.code:
            sys.exit(f'error: start {self.starts} of {name} failed by itself:\n{session.said()[-5000:]}')
        found = task.lost(session, name, kept)
        found += [f'process {pid} outlives it' for pid in session.survivors()]
        found += [f'said {word!r}' for word in TROUBLE if word in session.said()]
        self._note(f'{name}, start {self.starts}', found)
        return ended

    def _start(self, name: str) -> Session:
        self.starts += 1
        out = self.task.out
        return Session(
            self.task.command(name), out / 'logs' / f'{name}_{self.starts}.txt', out.parent / 'compiled'
        )

    def _clear(self) -> None:
        """Runs share nothing: each prepares the data set and its features anew."""
        shutil.rmtree(self.task.out / 'data', ignore_errors=True)

    def _note(self, where: str, found: list[str]) -> None:
        for what in found:
            print(f'PROBLEM: {where}: {what}', flush=True)
        self.problems += [f'{where}: {what}' for what in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', choices=TASKS, required=True)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('workdirs/reliability'))
    arguments = parser.parse_args()
    out = arguments.out.absolute() / arguments.task
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    task = TASKS[arguments.task](out)
    task.prepare()
    dealer = Dealer(task, arguments.seed)
    peace = dealer.in_peace()
    began = time.monotonic()
    dealer.deal(arguments.kills)
    phases = collections.Counter(kill['phase'] for kill in dealer.kills)
    row = [
        arguments.task,
        str(len(dealer.kills)),
        ', '.join(f'{phase}: {phases[phase]}' for phase in task.phases if phases[phase]),
        str(sum(kill['everyone'] for kill in dealer.kills)),
        f'{dealer.runs} of {dealer.starts - 1} starts',
        f'{duration(peace)}, {duration(time.monotonic() - began)}',
        '; '.join(dealer.problems) or 'none',
    ]
    told = [
        f'{parallel.device_name()}, {datetime.date.today()}, seed {arguments.seed}',
        '| task | kills | they fell in | all at once | runs | in peace, killed | differences, losses |',
        '| ' + ' | '.join(row) + ' |',
    ]
    write_json(out / 'reliability.json', {'kills': dealer.kills, 'problems': dealer.problems, 'told': told})
    print('\n'.join(told))
    if dealer.problems:
        sys.exit(f'error: {len(dealer.problems)} problem(s)')


if __name__ == '__main__':
    main()
