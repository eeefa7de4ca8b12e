"""The folder of one run: it belongs to one config, and a resume must bring the same."""

import copy
import functools
import hashlib
import json
import pathlib

import jax
from ml_collections import ConfigDict

from mlvicx_jax.errors import UserError
from mlvicx_jax.files import write_json
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
# Nor may these when the run is finished: config.json would no more say what results.json is of.
SETTLED = ('optim', 'early_stopping')
# Of all these: where the files lie and how fast they are read is the affair of each host.
OWN = 'data.data_dir', 'data.manual_dir', 'data.num_threads', 'data.num_workers', 'data.prefetch'
# Nor do these change a number, but all hosts of a run must launch the same programs.
FREE = 'model.remat', 'data.resident', *OWN

# Fields that older runs had not, and what they did without them.
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
    'data.resident': 'none',
}


def claim(workdir: pathlib.Path, config) -> None:
    """Makes the folder this config's own, or checks that it already is.

    A folder where nothing was logged or saved yet belongs to nobody: whoever mended a mistake in
    the config may start again in it.

    Raises:
        UserError: the folder can not be written; it belongs to another config (with the
            differences); it holds checkpoints but no config.
    """
    path = workdir / 'config.json'
    new = json.loads(config.to_json_best_effort())
    checkpoints = workdir / 'checkpoints'
    try:
        begun = (workdir / 'metrics.jsonl').exists() or (checkpoints.exists() and any(checkpoints.iterdir()))
        if begun and path.exists():
            changed = differences(_flat(with_later(json.loads(path.read_text()))), _flat(new))
            final = FIXED + (SETTLED if (workdir / 'results.json').exists() else ())
            fixed = [line for name, line in changed.items() if name.split('.')[0] in final and name not in FREE]
            if fixed:
                raise UserError(
                    f'{workdir} belongs to a run of another config: {"; ".join(fixed)}. '
                    'Give the old values, or a new --workdir'
                )
            for line in changed.values():
                say(f'changed since the last start: {line}')
        elif begun:
            raise UserError(
                f'{workdir} holds a run but no config.json to tell whose they are; '
                'give a new --workdir or put the file back'
            )
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(path, new)
    except OSError as error:
        raise UserError(
            f'--workdir={workdir} can not be used ({error.strerror}); give one that you may write to'
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(f'{path} is not valid JSON ({error}); restore it, or give a new --workdir') from error


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """The config of a run, older runs' with the fields that they had not.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = workdir / 'config.json'
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: can not be read ({error}); is this the --workdir of a run?') from error
    return ConfigDict(with_later(config))


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
    found = {}
    for key, value in tree.items():
        found |= _flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
    return found


def code_hash() -> str:
    """sha256 of this package's sources, by file name."""
    digest = hashlib.sha256()
    package = pathlib.Path(__file__).parents[1]
    for path in sorted(package.rglob('*.py')):
        digest.update(str(path.relative_to(package)).encode() + b'\0' + path.read_bytes())
    return digest.hexdigest()


def differences(old: dict, new: dict) -> dict[str, str]:
    """{field: 'config.field: old -> new'} of two flat configs."""
    return {
        name: f'config.{name}: {a} -> {b}'
        for name in sorted(old.keys() | new.keys())
        if (a := old.get(name, 'absent')) != (b := new.get(name, 'absent'))
    }
