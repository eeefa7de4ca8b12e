"""A grid of runs, each a process of main.py in a folder of its own, and the tables that they fill.

    <workdir>/pretrained/<method>_<seed>/   encoders that the grid trains
    <workdir>/runs/<name>/                  downstream runs; <name>.log beside one is its output
    <workdir>/tables/                       the tables, written anew as runs end

A run is done when its results.json is there. The same command goes on after any kill: main.py
resumes a run that is half done. This process uses no accelerator, which is its runs' to use.
"""

import collections
import contextlib
import ctypes
import dataclasses
import fcntl
import json
import math
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from absl import flags
from flax import traverse_util
from ml_collections import config_flags

from mlvicx_jax import config as configs
from mlvicx_jax.data import prepare
from mlvicx_jax.errors import UserError, first_line
from mlvicx_jax.grid import tables
from mlvicx_jax.run import folder as workdirs
from mlvicx_jax.terminal import duration

STOPPED = os.EX_TEMPFAIL  # exit code after SIGTERM or Ctrl-C, as that of a training run
GRACE = 120.0  # seconds that runs get to save before they are killed
TABLES_EVERY = 30.0  # seconds between two writings of the tables while runs end
# Fields of a run that may differ between two starts of a grid: no number depends on them.
FREE = (
    *workdirs.FREE,
    'log_every_steps',
    'watchdog_seconds',
    'checkpoint.every_steps',
    'checkpoint.keep_last',
    'checkpoint.keep_every',
)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclasses.dataclass(eq=False)
class Job:
    """One process of main.py.

    Attributes:
        name: for the terminal.
        kind: jobs of one kind take about as long as each other.
        folder: its workdir.
        words: its command line behind main.py.
        config: what main.py will make of them.
        cell: its place in the tables; None for a pretraining.
        after: the job that trains its encoder, or None.
    """

    name: str
    kind: str
    folder: pathlib.Path
    words: list[str]
    config: dict
    cell: tables.Cell | None = None
    after: 'Job | None' = None

    @property
    def done(self) -> bool:
        return (self.folder / 'results.json').exists()

    @property
    def log(self) -> pathlib.Path:
        return self.folder.with_name(f'{self.folder.name}.log')


def run(config, workdir: str | os.PathLike, command: Sequence[str]) -> int:
    """Runs what of the grid is not done, writes the tables and prints them.

    Args:
        config: of configs/tables.py.
        workdir: the grid's folder.
        command: starts main.py; a run's own flags are put behind it.

    Returns:
        0 when every run is done, 1 when one has failed, `STOPPED` after SIGTERM or Ctrl-C.

    Raises:
        UserError: the config makes no grid; a folder holds a run of another config; another grid is
            at work in `workdir`; runs that can not stand in one table.
    """
    workdir = pathlib.Path(workdir)
    check(config)
    jobs = plan(config, workdir)
    with _lock(workdir) as lock:
        for job in jobs:
            refuse_another_config(job)
        book = _Book(config, workdir, jobs)
        todo = [job for job in jobs if not job.done]
        _say(
            f'{len(jobs)} runs in {workdir}, {len(jobs) - len(todo)} of them done; the output of '
            'each is in the .log beside its folder'
        )
        _prepare(todo)
        with _Stop() as stop:
            failed = _work(todo, command, config.grid.parallel, lock, stop, book)
            book.write()
    for table in book.tables:
        if table.name != 'table1':  # as wide as there are classes: in its file
            _say('\n' + tables.markdown(table))
    for job, reason in failed.items():
        _say(f'failed: {job.name}: {reason}')
    if stop.asked:
        left = sum(not job.done for job in jobs)
        _say(f'stopped; {left} of {len(jobs)} runs are left, run the same command to go on')
        return STOPPED
    _say(f'tables in {book.folder}: ' + ', '.join(f'{table.name}.html' for table in book.tables))
    return 1 if failed else 0


def check(config) -> None:
    """Raises a UserError for a config that makes no grid."""
    grid = config.grid
    methods = [*grid.inits, *grid.pretrain]
    shares = [share for of_task in grid.fractions.values() for share in of_task]
    rules = (
        (
            'grid.inits and grid.pretrain',
            sorted(methods),
            bool(methods) and len(set(methods)) == len(methods),
            'one method or more, each named once',
        ),
        ('grid.sets', list(grid.sets), bool(len(grid.sets)), 'one set or more'),
        (
            'names in grid.sets, grid.inits and grid.pretrain',
            sorted([*grid.sets, *methods]),
            all(re.fullmatch(r'[\w.+-]+', name) for name in [*grid.sets, *methods]),
            'letters, digits and . _ + -: folders are called by them',
        ),
        (
            'grid.protocols',
            grid.protocols,
            bool(grid.protocols) and set(grid.protocols) <= set(configs.PROTOCOLS),
            f'some of {", ".join(configs.PROTOCOLS)}',
        ),
        ('grid.fractions', shares, all(0 < share <= 1 for share in shares), 'shares above 0, at most 1'),
        (
            'grid.seeds',
            grid.seeds,
            bool(grid.seeds)
            and len(set(grid.seeds)) == len(grid.seeds)
            and all(isinstance(seed, int) and seed >= 0 for seed in grid.seeds),
            'one or more whole numbers, none twice',
        ),
        ('grid.parallel', grid.parallel, grid.parallel >= 1, '1 or more'),
        (
            'tables.reference',
            config.tables.reference,
            config.tables.reference in methods,
            f'one of the methods {", ".join(methods)}',
        ),
    )
    for field, value, holds, expected in rules:
        if not holds:
            raise UserError(f'config.{field} is {value!r}, expected {expected}')


