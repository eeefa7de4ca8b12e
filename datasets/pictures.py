"""One record's picture: read, resized and encoded, with its boxes and its mask."""

import dataclasses
import hashlib

import cv2
import numpy as np

from mlvicx_jax.errors import UserError, first_line

from . import dicom, radiograph
from .records import Box, Record


@dataclasses.dataclass(frozen=True)
class Picture:
    """What is stored of a film, and what its header says; `digest` is of the stored pixels."""

    png: bytes
    digest: bytes
    mask: bytes | None
    view: str
    sex: str
    age: str
    boxes: list[tuple[str, float, float, float, float]]


def read(record: Record, size: int, data: bytes | None = None) -> Picture | str:
    """Reads, resizes and encodes one image; says why where that can not be done, whatever went wrong.

    Args:
        data: the bytes of the file, where they do not lie at `record.path`.

    Raises:
        dicom.NotInstalled: a DICOM, where pydicom is absent.
    """
    try:
        return _read(record, size, data)
    except dicom.NotInstalled:
        raise
    except UserError as error:
        return str(error)
    except Exception as error:  # one file must not end hours of work
        return f'{record.path or record.image_id}: can not be read ({first_line(error)}); take the file out'


def _read(record: Record, size: int, data: bytes | None) -> Picture:
    if data is not None:
        shot = radiograph.decode_radiograph(data, record.image_id)
    elif record.path is None:
        raise UserError(f'{record.image_id}: the release on disk has no image file of this id')
    else:
        shot = radiograph.read_radiograph(record.path)
    mask = None
    if record.mask is not None:
        cover = record.mask()
        (rows, columns), (height, width) = cover.shape, shot.image.shape
        if rows * width != columns * height:
            raise UserError(
                f'{record.path or record.image_id}: the image is {shot.image.shape}, its mask {cover.shape}; '
                'they must agree'
            )
        mask = radiograph.encode_png(shrink_mask(cover, size))
    boxes = [_scaled(box, shot.image.shape, record) for box in record.boxes]
    small = radiograph.resize(shot.image, size)
    digest = hashlib.blake2b(small.tobytes(), digest_size=16).digest()
    return Picture(radiograph.encode_png(small), digest, mask, shot.view, shot.sex, shot.age, boxes)


def _scaled(box: Box, shape: tuple[int, int], record: Record) -> tuple:
    height, width = shape if box.pixels else (1, 1)
    edges = np.clip([box.xmin / width, box.ymin / height, box.xmax / width, box.ymax / height], 0, 1).tolist()
    if not (edges[0] < edges[2] and edges[1] < edges[3]):
        raise UserError(
            f'{record.path or record.image_id}: the box {box.xmin:g}..{box.xmax:g}, '
            f'{box.ymin:g}..{box.ymax:g} is outside the {width} x {height} image'
        )
    return box.label, *edges


def shrink_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Bool [H, W] -> uint8 [size, size] of 0 and 1: set where half of a pixel is covered.

    A mask too thin for that keeps its most covered pixels, so that none becomes empty.
    """
    if mask.shape == (size, size) or not mask.any():
        return mask.astype(np.uint8) if mask.any() else np.zeros((size, size), np.uint8)
    shrinks = size <= min(mask.shape)
    cover = cv2.resize(
        mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return (cover >= min(0.5, float(cover.max()))).astype(np.uint8)
