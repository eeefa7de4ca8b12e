"""The training loop, the only one: data, state, restore, then step, log, evaluate, save, stop."""

import contextlib
import importlib
import math
import pathlib
import signal

import jax
from jax.experimental import multihost_utils

from mlvicx_jax import __version__, methods, optim, parallel
from mlvicx_jax import state as states
from mlvicx_jax.data import pipeline, resident
from mlvicx_jax.data.opening import open_data
from mlvicx_jax.data.records import records_hash
from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import diagnostics
from mlvicx_jax.files import write_json
from mlvicx_jax.run import best as downstream
from mlvicx_jax.run import folder as workdirs
from mlvicx_jax.run import progress
from mlvicx_jax.run.checkpoints import Checkpoints
from mlvicx_jax.run.goodput import Goodput
from mlvicx_jax.run.metrics import MetricLog, read_metrics
from mlvicx_jax.run.watchdog import Watchdog
from mlvicx_jax.step import make_train_step
from mlvicx_jax.terminal import say
from mlvicx_jax.weights.initial import initialise, proof

PREEMPTED = 75  # exit code after SIGTERM: saved, run the same command again (sysexits' EX_TEMPFAIL)
EVALUATIONS = {'pretrain': 'pretrain', 'classify': 'classify', 'segment': 'segment'}


