"""Radiographs in DICOM to 8-bit grey, air dark, whatever the encoding.

The order is the standard's (PS3.4 N.2): stored values, modality transform, values of interest,
inversion of MONOCHROME1.
"""

import functools
import io
import logging
import os
import warnings

import cv2
import numpy as np

from mlvicx_jax.errors import UserError

# What a projection radiograph is called: computed, digital, film; 'other' and secondary captures,
# which is what public sets were exported as. All else (CT, MR, US, MG, ...) is refused.
MODALITIES = ('CR', 'DX', 'DR', 'RG', 'XR', 'OT', 'SC')
_CLASSES = (
    '1.2.840.10008.5.1.4.1.1.1',
    '1.2.840.10008.5.1.4.1.1.1.1',  # CR, DX for presentation
    '1.2.840.10008.5.1.4.1.1.1.1.1',
    '1.2.840.10008.5.1.4.1.1.7',
)  # ... processing, SC
_FIRST_VRS = (b'UL', b'UI', b'CS', b'OB', b'SH', b'DA', b'LO')  # of what stands first in a header
_ITEM = b'\xfe\xff\x00\xe0'  # what encapsulated, that is compressed, pixel data starts with
_NATIVE = '1.2.840.10008.1.2.1'
_JPEG = '1.2.840.10008.1.2.4.'
# The frame header of a JPEG tells its process; the transfer syntaxes in which it may come.
_PROCESSES = {0xC0: ('50', '51'), 0xC1: ('51',), 0xC3: ('70', '57'), 0xF7: ('81', '80')}


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


def decode(data: bytes, where: str | os.PathLike) -> tuple[np.ndarray, dict[str, str]]:
    """Decodes a DICOM to uint8 [H, W], and the header's view, sex and age as it writes them.

    Stored values pass the modality LUT or rescale, then the VOI LUT (the first of its sequence), or
    else the first window. A window of no width, or one that shows nothing but black or white, is
    not used. Without any, unsigned 8-bit values are the picture, and others are stretched from
    [min, max] to [0, 255]. Padding, where the header declares it, is black. Colour becomes
    luminance. MONOCHROME1 is inverted; the header is believed in that.

    The pixel data are believed more than the header in how they are compressed. Missing tags count
    as MONOCHROME2, unsigned, all bits stored.

    Raises:
        NotInstalled: pydicom is absent.
        UserError: damaged, truncated, without pixel data, of several frames, or no radiograph.
    """
    pydicom = require()
    try:
        header = pydicom.dcmread(io.BytesIO(data), force=True)
        _check_kind(header, where)
        _mend(header)
        image = _display(header, _stored(header))
        facts = {
            'view': str(header.get('ViewPosition') or ''),
            'sex': str(header.get('PatientSex') or ''),
            'age': str(header.get('PatientAge') or ''),
        }
    except UserError:
        raise
    except Exception as error:  # its many decoders raise whatever they like
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        missing = 'missing dependencies' in reason or 'pylibjpeg' in reason
        way = (
            "pip install 'mlvicx-jax[dicom]' has the decoders"
            if missing
            else 'fetch or export this image again'
        )
        raise UserError(f'{where}: the DICOM can not be decoded ({reason}); {way}') from error
    return image, facts


def _check_kind(header, where) -> None:
    modality = str(header.get('Modality') or '').strip().upper()
    kind = header.get('SOPClassUID')
    if modality not in MODALITIES if modality else kind and kind not in _CLASSES:
        found = f'Modality {modality}' if modality else f'SOP class {kind.name}'
        raise UserError(
            f'{where}: no radiograph ({found}, expected Modality {", ".join(MODALITIES)}); take the file out'
        )
    if not header.get('PixelData'):
        raise UserError(
            f'{where}: the DICOM has no pixel data or is truncated; fetch or export this image again'
        )
    absent = [tag for tag in ('Rows', 'Columns') if not header.get(tag)]
    if absent:
        raise UserError(f'{where}: the DICOM has no {absent[0]}; export this image again')
    frames = int(header.get('NumberOfFrames') or 1)
    if frames > 1:
        raise UserError(
            f'{where}: the DICOM has {frames} frames, expected one picture; take the '
            'file out, or export the frame that is meant'
        )


def _mend(header) -> None:
    """Fills in what may be missing and writes the transfer syntax that the pixel data have."""
    pydicom = require()
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
    if not header.get('BitsStored'):
        header.BitsStored = header.BitsAllocated
    if header.get('HighBit') in (None, ''):
        header.HighBit = header.BitsStored - 1

    if getattr(header, 'file_meta', None) is None:
        header.file_meta = pydicom.dataset.FileMetaDataset()
    claimed = header.file_meta.get('TransferSyntaxUID')
    if claimed is None or claimed.is_private:
        implicit, little = header.original_encoding
        claimed = pydicom.uid.UID(
            '1.2.840.10008.1.2' if implicit else _NATIVE if little else '1.2.840.10008.1.2.2'
        )
    size = pixels * samples * header.BitsAllocated // 8
    if not header.PixelData.startswith(_ITEM):
        found = _NATIVE if claimed.is_compressed else claimed
    elif not claimed.is_compressed and len(header.PixelData) >= size:
        found = claimed  # values that look like an item's tag
    else:
        found = _syntax(header.PixelData, claimed)
    header.file_meta.TransferSyntaxUID = pydicom.uid.UID(found)


