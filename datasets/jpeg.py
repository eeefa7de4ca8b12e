"""JPEG: its header read without decoding, and decoding that does not pass damage over.

libjpeg fills what is lost with grey and only warns, and OpenCV and Pillow swallow the warning;
simplejpeg (libjpeg-turbo) hands it on.
"""

import dataclasses
import io
import re

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from mlvicx_jax.errors import UserError

from .limits import check_size

_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers that start a frame; F7 is JPEG-LS
_MARKER = re.compile(rb'\xff+[\x80-\xcf\xd8-\xfe]')  # but restart markers and stuffed bytes
_FETCH = 'fetch or export this image again'
_ZEROS = bytes(32)  # a run that no encoder makes where a code of zeros means a value


@dataclasses.dataclass(frozen=True)
class Header:
    """What a JPEG says before its pixels; `process` is the marker of its frame, `exif` its Exif block."""

    height: int
    width: int
    bits: int
    components: int
    process: int
    exif: bytes


def header(data: bytes) -> Header:
    """Walks the markers of a JPEG to its end-of-image marker; an embedded thumbnail is inside a segment.

    Raises:
        UserError: it is truncated, has no frame, or a block of its scan was overwritten with zeros.
    """
    frame, exif, first_symbols = None, b'', {}
    for marker, start, end, following in _segments(data):
        body = data[start:end]
        if marker in _FRAMES and frame is None and len(body) >= 6:
            frame = int.from_bytes(body[1:3]), int.from_bytes(body[3:5]), body[0], body[5], marker
        elif marker == 0xE1 and body.startswith(b'Exif\0\0') and not exif:
            exif = body
        elif marker == 0xC4:
            first_symbols |= _first_symbols(body)
        elif marker == 0xDA and frame:
            zeroed = data.find(_ZEROS, end, following) >= 0
            if zeroed and _zeros_are_values(body, frame[-1], first_symbols):
                raise UserError(f'the JPEG is damaged (a block of it is zeroed); {_FETCH}')
    if frame is None:
        raise UserError(f'the JPEG can not be decoded (it has no frame); {_FETCH}')
    return Header(*frame, exif)


def decode(data: bytes, facts: Header) -> np.ndarray:
    """Decodes a JPEG of 8 bits, whose header is `facts`, to uint8 [H, W]; colour becomes luminance.

    Orientation is not applied.

    Raises:
        UserError: damaged, truncated, too large, or of a kind that libjpeg-turbo does not read.
    """
    check_size(facts.height, facts.width)
    space = 'CMYK' if facts.components == 4 else 'GRAY'
    try:
        image = simplejpeg.decode_jpeg(data, space)
    except ValueError as error:
        reason = ' '.join(str(error).split())[:80]
        if 'orrupt' in reason or 'remature' in reason:
            raise UserError(f'the JPEG is damaged ({reason}); {_FETCH}') from None
        try:  # warnings that tell no loss, such as an unknown version of JFIF
            image = simplejpeg.decode_jpeg(data, space, strict=False)
        except ValueError:
            raise UserError(f'the JPEG can not be decoded ({reason}); {_FETCH}') from None
    if space == 'CMYK':  # whole, as just seen; Pillow knows that Adobe inverts it
        with Image.open(io.BytesIO(data)) as picture:
            return cv2.cvtColor(np.asarray(picture.convert('RGB')), cv2.COLOR_RGB2GRAY)
    return image[..., 0]


def _segments(data: bytes):
    """(marker, start of its body, end, start of the next marker) of all segments of the image."""
    found = _MARKER.search(data, 2)
    while found:
        at, marker = found.end(), found[0][-1]
        if marker == 0xD9:  # end of image
            return
        if marker == 0xD8:  # start of image
            found = _MARKER.search(data, at)
            continue
        end = at + max(2, int.from_bytes(data[at : at + 2]))
        if end > len(data):
            break
        found = _MARKER.search(data, end)  # behind a scan's header that is far away
        yield marker, at + 2, end, found.start() if found else len(data)
    raise UserError(f'the JPEG is truncated; {_FETCH}')


def _first_symbols(body: bytes) -> dict[int, int]:
    """{class and number of a Huffman table: what its code of zeros means} of a DHT segment."""
    found, at = {}, 0
    while at + 17 < len(body):
        found[body[at]] = body[at + 17]
        at += 17 + sum(body[at + 1 : at + 17])
    return found


def _zeros_are_values(scan: bytes, process: int, first_symbols: dict[int, int]) -> bool:
    """Whether a long run of zero bits in a scan would be a long row of coefficients, which no film has.

    Not so in a scan of constant terms alone, nor where a code of zeros ends each block: empty parts of a
    film are then written so.
    """
    components = scan[0] if scan else 0
    if process not in (0xC0, 0xC1, 0xC2) or len(scan) < 4 + 2 * components:
        return False  # arithmetic coding, lossless
    spectral_start = scan[1 + 2 * components]
    if process == 0xC2:
        return spectral_start > 0
    tables = {0x10 | scan[2 + 2 * number] & 15 for number in range(components)}
    return any(first_symbols.get(table, 0) not in (0x00, 0xF0) for table in tables)
