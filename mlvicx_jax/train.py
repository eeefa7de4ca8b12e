"""The training loop, the only one: data, state, restore, then step, log, evaluate, save, stop."""

import contextlib
import pathlib
import signal
import time

import jax
from clu import parameter_overview
from jax.experimental import multihost_utils

from mlvicx_jax import __version__, methods, optim, parallel, state as states, workdir as workdirs
from mlvicx_jax.checkpoint import Checkpoints
from mlvicx_jax.data import pipeline, source
from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import diagnostics, frozen
from mlvicx_jax.export.initial import initialise
from mlvicx_jax.log import MetricLog, duration, read_metrics, say, write_json
from mlvicx_jax.step import make_train_step

PREEMPTED = 75  # exit code after SIGTERM: saved, run the same command again (sysexits' EX_TEMPFAIL)


def train(config, workdir) -> int:
    """Runs `config` in `workdir`, from its newest checkpoint if it has one; returns the exit code.

    0 when the last step is done, `PREEMPTED` when SIGTERM asked for a stop and the state is saved.
    """
    workdir = pathlib.Path(workdir)
    mesh = parallel.create_mesh(config.batch_size, config.eval.batch_size)
    method = methods.create(config)
    workdirs.claim(workdir, config)
    data = open_data(config)
    split = data.splits['train']

    steps_per_epoch = max(1, len(split) // config.batch_size)
    total_steps = config.total_steps or config.total_epochs * steps_per_epoch
    learning_rate = optim.schedule(config.optim, config.batch_size, steps_per_epoch, total_steps)
    optimizer = optim.create(config.optim, learning_rate)
    state = states.create(method, optimizer, config.seed, parallel.replicated(mesh))
    state = initialise(state, config.init)
    checkpoints = Checkpoints(workdir / 'checkpoints', config.checkpoint.every_steps,
                              config.checkpoint.keep_last, config.checkpoint.keep_every, split.hash)
    announce(config, workdir, mesh, method, state, data, total_steps)

    initial = initial_probe(config, workdir, method, state, data, mesh)
    state = checkpoints.restore(state) or state
    start_step = int(state.step)
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
    meter = Meter(config.batch_size)
    newest, probes, pending = {}, {}, None

    def complete():
        """Fetches the numbers of the step dispatched last, while the next may already run."""
        nonlocal pending, newest
        if pending is None:
            return
        step, metrics, batch, due = pending
        pending = None
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        meter.lap()
        stop_if_not_finite(workdir, step, metrics, split.image_ids[batch['record']])
        if due:
            newest = metrics | levels
            timing = meter.window()
            log.write(step, {f'train/{name}': value for name, value in newest.items()} | timing)
            say(progress(step, total_steps, metrics, timing))

    with contextlib.closing(stream), contextlib.closing(log), contextlib.closing(checkpoints):
        for step in range(start_step + 1, total_steps + 1):
            with meter.waiting():
                batch = next(stream)
            arrays = parallel.to_global({k: batch[k] for k in ('image', 'labels')}, mesh)
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
            evaluating = config.eval_every_steps and (last or step % config.eval_every_steps == 0)
            if saving or evaluating:
                complete()  # a state with a non-finite loss is neither saved nor evaluated
                with meter.pause():
                    if saving:
                        checkpoints.save(state)
                    if evaluating:
                        probes = frozen.evaluate(
                            method.encoder, encoder_variables(state), data, config, mesh)
                        log.write(step, probes)
                        say(compare(step, probes, initial))
            if stopping and not last:
                checkpoints.wait()
                say(f'stopped by SIGTERM; step {step} is saved, run the same command to go on')
                return PREEMPTED
        complete()
        checkpoints.wait()

    if start_step < total_steps:
        results = finish(config, state, newest, probes, initial, meter, split)
        if jax.process_index() == 0:
            write_json(workdir / 'results.json', results)
    say(f'finished at step {total_steps}; results in {workdir / "results.json"}')
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


def announce(config, workdir, mesh, method, state, data, total_steps) -> None:
    """Prints what is about to run, before anything is compiled."""
    say(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    split = data.splits['train']
    device = mesh.devices.flat[0]
    epochs = total_steps * config.batch_size / len(split)
    levels = method.reference_levels(config.batch_size)
    rows = {
        'mlvicx_jax': f'{__version__}, jax {jax.__version__}',
        'devices': f'{mesh.size} x {device.device_kind} ({device.platform}), '
                   f'{jax.process_count()} process(es), mesh {dict(mesh.shape)}',
        'method': f'{config.method.name}, {config.dtype}, views of {config.data.image_size} px',
        'data': f'{data.name}, stored at {data.size} px: ' + ', '.join(
            f'{name} {len(s)} images of {len(set(s.patient_ids.tolist()))} patients'
            for name, s in data.splits.items()),
        'train split': f'sha256 {split.hash[:16]} (image ids)',
        'steps': f'{total_steps} of {config.batch_size} images = {epochs:.1f} epochs',
        'workdir': str(workdir),
    }
    if levels:
        rows['loss levels'] = (
            f'two views that share nothing {levels["level/share_nothing"]:.2f}, '
            f'floor at this batch size {levels["level/floor"]:.2f}')
    say('\n'.join(f'{name:<12} {value}' for name, value in rows.items()))


def initial_probe(config, workdir, method, state, data, mesh) -> dict[str, float]:
    """The line to beat: the encoder before training, given its best chance.

    It is probed as it is, its BatchNorm passing everything through, and with BatchNorm calibrated on
    training images; `probe/auroc_init` and `knn/auroc_init` are the better of the two, chosen by
    the very figure that is reported. Read back where the run already has them.
    """
    if not config.eval_every_steps:
        return {}
    for line in read_metrics(workdir)[:1]:
        if 'probe/auroc_init' in line:
            return {name: value for name, value in line.items() if name != 'step'}
    say('evaluating the initial encoder ...')
    found = [frozen.evaluate(method.encoder, variables, data, config, mesh)
             for variables in frozen.initial_variants(
                 method.encoder, encoder_variables(state), data.splits['train'],
                 config.data.image_size, config.batch_size, mesh)]
    initial = {f'{name}_init': max(tried[name] for tried in found)
               for name in ('probe/auroc', 'knn/auroc')}
    say('initial encoder: probe {probe/auroc_init:.3f}, kNN {knn/auroc_init:.3f} '
        '(mean AUROC)'.format_map(initial))
    return initial


def stop_if_not_finite(workdir, step, metrics, image_ids) -> None:
    """Ends the run on a loss or gradient that is not finite, before it reaches a checkpoint."""
    bad = [name for name in ('loss', 'gradient_norm') if not abs(metrics[name]) < float('inf')]
    if bad:
        path = pathlib.Path(workdir) / f'not_finite_process{jax.process_index()}.json'
        write_json(path, {'step': step, 'metrics': {k: str(v) for k, v in metrics.items()},
                          'image_ids': image_ids.tolist()})
        raise UserError(
            f'{bad[0]} is {metrics[bad[0]]} at step {step}; images {", ".join(image_ids[:3])} ... '
            f'(all in {path}). Lower config.optim.learning_rate or look at these images, then run '
            'the same command: it goes on from the last checkpoint')


def progress(step, total_steps, metrics, timing) -> str:
    """One line: where the run is, how fast, and how the embeddings do."""
    statistics = '  '.join(f'{name} {value:.3g}' for name, value in metrics.items()
                           if name.startswith(('std/', 'rankme/')))
    left = duration((total_steps - step) * timing['time/step_seconds'])
    return (f'step {step}/{total_steps}  loss {metrics["loss"]:.3f}  {statistics}  '
            f'{timing["time/images_per_second"]:.1f} images/s  '
            f'{timing["time/step_seconds"]:.3g} s/step  '
            f'data wait {timing["time/data_wait_share"]:.1%}  left {left}')


def compare(step, probes, initial) -> str:
    """The frozen encoder's probes beside the initial encoder's."""
    parts = [f'{label} {probes[f"{key}/auroc"]:.3f} (initial {initial[f"{key}/auroc_init"]:.3f})'
             for label, key in (('probe', 'probe'), ('kNN', 'knn'))]
    return f'step {step}  mean AUROC of the frozen encoder: ' + ', '.join(parts)


def finish(config, state, metrics, probes, initial, meter, split) -> dict:
    """The final numbers, for results.json."""
    keys = ('probe/auroc', 'probe/auroc_init', 'knn/auroc', 'knn/auroc_init')
    return {key: (probes | initial).get(key) for key in keys} | {
        name: value for name, value in probes.items() if name not in keys} | {
        f'train/{name}': value for name, value in metrics.items()} | {
        'step': int(state.step), 'images_per_second': meter.images_per_second(),
        'eval/split': config.eval.split, 'data/train_hash': split.hash,
        'device': jax.devices()[0].device_kind, 'version': __version__}


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


class Meter:
    """Times training steps; the first, which compiles, and pauses are left out."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._mark = time.perf_counter()
        self._compiled = False
        self._steps = self._seconds = self._wait = 0
        self._window = (0, 0.0, 0.0)

    @contextlib.contextmanager
    def waiting(self):
        """Around the wait for a batch."""
        start = time.perf_counter()
        yield
        self._wait += time.perf_counter() - start

    @contextlib.contextmanager
    def pause(self):
        """Around what is no training: saving and evaluation."""
        yield
        self._mark = time.perf_counter()

    def lap(self) -> None:
        """At the end of a step."""
        now = time.perf_counter()
        if self._compiled:
            self._steps += 1
            self._seconds += now - self._mark
        else:
            say(f'first step after {duration(now - self._mark)} (compilation included)')
            self._compiled, self._wait = True, 0.0
        self._mark = now

    def window(self) -> dict[str, float]:
        """Means since the last call (of the first step alone: zeros, there is nothing to average)."""
        steps, seconds, wait = (
            a - b for a, b in zip((self._steps, self._seconds, self._wait), self._window))
        self._window = (self._steps, self._seconds, self._wait)
        return {'time/images_per_second': steps * self._batch_size / seconds if steps else 0.0,
                'time/step_seconds': seconds / steps if steps else 0.0,
                'time/data_wait_share': wait / seconds if steps else 0.0}

    def images_per_second(self) -> float | None:
        """Over the whole run; a pair of views counts as one image. None before the second step."""
        return self._steps * self._batch_size / self._seconds if self._steps else None
