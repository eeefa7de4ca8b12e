"""Radiograph files: PNG, JPEG or DICOM of any mode and depth to 8-bit grey, and back to PNG."""

import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import multiprocessing.connection
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np

from mlvicx_jax.errors import UserError

from . import dicom

_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8'


@dataclasses.dataclass(frozen=True)
class Radiograph:
    """A picture, uint8 [H, W] with air dark, and what its DICOM header says; else empty texts."""

    image: np.ndarray
    view: str = ''
    sex: str = ''
    age: str = ''


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads a PNG, JPEG or DICOM of any mode and depth as uint8 [H, W]; see `read_radiograph`."""
    return read_radiograph(path).image


def read_radiograph(path: str | os.PathLike) -> Radiograph:
    """Reads a PNG, JPEG or DICOM, told apart by their first bytes, whatever the file's name.

    Raises:
        UserError: the file is missing, empty, truncated, damaged, of another format, or no
            radiograph.
        dicom.NotInstalled: a DICOM, where pydicom is absent.
    """
    try:
        with open(path, 'rb') as file:
            data = file.read()
    except FileNotFoundError:
        raise UserError(f'{path}: the image file does not exist') from None
    except OSError as error:
        raise UserError(f'{path}: the image file can not be read ({error.strerror})') from error
    return decode_radiograph(data, path)


def decode_radiograph(data: bytes, where: str | os.PathLike) -> Radiograph:
    """Decodes the bytes of a PNG, JPEG or DICOM; `where` names them in an error."""
    if dicom.is_dicom(data):
        image, facts = dicom.decode(data, where)
        return Radiograph(image, **facts)
    return Radiograph(decode_image(data, where))


def decode_image(data: bytes, where: str | os.PathLike) -> np.ndarray:
    """Decodes the bytes of a PNG or JPEG to uint8 [H, W]; `where` names them in an error.

    Colour becomes luminance (equal channels come back unchanged), alpha is dropped and an
    orientation tag is ignored. 16-bit values are stretched from [min, max] to [0, 255]: files
    of this depth hold 10 to 16 used bits and rarely say how many.

    Raises:
        UserError: `data` is empty, truncated, damaged or of another format.
    """
    problem = _damage(data)
    if problem:
        raise UserError(f'{where}: {problem}; fetch or export this image again')
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'{where}: the image can not be decoded ({reason})') from error
    if image is None:
        raise UserError(f'{where}: the image can not be decoded; fetch or export it again')
    return _grey8(image)


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


def _grey8(image: np.ndarray) -> np.ndarray:
    if image.ndim == 3:
        to_grey = {3: cv2.COLOR_BGR2GRAY, 4: cv2.COLOR_BGRA2GRAY}
        image = image[..., 0] if image.shape[2] < 3 else cv2.cvtColor(image, to_grey[image.shape[2]])
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = (image.astype(np.float32) - low) * (255 / max(high - low, 1))
        image = np.round(image).astype(np.uint8)
    return image


def _damage(data: bytes) -> str | None:
    """Says what is wrong with the file; cv2 itself returns a half-decoded image without a word."""
    if not data:
        return 'the image file is empty'
    if data.startswith(_PNG):
        return _png_damage(data)
    if data.startswith(_JPEG):
        return None if _jpeg_is_whole(data) else 'the JPEG is truncated'
    return 'the file is neither PNG nor JPEG nor DICOM'


def _png_damage(data: bytes) -> str | None:
    view, start = memoryview(data), len(_PNG)
    while start + 12 <= len(data):  # a chunk is length (4), kind (4), body, CRC-32 of kind + body
        end = start + 8 + int.from_bytes(view[start : start + 4], 'big')
        if end + 4 > len(data):
            break
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4], 'big'):
            return 'the PNG is damaged (a checksum does not match)'
        if view[start + 4 : start + 8] == b'IEND':
            return None
        start = end + 4
    return 'the PNG is truncated'


def _jpeg_is_whole(data: bytes) -> bool:
    """Walks the markers to the end-of-image marker; an embedded thumbnail's is inside a segment."""
    start = len(_JPEG)
    while True:
        start = data.find(b'\xff', start)
        if start < 0 or start + 2 > len(data):
            return False
        marker = data[start + 1]
        if marker == 0xD9:  # end of image
            return True
        if marker == 0xFF:  # fill byte
            start += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD7:  # stuffed byte or restart marker
            start += 2
        else:
            length = data[start + 2 : start + 4]
            if len(length) < 2:
                return False
            start += 2 + int.from_bytes(length, 'big')
