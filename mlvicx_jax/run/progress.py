"""What a person sees of a run: what is about to start, where it is, how fast, and how it does."""

import contextlib
import time

import jax
from clu import parameter_overview

from mlvicx_jax import __version__, checkout, optim, parallel
from mlvicx_jax.durations import Clock, Schedule
from mlvicx_jax.run.goodput import Goodput
from mlvicx_jax.run.guard import NonFiniteGuard
from mlvicx_jax.run.metrics import MetricLog
from mlvicx_jax.run.watchdog import Watchdog
from mlvicx_jax.terminal import duration, say


def announce(config, workdir, mesh, method, state, data, clock: Clock) -> None:
    """Prints what is about to run, before anything is compiled."""
    say(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    split = data.splits['train']
    epochs = clock.total_steps * clock.batch_size / len(split)
    levels = method.reference_levels(clock.batch_size)
    warmup, asked = optim.warmup_steps(config.optim, clock)
    rows = {
        'mlvicx_jax': f'{__version__}, jax {jax.__version__}',
        'source': f'{checkout.root()}, code {checkout.code_hash()[:12]}',
        'devices': f'{parallel.device_name()}, {jax.process_count()} process(es), mesh {dict(mesh.shape)}',
        'method': f'{config.method.name}, {config.dtype}, views of {config.data.image_size} px',
        'data': f'{data.name}, stored at {data.size} px: '
        + ', '.join(
            f'{name} {len(s)} images of {len(set(s.patient_ids.tolist()))} patients'
            for name, s in data.splits.items()
        ),
        'train split': f'sha256 {split.hash[:16]} (image ids)',
        **{f'note {i}': note for i, note in enumerate(data.metadata.get('notes', ()), 1)},
        'steps': f'{clock.total_steps} of {clock.batch_size} images = {epochs:.1f} epochs',
        **(
            {'warm-up': f'{warmup} steps, a tenth of the run; the config has {asked}'} if warmup < asked else {}
        ),
        'workdir': str(workdir),
    }
    if levels:
        rows['loss levels'] = (
            f'two views that share nothing {levels["level/share_nothing"]:.2f}, '
            f'floor at this batch size {levels["level/floor"]:.2f}'
        )
    say('\n'.join(f'{name:<12} {value}' for name, value in rows.items()))


def line(step, total_steps, metrics, timing) -> str:
    """One line: where the run is, how fast, and how the embeddings do."""
    statistics = '  '.join(
        f'{name} {value:.3g}' for name, value in metrics.items() if name.startswith(('std/', 'rankme/'))
    )
    where = f'step {step}/{total_steps}  loss {metrics["loss"]:.3f}  {statistics}'
    if not timing:
        return where
    left = duration((total_steps - step) * timing['time/step_seconds'])
    return (
        f'{where}  {timing["time/images_per_second"]:.1f} images/s  '
        f'{timing["time/step_seconds"]:.3g} s/step  '
        f'data wait {timing["time/data_wait_share"]:.1%}  left {left}'
    )


def probes(numbers, ending: str = '') -> str:
    """The mean AUROC of both probes; `ending` is that of a baseline's numbers."""
    return f'probe {numbers[f"probe/auroc{ending}"]:.3f}, kNN {numbers[f"knn/auroc{ending}"]:.3f}'


class Meter:
    """Times training steps; the first, which compiles, and pauses are left out.

    What it leaves out, and all else, is counted in `goodput`; the watchdog is told of pauses.
    """

    def __init__(self, batch_size: int, goodput: Goodput, watchdog: Watchdog):
        self._batch_size = batch_size
        self._goodput = goodput
        self._watchdog = watchdog
        self._compiled = False
        self._steps, self._seconds, self._wait = 0, 0.0, 0.0
        self._waited = 0.0  # within the step under way
        self._window = (0, 0.0, 0.0)

    @contextlib.contextmanager
    def waiting(self):
        """Around the wait for a batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def pause(self, phase: str):
        """Around what is no training: saving and evaluation."""
        with self._watchdog.busy():
            yield
        self._goodput.spent(phase)

    def lap(self) -> None:
        """At the end of a step."""
        waited, self._waited = self._waited, 0.0
        seconds = self._goodput.spent('training' if self._compiled else 'compile', waited)
        if self._compiled:
            self._steps += 1
            self._seconds += seconds
            self._wait += waited
        else:
            say(f'first step after {duration(seconds)} (compilation included)')
            self._compiled = True

    def keep(self) -> None:
        """Writes the counts of `goodput` to disk."""
        self._goodput.write()

    def window(self) -> dict[str, float]:
        """Means over the steps since the last call; empty for the first step of a run alone."""
        steps, seconds, wait = (a - b for a, b in zip((self._steps, self._seconds, self._wait), self._window))
        self._window = (self._steps, self._seconds, self._wait)
        return (
            {
                'time/images_per_second': steps * self._batch_size / seconds,
                'time/step_seconds': seconds / steps,
                'time/data_wait_share': wait / seconds,
            }
            if steps
            else {}
        )

    def images_per_second(self) -> float | None:
        """Over the whole run; a pair of views counts as one image. None before the second step."""
        return self._steps * self._batch_size / self._seconds if self._steps else None


class Steps:
    """The numbers of the training steps: fetched one step late, checked, and logged when they are due.

    A device works at the next step while the numbers of the last one are fetched.

    Args:
        image_ids: of the training split.
        constants: numbers that are logged with those of each step.
    """

    def __init__(
        self, schedule: Schedule, log: MetricLog, guard: NonFiniteGuard, meter: Meter, image_ids, constants
    ):
        self._schedule, self._log, self._guard, self._meter = schedule, log, guard, meter
        self._image_ids, self._constants = image_ids, constants
        self._pending: tuple | None = None  # step, metrics, records
        self.newest: dict[str, float] = {}

    def due(self, step: int) -> bool:
        """Whether the numbers of this step are logged; those of the last step always are."""
        return self._schedule.due(step) or step == self._schedule.total_steps

    def dispatched(self, step: int, metrics, records) -> None:
        """Step `step` on the images `records` is on its way: completes the one before."""
        self.complete()
        self._pending = step, metrics, records

    def complete(self) -> None:
        """Waits for the numbers of the step dispatched last.

        Raises:
            UserError: see `NonFiniteGuard.check`.
        """
        if self._pending is None:
            return
        (step, metrics, records), self._pending = self._pending, None
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._meter.lap()
        self._guard.check(step, metrics, self._image_ids[records])
        self.newest = {f'train/{name}': value for name, value in (metrics | self._constants).items()}
        if self.due(step):
            timing = self._meter.window()
            self._log.write(step, self.newest | timing)
            say(line(step, self._schedule.total_steps, metrics, timing))
            self._meter.keep()
