"""Durations: one kind of value in any unit, one unit at a time, from the config and from the command line."""

import pytest
from absl import flags
from conftest import ROOT

from configs import base
from mlvicx_jax import config as configs
from mlvicx_jax import durations
from mlvicx_jax.durations import Clock, Schedule
from mlvicx_jax.errors import UserError

CLOCK = Clock(batch_size=64, steps_per_epoch=10, total_steps=600, steps_per_evaluation=20)


def parsed(*words):
    """The config that main.py makes of a command line."""
    values, words = flags.FlagValues(), ['main.py', *words]
    configs.define(values, words)
    values(words)
    configs.keep_given(values['config'])
    return values['config'].value


@pytest.mark.parametrize(
    'section,name,field,count,steps',
    [
        ('', 'eval_every', 'eval_every_steps', 150, 150),
        ('', 'eval_every', 'eval_every_epochs', 2.5, 25),
        ('checkpoint', 'every', 'every_examples', 6400, 100),
        ('optim', 'warmup', 'warmup_percent', 5.0, 30),
        ('early_stopping', 'patience', 'patience', 3, 60),
        ('checkpoint', 'keep_every', 'keep_every', 7, 7),
        ('', 'log_every', 'log_every_epochs', 0.001, 1),  # never less than a step
        ('', 'log_every', 'log_every_steps', 0, None),
        ('', 'log_every', 'log_every_steps', None, None),
    ],
)
def test_every_unit_becomes_steps(section, name, field, count, steps):
    config = base.get_config()
    holder = config[section] if section else config
    base.duration(holder, name)
    holder[field] = count
    assert durations.steps(holder, section, name, CLOCK) == steps


def test_every_duration_has_a_typed_field_for_every_unit():
    config = base.get_config()
    for section, name, _ in durations.DURATIONS:
        for field in durations.fields(section, name):
            *place, last = field.split('.')
            assert (config[place[0]] if place else config).get_type(last) in (int, float), field


def test_two_units_and_no_length_are_refused():
    config = base.get_config()
    config.total_steps = 5
    with pytest.raises(UserError, match='config.total_steps and config.total_epochs are both set'):
        durations.check(config)
    base.duration(config, 'total')
    with pytest.raises(UserError, match='the length of the run is not set'):
        durations.check(config)


def test_a_unit_on_the_command_line_takes_the_place_of_the_recipes():
    config = parsed(
        f'--config={ROOT}/configs/mlvicx.py',
        '--config.total_steps=20',
        '--config.eval_every_steps=0',
        '--config.checkpoint.every_percent=50',
    )
    assert durations.of(config, '', 'total') == durations.Duration(20, 'steps')
    assert durations.of(config, '', 'eval_every') is None
    assert durations.of(config.checkpoint, 'checkpoint', 'every') == durations.Duration(50, 'percent')
    assert durations.of(config.optim, 'optim', 'warmup') == durations.Duration(2, 'epochs')
    both = parsed(f'--config={ROOT}/configs/mlvicx.py', '--config.total_steps=20', '--config.total_epochs=1')
    with pytest.raises(UserError, match='both set'):
        durations.check(both)


def test_a_schedule_is_due_at_multiples_and_at_the_end_or_never():
    assert [step for step in range(1, 11) if Schedule(4, 10).due(step)] == [4, 8, 10]
    assert not any(Schedule(None, 10).due(step) for step in range(1, 11))


def test_options_of_a_data_sets_builder_are_typed_flags():
    config = parsed(
        f'--config={ROOT}/configs/mlvicx.py',
        '--config.data.name=image_folder_cxr',
        '--config.data.options.title=mine',
        '--config.data.options.masks',
        '--config.data.options.test_fraction=0.5',
    )
    assert config.data.options.to_dict() == {'title': 'mine', 'masks': True, 'test_fraction': 0.5}
    configs.check(config)
    config = parsed(
        f'--config={ROOT}/configs/classify.py:dataset=vinbig_cxr', '--config.data.options.form=physionet'
    )
    assert config.data.options.form == 'physionet'
    # Another set takes none of the options that the recipe has for its own.
    config = parsed(f'--config={ROOT}/configs/quickstart.py', '--config.data.name=nih_chestxray14')
    assert not config.data.options
    with pytest.raises(UserError, match="phantom_cxr has no option 'patient'; available: .*patients"):
        parsed(f'--config={ROOT}/configs/quickstart.py', '--config.data.options.patient=5')
    with pytest.raises(flags.Error, match='patients'):
        parsed(f'--config={ROOT}/configs/quickstart.py', '--config.data.options.patients=few')
