"""Pictures within a page, as data URIs."""

import base64
import io
import pathlib

import cv2
import numpy as np
from matplotlib.figure import Figure

from mlvicx_jax.errors import UserError

_LARGE_FILE, _WIDEST = 300_000, 1600  # bytes, pixels; a larger picture becomes a smaller JPEG


def of_file(path: pathlib.Path) -> str:
    """A PNG as it is, or as a JPEG of at most 1600 pixels across where it is large.

    Raises:
        UserError: the file is no picture.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f'{path}: can not be read ({error.strerror}); delete it, or make it again') from error
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise UserError(f'{path}: is no image that can be read; delete it, or make it again')
    if len(data) <= _LARGE_FILE:
        return uri('image/png', data)
    if image.shape[1] > _WIDEST:
        height = round(image.shape[0] * _WIDEST / image.shape[1])
        image = cv2.resize(image, (_WIDEST, height), interpolation=cv2.INTER_AREA)
    # 4:4:4, or the colours of a heat map's legend and of thin lines run into each other.
    _, encoded = cv2.imencode(
        '.jpg',
        image,
        [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
    )
    return uri('image/jpeg', encoded.tobytes())


def svg(figure: Figure) -> str:
    """A figure as lines; the same figure gives the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, format='svg', metadata={'Date': None})
    return uri('image/svg+xml', file.getvalue())


def jpeg(figure: Figure) -> str:
    """A figure of films."""
    file = io.BytesIO()
    figure.savefig(file, format='jpeg', pil_kwargs={'quality': 85, 'subsampling': 0})
    return uri('image/jpeg', file.getvalue())


def uri(kind: str, data: bytes) -> str:
    """The content of a file of a kind such as image/png, as an address."""
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'
