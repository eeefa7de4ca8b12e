"""Prepares a data set once, as TFDS ArrayRecord files, and opens what is prepared.

A killed run leaves nothing that passes for a prepared set; the same command starts afresh.
"""

import contextlib
import errno
import io
import json
import os
import pathlib
import pickle
import shutil
from collections.abc import Iterator, Mapping
from typing import IO, Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from mlvicx_jax import checkout, lock
from mlvicx_jax.data.options import check_options, find, with_title
from mlvicx_jax.errors import UserError

REPORT = 'prepare_report.json'


class _Bucket(shuffle._Bucket):
    """Records of TFDS's sorting on disk. Its own class imports TensorFlow, so that without it every
    split above a gigabyte would fail; this one also keeps no file open, of up to a thousand."""

    def add(self, key: int, data: bytes) -> None:
        with open(self._path, 'ab') as file:
            pickle.dump((key, data), file)
        self._length += 1
        self._size += len(data)

    def read_values(self) -> Iterator[tuple[int, bytes]]:
        if not self._length:
            return
        with open(self._path, 'rb') as file:
            for _ in range(self._length):
                yield pickle.load(file)

    def del_file(self) -> None:
        if self._length:
            os.unlink(self._path)


shuffle._Bucket = _Bucket
shuffle.MAX_MEM_BUFFER_SIZE = 128 << 20  # bytes sorted in memory before they go to disk


