"""The folder of one run: it belongs to one config, and a resume must bring the same."""

import contextlib
import copy
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NotRequired, TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils

from mlvicx_jax.errors import UserError
from mlvicx_jax.files import read_json, write_json
from mlvicx_jax.lock import take
from mlvicx_jax.run.schema import mismatch
from mlvicx_jax.terminal import say

# What makes a run the run it is. The rest (logging, evaluation, checkpoints, length, optimiser) may
# change between two starts, and is said.
FIXED = (
    'task',
    'protocol',
    'method',
    'model',
    'init',
    'views',
    'data',
    'seed',
    'batch_size',
    'accumulation',
    'dtype',
)
# These may not change once the run is finished: config.json must describe what results.json is of.
SETTLED = ('optim', 'early_stopping')
# Where the files lie and how fast they are read may differ between hosts.
OWN = 'data.data_dir', 'data.manual_dir', 'data.num_threads', 'data.num_workers', 'data.prefetch'
# These do not affect results either, but must be the same on all hosts.
FREE = 'model.remat', 'data.resident', *OWN

# Defaults for fields added later, as older runs behaved without them.
LATER = {
    'init': '',
    'model.zero_init_residual': False,
    'task': 'pretrain',
    'accumulation': 1,
    'data.target': [],
    'data.questions': [],
    'data.within': '',
    'data.labelled.share': 1.0,
    'data.labelled.stratified': False,
    'data.labelled.by_patient': False,
    'optim.frozen': [],
    'optim.warmup_steps': None,
    'optim.warmup_examples': None,
    'optim.warmup_percent': None,
    'data.resident': 'none',
}


class Labelled(TypedDict):
    """config.data.labelled: the part of the training images whose labels are used."""

    share: float
    stratified: bool
    by_patient: bool


class Data(TypedDict):
    """config.data, as far as readers of a run look at it."""

    name: str
    stored_size: int
    image_size: int
    options: NotRequired[dict[str, Any]]
    labelled: Labelled
    questions: list[str]
    within: str


class Named(TypedDict):
    """A section with a name."""

    name: str


class Model(TypedDict):
    """config.model, as far as readers of a run look at it."""

    context: bool


class Eval(TypedDict):
    """config.eval, as far as readers of a run look at it."""

    split: str


class Config(TypedDict):
    """config.json, as far as readers of a run look at it."""

    task: str
    protocol: NotRequired[str]
    seed: int
    init: str
    method: Named
    model: Model
    eval: Eval
    data: Data


WAIT = 2.0  # seconds for which a start waits for one before it to end


def alone(run: Callable) -> Callable:
    """A function of (config, workdir) that holds the workdir while it runs: one process at a time.

    Of the processes that train together the first holds it for all.
    """

    @functools.wraps(run)
    def held(config, workdir):
        lock, error = None, None
        if jax.process_index() == 0:
            try:
                pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
                lock = take(pathlib.Path(workdir) / 'run.lock', WAIT)
            except UserError as busy:
                error = busy
            except OSError as refused:
                error = _unusable(workdir, refused)
        if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(error is not None)):
            error = error or UserError(f'{workdir}: process 0 could not take this folder; see what it says')
        if error:
            raise error
        with lock or contextlib.nullcontext():
            return run(config, workdir)

    return held


def claim(workdir: pathlib.Path, config) -> None:
    """Makes the folder this config's own, or checks that it already is.

    A folder where nothing was logged or saved yet belongs to nobody: whoever mended a mistake in
    the config may start again in it.

    Raises:
        UserError: the folder can not be written; it belongs to another config (with the
            differences); it holds a run but no config, or a run whose checkpoints are gone.
    """
    path = workdir / 'config.json'
    new = json.loads(config.to_json_best_effort())
    checkpoints = workdir / 'checkpoints'
    finished = (workdir / 'results.json').exists()
    try:
        begun = (
            finished
            or (workdir / 'metrics.jsonl').exists()
            or (checkpoints.exists() and any(checkpoints.iterdir()))
        )
        if begun and not path.exists():
            raise UserError(
                f'{workdir} holds a run but no config.json to tell whose they are; '
                'give a new --workdir or put the file back'
            )
        if (workdir / 'goodput.json').exists() and not checkpoints.is_dir():  # the training loop makes both
            raise UserError(
                f'{checkpoints} is gone, without which the run would start anew at step 0; put it back, or '
                'give a new --workdir'
            )
        if begun:
            old = read_config(workdir, 'restore it, or give a new --workdir')
            changed = differences(_flat(old), _flat(new))
            final = FIXED + (SETTLED if finished else ())
            fixed = [line for name, line in changed.items() if name.split('.')[0] in final and name not in FREE]
            if fixed:
                raise UserError(
                    f'{workdir} belongs to a run of another config: {"; ".join(fixed)}. '
                    'Give the old values, or a new --workdir'
                )
            for line in changed.values():
                say(f'changed since the last start: {line}')
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(path, new)
    except OSError as error:
        raise _unusable(workdir, error) from error


def _unusable(workdir, error: OSError) -> UserError:
    return UserError(f'--workdir={workdir} can not be used ({error.strerror}); give one that you may write to')


def read_config(workdir, way_out: str = 'restore it, or run its command again') -> dict[str, Any]:
    """The content of a run's config.json, older runs' with the fields that they had not.

    Args:
        way_out: ends the message of an error.

    Raises:
        UserError: there is none, it is damaged, or it lacks what every reader needs.
    """
    path = pathlib.Path(workdir) / 'config.json'
    config = read_json(path, way_out)
    try:
        config = with_later(config)
    except (AttributeError, TypeError) as error:  # a section is something else than an object
        raise UserError(f'{path}: a section is no object; {way_out}') from error
    if found := mismatch(config, Config):
        raise UserError(f'{path}: {found}; {way_out}')
    return config


def with_later(config: dict) -> dict:
    """A config.json with the fields of `LATER` that it has not."""
    config = copy.deepcopy(config)
    for name, value in LATER.items():
        *sections, field = name.split('.')
        section = functools.reduce(lambda tree, part: tree.setdefault(part, {}), sections, config)
        section.setdefault(field, value)
    return config


def identity(config) -> str:
    """The config without what may differ between the hosts of a run."""
    return json.dumps(
        {
            name: value
            for name, value in _flat(json.loads(config.to_json_best_effort())).items()
            if name not in OWN
        },
        sort_keys=True,
    )


def _flat(tree: dict, prefix: str = '') -> dict:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
    return found


def fixed(config) -> dict[str, Any]:
    """{field: value} of what makes a run the run it is; a checkpoint carries it."""
    flat = LATER | _flat(json.loads(config.to_json_best_effort()))
    return {name: value for name, value in flat.items() if name.split('.')[0] in FIXED and name not in FREE}


def differences(old: dict, new: dict) -> dict[str, str]:
    """{field: 'config.field: old -> new'} of two flat configs."""
    return {
        name: f'config.{name}: {a} -> {b}'
        for name in sorted(old.keys() | new.keys())
        if (a := old.get(name, 'absent')) != (b := new.get(name, 'absent'))
    }
