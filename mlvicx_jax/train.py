"""The training loop, the only one: data, state, restore, then step, log, evaluate, save, stop."""

import contextlib
import pathlib

import jax

from mlvicx_jax import __version__, durations, optim, parallel
from mlvicx_jax.data import pipeline, resident
from mlvicx_jax.durations import Schedule
from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import diagnostics
from mlvicx_jax.evaluation.linear_layer import known_labels
from mlvicx_jax.run import folder, progress, results
from mlvicx_jax.run.best import Evaluations
from mlvicx_jax.run.goodput import Goodput
from mlvicx_jax.run.guard import INTERRUPTED, PREEMPTED, NonFiniteGuard, StopRequest
from mlvicx_jax.run.metrics import MetricLog, read_metrics
from mlvicx_jax.run.watchdog import Watchdog
from mlvicx_jax.start import Start, begin
from mlvicx_jax.step import make_train_step
from mlvicx_jax.tasks.shared.base import about
from mlvicx_jax.terminal import say

__all__ = 'INTERRUPTED', 'PREEMPTED', 'train'


@folder.alone
def train(config, workdir) -> int:
    """Runs `config` in `workdir`, from its newest checkpoint if it has one; returns the exit code.

    0 when the last step is done, or validation has stopped to improve; `PREEMPTED` when SIGTERM, and
    `INTERRUPTED` when Ctrl-C, asked for a stop and the state is saved.

    Raises:
        UserError: whatever of the config, the data or the folder makes the run impossible, told before
            anything is decoded or evaluated; a loss that is not finite; a disk that fails.
    """
    workdir = pathlib.Path(workdir)
    goodput = Goodput(workdir)
    start = begin(config, workdir, goodput)
    with contextlib.closing(start.checkpoints):
        if start.finished:
            if start.best.step:
                start.checkpoints.only(start.best.step)
            say(f'finished at step {start.step}; results in {start.results}')
            return 0
        if start.step:
            say(f'resumed from {start.checkpoints.directory / str(start.step)}')
        progress.announce(start.config, workdir, start.mesh, start.method, start.state, start.data, start.clock)
        return solve(start) if start.task.solves else loop(start)


def loop(start: Start) -> int:
    """Trains step by step from the newest checkpoint to the end; returns the exit code."""
    config, workdir, mesh, clock, checkpoints = (
        start.config, start.workdir, start.mesh, start.clock, start.checkpoints
    )  # fmt: skip
    split, first, total = start.data.splits['train'], start.step, clock.total_steps
    pictures, with_pictures = resident.hold(split, config.data.resident, mesh, config.data.num_threads)
    evaluating = Schedule(clock.steps_per_evaluation, total)
    initial = start.task.initial(start.state) if evaluating.every else {}
    state = start.state if start.restored is None else start.restored
    start.state = start.restored = None  # the step gives its state's memory away
    learning_rate = optim.schedule(
        config.optim, clock.batch_size, clock.steps_per_epoch, total, config.optim.final_factor
    )
    train_step = make_train_step(start.method, start.optimizer, mesh, config.seed, total, config.accumulation)
    stream = pipeline.train_batches(
        split,
        clock.batch_size,
        config.seed,
        first,
        jax.process_index(),
        jax.process_count(),
        config.data.num_threads,
        config.data.num_workers,
        config.data.prefetch,
        pictures,
    )
    log = MetricLog(workdir, first)
    if not first:
        log.write(0, initial)
    guard = NonFiniteGuard(workdir, config.max_skipped_steps)
    watchdog, stop = Watchdog(workdir, config.watchdog_seconds), StopRequest()
    meter = progress.Meter(clock.batch_size, start.goodput, watchdog)
    numbers = progress.Steps(
        Schedule(durations.steps(config, '', 'log_every', clock), total),
        log, guard, meter, split.image_ids, start.method.reference_levels(clock.batch_size),
    )  # fmt: skip
    evaluations = Evaluations(start.task.at, evaluating, start.best, checkpoints, log, meter)
    start.goodput.spent('start')
    with contextlib.closing(stream), contextlib.closing(log), watchdog, stop:
        evaluations.catch_up(workdir, state)
        for step in range(first + 1, total + 1):
            if start.best.waited_enough:
                break
            with meter.waiting():
                batch = next(stream)
            records = batch.pop('record')
            watchdog.enter(step)
            state, metrics, out = train_step(state, with_pictures(parallel.to_global(batch, mesh)))
            if numbers.due(step):
                embeddings = {name: out[key] for name, key in start.method.embeddings.items()}
                metrics |= diagnostics.embedding_statistics(embeddings)
                metrics['learning_rate'] = learning_rate(step - 1)
            numbers.dispatched(step, metrics, records)

            last, stopping = step == total, stop.requested(step)
            saving = last or stopping or checkpoints.due(step)
            # After a request to stop there is no time to evaluate; the resumed run does it.
            evaluate = evaluations.due(step) and (last or not stopping)
            if saving or evaluate:
                numbers.complete()
            if evaluate:
                saving |= evaluations.run(state)
            # A skipped step may begin a divergence: nobody wants to go back to it.
            if saving and (last or not guard.skipping):
                with meter.pause('checkpoint'):
                    checkpoints.save(state)
                start.goodput.saved(step)
            if stopping and not last:
                checkpoints.wait()
                return stop.stopped(checkpoints.newest())
        with meter.pause('checkpoint'):
            checkpoints.wait()
        finish(start, state, evaluations, meter, numbers.newest, initial)
    return 0


