"""How far a grid is, and how long the rest will take."""

import collections

from mlvicx_jax.terminal import duration


class Clock:
    """How far the grid is and how long it will take, by the mean of the jobs of each kind."""

    def __init__(self, todo, parallel):
        self._total, self._parallel = len(todo), parallel
        self._left = collections.Counter(job.kind for job in todo)
        self._seconds = collections.defaultdict(list)

    def ended(self, job, seconds) -> None:
        self._left[job.kind] -= 1
        self._seconds[job.kind].append(seconds)

    def place(self) -> str:
        return f'[{self._total - self._left.total()}/{self._total}]'

    def left(self) -> str:
        """Kinds that have not run yet count as the mean of those that have."""
        means = {kind: sum(took) / len(took) for kind, took in self._seconds.items()}
        other = sum(means.values()) / len(means)
        seconds = sum(means.get(kind, other) * count for kind, count in self._left.items())
        return f'left about {duration(seconds / self._parallel)}'
