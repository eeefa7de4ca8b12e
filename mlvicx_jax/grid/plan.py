"""Which runs a grid has: of each its folder, its command line and its place in the tables.

<workdir>/pretrained/<method>_<seed>/   encoders that the grid trains
<workdir>/runs/<name>/                  downstream runs; <name>.log beside one is its output
<workdir>/tables/                       the tables, written anew as runs end
"""

import dataclasses
import json
import pathlib
import re
import shlex
from typing import Any

from absl import flags
from flax import traverse_util

from mlvicx_jax import config as configs
from mlvicx_jax import tasks
from mlvicx_jax.errors import UserError, first_line
from mlvicx_jax.grid.cell import Cell
from mlvicx_jax.run import folder as workdirs

# Fields of a run that may differ between two starts of a grid: no number depends on them.
FREE = (
    *workdirs.FREE,
    'log_every_steps',
    'watchdog_seconds',
    'checkpoint.every_steps',
    'checkpoint.keep_last',
    'checkpoint.keep_every',
)


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
    cell: Cell | None = None
    after: 'Job | None' = None

    @property
    def done(self) -> bool:
        return (self.folder / 'results.json').exists()

    @property
    def log(self) -> pathlib.Path:
        return self.folder.with_name(f'{self.folder.name}.log')


def check(config) -> None:
    """Raises a UserError for a config that makes no grid."""
    grid = config.grid
    methods = [*grid.inits, *grid.pretrain]
    names = [*grid.sets, *methods]
    shares = [share for of_task in grid.fractions.values() for share in of_task]
    for field, value, holds, expected in (
        ('grid.inits and grid.pretrain', sorted(methods), _each_once(methods), 'one method or more, each once'),
        ('grid.sets', list(grid.sets), bool(len(grid.sets)), 'one set or more'),
        (
            'names in grid.sets, grid.inits and grid.pretrain',
            sorted(names),
            all(re.fullmatch(r'[\w.+-]+', name) for name in names),
            'letters, digits and . _ + -: folders are called by them',
        ),
        (
            'grid.protocols',
            grid.protocols,
            _each_once(grid.protocols) and set(grid.protocols) <= set(tasks.protocols()),
            f'some of {", ".join(tasks.protocols())}, each once',
        ),
        (
            'grid.fractions',
            shares,
            all(isinstance(share, (int, float)) and 0 < share <= 1 for share in shares),
            'shares above 0, at most 1',
        ),
        ('grid.seeds', grid.seeds, _are_seeds(grid.seeds), 'one or more whole numbers, none twice'),
        (
            'grid.pretrain_seeds',
            grid.pretrain_seeds,
            not grid.pretrain_seeds
            or (len(grid.pretrain_seeds) in (1, len(grid.seeds)) and _are_seeds(grid.pretrain_seeds)),
            'one for all runs, one for each of grid.seeds, or () for these themselves',
        ),
        ('grid.parallel', grid.parallel, grid.parallel >= 1, '1 or more'),
        (
            'tables.reference',
            config.tables.reference,
            config.tables.reference in methods,
            f'one of the methods {", ".join(methods)}',
        ),
    ):
        if not holds:
            raise UserError(f'config.{field} is {value!r}, expected {expected}')


def _each_once(values) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values) and len(set(values)) == len(values)


def _are_seeds(values) -> bool:
    whole = all(isinstance(value, int) and value >= 0 for value in values)
    return bool(values) and whole and len(set(values)) == len(values)


def plan(config, workdir: pathlib.Path) -> list[Job]:
    """All jobs, a seed after the other, so that a long grid soon has every number once.

    Raises:
        UserError: a recipe or flag that main.py would refuse, a set that is no downstream task, or
            two runs whose folders would have one name.
    """
    grid = config.grid
    shared = _words('overrides', grid.overrides)
    tasks = {name: _task(recipe, name) for name, recipe in grid.sets.items()}
    jobs: list[Job] = []
    pretrained: dict[tuple[str, int], Job] = {}
    of_encoder = grid.pretrain_seeds or grid.seeds
    of_encoder = of_encoder if len(of_encoder) > 1 else [of_encoder[0]] * len(grid.seeds)
    for seed, encoder_seed in zip(grid.seeds, of_encoder):
        encoders: dict[str, tuple[Job | None, list[str]]]
        encoders = {name: (None, _init(name, init, encoder_seed)) for name, init in grid.inits.items()}
        for name, recipe in grid.pretrain.items():
            key = name, encoder_seed
            if key not in pretrained:
                pretrained[key] = _pretraining(name, recipe, encoder_seed, shared, workdir)
                jobs.append(pretrained[key])
            job = pretrained[key]
            # Bottlenecks are used downstream where the encoder was trained with them.
            context = job.config['model']['context']
            encoders[name] = job, [str(job.folder), f'--config.model.context={context}']
        for set_name, task in tasks.items():
            recipe = _words(f'sets.{set_name}', grid.sets[set_name])
            for protocol in grid.protocols:
                for share in grid.fractions.get(task, ()):
                    for name, (after, init) in encoders.items():
                        cell = Cell(set_name, task, protocol, float(share), name, seed, encoder_seed)
                        jobs.append(_downstream(cell, recipe, init, after, shared, workdir))
    _refuse_one_folder_for_two(jobs)
    return jobs