def finish(start: Start, state, evaluations: Evaluations, meter, newest: dict, initial: dict) -> None:
    """Writes the results of the best state, where there is one, or else of the last."""
    best, checkpoints = start.best, start.checkpoints
    if best.step:
        state = checkpoints.restore(state, best.step)
        if state.step != best.step:
            raise UserError(
                f'{checkpoints.directory / str(best.step)}, the best on validation, '
                'is damaged; restore a copy, or give a new --workdir'
            )
        say(f'best on validation: step {best.step}, {best}')
    elif not evaluations.numbers and evaluations.due(int(state.step)):
        evaluations.run(state)
    with meter.pause('evaluation'):
        found = start.task.results(state, best.numbers or evaluations.numbers, initial)
    logged = [line for line in read_metrics(start.workdir) if 'train/loss' in line]
    newest = logged[-1] if logged else newest
    trained = {name: value for name, value in newest.items() if name.startswith('train/')}
    speed = meter.images_per_second() or newest.get('time/images_per_second')
    write_results(start, state, trained | {'images_per_second': speed} | found)
    if best.step:
        checkpoints.only(best.step)


def solve(start: Start) -> int:
    """Lets a task that does not train step by step find its state; returns the exit code 0."""
    start.goodput.spent('start')
    with contextlib.closing(MetricLog(start.workdir, 0)) as log:
        state, numbers = start.task.solve(start.state, log)
    start.goodput.spent('training')
    start.checkpoints.save(state)
    start.checkpoints.wait()
    start.goodput.spent('checkpoint')
    found = start.task.results(state, numbers, {})
    start.goodput.spent('evaluation')
    start.checkpoints.only(int(state.step))  # not one that an earlier start left before its results
    write_results(start, state, found)
    return 0


def write_results(start: Start, state, found: dict) -> None:
    """Writes results.json, from process 0: what every run says, and what was found."""
    start.goodput.write()
    start.goodput.tell()
    config, data = start.config, start.data
    known = known_labels(data.splits['train'].labels) | (not hasattr(start.method, 'labels'))
    if jax.process_index() == 0:
        results.write(
            start.workdir,
            config.task,
            (about(config, data, start.proved) if start.task.uses_labels else {})
            | {
                'task': config.task,
                'step': int(state.step),
                'label_names': list(data.label_names),
                'labels_without_score': [
                    name for name, is_known in zip(data.label_names, known) if not is_known
                ],
                'data/train_hash': data.splits['train'].hash,
                'device': parallel.device_name(),
                'version': __version__,
                'code': start.checkpoints.code,
            }
            | found
            | start.goodput.shares(),
        )
    say(f'finished at step {int(state.step)}; results in {start.results}')
