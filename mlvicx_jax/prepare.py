"""Prepares a data set once, as TFDS ArrayRecord files, and opens what is prepared.

    python -m mlvicx_jax.prepare --dataset phantom_cxr --data_dir data --option size=128
"""

import argparse
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import errno
import fcntl
import importlib
import os
import pathlib
import pkgutil
import shutil
import sys
from typing import Any

import mlvicx_jax_datasets
import tensorflow_datasets as tfds

from mlvicx_jax.errors import UserError


def prepare(name: str, data_dir: str | os.PathLike, manual_dir: str | os.PathLike | None = None,
            options: Mapping[str, Any] | None = None) -> tfds.core.DatasetBuilder:
    """Returns the builder of data set `name` with its records on disk, made first if need be.

    The records lie in <data_dir>/<name>/<config>/<version>, a folder that appears by one rename
    when it is whole. Concurrent calls on one machine wait for each other; across machines, let one
    process call first.

    Args:
        name: a folder of `mlvicx_jax_datasets`.
        data_dir: where prepared sets are kept.
        manual_dir: the downloaded release, for the sets that can not be fetched or made up;
            not looked at once the set is prepared.
        options: fields of the set's `Config`, all of them scalars, such as size=256.

    Raises:
        UserError: an unknown set or option, files missing from or wrong in `manual_dir`, no write
            permission, or a full disk.
    """
    data_dir = pathlib.Path(data_dir).expanduser().absolute()
    builder = _builder(name, data_dir, options or {})
    if _is_whole(builder):
        return builder
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        manual_dir = _manual_dir(builder, manual_dir)
    download_config = tfds.download.DownloadConfig(
        manual_dir=manual_dir, try_download_gcs=False)
    with _readable_errors(builder.data_path), _lock(builder.data_path.parent):
        builder = _builder(name, data_dir, options or {})  # it may have been prepared meanwhile
        if not _is_whole(builder):
            for stale in builder.data_path.parent.glob('incomplete.*'):
                shutil.rmtree(stale)  # a killed run's: the lock says that nobody writes it now
            builder.download_and_prepare(download_config=download_config)
    return builder


def _builder(name: str, data_dir: pathlib.Path, options: Mapping[str, Any]):
    available = [m.name for m in pkgutil.iter_modules(mlvicx_jax_datasets.__path__) if m.ispkg]
    if name not in available:
        raise UserError(f'dataset {name!r} does not exist; available: {", ".join(available)}')
    module = importlib.import_module(f'mlvicx_jax_datasets.{name}.{name}_dataset_builder')
    kinds = _options(module.Config)
    for key, value in options.items():
        if key not in kinds:
            raise UserError(f'{name} has no option {key!r}; available: {", ".join(kinds)}')
        if type(value) is not kinds[key] and (kinds[key], type(value)) != (float, int):
            raise UserError(f'{name}: option {key} is {value!r}, expected {kinds[key].__name__}')
    config = module.Config(**options)
    config = module.Builder.builder_configs.get(config.name, config)  # TFDS wants its own object
    with _readable_errors(data_dir):
        return module.Builder(data_dir=data_dir, config=config, file_format='array_record')


def _options(config_class: type) -> dict[str, type]:
    """The fields that a set's Config adds to TFDS's, with their types."""
    general = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
    return {field.name: type(field.default) for field in dataclasses.fields(config_class)
            if field.name not in general}


def _is_whole(builder: tfds.core.DatasetBuilder) -> bool:
    if not builder.data_path.exists():
        return False
    if not (builder.data_path / 'dataset_info.json').exists() or not builder.info.splits:
        raise UserError(f'{builder.data_path}: not a whole prepared data set (dataset_info.json '
                        'is missing or empty); delete the folder to have it prepared again')
    for split in builder.info.splits.values():
        missing = [path for path in split.filepaths if not os.path.exists(path)]
        if missing:
            raise UserError(f'{missing[0]}: this file of the prepared data set is gone; delete '
                            f'{builder.data_path} to have it prepared again')
    return True


def _manual_dir(builder: tfds.core.DatasetBuilder,
                manual_dir: str | os.PathLike | None) -> pathlib.Path:
    instructions = ' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    if not manual_dir:
        raise UserError(f'{builder.name} needs manual_dir (--config.data.manual_dir in training, '
                        f'--manual_dir here), the folder of its release. {instructions}')
    path = pathlib.Path(manual_dir).expanduser().absolute()
    if not path.is_dir() or not any(path.iterdir()):
        state = 'is empty' if path.is_dir() else 'does not exist'
        raise UserError(f'manual_dir {path} {state}. {instructions}')
    return path


@contextlib.contextmanager
def _lock(folder: os.PathLike) -> Iterator[None]:
    """Holds the folder for this process; the system lets go of it even when the process is killed.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(os.path.join(folder, 'prepare.lock'), 'w')
    except OSError as error:
        raise _unwritable(folder, error.strerror) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _readable_errors(folder: os.PathLike) -> Iterator[None]:
    """Turns what TFDS makes of a refused or full disk into a UserError; lets a UserError out."""
    try:
        yield
    except Exception as error:  # TFDS and the record writer wrap what happened in other types
        chain = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
            chain.append(cause)
        for link in chain:
            if isinstance(link, UserError):
                raise link from None
            code, text = getattr(link, 'errno', None), str(link)
            if code in (errno.ENOSPC, errno.EDQUOT) or 'No space left' in text or (
                    'Not enough disk space' in text):
                raise UserError(f'{folder}: the disk is full; preparing needs about twice the '
                                'size of the prepared set. Free some, or set data_dir') from error
            if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
                raise _unwritable(folder, os.strerror(code)) from error
        raise


def _unwritable(folder: os.PathLike, reason: str) -> UserError:
    return UserError(f'{folder}: can not be written ({reason}); give a data_dir that you may write')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m mlvicx_jax.prepare', description=__doc__)
    parser.add_argument('--dataset', required=True, help='a folder of datasets/')
    parser.add_argument('--data_dir', required=True, help='where prepared sets are kept')
    parser.add_argument('--manual_dir', help='the downloaded release')
    parser.add_argument('--option', action='append', default=[], metavar='NAME=VALUE',
                        help="a field of the set's Config, such as size=256; may be repeated")
    args = parser.parse_args(argv)
    try:
        options = dict(_parse_option(text) for text in args.option)
        builder = prepare(args.dataset, args.data_dir, args.manual_dir, options)
    except UserError as error:
        sys.exit(f'error: {error}')
    print(f'{builder.info.full_name} in {builder.data_path}')
    for split, info in builder.info.splits.items():
        print(f'{split}: {info.num_examples} images')


def _parse_option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition('=')
    if not equals:
        raise UserError(f'--option {text!r}, expected NAME=VALUE such as size=256')
    for parse in (int, float, {'True': True, 'False': False}.__getitem__):
        with contextlib.suppress(ValueError, KeyError):
            return key, parse(value)
    return key, value


if __name__ == '__main__':
    main()
