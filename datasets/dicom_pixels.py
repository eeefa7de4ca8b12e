"""Stored values of a DICOM: decoding its pixel data, and what its header says wrongly about them.

The pixel data are believed more than the header in how they are compressed, how many bits a value has
and whether it has a sign. Sizes are checked before anything is decoded.
"""

import cv2
import numpy as np
import pydicom
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.pixels import get_decoder
from pydicom.uid import UID, RLELossless

from mlvicx_jax.errors import UserError

from . import jpeg, packbits

_ITEM = b'\xfe\xff\x00\xe0'  # what encapsulated, that is compressed, pixel data starts with
_IMPLICIT, _NATIVE, _BIG = '1.2.840.10008.1.2', '1.2.840.10008.1.2.1', '1.2.840.10008.1.2.2'
_JPEG = '1.2.840.10008.1.2.4.'
_J2K, _HTJ2K = (_JPEG + '91', _JPEG + '90'), (_JPEG + '203', _JPEG + '201', _JPEG + '202')
# The frame header of a JPEG tells its process; the transfer syntaxes in which it may come.
_PROCESSES = {0xC0: ('50', '51'), 0xC1: ('51',), 0xC3: ('70', '57'), 0xF7: ('81', '80')}
_FETCH = 'fetch or export this image again'


def stored_values(header: pydicom.Dataset) -> np.ndarray:
    """The values of the one picture: uint8, uint16 or int16 [H, W]; colour becomes luminance.

    Fills in what the header lacks, and sets in it BitsStored and PhotometricInterpretation as the
    result has them.

    Raises:
        UserError: damaged, truncated, several pictures, a form that is not read, or decoders that are
            not installed.
    """
    _mend(header)
    grey = header.SamplesPerPixel == 1
    if not header.PixelData.startswith(_ITEM) or _holds_native_values(header):
        values = _native(header)
    else:
        stream, syntax = _code_stream(header)
        if syntax == RLELossless:
            values = packbits.decode(stream, header)
        elif syntax in (_JPEG + '50', _JPEG + '51') and (facts := jpeg.header(stream)).bits == 8:
            header.BitsStored = 8
            return jpeg.decode(stream, facts)
        else:
            values = _decoded(header, stream, syntax)
    if str(header.PhotometricInterpretation) == 'PALETTE COLOR':
        values, grey = pydicom.pixels.apply_color_lut(values, header), False
    if not grey:
        header.BitsStored, header.PhotometricInterpretation = 8 * values.itemsize, 'MONOCHROME2'
        return values if values.ndim == 2 else cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)
    return _as_numbers(values, header)


def _mend(header) -> None:
    """Fills in what may be missing."""
    if not header.get('SamplesPerPixel'):
        header.SamplesPerPixel = 1
    samples, pixels = header.SamplesPerPixel, header.Rows * header.Columns
    defaults = {
        'PhotometricInterpretation': 'MONOCHROME2' if samples == 1 else 'RGB',
        'BitsAllocated': 16 if len(header.PixelData) >= 2 * pixels * samples else 8,
        'PixelRepresentation': 0,
        'PlanarConfiguration': 0,
    }
    for tag, value in defaults.items():
        if header.get(tag) in (None, ''):
            setattr(header, tag, value)
    if header.BitsAllocated not in (8, 16) or samples not in (1, 3):
        raise UserError(
            f'the DICOM has {header.BitsAllocated} bits in each of {samples} samples of a pixel, expected 8 '
            'or 16 in 1 or 3; export it so'
        )
    if not 1 <= int(header.get('BitsStored') or 0) <= header.BitsAllocated:
        header.BitsStored = header.BitsAllocated
    if not header.BitsStored <= int(header.get('HighBit') or 0) + 1 <= header.BitsAllocated:
        header.HighBit = header.BitsStored - 1


def _size(header) -> int:
    """Bytes of the picture where it is not compressed."""
    return header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated // 8


