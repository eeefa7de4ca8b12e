"""How long, and how often: one kind of value for every length of a run, in any unit.

A duration called `log_every` is one of the fields log_every_steps, log_every_epochs, log_every_examples and
log_every_percent of a section of the config. At most one of them is set; none, 0 or None, means never. The idea
is `steps()` of big_vision's utils.py.
"""

import dataclasses
import math

from mlvicx_jax.errors import UserError

UNITS = 'steps', 'epochs', 'examples', 'percent'

# Every duration of a config: (section, name, unit of the field that is called by the name alone).
DURATIONS = (
    ('', 'total', None),
    ('', 'log_every', None),
    ('', 'eval_every', None),
    ('optim', 'warmup', None),
    ('checkpoint', 'every', None),
    ('checkpoint', 'keep_every', 'steps'),
    ('early_stopping', 'patience', 'evaluations'),
)


@dataclasses.dataclass(frozen=True)
class Clock:
    """What turns a duration into steps.

    Attributes:
        batch_size: images of a step, over all devices.
        steps_per_epoch: whole batches of the training split, 1 or more.
        total_steps: of the run; 0 while that is what is asked for.
        steps_per_evaluation: None where there are no evaluations.
    """

    batch_size: int
    steps_per_epoch: int
    total_steps: int = 0
    steps_per_evaluation: int | None = None


@dataclasses.dataclass(frozen=True)
class Duration:
    """`count`, above 0, of a unit out of `UNITS`, or of 'evaluations'."""

    count: float
    unit: str

    def steps(self, clock: Clock) -> int:
        """The nearest whole number of steps, 1 or more."""
        steps_per_unit = {
            'steps': 1,
            'epochs': clock.steps_per_epoch,
            'examples': 1 / clock.batch_size,
            'percent': clock.total_steps / 100,
            'evaluations': clock.steps_per_evaluation or 0,
        }
        return max(1, round(self.count * steps_per_unit[self.unit]))

    def __str__(self):
        return f'{self.count:g} {self.unit}'


def fields(section: str, name: str) -> dict[str, str]:
    """{full name of a field: its unit} of a duration, such as 'checkpoint.every_steps': 'steps'.

    A run's total has no percents, for they are percents of it.
    """
    prefix = f'{section}.{name}' if section else name
    bare = {(place, called): unit for place, called, unit in DURATIONS}[section, name]
    units = [unit for unit in UNITS if unit != bare and (name, unit) != ('total', 'percent')]
    return ({prefix: bare} if bare else {}) | {f'{prefix}_{unit}': unit for unit in units}


def of(config, section: str, name: str) -> Duration | None:
    """The duration that a config gives; None is never.

    Args:
        config: the section itself, or the whole config where `section` is ''.

    Raises:
        UserError: a count below 0 or not finite; more than one unit.
    """
    found = {}
    for field, unit in fields(section, name).items():
        count = config.get(field.removeprefix(f'{section}.')) or 0
        if not 0 <= count < math.inf:
            raise UserError(f'config.{field} is {count}, expected 0 (never) or a finite number above it')
        if count:
            found[field] = Duration(count, unit)
    if len(found) > 1:
        raise UserError(
            f'{" and ".join(f"config.{field}" for field in found)} are both set; make all but one of them 0'
        )
    return next(iter(found.values()), None)


def steps(config, section: str, name: str, clock: Clock) -> int | None:
    """`of`, in steps."""
    duration = of(config, section, name)
    return duration.steps(clock) if duration else None


def check(config) -> None:
    """Raises a UserError for a duration that is none, wherever it stands in the config."""
    for section, name, _ in DURATIONS:
        of(config[section] if section else config, section, name)
    if of(config, '', 'total') is None:
        names = ', '.join(f'config.{field}' for field in fields('', 'total'))
        raise UserError(f'the length of the run is not set; give one of {names}')


def keep_given(config, given: set[str]) -> None:
    """Clears the other units of the durations among the fields `given` on the command line.

    So `--config.total_steps=20` takes the place of a recipe's total_epochs.
    """
    for section, name, _ in DURATIONS:
        family = fields(section, name)
        if given & family.keys():
            for field in family.keys() - given:
                *place, last = field.split('.')
                holder = config[place[0]] if place else config
                if last in holder:
                    holder[last] = None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When something is due that happens every so many steps, and at the last one.

    Attributes:
        every: None for never, the last step included.
        total_steps: of the run.
    """

    every: int | None
    total_steps: int

    def due(self, step: int) -> bool:
        return self.every is not None and (step % self.every == 0 or step == self.total_steps)


def clock(config, batch_size: int, images: int) -> Clock:
    """The clock of a run whose training split has so many images."""
    found = Clock(batch_size, max(1, images // batch_size))
    found = dataclasses.replace(found, total_steps=steps(config, '', 'total', found) or 0)
    return dataclasses.replace(found, steps_per_evaluation=steps(config, '', 'eval_every', found))
