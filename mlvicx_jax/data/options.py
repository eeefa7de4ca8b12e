"""Which data sets there are, and the options of their builders."""

import dataclasses
import importlib
import os
import pathlib
import pkgutil
import re
import types
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow_datasets as tfds

import mlvicx_jax_datasets
from mlvicx_jax.errors import UserError


def find(name: str) -> types.ModuleType:
    """The module of a data set's builder.

    Raises:
        UserError: there is no such data set.
    """
    available = [m.name for m in pkgutil.iter_modules(mlvicx_jax_datasets.__path__) if m.ispkg]
    if name not in available:
        raise UserError(f'dataset {name!r} does not exist; available: {", ".join(available)}')
    return importlib.import_module(f'mlvicx_jax_datasets.{name}.{name}_dataset_builder')


def option_default(name: str, option: str) -> Any:
    """The value of an option of a set's builder that is not given; its type is the option's.

    Raises:
        UserError: there is no such data set, or it has no such option.
    """
    return _defaults(find(name).Config, name, [option])[option]


def check_options(name: str, options: Mapping[str, Any]):
    """The `Config` that a set's builder makes of options.

    Raises:
        UserError: there is no such data set or option, or a value that it does not take.
    """
    config_class = find(name).Config
    for key, default in _defaults(config_class, name, options).items():
        value, kind = options[key], type(default)
        if type(value) is not kind and (kind, type(value)) != (float, int):
            raise UserError(f'{name}: option {key} is {value!r}, expected {kind.__name__}')
    return config_class(**options)


def with_title(name: str, options: Mapping[str, Any], manual_dir: str | os.PathLike | None) -> dict[str, Any]:
    """The options, and for a folder of the user's own without a title the folder's name as the title."""
    if name != 'image_folder_cxr' or options.get('title'):
        return dict(options)
    if not manual_dir:
        raise UserError(
            f'{name}: neither option title nor manual_dir is given; give one, to say which set is meant'
        )
    folder = unicodedata.normalize('NFKD', pathlib.Path(manual_dir).expanduser().absolute().name)
    folder = folder.encode('ascii', 'ignore').decode()
    return {**options, 'title': re.sub(r'[^A-Za-z0-9]+', '_', folder).strip('_') or 'films'}


def _defaults(config_class: type, name: str, options: Iterable[str]) -> dict[str, Any]:
    """The defaults of the fields `options` that a set's Config adds to TFDS's."""
    general = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
    known = {field.name: field.default for field in dataclasses.fields(config_class)}
    known = {field: default for field, default in known.items() if field not in general}
    for option in options:
        if option not in known:
            raise UserError(f'{name} has no option {option!r}; available: {", ".join(known)}')
    return {option: known[option] for option in options}
