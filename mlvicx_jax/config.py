"""What a person wrote, on the command line and in a config, refused before anything starts."""

import math
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mlvicx_jax import durations, optim, tasks
from mlvicx_jax.errors import UserError

RESIDENT = 'none', 'host', 'device'  # where decoded training pictures are kept
READOUTS = 'pooled', 'levels', 'grid'  # of models/readout.py

# Ranges that no constructor checks: (fields, condition, what is expected). ml_collections checks types,
# `durations.check` the durations.
_RULES = (
    ('seed', lambda v: 0 <= v < 2**32, 'a number from 0 to 2**32 - 1'),
    ('batch_size', lambda v: v >= 2, "2 or more: the loss is about the batch's statistics"),
    ('eval.max_train_images data.num_workers data.num_threads', lambda v: v >= 0, '0 or more'),
    ('data.labelled.share', lambda v: 0 < v <= 1, 'a number above 0, at most 1'),
    ('data.validation_fraction', lambda v: 0 < v < 1, 'a number above 0 and below 1'),
    (
        'accumulation max_skipped_steps checkpoint.keep_last eval.batch_size data.prefetch '
        'model.width model.reduction',
        lambda v: v >= 1,
        '1 or more',
    ),
    ('data.stored_size data.image_size', lambda v: v >= 16, '16 pixels or more'),
    (
        'optim.learning_rate optim.weight_decay optim.vector_factor watchdog_seconds',
        lambda v: 0 <= v < math.inf,
        'a finite number, 0 or more',
    ),
    ('optim.final_factor', lambda v: 0 <= v <= 1, 'a number from 0 to 1'),
    ('eval.split', lambda v: v in ('validation', 'test'), 'validation or test'),
    ('data.resident', lambda v: v in RESIDENT, f'one of {", ".join(RESIDENT)}'),
    ('eval.readout', lambda v: v in READOUTS, f'one of {", ".join(READOUTS)}'),
    ('optim.name', lambda v: v in optim.NAMES, f'one of {", ".join(optim.NAMES)}'),
    ('dtype data.name data.data_dir method.name', bool, 'a name'),
)


def define(values: flags.FlagValues = flags.FLAGS, argv: Sequence[str] | None = None) -> flags.FlagHolder:
    """Defines the flag `config`: a recipe, and behind it `--config.FIELD=VALUE`.

    Options of the data set's builder are fields too, typed by the builder's `Config`.

    Args:
        values: the flags that it becomes one of.
        argv: the command line; sys.argv where None.
    """
    holder = config_flags.DEFINE_config_file(
        'config', None, 'Recipe, a file of configs/.', flag_values=values, sys_argv=argv
    )
    parser: Any = values['config'].parser  # ml_collections has no hook between a recipe and its fields
    load = parser.parse

    def parse(path):
        recipe = load(path)
        if isinstance(recipe, ConfigDict) and 'data' in recipe:
            _add_options(recipe, sys.argv if argv is None else argv)
        return recipe

    parser.parse = parse
    return holder


def _add_options(recipe, argv: Sequence[str]) -> None:
    """Gives a recipe the fields of `data.options` that the command line names.

    The recipe's own options are those of its own data set: another one starts with none.
    """
    text = '\n'.join(argv)
    names = re.findall(r'^--?config\.data\.name[=\n](.*)$', text, re.MULTILINE)
    name = names[-1] if names else recipe.data.name
    with recipe.unlocked():
        if name != recipe.data.name:
            recipe.data.options = ConfigDict()
        for option in re.findall(r'^--?(?:no)?config\.data\.options\.(\w+)', text, re.MULTILINE):
            if option not in recipe.data.options:
                from mlvicx_jax.data import options  # TFDS takes seconds to import, most commands need none

                recipe.data.options[option] = options.option_default(name, option)


def parse(argv: list[str]) -> list[str]:
    """Parses the command line into absl's flags, of which `define` has made one.

    Raises:
        UserError: an unknown flag or field, a value of another type, a recipe that can not be
            read, no recipe, a word that is no flag.
    """
    try:
        words = flags.FLAGS(argv)
        config = flags.FLAGS.config
        if config is None:
            raise UserError('--config is missing; give a recipe, such as --config=configs/quickstart.py')
        config.lock()  # a recipe that was not found says so only when it is used
        keep_given(flags.FLAGS['config'])
    except flags.Error as error:
        # Where a recipe raises, ml_collections packs its whole trace into the message.
        first, *rest = str(error).strip().splitlines()
        raise UserError(f'{first} {rest[-1]}' if rest else first) from error
    except OSError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f'--config can not be read: {reason}; give a recipe, such as --config=configs/quickstart.py'
        ) from error
    except SyntaxError as error:
        raise UserError(f'--config is not Python: {error}') from error
    except (AttributeError, KeyError) as error:  # ml_collections, of an unknown field
        found, _, hint = str(error).partition('Did you mean ')
        unknown, meant = set(re.findall(r'\w+', found)), re.findall(r'"(\w+)" instead', hint)
        given = [
            word
            for word in argv
            if re.match(r'--?(no)?config\.', word) and unknown & set(word.partition('=')[0].split('.'))
        ]
        if not given:
            raise  # from within the recipe: its author wants the trace
        way_out = f'did you mean {meant[0]}?' if meant else 'configs/base.py and the recipe have all'
        raise UserError(f'{given[0]}: the config has no such field; {way_out}') from error
    if words[1:]:
        raise UserError(f'{words[1]!r} is no flag; write --config.FIELD=VALUE')
    return words


def keep_given(flag: flags.Flag) -> None:
    """Of the durations that the parsed command line of a config's flag sets, keeps the units it gives."""
    config: Any = flag.value
    if 'data' in config:  # not of a grid
        durations.keep_given(config, set(config_flags.get_override_values(flag)))


def check(config) -> None:
    """Raises a UserError for a value with which no run can end well, or a section that is missing."""
    for fields, accepts, expected in _RULES:
        for field in fields.split():
            value = config
            for name in field.split('.'):
                if name not in value:
                    raise UserError(
                        f'config.{field} is missing; a recipe starts from configs/base.py and adds its method'
                    )
                value = value[name]
            if not accepts(value):
                raise UserError(f'config.{field} is {value!r}, expected {expected}')
    task = tasks.find(config)
    durations.check(config)
    for what, contradicts in (
        (
            'config.early_stopping.patience is set, but pretraining has no validation number to stop '
            'by; make it 0',
            not task.monitor and durations.of(config.early_stopping, 'early_stopping', 'patience'),
        ),
        (
            'config.data.labelled.share is not 1, but pretraining uses no labels: it sees all images; '
            'make it 1',
            not task.monitor and config.data.labelled.share != 1,
        ),
        (
            f'config.data.num_workers is set, but config.data.resident={config.data.resident} leaves '
            'workers nothing to decode; make it 0',
            config.data.num_workers and config.data.resident != 'none',
        ),
    ):
        if contradicts:
            raise UserError(what)
    from mlvicx_jax.data import options  # as above

    options.check_options(config.data.name, {'size': config.data.stored_size, **config.data.options})