def _pretraining(name: str, recipe: str, seed: int, shared: list[str], workdir: pathlib.Path) -> Job:
    recipe, *own = _words(f'pretrain.{name}', recipe)
    words = [f'--config={recipe}', *own, f'--config.seed={seed}', *shared]
    folder = workdir / 'pretrained' / f'{name}_{seed}'
    return Job(f'pretrain {name} seed {seed}', f'pretrain {name}', folder, words, _parse(words))


def _downstream(
    cell: Cell, recipe: list[str], init: list[str], after: Job | None, shared: list[str], workdir: pathlib.Path
) -> Job:
    path, *own = recipe
    joint = ',' if ':' in path else ':'
    weights, *flags_of_init = init
    words = [
        f'--config={path}{joint}protocol={cell.protocol},fraction={cell.share:g}',
        *own,
        f'--config.init={weights}',
        *flags_of_init,
        f'--config.seed={cell.seed}',
        *shared,
    ]
    kind = f'{cell.set} {cell.protocol} {100 * cell.share:g} %'
    name = '-'.join((cell.set, cell.protocol, f'{cell.share:g}', cell.method, f'seed{cell.seed}'))
    return Job(
        f'{kind} {cell.method} seed {cell.seed}',
        kind,
        workdir / 'runs' / name,
        words,
        _parse(words),
        cell,
        after,
    )


def _refuse_one_folder_for_two(jobs: list[Job]) -> None:
    seen: dict[pathlib.Path, Job] = {}
    for job in jobs:
        other = seen.setdefault(job.folder, job)
        if other is not job:
            raise UserError(
                f'config.grid: "{other.name}" and "{job.name}" would both lie in {job.folder}; '
                'rename a set or a method, or leave out one of two shares that are so close'
            )


def _words(field: str, text: str) -> list[str]:
    """The words of a recipe with its flags, as a shell splits them."""
    try:
        words = shlex.split(text)
    except (ValueError, TypeError, AttributeError) as error:  # an open quotation; no text at all
        raise UserError(f'config.grid.{field} is {text!r}: {first_line(error)}; expected words') from error
    if not words and field != 'overrides':
        raise UserError(f'config.grid.{field} is {text!r}, expected a recipe, such as configs/classify.py')
    return words


def _init(name: str, init: str, seed: int) -> list[str]:
    """[path, flags ...] of a value of `grid.inits`; the path is '' for random weights."""
    if not init:
        return ['']
    words = _words(f'inits.{name}', init.replace('{seed}', str(seed)))
    return ['', *words] if words[0].startswith('--') else words


def _task(recipe: str, name: str) -> str:
    path, *own = _words(f'sets.{name}', recipe)
    task = _parse([f'--config={path}', *own])['task']
    if task not in ('classify', 'segment'):
        raise UserError(
            f'config.grid.sets.{name} is {recipe}, whose task is {task}; expected a '
            'recipe of configs/classify.py or configs/segment.py'
        )
    return task


def _parse(words: list[str]) -> dict:
    """The config that main.py makes of a command line, as its config.json has it."""
    values, words = flags.FlagValues(), ['main.py', *words]
    configs.define(values, words)
    try:
        values(words)
        configs.keep_given(values['config'])
        found: Any = values['config'].value
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
    if not (job.done or (job.folder / 'metrics.jsonl').exists()):
        return
    old = workdirs.read_config(job.folder)
    flat = [workdirs.LATER | traverse_util.flatten_dict(config, sep='.') for config in (old, job.config)]
    changed = [line for field, line in workdirs.differences(*flat).items() if field not in FREE]
    if changed:
        raise UserError(
            f'{job.folder} holds a run of another config: {"; ".join(changed)}. Delete '
            'that folder to run it again, give the grid the old values, or a new '
            '--workdir'
        )