def plan(config, workdir: pathlib.Path) -> list[Job]:
    """All jobs, a seed after the other, so that a long grid soon has every number once.

    Raises:
        UserError: a recipe or flag that main.py would refuse, or a set that is no downstream task.
    """
    grid = config.grid
    shared = shlex.split(grid.overrides)
    jobs = []
    for seed in grid.seeds:
        encoders = {name: (None, _with_seed(init, seed)) for name, init in grid.inits.items()}
        for name, recipe in grid.pretrain.items():
            folder = workdir / 'pretrained' / f'{name}_{seed}'
            recipe, *own = shlex.split(recipe)
            words = [f'--config={recipe}', *own, f'--config.seed={seed}', *shared]
            parsed = _parse(words)
            job = Job(f'pretrain {name} seed {seed}', f'pretrain {name}', folder, words, parsed)
            jobs.append(job)
            # Bottlenecks are used downstream where the encoder was trained with them.
            encoders[name] = job, [str(folder), f'--config.model.context={parsed["model"]["context"]}']
        for set_name, recipe in grid.sets.items():
            for protocol in grid.protocols:
                task = _task(recipe, set_name)
                for share in grid.fractions.get(task, ()):
                    for name, (after, init) in encoders.items():
                        cell = tables.Cell(set_name, task, protocol, float(share), name, seed)
                        jobs.append(_job(cell, recipe, init, after, shared, workdir))
    return jobs


def _job(cell, recipe, init, after, shared, workdir) -> Job:
    recipe, *own = shlex.split(recipe)
    joint = ',' if ':' in recipe else ':'
    path, *flags_of_init = init
    words = [
        f'--config={recipe}{joint}protocol={cell.protocol},fraction={cell.share:g}',
        *own,
        f'--config.init={path}',
        *flags_of_init,
        f'--config.seed={cell.seed}',
        *shared,
    ]
    share = f'{100 * cell.share:g} %'
    return Job(
        f'{cell.set} {cell.protocol} {share} {cell.method} seed {cell.seed}',
        f'{cell.set} {cell.protocol} {share}',
        workdir
        / 'runs'
        / '-'.join((cell.set, cell.protocol, f'{cell.share:g}', cell.method, f'seed{cell.seed}')),
        words,
        _parse(words),
        cell,
        after,
    )


def _with_seed(init: str, seed: int) -> list[str]:
    """[path, flags ...] of a value of `grid.inits`; the path is '' for random weights."""
    words = shlex.split(init.replace('{seed}', str(seed)))
    return words if words and not words[0].startswith('--') else ['', *words]


def _task(recipe: str, name: str) -> str:
    task = _parse([f'--config={shlex.split(recipe)[0]}', *shlex.split(recipe)[1:]])['task']
    if task not in ('classify', 'segment'):
        raise UserError(
            f'config.grid.sets.{name} is {recipe}, whose task is {task}; expected a '
            'recipe of configs/classify.py or configs/segment.py'
        )
    return task


def _parse(words: list[str]) -> dict:
    """The config that main.py makes of a command line, as its config.json has it."""
    values, words = flags.FlagValues(), ['main.py', *words]
    holder = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=words)
    try:
        values(words)
        found = values[holder.name].value
        configs.check(found)
        return json.loads(found.to_json_best_effort())
    except UserError as error:
        raise UserError(f'{shlex.join(words)}: {error}') from error
    except Exception as error:  # whatever a recipe and ml_collections raise
        raise UserError(
            f'{shlex.join(words)}: {first_line(error)}; mend config.grid, this is what it would run'
        ) from error


