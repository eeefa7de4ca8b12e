"""What a person wrote, on the command line and in a config, refused before anything starts."""

import math
import re

from absl import flags

from mlvicx_jax import optim
from mlvicx_jax.errors import UserError

TASKS = 'pretrain', 'classify', 'segment'  # of a run; 'tables' is a grid of them
PROTOCOLS = 'frozen', 'finetune'
RESIDENT = 'none', 'host', 'device'  # where decoded training pictures are kept
READOUTS = 'pooled', 'levels', 'grid'  # of models/readout.py

# What no constructor looks at: (fields, condition, what is expected). Types are ml_collections' own
# matter, names and options that of the constructors they are passed to.
_RULES = (
    ('seed', lambda v: 0 <= v < 2**32, 'a number from 0 to 2**32 - 1'),
    ('batch_size', lambda v: v >= 2, "2 or more: the loss is about the batch's statistics"),
    (
        'total_steps eval_every_steps checkpoint.every_steps checkpoint.keep_every '
        'eval.max_train_images eval_every_epochs early_stopping.patience data.num_workers '
        'data.num_threads',
        lambda v: v >= 0,
        '0 or more',
    ),
    ('data.labelled.share', lambda v: 0 < v <= 1, 'a number above 0, at most 1'),
    (
        'total_epochs accumulation max_skipped_steps log_every_steps checkpoint.keep_last eval.batch_size data.prefetch '
        'model.width model.reduction',
        lambda v: v >= 1,
        '1 or more',
    ),
    ('data.stored_size data.image_size', lambda v: v >= 16, '16 pixels or more'),
    (
        'optim.learning_rate optim.weight_decay optim.warmup_epochs optim.vector_factor watchdog_seconds',
        lambda v: 0 <= v < math.inf,
        'a finite number, 0 or more',
    ),
    ('optim.final_factor', lambda v: 0 <= v <= 1, 'a number from 0 to 1'),
    ('eval.split', lambda v: v in ('validation', 'test'), 'validation or test'),
    ('task', lambda v: v in TASKS, f'one of {", ".join(TASKS)}'),
    ('data.resident', lambda v: v in RESIDENT, f'one of {", ".join(RESIDENT)}'),
    ('eval.readout', lambda v: v in READOUTS, f'one of {", ".join(READOUTS)}'),
    ('optim.name', lambda v: v in optim.NAMES, f'one of {", ".join(optim.NAMES)}'),
    ('dtype data.name data.data_dir method.name', bool, 'a name'),
)


def parse(argv: list[str]) -> list[str]:
    """Parses the command line into absl's flags, of which `config` must be one.

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
        found, hint = set(re.findall(r'\w+', found)), re.findall(r'"(\w+)" instead', hint)
        given = [
            word
            for word in argv
            if re.match(r'--?(no)?config\.', word) and found & set(word.partition('=')[0].split('.'))
        ]
        if not given:
            raise  # from within the recipe: its author wants the trace
        way_out = f'did you mean {hint[0]}?' if hint else 'configs/base.py and the recipe have all'
        raise UserError(f'{given[0]}: the config has no such field; {way_out}') from error
    if words[1:]:
        raise UserError(f'{words[1]!r} is no flag; write --config.FIELD=VALUE')
    return words


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
    downstream = config.task != 'pretrain'
    if downstream and config.get('protocol') not in PROTOCOLS:
        raise UserError(
            f'config.protocol is {config.get("protocol")!r}, expected one of '
            f'{", ".join(PROTOCOLS)}; config.task={config.task} is for '
            f'configs/{config.task}.py'
        )
    for what, contradicts in (
        (
            'config.eval_every_steps and config.eval_every_epochs are both set; make one of them 0',
            config.eval_every_steps and config.eval_every_epochs,
        ),
        (
            'config.early_stopping.patience is set, but pretraining has no validation number to stop '
            'by; make it 0',
            config.early_stopping.patience and not downstream,
        ),
        (
            'config.data.labelled.share is not 1, but pretraining uses no labels: it sees all images; '
            'make it 1',
            config.data.labelled.share != 1 and not downstream,
        ),
        (
            f'config.data.num_workers is set, but config.data.resident={config.data.resident} leaves '
            'workers nothing to decode; make it 0',
            config.data.num_workers and config.data.resident != 'none',
        ),
    ):
        if contradicts:
            raise UserError(what)
