"""A config's data set: opened, and then what the config asks of it."""

import dataclasses

import jax
from jax.experimental import multihost_utils

from mlvicx_jax.data import fractions, questions, source


def open_data(config) -> source.RadiographSet:
    """The data set of a run: `asked` of `open_set`."""
    return asked(config, open_set(config))


def open_set(config) -> source.RadiographSet:
    """The whole data set, prepared by the first process alone if it has to be."""
    arguments = {
        name: config.data[name]
        for name in ('name', 'data_dir', 'manual_dir', 'validation_fraction', 'split_seed')
    }
    options = {'size': config.data.stored_size, **config.data.options}
    if jax.process_index() == 0:
        data = source.open_dataset(**arguments, options=options)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices('data set prepared')
        if jax.process_index():
            data = source.open_dataset(**arguments, options=options)
    return data


def asked(config, data: source.RadiographSet) -> source.RadiographSet:
    """The set with the labels and masks that `config.data` asks for.

    Of a downstream run the training split is the part whose labels may be used, drawn with the run's
    seed; validation and test are whole.
    """
    data = questions.ask(data, config.data.questions, config.data.within)
    if config.data.target:
        data = data.with_target(tuple(config.data.target))
    labelled = dict(config.data.labelled)
    if config.task == 'pretrain' or labelled['share'] == 1:
        return data
    part = fractions.fraction(data.splits['train'], labelled.pop('share'), config.seed, **labelled)
    return dataclasses.replace(data, splits=data.splits | {'train': part})