def prepare(
    name: str,
    data_dir: str | os.PathLike,
    manual_dir: str | os.PathLike | None = None,
    options: Mapping[str, Any] | None = None,
    allow_bad: int = 0,
) -> tfds.core.DatasetBuilder:
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
        allow_bad: how many images that can not be read the set may lack. They are listed in
            <version>/prepare_report.json; with more of them in unchecked.<version>/.

    Raises:
        UserError: an unknown set or option, files missing from or wrong in `manual_dir`, more bad
            images than `allow_bad`, no write permission, or a full disk.
    """
    data_dir = pathlib.Path(data_dir).expanduser().absolute()
    checkout.refuse_mixture()
    options = with_title(name, options or {}, manual_dir)
    builder = _builder(name, data_dir, options)
    if _is_whole(builder):
        _check_origin(builder, manual_dir)
        return builder
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        manual_dir = _manual_dir(builder, manual_dir)
    download_config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    with _readable_errors(builder.data_path), _lock(builder.data_path.parent):
        builder = _builder(name, data_dir, options)  # it may have been prepared meanwhile
        if not _is_whole(builder):
            _remove_stale(pathlib.Path(builder.data_path.parent))
            _make(builder, download_config, allow_bad)
            builder = _builder(name, data_dir, options)
    return builder


def read_report(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The report beside a set's records: 'images' stored, 'bad' [{'file', 'reason'}], 'notes', 'manual_dir'.

    None where the set was not prepared by this module.
    """
    try:
        return json.loads((pathlib.Path(folder) / REPORT).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _make(
    builder: tfds.core.DatasetBuilder, download_config: tfds.download.DownloadConfig, allow_bad: int
) -> None:
    """Prepares the set aside, counts what is bad, and moves it to its place if that is allowed."""
    place = pathlib.Path(builder.data_path)
    aside = place.with_name(f'unchecked.{place.name}')
    report = read_report(aside)
    if report is None or len(report['bad']) > allow_bad:  # files may have been mended since
        shutil.rmtree(aside, ignore_errors=True)
        builder._data_dir = os.fspath(aside)  # TFDS moves a set to its place before we can count
        tfds.disable_progress_bar()  # the builders show their own, which knows the end
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it would name the folder aside
                builder.download_and_prepare(download_config=download_config)
        finally:
            tfds.enable_progress_bar()
        stored = sum(split.num_examples for split in builder.info.splits.values())
        report = {
            'images': stored,
            'bad': getattr(builder, 'bad', []),
            'notes': list(builder.info.metadata.get('notes', ())),
            'manual_dir': os.fspath(download_config.manual_dir or ''),
        }
        aside.mkdir(parents=True, exist_ok=True)
        (aside / REPORT).write_text(json.dumps(report, indent=1) + '\n')
    bad = report['bad']
    if len(bad) > allow_bad:
        raise UserError(
            f'{builder.name}: {len(bad)} of {report["images"] + len(bad)} images can not be used, '
            f'the first: {bad[0]["reason"]}. All are listed in {aside / REPORT}. Mend them and '
            'prepare again, or take the set as it is now, without them: python -m '
            f'mlvicx prepare with --allow-bad {len(bad)}'
        )
    os.rename(aside, place)


def _builder(name: str, data_dir: pathlib.Path, options: Mapping[str, Any]):
    module, config = find(name), check_options(name, options)
    config = module.Builder.builder_configs.get(config.name, config)  # TFDS wants its own object
    with _readable_errors(data_dir):
        builder = module.Builder(data_dir=data_dir, config=config, file_format='array_record')
        if builder.data_path.exists() and not builder.info.splits:  # it appeared just now
            builder = module.Builder(data_dir=data_dir, config=config, file_format='array_record')
        return builder


def _is_whole(builder: tfds.core.DatasetBuilder) -> bool:
    if not builder.data_path.exists():
        return False
    if not (builder.data_path / 'dataset_info.json').exists() or not builder.info.splits:
        raise UserError(
            f'{builder.data_path}: not a whole prepared data set (dataset_info.json '
            'is missing or empty); delete the folder to have it prepared again'
        )
    for split in builder.info.splits.values():
        missing = [path for path in split.filepaths if not os.path.exists(path)]
        if missing:
            raise UserError(
                f'{missing[0]}: this file of the prepared data set is gone; delete '
                f'{builder.data_path} to have it prepared again'
            )
    return True


def _check_origin(builder: tfds.core.DatasetBuilder, manual_dir: str | os.PathLike | None) -> None:
    """Refuses a set of the user's own files that was prepared from another folder."""
    origin = (read_report(builder.data_path) or {}).get('manual_dir')
    if (
        manual_dir
        and origin
        and getattr(builder, 'OWN_FILES', False)
        and (pathlib.Path(manual_dir).expanduser().absolute() != pathlib.Path(origin))
    ):
        raise UserError(
            f'{builder.data_path} was prepared from {origin}, manual_dir is '
            f'{manual_dir}; give the new set another title, or leave manual_dir out'
        )


def _manual_dir(builder: tfds.core.DatasetBuilder, manual_dir: str | os.PathLike | None) -> pathlib.Path:
    instructions = ' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    if not manual_dir:
        raise UserError(
            f'{builder.name} needs manual_dir (--config.data.manual_dir in training, '
            f'--manual-dir here), the folder of its release. {instructions}'
        )
    path = pathlib.Path(manual_dir).expanduser().absolute()
    if not path.is_dir() or not any(path.iterdir()):
        state = 'is empty' if path.is_dir() else 'is a file, unpack it' if path.exists() else 'does not exist'
        raise UserError(f'manual_dir {path} {state}. {instructions}')
    return path


def _lock(folder: os.PathLike) -> IO:
    """Holds the folder for this process until what is returned is closed; waits for who has it."""
    try:
        os.makedirs(folder, exist_ok=True)
        return lock.take(os.path.join(folder, 'prepare.lock'), wait=None)
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from error


def _remove_stale(folder: pathlib.Path) -> None:
    """Removes what killed starts left in a folder: the caller holds its lock, so nobody writes there."""
    for stale in folder.glob('incomplete.*'):
        if stale.is_dir():
            shutil.rmtree(stale)
        else:
            stale.unlink()


@contextlib.contextmanager
def _readable_errors(folder: os.PathLike) -> Iterator[None]:
    """Turns what TFDS makes of a refused or full disk into a UserError; lets a UserError out."""
    try:
        yield
    except Exception as error:  # TFDS and the record writer wrap what happened in other types
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
            chain.append(cause)
        for link in chain:
            if isinstance(link, UserError):
                raise link from None
            code, text = getattr(link, 'errno', None), str(link)
            if (
                code in (errno.ENOSPC, errno.EDQUOT)
                or 'No space left' in text
                or ('Not enough disk space' in text)
            ):
                raise UserError(
                    f'{folder}: the disk is full; preparing needs about twice the '
                    'size of the prepared set. Free some, or set data_dir'
                ) from error
            if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
                raise _unwritable(folder, os.strerror(code)) from error
        raise


def _unwritable(folder: os.PathLike, reason: str) -> UserError:
    return UserError(f'{folder}: can not be written ({reason}); give a data_dir that you may write')
