"""PNG, JPEG, TIFF, BMP and WebP to 8-bit grey: size and damage are checked before and while decoding."""

import io
import warnings
import zlib

import cv2
import numpy as np
from PIL import Image

from mlvicx_jax.errors import UserError

from . import discovery, intensity, jpeg
from .limits import check_size

_PNG_START = 8  # bytes of its signature
_FETCH = 'fetch or export this image again'
_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262  # tags of TIFF and Exif
# How an upright picture is made of the stored one, by Exif's orientation.
_UPRIGHT = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.T,
    6: lambda image: image[::-1].T,
    7: lambda image: image[::-1, ::-1].T,
    8: lambda image: image[:, ::-1].T,
}
# `limits` decides up to Pillow's own last limit, of twice the pixels that it warns of.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)


def decode(data: bytes) -> np.ndarray:
    """Decodes the bytes of a PNG, JPEG, TIFF, BMP or WebP to uint8 [H, W], upright by its Exif orientation.

    Colour becomes luminance (equal channels come back unchanged), alpha is dropped. Values of 16 or 32
    bits are stretched from the range of the film (`intensity.film_range`): files of this depth hold 10 to
    16 used bits and rarely say how many.

    Raises:
        UserError: `data` is empty, truncated, damaged, too large, of several pictures or of another
            format; without the file's name, which the caller puts before it.
    """
    if not data:
        raise UserError(f'the image file is empty; {_FETCH}')
    kind = discovery.kind(data[: discovery.HEAD])
    if kind == 'png':
        return _png(data)
    if kind == 'jpeg':
        facts = jpeg.header(data)
        return _upright(jpeg.decode(data, facts), _orientation(facts.exif))
    if kind in ('tiff', 'bmp', 'webp'):
        return _by_pillow(data, kind.upper() if kind != 'webp' else 'WebP')
    raise UserError(f'the file is none of {discovery.FORMATS}')


def _png(data: bytes) -> np.ndarray:
    exif = _check_png(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UserError(f'the PNG can not be decoded; {_FETCH}') from error
    if image is None:
        raise UserError(f'the PNG can not be decoded; {_FETCH}')
    return _upright(_grey8(image), _orientation(exif))


def _check_png(data: bytes) -> bytes:
    """Refuses a PNG that is damaged or too large, which cv2 would half decode; returns its Exif block."""
    view, start, exif = memoryview(data), _PNG_START, b''
    while start + 12 <= len(data):  # a chunk is length (4), kind (4), body, CRC-32 of kind + body
        end = start + 8 + int.from_bytes(view[start : start + 4])
        if end + 4 > len(data):
            break
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise UserError(f'the PNG is damaged (a checksum does not match); {_FETCH}')
        name = view[start + 4 : start + 8]
        if name == b'IHDR':
            check_size(
                int.from_bytes(view[start + 12 : start + 16]), int.from_bytes(view[start + 8 : start + 12])
            )
        elif name == b'eXIf':
            exif = bytes(view[start + 8 : end])
        elif name == b'IEND':
            return exif
        start = end + 4
    raise UserError(f'the PNG is truncated; {_FETCH}')


def _by_pillow(data: bytes, name: str) -> np.ndarray:
    try:
        picture = Image.open(io.BytesIO(data), formats=[name])
        pages, orientation = getattr(picture, 'n_frames', 1), picture.getexif().get(_ORIENTATION, 1)
    except Image.DecompressionBombError:
        most = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise UserError(
            f'the {name} has more than {most:.0f} megapixels, which is not read; export it smaller'
        ) from None
    except Exception as error:  # Pillow raises what it likes on a damaged header
        raise UserError(f'the {name} is damaged, or of a kind that is not read; export it as PNG') from error
    with picture:
        check_size(picture.height, picture.width)
        if pages > 1:
            raise UserError(f'the {name} has {pages} pictures, expected one; export the one that is meant')
        try:
            picture.load()  # which already turns a TIFF
        except Exception as error:
            raise UserError(f'the {name} is truncated or damaged; {_FETCH}') from error
        if name != 'TIFF':
            return _upright(_grey8(_channels(picture)), orientation)
        if picture.mode.startswith('RGB') and max(picture.tag_v2.get(_BITS, (8,))) > 8:
            # Pillow keeps the upper 8 of 16 bits of colour, which of 12-bit values are the upper 4.
            return _upright(
                _grey8(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)), orientation
            )
        image = _grey8(_channels(picture))
        deep = picture.mode.startswith('I;16') or picture.mode == 'F'
        return 255 - image if deep and picture.tag_v2.get(_PHOTOMETRIC) == 0 else image  # Pillow inverts 8 bits


def _channels(picture: Image.Image) -> np.ndarray:
    """[H, W] of any depth, or uint8 [H, W, 3] in OpenCV's order."""
    if picture.mode in ('L', 'F', 'I') or picture.mode.startswith('I;16'):
        image = np.asarray(picture)
        return image.astype(image.dtype.newbyteorder('='), copy=False)
    if picture.mode in ('1', 'LA'):
        return np.asarray(picture.convert('L') if picture.mode == '1' else picture.getchannel('L'))
    return cv2.cvtColor(np.asarray(picture.convert('RGB')), cv2.COLOR_RGB2BGR)


def _grey8(image: np.ndarray) -> np.ndarray:
    if image.ndim == 3:
        to_grey = {3: cv2.COLOR_BGR2GRAY, 4: cv2.COLOR_BGRA2GRAY}
        image = image[..., 0] if image.shape[2] < 3 else cv2.cvtColor(image, to_grey[image.shape[2]])
    return image if image.dtype == np.uint8 else intensity.stretch(image)


def _orientation(exif: bytes) -> int:
    if not exif:
        return 1
    found = Image.Exif()
    try:
        found.load(exif)
        return found.get(_ORIENTATION, 1)
    except Exception:  # a damaged block of remarks is no damage to the picture
        return 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else np.ascontiguousarray(turn(image))
