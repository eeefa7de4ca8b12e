"""The training loop, the only one: data, state, restore, then step, log, evaluate, save, stop."""

import contextlib
import math
import pathlib
import signal

import jax
from jax.experimental import multihost_utils

from mlvicx_jax import __version__, methods, optim, parallel, progress
from mlvicx_jax import state as states, workdir as workdirs
from mlvicx_jax.checkpoint import Checkpoints
from mlvicx_jax.data import pipeline, source
from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import diagnostics, frozen
from mlvicx_jax.export.initial import initialise
from mlvicx_jax.goodput import Goodput
from mlvicx_jax.log import MetricLog, read_metrics, say, write_json
from mlvicx_jax.step import make_train_step
from mlvicx_jax.watchdog import Watchdog

PREEMPTED = 75  # exit code after SIGTERM: saved, run the same command again (sysexits' EX_TEMPFAIL)


def train(config, workdir) -> int:
    """Runs `config` in `workdir`, from its newest checkpoint if it has one; returns the exit code.

    0 when the last step is done, `PREEMPTED` when SIGTERM asked for a stop and the state is saved.
    """
    workdir = pathlib.Path(workdir)
    goodput = Goodput(workdir)
    mesh = parallel.create_mesh(config.batch_size, config.eval.batch_size)
    method = methods.create(config)
    parallel.agree(config=workdirs.identity(config), code=workdirs.code_hash())
    workdirs.claim(workdir, config)
    data = open_data(config)
    split = data.splits['train']
    parallel.agree(**{f'data set ({name})': part.hash for name, part in data.splits.items()})

    steps_per_epoch = max(1, len(split) // config.batch_size)
    total_steps = config.total_steps or config.total_epochs * steps_per_epoch
    length = config.batch_size, steps_per_epoch, total_steps
    optimizer = optim.create(config.optim, *length)
    learning_rate = optim.schedule(config.optim, *length, config.optim.final_factor)
    state = states.create(method, optimizer, config.seed, parallel.replicated(mesh))
    state = initialise(state, config.init)
    checkpoints = Checkpoints(workdir / 'checkpoints', config.checkpoint.every_steps,
                              config.checkpoint.keep_last, config.checkpoint.keep_every, split.hash)
    progress.announce(config, workdir, mesh, method, state, data, total_steps)

    initial = initial_probe(config, workdir, method, state, data, mesh)
    state = checkpoints.restore(state) or state
    start_step = int(state.step)
    goodput.resume(start_step)
    if start_step:
        say(f'resumed from {checkpoints.directory / str(start_step)}')

    train_step = make_train_step(method, optimizer, mesh, config.seed, total_steps)
    levels = method.reference_levels(config.batch_size)
    stream = pipeline.train_batches(
        split, config.batch_size, config.seed, start_step, jax.process_index(),
        jax.process_count(), config.data.num_threads, config.data.num_workers,
        config.data.prefetch)
    log = MetricLog(workdir, start_step)
    if not start_step:
        log.write(0, initial)
    stop = StopRequest()
    guard = NonFiniteGuard(workdir, config.max_skipped_steps)
    meter = progress.Meter(config.batch_size, goodput)
    watchdog = Watchdog(workdir, config.watchdog_seconds)
    pending = None

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

    def evaluate():
        probes = frozen.evaluate(method.encoder, encoder_variables(state), data, config, mesh)
        log.write(int(state.step), probes)
        say(progress.compare(int(state.step), probes, initial))
        return probes

    goodput.spent('start')
    with (contextlib.closing(stream), contextlib.closing(log), contextlib.closing(checkpoints),
          watchdog):
        for step in range(start_step + 1, total_steps + 1):
            with meter.waiting():
                batch = next(stream)
            arrays = parallel.to_global({k: batch[k] for k in ('image', 'labels')}, mesh)
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
            evaluating = config.eval_every_steps and step % config.eval_every_steps == 0 and not last
            if saving or evaluating:
                complete()
            # What a divergence began with is no state to go back to.
            if saving and (last or not guard.skipping):
                with meter.pause('checkpoint'):
                    checkpoints.save(state)
                goodput.saved(step)
            if evaluating:
                with meter.pause('evaluation'):
                    evaluate()
            if stopping and not last:
                checkpoints.wait()
                saved = checkpoints.newest()
                say(f'stopped by SIGTERM; step {saved} is saved, run the same command to go on')
                return PREEMPTED
        with meter.pause('checkpoint'):
            checkpoints.wait()
        results = workdir / 'results.json'
        if start_step < total_steps or not results.exists():
            with meter.pause('evaluation'):
                probes = evaluate() if config.eval_every_steps else {}
            goodput.write()
            goodput.tell()
            if jax.process_index() == 0:
                newest = [line for line in read_metrics(workdir) if 'train/loss' in line][-1]
                write_json(results, finish(config, state, newest, probes, initial, meter, data)
                           | goodput.shares())
    say(f'finished at step {total_steps}; results in {results}')
    return 0


def open_data(config) -> source.RadiographSet:
    """Opens the data set, prepared by the first process alone if it has to be."""
    arguments = dict(config.data)
    arguments = {name: arguments[name] for name in (
        'name', 'data_dir', 'manual_dir', 'validation_fraction', 'split_seed')}
    options = {'size': config.data.stored_size, **config.data.options}
    if jax.process_index() == 0:
        data = source.open_dataset(**arguments, options=options)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices('data set prepared')
        if jax.process_index():
            data = source.open_dataset(**arguments, options=options)
    return data


def encoder_variables(state) -> dict:
    """The encoder's own part of the state."""
    return {'params': state.params['encoder'], 'batch_stats': state.batch_stats['encoder']}


def initial_probe(config, workdir, method, state, data, mesh) -> dict[str, float]:
    """The lines to beat: the encoder before training, in both readings of its BatchNorm.

    `probe/auroc_init` and `knn/auroc_init` are those with BatchNorm calibrated on training images,
    `..._init_uncalibrated` those of the encoder exactly as it was initialised. Read back where the
    run already has them.
    """
    if not config.eval_every_steps:
        return {}
    for line in read_metrics(workdir)[:1]:
        if 'probe/auroc_init' in line:
            return {name: value for name, value in line.items() if name != 'step'}
    say('evaluating the initial encoder ...')
    readings = frozen.initial_readings(
        method.encoder, encoder_variables(state), data.splits['train'], config.data.image_size,
        config.batch_size, mesh)
    initial = {}
    for reading, variables in readings.items():
        found = frozen.evaluate(method.encoder, variables, data, config, mesh)
        suffix = 'init' if reading == 'calibrated' else f'init_{reading}'
        initial |= {f'{name}_{suffix}': found[name] for name in ('probe/auroc', 'knn/auroc')}
        say(f'initial encoder, BatchNorm {reading}: probe {found["probe/auroc"]:.3f}, '
            f'kNN {found["knn/auroc"]:.3f} (mean AUROC)')
    return initial


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
        self._reports.append({'step': step, 'metrics': {k: str(v) for k, v in metrics.items()},
                              'image_ids': image_ids.tolist()})
        write_json(self._path, self._reports)
        what = (f'{bad} is {metrics[bad]} at step {step}; images {", ".join(image_ids[:3])} ... '
                f'(all in {self._path})')
        if metrics['skipped'] < self._most:
            say(f'{what}; this step is skipped')
            return
        raise UserError(
            f'{what}, as in the {self._most - 1} steps before it. Lower config.optim.learning_rate or '
            'look at these images, then run the same command: it goes on from the last checkpoint')


def finish(config, state, metrics, probes, initial, meter, data) -> dict:
    """The final numbers, for results.json: those of the last step, and what they were made on."""
    keys = [f'{probe}/auroc{which}' for probe in ('probe', 'knn')
            for which in ('', '_init', '_init_uncalibrated')]
    speed = meter.images_per_second() or metrics.get('time/images_per_second')
    return {key: (probes | initial).get(key) for key in keys} | probes | {
        name: value for name, value in metrics.items() if name.startswith('train/')} | {
        'step': int(state.step), 'images_per_second': speed,
        'eval/split': config.eval.split, 'data/eval_hash': data.splits[config.eval.split].hash,
        'data/train_hash': data.splits['train'].hash,
        'device': parallel.device_name(), 'version': __version__}


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