def _claimed_syntax(header) -> UID:
    claimed = getattr(header, 'file_meta', {}).get('TransferSyntaxUID')
    if claimed is None or claimed.is_private:
        implicit, little = header.original_encoding
        return UID(_IMPLICIT if implicit else _NATIVE if little else _BIG)
    return claimed


def _holds_native_values(header) -> bool:
    """Whether values that are not compressed happen to look like an item's tag."""
    return not _claimed_syntax(header).is_compressed and len(header.PixelData) >= _size(header)


def _native(header) -> np.ndarray:
    size = _size(header)
    if str(header.PhotometricInterpretation) == 'YBR_FULL_422':
        size = size * 2 // 3
    if len(header.PixelData) < size:
        raise UserError(
            f'the DICOM is truncated or damaged (its pixel data have {len(header.PixelData)} bytes, its header '
            f'promises {size}); {_FETCH}'
        )
    if len(header.PixelData) >= 2 * size:
        raise UserError(
            f'the DICOM has more than one picture (its pixel data have {len(header.PixelData)} bytes, one has '
            f'{size}); take the file out, or export the frame that is meant'
        )
    little = header.original_encoding[1]
    if header.SamplesPerPixel == 1 and (little or header.BitsAllocated == 16):
        dtype = np.dtype('u1' if header.BitsAllocated == 8 else '<u2' if little else '>u2')
        values = np.frombuffer(header.PixelData, dtype, header.Rows * header.Columns)
        return values.reshape(header.Rows, header.Columns).astype(dtype.newbyteorder('='))
    return _by_pydicom(header, _NATIVE if little else _BIG)


def _code_stream(header) -> tuple[bytes, str]:
    """The one compressed picture, and its transfer syntax by the code stream's own first bytes."""
    offsets, *parts = generate_fragments(header.PixelData)
    stream, claimed = b''.join(parts), _claimed_syntax(header)
    starts = sum(part.startswith((b'\xff\xd8\xff', b'\xff\x4f\xff\x51')) for part in parts)
    if len(offsets) >= 8 or starts > 1:
        raise UserError(
            f'the DICOM has {max(len(offsets) // 4, starts)} pictures, expected one; take the file out, or '
            'export the frame that is meant'
        )
    stream = _unboxed(stream)
    if stream.startswith(b'\xff\x4f\xff\x51'):
        width, height = (
            int.from_bytes(stream[at : at + 4]) - int.from_bytes(stream[at + 8 : at + 12]) for at in (8, 12)
        )
        _check_frame(header, height, width)
        if int.from_bytes(stream[40:42]) != header.SamplesPerPixel:
            raise UserError(
                f'the DICOM is damaged (its JPEG 2000 has other components than its header); {_FETCH}'
            )
        high_throughput = int.from_bytes(stream[6:8]) & 0x4000
        syntaxes = _HTJ2K if high_throughput else _J2K
        return stream, claimed if claimed in syntaxes else syntaxes[0]
    if stream.startswith(b'\xff\xd8'):
        frame = jpeg.header(stream)
        _check_frame(header, frame.height, frame.width)
        if frame.process in _PROCESSES:
            syntaxes = [_JPEG + suffix for suffix in _PROCESSES[frame.process]]
            return stream, claimed if claimed in syntaxes else syntaxes[0]
        if frame.bits == 8:
            return stream, _JPEG + '50'  # such as progressive, which the standard has retired
    return stream, claimed if claimed.is_compressed else RLELossless


def _check_frame(header, height: int, width: int) -> None:
    if (height, width) != (header.Rows, header.Columns):
        raise UserError(
            f'the DICOM is damaged (the compressed picture is {width} x {height}, its header says '
            f'{header.Columns} x {header.Rows}); {_FETCH}'
        )