def train(config, workdir) -> int:
    """Runs `config` in `workdir`, from its newest checkpoint if it has one; returns the exit code.

    0 when the last step is done, or validation has stopped to improve, `PREEMPTED` when SIGTERM
    asked for a stop and the state is saved.
    """
    workdir = pathlib.Path(workdir)
    goodput = Goodput(workdir)
    mesh = parallel.create_mesh(config.batch_size, config.eval.batch_size, config.accumulation)
    method = methods.create(config)
    parallel.agree(config=workdirs.identity(config), code=workdirs.code_hash())
    workdirs.claim(workdir, config)
    data = open_data(config)
    split = data.splits['train']
    records = records_hash(data)
    parallel.agree(
        **{f'data set ({name})': part.hash for name, part in data.splits.items()},
        content_of_the_data_set=records,
    )
    batch_size = fitting_batch(config, len(split))

    steps_per_epoch = max(1, len(split) // batch_size)
    total_steps = config.total_steps or config.total_epochs * steps_per_epoch
    evaluate_every = config.eval_every_steps or config.eval_every_epochs * steps_per_epoch
    length = batch_size, steps_per_epoch, total_steps
    optimizer = optim.create(config.optim, *length)
    learning_rate = optim.schedule(config.optim, *length, config.optim.final_factor)
    state = states.create(method, optimizer, config.seed, parallel.replicated(mesh))
    state = initialise(state, config.init, whole=config.task != 'pretrain')
    proved = proof(state, config.init)
    checkpoints = Checkpoints(
        workdir / 'checkpoints',
        config.checkpoint.every_steps,
        config.checkpoint.keep_last,
        config.checkpoint.keep_every,
        split.hash,
        records,
    )
    progress.announce(config, workdir, mesh, method, state, data, total_steps)
    pictures, with_pictures = resident.hold(split, config.data.resident, mesh, config.data.num_threads)

    module = importlib.import_module(f'mlvicx_jax.tasks.{EVALUATIONS[config.task]}')
    evaluation = module.Evaluation(config, workdir, method, data, mesh)
    initial = evaluation.initial(state) if evaluate_every else {}
    state = checkpoints.restore(state) or state
    start_step = int(state.step)
    goodput.resume(start_step)
    if start_step:
        say(f'resumed from {checkpoints.directory / str(start_step)}')
    results = workdir / 'results.json'
    best = downstream.Best(evaluation.monitor, config.early_stopping.patience)
    best.resume(workdir, start_step)
    if best.step:
        checkpoints.pin(best.step)
    chosen = bool(best.step) and results.exists()  # nothing is left but the best

    train_step = make_train_step(method, optimizer, mesh, config.seed, total_steps, config.accumulation)
    levels = method.reference_levels(config.batch_size)
    stream = pipeline.train_batches(
        split,
        batch_size,
        config.seed,
        start_step,
        jax.process_index(),
        jax.process_count(),
        config.data.num_threads,
        config.data.num_workers,
        config.data.prefetch,
        pictures,
    )
    log = MetricLog(workdir, start_step)
    if not start_step:
        log.write(0, initial)
    stop = StopRequest()
    guard = NonFiniteGuard(workdir, config.max_skipped_steps)
    meter = progress.Meter(batch_size, goodput)
    watchdog = Watchdog(workdir, config.watchdog_seconds)
    pending, numbers = None, None

    def complete():
        """Fetches the numbers of the step dispatched last, while the next may already run."""
        nonlocal pending
        if pending is None:
            return
        step, metrics, batch, due = pending
        pending = None
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        meter.lap()
        guard.check(step, metrics, split.image_ids[batch['record']])
        if due:
            timing = meter.window()
            log.write(step, {f'train/{k}': v for k, v in (metrics | levels).items()} | timing)
            say(progress.line(step, total_steps, metrics, timing))
            goodput.write()

    def evaluation_due(step):
        return bool(evaluate_every) and (step % evaluate_every == 0 or step == total_steps)

    def evaluate():
        step = int(state.step)
        with meter.pause('evaluation'):
            found = evaluation.at(state, step)
        log.write(step, found)
        if best.found(step, found):
            checkpoints.pin(step)
        return found

    goodput.spent('start')
    with contextlib.closing(stream), contextlib.closing(log), contextlib.closing(checkpoints), watchdog:
        if start_step and evaluation_due(start_step) and not was_evaluated(workdir, start_step):
            numbers = evaluate()
        for step in range(start_step + 1, total_steps + 1):
            if chosen or best.waited_enough:
                break
            with meter.waiting():
                batch = next(stream)
            arrays = with_pictures(
                parallel.to_global({name: array for name, array in batch.items() if name != 'record'}, mesh)
            )
            watchdog.enter(step)
            state, metrics, out = train_step(state, arrays)
            last = step == total_steps
            due = last or step % config.log_every_steps == 0
            if due:
                metrics |= diagnostics.embedding_statistics(out)
                metrics['learning_rate'] = learning_rate(step - 1)
            complete()
            pending = step, metrics, batch, due

            stopping = stop.requested(step)
            saving = last or stopping or checkpoints.due(step)
            # One that SIGTERM leaves no time for is made when the run goes on.
            evaluating = evaluation_due(step) and (last or not stopping)
            if saving or evaluating:
                complete()
            if evaluating:
                numbers = evaluate()
                saving |= best.step == step
            # What a divergence began with is no state to go back to.
            if saving and (last or not guard.skipping):
                with meter.pause('checkpoint'):
                    checkpoints.save(state)
                goodput.saved(step)
            if stopping and not last:
                checkpoints.wait()
                saved = checkpoints.newest()
                say(f'stopped by SIGTERM; step {saved} is saved, run the same command to go on')
                return PREEMPTED
        with meter.pause('checkpoint'):
            checkpoints.wait()
        if start_step < int(state.step) or not results.exists():
            if best.step:
                state, numbers = checkpoints.restore(state, best.step), best.numbers
                if state.step != best.step:
                    raise UserError(
                        f'{checkpoints.directory / str(best.step)}, the best on validation, '
                        'is damaged; restore a copy, or give a new --workdir'
                    )
                say(f'best on validation: step {best.step}, {best}')
            elif evaluate_every and numbers is None:
                numbers = evaluate()
            with meter.pause('evaluation'):
                found = evaluation.results(state, numbers or {}, initial)
            goodput.write()
            goodput.tell()
            if jax.process_index() == 0:
                newest = [line for line in read_metrics(workdir) if 'train/loss' in line][-1]
                write_json(
                    results, about(config, state, newest, meter, data, proved) | found | goodput.shares()
                )
        if best.step:
            checkpoints.only(best.step)
    say(f'finished at step {int(state.step)}; results in {results}')
    return 0


def was_evaluated(workdir, step: int) -> bool:
    """Whether metrics.jsonl has a line of this step's evaluation, beside that of its training."""
    return any(line['step'] == step and 'train/loss' not in line for line in read_metrics(workdir))


def fitting_batch(config, images: int) -> int:
    """The batch size; of a downstream run with fewer images what these allow."""
    parts = jax.device_count() * config.accumulation
    if config.task == 'pretrain' or config.batch_size <= images:
        return config.batch_size
    if images < parts:
        raise UserError(
            f'config.data.labelled.share={config.data.labelled.share} leaves {images} '
            f'images for {parts} devices; take a larger share or fewer devices'
        )
    size = images // parts * parts
    say(f'config.batch_size is {config.batch_size}; the {images} labelled images make it {size}')
    return size


class NonFiniteGuard:
    """Reports the steps that the training step skipped, and ends a run that does little else."""

    def __init__(self, workdir, most: int):
        self._path = pathlib.Path(workdir) / f'not_finite_process{jax.process_index()}.json'
        self._most = most
        self._reports = []
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


def about(config, state, metrics, meter, data, proved) -> dict:
    """What every results.json has: the last training numbers, and what they were made on."""
    made_of = {} if config.task == 'pretrain' else downstream.about(config, data, proved)
    return (
        made_of
        | {name: value for name, value in metrics.items() if name.startswith('train/')}
        | {
            'task': config.task,
            'step': int(state.step),
            'label_names': list(data.label_names),
            'images_per_second': meter.images_per_second() or metrics.get('time/images_per_second'),
            'data/train_hash': data.splits['train'].hash,
            'device': parallel.device_name(),
            'version': __version__,
        }
    )


class StopRequest:
    """Whether SIGTERM has asked this run, on any of its processes, to save and stop."""

    def __init__(self):
        self._received = False
        if jax.process_count() == 1:  # with several, jax's preemption service listens and agrees
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, signum, frame):
        self._received = True

    def requested(self, step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received
