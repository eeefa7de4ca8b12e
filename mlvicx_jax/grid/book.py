"""The finished runs of a grid at work, and the tables of them."""

import math
import time

from mlvicx_jax.grid import formats, tables
from mlvicx_jax.grid.plan import Job
from mlvicx_jax.grid.reading import headline, read_finished

TABLES_EVERY = 30.0  # seconds between two writings of the tables while runs end


class Book:
    """The finished runs and the tables of them; a run is read once."""

    def __init__(self, config, workdir, jobs):
        self.folder = workdir / 'tables'
        self.tables = []
        self._config = config.tables
        self._jobs = [job for job in jobs if job.cell]
        self._runs = {}
        self._written = -math.inf
        for job in self._jobs:
            if job.done:
                self._read(job)

    def enter(self, job: Job) -> str:
        """Takes in a run that has just ended; returns the number to say of it."""
        if job.cell is None:
            return ''
        self._read(job)
        if time.monotonic() - self._written > TABLES_EVERY:
            self.write()
        return headline(self._runs[job.cell])

    def write(self) -> None:
        self.tables = tables.fill(
            [job.cell for job in self._jobs], self._runs, self._config.reference, self._config.ablation
        )
        formats.write(self.folder, self.tables)
        self._written = time.monotonic()

    def _read(self, job):
        self._runs[job.cell] = read_finished(job.folder, job.cell)