def _syntax(encapsulated: bytes, claimed: str) -> str:
    """The transfer syntax of compressed pixel data, by the code stream's own first bytes."""
    fragments = require().encaps.generate_fragments(encapsulated)
    next(fragments)  # the table of offsets
    stream = next(fragments)
    if stream.startswith((b'\xff\x4f\xff\x51', b'\x00\x00\x00\x0cjP  ')):
        return claimed if claimed in (_JPEG + '90', _JPEG + '91') else _JPEG + '91'
    if stream.startswith(b'\xff\xd8'):
        at = 2
        while at + 4 <= len(stream) and stream[at] == 0xFF:
            if stream[at + 1] in _PROCESSES:
                syntaxes = [_JPEG + suffix for suffix in _PROCESSES[stream[at + 1]]]
                return claimed if claimed in syntaxes else syntaxes[0]
            at += 2 + int.from_bytes(stream[at + 2 : at + 4], 'big')
    return claimed


def _stored(header) -> np.ndarray:
    """Stored values without the unused bits, which may hold an overlay; a code stream has none."""
    spare = header.BitsAllocated - header.BitsStored
    if header.SamplesPerPixel > 1 or spare <= 0 or (header.file_meta.TransferSyntaxUID.is_compressed):
        return header.pixel_array
    above = header.BitsAllocated - 1 - header.HighBit
    header.BitsStored = header.BitsAllocated  # pydicom takes the used bits to be the lowest ones
    return header.pixel_array << above >> spare  # a sign comes down with the second shift


def _display(header, stored: np.ndarray) -> np.ndarray:
    """Stored values [H, W] or [H, W, 3] -> uint8 [H, W]."""
    pixels = require().pixels
    interpretation = str(header.PhotometricInterpretation)
    if interpretation == 'PALETTE COLOR':
        stored = pixels.apply_color_lut(stored, header)
    if stored.ndim == 3:
        grey = cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY)
        return grey if grey.dtype == np.uint8 else _stretch(grey, np.ones(grey.shape, bool))

    values, plain = stored, stored.dtype == np.uint8
    if header.get('ModalityLUTSequence'):
        values, plain = pixels.apply_modality_lut(stored, header), False
    else:
        slope, intercept = (_first(header, tag) for tag in ('RescaleSlope', 'RescaleIntercept'))
        if (slope or 1, intercept or 0) != (1, 0):
            values, plain = stored * np.float32(slope or 1) + np.float32(intercept or 0), False
    shown = ~_padding(header, stored)
    image = _of_interest(header, values, shown)
    if image is None:
        image = values if plain else _stretch(values, shown)
    if interpretation == 'MONOCHROME1':
        image = 255 - image
    return np.where(shown, image, np.uint8(0))


def _of_interest(header, values: np.ndarray, shown: np.ndarray) -> np.ndarray | None:
    """The picture through the VOI LUT or window; None where there is none that shows anything."""
    pixels = require().pixels
    function = str(header.get('VOILUTFunction') or 'LINEAR').strip().upper()
    centre, width = (_first(header, tag) for tag in ('WindowCenter', 'WindowWidth'))
    table = next(iter(header.get('VOILUTSequence') or ()), None)
    if table is not None and table.get('LUTData') and table.get('LUTDescriptor'):
        looked_up = pixels.apply_voi(np.rint(values).astype(np.int32), header, index=0)
        part = looked_up.astype(np.float32) / (2 ** int(table.LUTDescriptor[2] or 16) - 1)
    elif centre is None or width is None or width < (1 if function == 'LINEAR' else 1e-6):
        return None
    elif function == 'SIGMOID':
        part = 1 / (1 + np.exp(-4 * np.clip((values - np.float32(centre)) / width, -20, 20)))
    elif function == 'LINEAR_EXACT':
        part = (values - np.float32(centre)) / width + 0.5
    else:  # PS3.3 C.11.2.1.2.1; a width of 1 is a threshold
        part = (values - np.float32(centre - 0.5)) / max(width - 1, 1e-6) + 0.5
    image = np.rint(np.clip(part, 0, 1) * 255).astype(np.uint8)
    seen = image[shown]
    return image if seen.size and seen.min() < seen.max() else None


def _stretch(values: np.ndarray, shown: np.ndarray) -> np.ndarray:
    seen = values[shown] if shown.any() else values
    low, high = float(seen.min()), float(seen.max())
    part = (values.astype(np.float32) - low) / max(high - low, 1e-6)
    return np.rint(np.clip(part, 0, 1) * 255).astype(np.uint8)


def _padding(header, stored: np.ndarray) -> np.ndarray:
    """Bool [H, W]: where the header says that the detector saw nothing."""
    first = _first(header, 'PixelPaddingValue')
    if first is None:
        return np.zeros(stored.shape, bool)
    last = _first(header, 'PixelPaddingRangeLimit')
    low, high = sorted((first, first if last is None else last))
    return (stored >= low) & (stored <= high)


def _first(header, tag: str) -> float | None:
    """The first of a tag's numbers; None where it is missing, empty or not finite."""
    value = header.get(tag)
    if isinstance(value, (list, tuple)) or (hasattr(value, '__len__') and not isinstance(value, str)):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
