"""What a start of a run begins with; whatever makes the run impossible is refused here, before it computes.

First what the config alone tells, then what the data tell, then the folder's checkpoints.
"""

import dataclasses
import pathlib
from typing import Any

import jax

from mlvicx_jax import durations, methods, optim, parallel, tasks
from mlvicx_jax import state as states
from mlvicx_jax.checkout import code_hash
from mlvicx_jax.data.opening import open_data
from mlvicx_jax.data.records import records_hash
from mlvicx_jax.data.source import RadiographSet
from mlvicx_jax.durations import Clock
from mlvicx_jax.run import folder
from mlvicx_jax.run.best import Best
from mlvicx_jax.run.checkpoints import Checkpoints
from mlvicx_jax.run.goodput import Goodput
from mlvicx_jax.tasks.shared.base import BaseTask
from mlvicx_jax.weights import initial as weights


@dataclasses.dataclass
class Start:
    """What a start of a run begins with.

    Attributes:
        config: with the fields that follow from others.
        state: initial, with the weights of `config.init`; the training goes on from `restored`.
        restored: of the newest checkpoint; None where there is none.
        proved: `weights.initial.proof` of the initial state.
    """

    config: Any
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    data: RadiographSet
    method: Any
    task: BaseTask
    clock: Clock
    optimizer: Any
    state: states.TrainState | None
    proved: dict | None
    checkpoints: Checkpoints
    best: Best
    goodput: Goodput
    restored: states.TrainState | None = None

    @property
    def step(self) -> int:
        return 0 if self.restored is None else int(self.restored.step)

    @property
    def finished(self) -> bool:
        """Whether an earlier start has written the results of a run that is no longer than this one."""
        done = self.task.solves or self.best.step or self.step >= self.clock.total_steps
        return bool(done) and self.results.exists()

    @property
    def results(self) -> pathlib.Path:
        return self.workdir / 'results.json'


def begin(config, workdir: pathlib.Path, goodput: Goodput) -> Start:
    """Refuses what can not run: first what the config tells, then the data, then the folder."""
    task_class = tasks.find(config)
    durations.check(config)
    config = task_class.settle(config)
    if config.method.get('labels') == 0:
        config.method.labels = _earlier_labels(workdir)
    mesh = parallel.create_mesh(
        config.eval.batch_size if task_class.solves else config.batch_size,
        config.eval.batch_size,
        config.accumulation,
    )
    check_network(config)
    parallel.agree(config=folder.identity(config), code=code_hash())
    is_whole = config.method.get('labels') != 0  # a config.json has to say how many
    if is_whole:
        folder.claim(workdir, config)
    data = open_data(config)
    records = records_hash(data)
    parallel.agree(
        **{f'data set ({name})': part.hash for name, part in data.splits.items()},
        content_of_the_data_set=records,
    )
    config = task_class.settle_with(config, data)
    method = methods.create(config)
    task = task_class(config, workdir, method, data, mesh)
    clock = durations.clock(config, task.batch_size(), len(data.splits['train']))
    task.check(clock.steps_per_evaluation is not None)
    if not is_whole:
        folder.claim(workdir, config)

    optimizer = optim.create(config.optim, clock.batch_size, clock.steps_per_epoch, clock.total_steps)
    state = states.create(method, optimizer, config.seed, parallel.replicated(mesh))
    state = weights.initialise(state, config.init, whole=task.uses_labels)
    checkpoints = Checkpoints(
        workdir / 'checkpoints',
        durations.steps(config.checkpoint, 'checkpoint', 'every', clock) or 0,
        config.checkpoint.keep_last,
        durations.steps(config.checkpoint, 'checkpoint', 'keep_every', clock) or 0,
        data.splits['train'].hash,
        records,
        folder.fixed(config),
    )
    patience = durations.steps(config.early_stopping, 'early_stopping', 'patience', clock)
    best = Best(task.monitor, patience)
    start = Start(
        config, workdir, mesh, data, method, task, clock, optimizer, state,
        weights.proof(state, config.init), checkpoints, best, goodput,
    )  # fmt: skip
    start.restored = checkpoints.restore(state)
    goodput.resume(start.step)
    best.resume(workdir, start.step)
    if best.step:
        checkpoints.pin(best.step)
    return start


def check_network(config) -> None:
    """Raises a UserError for a method, a part of it or an `init` that is wrong whatever the data are."""
    config = config.copy_and_resolve_references()
    if config.method.get('labels') == 0:
        config.method.labels = 1  # any number will do
    method = methods.create(config)
    if config.optim.constant or config.optim.frozen:
        variables, _ = jax.eval_shape(method.init, jax.random.key(0))
        optim.check_parts(config.optim, variables['params'])
    if config.init:
        weights.read(config.init)


def _earlier_labels(workdir: pathlib.Path) -> int:
    """The number of labels of the run that was begun in the folder; 0 where there is none."""
    begun = [(workdir / name).exists() for name in ('metrics.jsonl', 'config.json')]
    if not all(begun):
        return 0
    return folder.read_config(workdir).get('method', {}).get('labels', 0)
