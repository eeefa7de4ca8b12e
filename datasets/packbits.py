"""RLE Lossless of DICOM, PS3.5 annex G.

Decoded here since a hostile segment makes pydicom 3.0 expand it to 64 times its size.
"""

import itertools

import numpy as np

from mlvicx_jax.errors import UserError

_FETCH = 'fetch or export this image again'


def decode(stream: bytes, header) -> np.ndarray:
    """One picture in segments of one byte of one sample each, the more significant ones first.

    Returns:
        uint8 or uint16 [H, W], or [H, W, 3]; of YBR colour the luminance.

    Raises:
        UserError: another number of segments than the header asks for, or one that ends early.
    """
    samples, bytes_each = header.SamplesPerPixel, header.BitsAllocated // 8
    pixels, count = header.Rows * header.Columns, samples * bytes_each
    offsets = np.frombuffer(stream[:64].ljust(64, b'\0'), '<u4').tolist()
    if offsets[0] != count:
        raise UserError(
            f'the DICOM is damaged (RLE of {offsets[0]} segments, its header promises {count}); {_FETCH}'
        )
    offsets = [*offsets[1 : 1 + count], len(stream)]
    planes = [_segment(stream[start:end], pixels) for start, end in itertools.pairwise(offsets)]
    values = np.zeros((pixels, samples), np.uint16 if bytes_each == 2 else np.uint8)
    for number, plane in enumerate(planes):
        part = values[:, number // bytes_each]
        part[:] = plane if bytes_each == 1 or number % 2 == 0 else part * 256 + plane
    shape = (header.Rows, header.Columns)
    if samples == 1:
        return values.reshape(shape)
    if str(header.PhotometricInterpretation).startswith('YBR'):
        return values[:, 0].reshape(shape)
    return values.reshape(*shape, samples)


def _segment(packed: bytes, size: int) -> np.ndarray:
    """The first `size` bytes of a PackBits segment."""
    done, at, end = bytearray(), 0, len(packed)
    while len(done) < size and at + 1 < end:
        control = packed[at]
        if control < 128:
            done += packed[at + 1 : at + 2 + control]
            at += 2 + control
        else:
            if control > 128:
                done += packed[at + 1 : at + 2] * (257 - control)
                at += 1
            at += 1
    if len(done) < size:
        raise UserError(f'the DICOM is truncated or damaged (an RLE segment ends early); {_FETCH}')
    return np.frombuffer(done, np.uint8, size)