def refuse_another_config(job: Job) -> None:
    """Raises a UserError where a folder holds a run of another config than the grid asks for."""
    path = job.folder / 'config.json'
    begun = job.done or (job.folder / 'metrics.jsonl').exists()
    if not begun:
        return
    try:
        old = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f'{path}: can not be read ({first_line(error)}), so nobody knows what the '
            f'run in {job.folder} is of; delete that folder'
        ) from error
    flat = [workdirs.LATER | traverse_util.flatten_dict(config, sep='.') for config in (old, job.config)]
    changed = [line for field, line in workdirs.differences(*flat).items() if field not in FREE]
    if changed:
        raise UserError(
            f'{job.folder} holds a run of another config: {"; ".join(changed)}. Delete '
            'that folder to run it again, give the grid the old values, or a new '
            '--workdir'
        )


def _prepare(jobs: list[Job]) -> None:
    """Prepares each data set that the jobs need, once."""
    seen = set()
    for job in jobs:
        data = job.config['data']
        options = {'size': data['stored_size'], **data['options']}
        place = data['name'], data['data_dir'], data['manual_dir']
        key = *place, json.dumps(options, sort_keys=True)
        if key not in seen:
            seen.add(key)
            prepare.prepare(*place, options)


def _work(todo, command, parallel, lock, stop, book) -> dict[Job, str]:
    """Runs the jobs, `parallel` at a time; returns those that failed and why."""
    waiting, running, failed = collections.deque(todo), {}, {}
    clock = _Clock(todo, parallel)
    try:
        while (waiting or running) and not stop.asked:
            for job in list(waiting):
                if job.after in failed:
                    waiting.remove(job)
                    failed[job] = f'not run, since "{job.after.name}" failed'
                elif len(running) < parallel and (job.after is None or job.after.done):
                    waiting.remove(job)
                    running[_start(job, command, lock)] = job, time.monotonic()
            time.sleep(0.05)
            for process, (job, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[process]
                seconds = time.monotonic() - began
                clock.ended(job, seconds)
                said = f'{duration(seconds)}  {clock.left()}'
                if process.returncode == 0 and job.done:
                    _say(f'{clock.place()} {job.name}  {book.enter(job)}  {said}')
                elif not stop.asked:  # else it was told to stop, too
                    failed[job] = f'exit code {process.returncode}: {_last_line(job.log)}; {job.log}'
                    _say(f'{clock.place()} {job.name}  FAILED  {said}')
    finally:
        _end(running, stop)
    return failed


def _start(job: Job, command, lock) -> subprocess.Popen:
    """Starts a job in a session of its own, its output appended to its log.

    It inherits the lock, so that the folder stays taken as long as any run of it is alive, and on
    Linux it is killed with this process.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    words = [*command, *job.words, f'--workdir={job.folder}']
    with job.log.open('ab') as log:
        log.write(f'$ {shlex.join(words)}\n'.encode())
        log.flush()
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock,),
            preexec_fn=_die_with,
        )


_PRCTL = getattr(ctypes.CDLL(None), 'prctl', None) if sys.platform == 'linux' else None


def _die_with() -> None:
    """In a child before its program: SIGKILL when the thread that started it ends."""
    if _PRCTL:
        _PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(running, stop) -> None:
    """SIGTERM to what still runs, so that it saves, then SIGKILL; to whole process groups."""
    for process in running:
        _signal(process, signal.SIGTERM)
    until = time.monotonic() + GRACE
    for process in running:
        while process.poll() is None and time.monotonic() < until and stop.times < 2:
            time.sleep(0.05)
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process, number) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _last_line(path: pathlib.Path) -> str:
    lines = [line.strip() for line in path.read_text(errors='replace').splitlines()]
    return next((line[:300] for line in reversed(lines) if line), 'no output')


class _Book:
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
        return tables.headline(self._runs[job.cell])

    def write(self) -> None:
        self.tables = tables.fill(
            [job.cell for job in self._jobs], self._runs, self._config.reference, self._config.ablation
        )
        tables.write(self.folder, self.tables)
        self._written = time.monotonic()

    def _read(self, job):
        self._runs[job.cell] = tables.read_run(job.folder, job.cell)


class _Clock:
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


class _Stop:
    """SIGTERM and Ctrl-C as a wish that is looked at between two things; a second one is urgent."""

    def __enter__(self):
        self.times = 0
        self._before = {
            number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        self.times += 1

    @property
    def asked(self) -> bool:
        return self.times > 0


@contextlib.contextmanager
def _lock(workdir: pathlib.Path) -> Iterator[int]:
    """Holds the folder for this process and its runs; the system lets go when all are dead."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / 'grid.lock').open('w')
    except OSError as error:
        raise UserError(
            f'--workdir={workdir} can not be used ({error.strerror}); give one that you may write to'
        ) from error
    with file:
        for attempt in range(100):  # runs of a grid that was killed take a moment to die
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            raise UserError(
                f'{workdir}: another grid, or a run of one, is at work in this folder; '
                'wait for it, or give another --workdir'
            )
        yield file.fileno()


def _say(line: str) -> None:
    """Not log.say, which asks jax which process this is and so takes the accelerator."""
    print(line, flush=True)
