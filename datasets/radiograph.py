"""Radiograph files of any format, mode and depth to 8-bit grey, and back to PNG."""

import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np

from mlvicx_jax.errors import UserError

from . import dicom, rasters
from .names import printable

_BLANK = 0.999  # of the pixels of one value


class BlankFilm(UserError):
    """A picture that shows nothing: all pixels but a thousandth have one value."""


@dataclasses.dataclass(frozen=True)
class Radiograph:
    """A picture, uint8 [H, W] with air dark, and what its DICOM header says; else empty texts."""

    image: np.ndarray
    view: str = ''
    sex: str = ''
    age: str = ''


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads a picture as uint8 [H, W], such as a mask, which may be blank; else see `read_radiograph`."""
    return _named(_decode, _read(path), path).image


def read_radiograph(path: str | os.PathLike) -> Radiograph:
    """Reads a PNG, JPEG, DICOM, TIFF, BMP or WebP, told by its first bytes, whatever the file's name.

    Raises:
        BlankFilm: the picture shows nothing.
        UserError: the file is missing, empty, truncated, damaged, too large (`limits`), of another
            format, or no radiograph. Whatever goes wrong inside a file ends in this.
        dicom.NotInstalled: a DICOM, where pydicom is absent.
    """
    return decode_radiograph(_read(path), path)


def decode_radiograph(data: bytes, where: str | os.PathLike) -> Radiograph:
    """Decodes the bytes of a file as `read_radiograph` does; `where` names them in an error."""
    return _named(_decode_film, data, where)


def decode_image(data: bytes, where: str | os.PathLike) -> np.ndarray:
    """Decodes the bytes of any format but DICOM to uint8 [H, W]; see `rasters.decode`.

    Raises:
        UserError: `data` is empty, truncated, damaged, too large or of another format.
    """
    return _named(rasters.decode, data, where)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes uint8 [H, W] to [size, size]; the aspect ratio is not kept.

    Area averaging where the image shrinks, so that no fine structure aliases; else bilinear.
    """
    if image.shape == (size, size):
        return image
    shrinks = size <= min(image.shape)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def encode_png(image: np.ndarray) -> bytes:
    """Encodes uint8 [H, W] as a grey PNG."""
    done, data = cv2.imencode('.png', image)
    if not done:
        raise ValueError(f'no PNG can hold an array of {image.dtype} {image.shape}')
    return data.tobytes()


def parallel_map(
    fn: Callable, items: Iterable, workers: int, window: int = 64, processes: bool = False
) -> Iterator:
    """Yields fn(item) in the order of `items`, computed by `workers` threads or processes.

    At most `window` results exist at a time. Threads serve where cv2 works, which gives up the
    interpreter's lock while it decodes, resizes and encodes. Decoders of JPEG 2000 keep it:
    processes then, whose `fn` and items must pickle, started afresh since a fork of a process with
    threads may hang.
    """
    items = iter(items)
    if processes:
        pool = concurrent.futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context('spawn'), end_with_parent
        )
    else:
        pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        pending = collections.deque(pool.submit(fn, item) for item in itertools.islice(items, window))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(fn, item) for item in itertools.islice(items, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def end_with_parent(*_) -> None:
    """Has a worker end when its parent is killed; by itself it would wait for work for ever.

    An initialiser of worker processes, whatever it is called with.
    """

    def watch() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _read(path: str | os.PathLike) -> bytes:
    try:
        with open(path, 'rb') as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f'{printable(path)}: the image file does not exist') from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, 'strerror', None) or 'its name is none'
        raise UserError(f'{printable(path)}: the image file can not be read ({reason})') from error


def _named(decode: Callable, data: bytes, where: str | os.PathLike):
    """decode(data), with the file's name before its error, so that one file never stops the others."""
    try:
        return decode(data)
    except dicom.NotInstalled:
        raise
    except UserError as error:
        raise type(error)(f'{printable(where)}: {error}') from error
    except Exception as error:  # a decoder's words may quote the header, so they are not repeated
        raise UserError(
            f'{printable(where)}: can not be decoded ({type(error).__name__}); fetch or export this image again'
        ) from error


def _decode(data: bytes) -> Radiograph:
    if dicom.is_dicom(data):
        image, facts = dicom.decode(data)
        return Radiograph(image, **facts)
    return Radiograph(rasters.decode(data))


def _decode_film(data: bytes) -> Radiograph:
    film = _decode(data)
    for step in (8, 1):  # an eighth of the rows tells of nearly all films that they are none of these
        rows = film.image[::step]
        counts = cv2.calcHist([rows], [0], None, [256], [0, 256])
        if counts.max() < _BLANK * rows.size:
            return film
    raise BlankFilm(f'the film is blank (all pixels are {int(counts.argmax())}); take the file out')
