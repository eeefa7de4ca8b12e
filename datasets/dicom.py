"""Radiographs in DICOM to 8-bit grey, air dark, whatever the encoding."""

import functools
import io
import logging
import re
import warnings
import zlib

import numpy as np

from mlvicx_jax.errors import UserError

from . import greyscale
from .limits import check_size

# What a projection radiograph is called: computed, digital, film, fluoroscopy; 'other' and secondary
# captures, which is what public sets were exported as. All else (CT, MR, US, MG, ...) is refused.
MODALITIES = ('CR', 'DX', 'DR', 'RG', 'XR', 'RF', 'OT', 'SC')
_CLASSES = (
    '1.2.840.10008.5.1.4.1.1.1',
    '1.2.840.10008.5.1.4.1.1.1.1',  # CR, DX for presentation
    '1.2.840.10008.5.1.4.1.1.1.1.1',
    '1.2.840.10008.5.1.4.1.1.7',
    '1.2.840.10008.5.1.4.1.1.12.2',
)  # ... processing, SC, RF
_FIRST_VRS = (b'UL', b'UI', b'CS', b'OB', b'SH', b'DA', b'LO')  # of what stands first in a header
_DEFLATED, _EXPLICIT = b'1.2.840.10008.1.2.1.99', b'1.2.840.10008.1.2.1\0\0\0'
_FETCH = 'fetch or export this image again'
_MOST_INFLATED = 2**29  # bytes


class NotInstalled(UserError):
    """pydicom is absent: a mistake of the installation, not of one file."""


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with `head` (133 bytes or more) is DICOM.

    With its preamble or, as old files are, without: the first element is then of group 2 or 8, and its
    value is short.
    """
    if head[128:132] == b'DICM':
        return True
    group, high, explicit = head[:2], head[3:4], head[4:6] in _FIRST_VRS
    size = int.from_bytes(head[6:8] if explicit else head[4:8], 'little')
    return group in (b'\x02\x00', b'\x08\x00') and high == b'\x00' and size <= 256 and len(head) > 132


@functools.cache
def require():
    """Returns pydicom, told to keep quiet; raises NotInstalled where it is absent."""
    try:
        import pydicom
    except ImportError:
        raise NotInstalled(
            "DICOM files need pydicom, which is not installed; pip install 'mlvicx-jax[dicom]'"
        ) from None
    # Real headers break the rules in every other file; what matters ends in a UserError.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger('pydicom').setLevel(logging.CRITICAL)
    warnings.filterwarnings('ignore', module='pydicom')
    return pydicom


def decode(data: bytes) -> tuple[np.ndarray, dict[str, str]]:
    """Decodes a DICOM to uint8 [H, W], and what its header says of view, sex and age.

    The order is the standard's (PS3.4 N.2): stored values (`dicom_pixels`), then modality, values of
    interest and inversion of MONOCHROME1 (`greyscale`). Missing tags count as MONOCHROME2, unsigned, all
    bits stored.

    Raises:
        NotInstalled: pydicom is absent.
        UserError: damaged, truncated, too large, without pixel data, of several frames, or no
            radiograph. The message does not name the file, and quotes no text of the header but its
            Modality.
    """
    header = read_header(data)
    _check_kind(header)
    from . import dicom_pixels  # needs pydicom

    stored = dicom_pixels.stored_values(header)
    return greyscale.film(header, stored), facts(header)


def facts(header) -> dict[str, str]:
    """Texts of at most 64 signs, as the header writes them; empty where it has none."""
    tags = {'view': 'ViewPosition', 'sex': 'PatientSex', 'age': 'PatientAge'}
    return {name: ' '.join(str(header.get(tag) or '').split())[:64] for name, tag in tags.items()}


def read_header(data: bytes):
    """The whole data set of a DICOM, inflated where it is deflated; raises UserError where it is damaged."""
    pydicom = require()
    data = _inflated(data)
    try:
        return pydicom.dcmread(io.BytesIO(data), force=True)
    except Exception as error:  # which may quote whatever stands in the header
        raise UserError(f'the DICOM is damaged (its header can not be read); {_FETCH}') from error


def _inflated(data: bytes) -> bytes:
    """The file with its data set inflated, if it is deflated, as far as the largest picture needs."""
    if data[128:132] != b'DICM' or _DEFLATED not in data[132 : 132 + 2048]:
        return data
    end = 132
    while data[end : end + 2] == b'\x02\x00':  # the elements of the file meta information, PS3.10 7.1
        long = data[end + 4 : end + 6] in (b'OB', b'UN')
        size = data[end + 8 : end + 12] if long else data[end + 6 : end + 8]
        end += (12 if long else 8) + int.from_bytes(size, 'little')
    if _DEFLATED not in data[132:end]:
        return data
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data[end:], _MOST_INFLATED)
    except zlib.error as error:
        raise UserError(f'the DICOM is damaged (it can not be inflated); {_FETCH}') from error
    if len(inflated) == _MOST_INFLATED:
        raise UserError(
            f'the DICOM inflates to more than {_MOST_INFLATED // 2**20} MB; export it without compression'
        )
    if not inflater.eof:
        raise UserError(f'the DICOM is truncated; {_FETCH}')
    return data[:end].replace(_DEFLATED, _EXPLICIT) + inflated


def _check_kind(header) -> None:
    modality = str(header.get('Modality') or '').strip().upper()
    kind = header.get('SOPClassUID')
    if modality not in MODALITIES if modality else kind and kind not in _CLASSES:
        # A damaged header may have anything here, such as a name: only what looks like a code is quoted.
        code = modality if re.fullmatch('[A-Z0-9]{1,10}', modality) else 'that is no code'
        name = kind.name if not modality and not kind.name.startswith(kind[:4]) else 'that is not known'
        found = f'Modality {code}' if modality else f'SOP class {name}'
        raise UserError(
            f'no radiograph ({found}, expected Modality {", ".join(MODALITIES)}); take the file out'
        )
    if not header.get('PixelData'):
        raise UserError(f'the DICOM has no pixel data or is truncated; {_FETCH}')
    for tag in ('Rows', 'Columns'):
        if not isinstance(header.get(tag), int):
            raise UserError(f'the DICOM has no {tag}; export this image again')
    frames = (greyscale.numbers(header, 'NumberOfFrames') or [1])[0]
    if frames > 1:
        raise UserError(
            f'the DICOM has {frames:.0f} frames, expected one picture; take the file out, or export the frame '
            'that is meant'
        )
    check_size(header.Rows, header.Columns)
