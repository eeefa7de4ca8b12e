"""The evaluations of a run, which of them is the best, and whether it is time to stop."""

import math

from mlvicx_jax.durations import Schedule
from mlvicx_jax.run.checkpoints import Checkpoints
from mlvicx_jax.run.metrics import MetricLog, evaluations, read_metrics
from mlvicx_jax.run.progress import Meter


class Best:
    """The step with the greatest `monitor` so far.

    Args:
        monitor: name of the number; None: there is no best step.
        patience: steps without a better evaluation after which training ends; None never ends it.

    Attributes:
        step: 0 before the first evaluation, and where there is no monitor.
        numbers: of that step's evaluation.
    """

    def __init__(self, monitor: str | None, patience: int | None):
        self._monitor, self._patience = monitor, patience
        self._greatest, self._last = -math.inf, 0
        self.step = 0
        self.numbers: dict[str, float] = {}

    def resume(self, workdir, start_step: int) -> None:
        """Takes in the evaluations up to `start_step` that a run's metrics.jsonl tells of."""
        for line in evaluations(workdir, self._monitor, start_step) if self._monitor else ():
            self.found(line.pop('step'), line)

    def found(self, step: int, numbers) -> bool:
        """True for the first evaluation, then only for a greater number; a NaN is never greater."""
        if not self._monitor:
            return False
        self._last = step
        value = numbers[self._monitor]
        value = -math.inf if value is None or math.isnan(value) else value
        if self.step and value <= self._greatest:
            return False
        self.step, self.numbers, self._greatest = step, numbers, value
        return True

    def __str__(self):
        return f'{self._monitor} {self._greatest:.4f}'

    @property
    def waited_enough(self) -> bool:
        """Whether the last evaluation was `patience` steps behind the best one."""
        return bool(self.step and self._patience and self._last - self.step >= self._patience)


class Evaluations:
    """The evaluations of a run: when they are due, where they are logged, which state of them is kept.

    Args:
        evaluate: (state, step) -> numbers.

    Attributes:
        numbers: of the last evaluation of this start; {} before it.
    """

    def __init__(
        self, evaluate, schedule: Schedule, best: Best, checkpoints: Checkpoints, log: MetricLog, meter: Meter
    ):
        self._evaluate, self._schedule, self.best = evaluate, schedule, best
        self._checkpoints, self._log, self._meter = checkpoints, log, meter
        self.numbers: dict[str, float] = {}

    def due(self, step: int) -> bool:
        return self._schedule.due(step)

    def catch_up(self, workdir, state) -> None:
        """Evaluates the state that a start begins with, if it should have been but was not.

        A run that was stopped, or killed between saving and evaluating, does it when it goes on.
        """
        step = int(state.step)
        lines = read_metrics(workdir)
        if (
            step
            and self.due(step)
            and not any(line['step'] == step and 'train/loss' not in line for line in lines)
        ):
            self.run(state)

    def run(self, state) -> bool:
        """Evaluates a state; returns whether it is the best so far, whose checkpoint then has to be kept."""
        step = int(state.step)
        with self._meter.pause('evaluation'):
            self.numbers = self._evaluate(state, step)
        self._log.write(step, self.numbers)
        if self.best.found(step, self.numbers):
            self._checkpoints.pin(step)
        return self.best.step == step