def _unboxed(stream: bytes) -> bytes:
    """The code stream of a JP2 file; boxes are walked here since a length of 0 hangs pydicom 3.0."""
    if not stream.startswith(b'\x00\x00\x00\x0cjP  '):
        return stream
    at = 12
    while at + 8 <= len(stream):
        length, start = int.from_bytes(stream[at : at + 4]), at + 8
        if length == 1:
            length, start = int.from_bytes(stream[at + 8 : at + 16]), at + 16
        end = len(stream) if length == 0 else at + length
        if stream[at + 4 : at + 8] == b'jp2c':
            return stream[start:end]
        at = end
    raise UserError(f'the DICOM is damaged (no code stream in its JP2 boxes); {_FETCH}')


def _decoded(header, stream: bytes, syntax: str) -> np.ndarray:
    header.PixelData = encapsulate([stream])
    header['PixelData'].is_undefined_length = True
    return _by_pydicom(header, syntax)


def _by_pydicom(header, syntax: str) -> np.ndarray:
    """Unsigned values [H, W], or [H, W, 3] in RGB."""
    syntax = UID(syntax)
    header.NumberOfFrames = 1
    if getattr(header, 'file_meta', None) is None:
        header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UserError(
            f'the DICOM is compressed as {syntax.name[:60]}, which is not read; export it uncompressed'
        ) from None
    if not decoder.is_available:
        raise UserError("the DICOM's compression needs a decoder; pip install 'mlvicx-jax[dicom]' has it")
    try:
        values, _ = decoder.as_array(header)
    except Exception as error:  # each decoder raises what it likes, and its words may quote the header
        raise UserError(f'the DICOM is damaged (its pixel data can not be decoded); {_FETCH}') from error
    if values.ndim != 2 + (header.SamplesPerPixel > 1):
        raise UserError(
            f'the DICOM has pixel data of shape {values.shape}, expected one picture; take the file out'
        )
    return values if values.itemsize == 1 else values.view(np.uint16)


def _as_numbers(raw: np.ndarray, header) -> np.ndarray:
    """Unsigned words -> stored values, with the bits and the sign that make them a picture.

    The header's BitsStored, HighBit and PixelRepresentation are believed, which takes away an overlay in
    the unused bits, unless its reading tears the picture: neighbours that are almost the same value in
    another reading are half of all values apart.
    """
    allocated = 8 * raw.itemsize  # of a compressed picture it may be less than the header says
    bits, high = min(header.BitsStored, allocated), min(header.HighBit, allocated - 1)
    signed = header.PixelRepresentation == 1
    believed = _field(raw, high, bits, signed)
    if int(raw.max()) < 2 ** (bits - 1) and high == bits - 1:
        return believed  # all readings agree
    for other_high, other_bits, other_sign in (
        (high, bits, not signed),
        (allocated - 1, allocated, signed),
        (allocated - 1, allocated, not signed),
    ):
        other = _field(raw, other_high, other_bits, other_sign)
        if _is_torn(believed, other, 2**bits):
            header.BitsStored = other_bits
            return other
    return believed


def _field(raw: np.ndarray, high: int, bits: int, signed: bool) -> np.ndarray:
    """Bits `high` - `bits` + 1 to `high` of each word as a number."""
    allocated = 8 * raw.itemsize
    words = raw << (allocated - 1 - high)
    words = words.view(f'i{raw.itemsize}') if signed else words
    values = words >> (allocated - bits)
    return values.astype(np.int16) if values.dtype == np.int8 else values


def _is_torn(believed: np.ndarray, other: np.ndarray, modulus: int) -> bool:
    """Whether `believed` wraps around, by `modulus`, where `other` is smooth, and not the other way round."""
    step = max(1, len(believed) // 256)  # so many rows tell
    one, two = (array[::step].astype(np.int32) for array in (believed, other))
    if len(np.unique(two[one != two])) < 16:  # a marker or hot pixels
        return False
    one, two = np.abs(np.diff(one)), np.abs(np.diff(two))
    wraps = np.count_nonzero((one > modulus // 2) & (two < modulus // 16))
    return wraps >= 16 and wraps > 4 * np.count_nonzero((two > modulus // 2) & (one < modulus // 16))
