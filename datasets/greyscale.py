"""Stored values of a DICOM to 8-bit grey, air dark: padding, look-up tables, windows.

The rule is written down in docs/data.md. `levels` and `counts` are those of `intensity`.
"""

import dataclasses

import cv2
import numpy as np

from mlvicx_jax.errors import UserError

from .intensity import film_range, histogram, look_up, spread

# Numbers that DICOM keeps as text.
_DECIMALS = ('RescaleSlope', 'RescaleIntercept', 'WindowCenter', 'WindowWidth', 'NumberOfFrames')
_INSIDE = 0.5  # of the film's pixels a window has to leave unclipped
_SPREAD = 128  # grey levels that the middle 98 % of the film has to span


@dataclasses.dataclass(frozen=True)
class _Table:
    """A look-up table: entries[v - first] for a value v; `white` is the entry shown as 255."""

    first: int
    entries: np.ndarray
    white: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        index = np.rint(values).astype(np.int64) - self.first
        return self.entries[np.clip(index, 0, len(self.entries) - 1)]


def film(header, stored: np.ndarray) -> np.ndarray:
    """Stored values, an integer [H, W] of up to 16 bits, -> uint8 [H, W] with air dark, by the header.

    `header` is a pydicom Dataset whose BitsStored and PhotometricInterpretation are those of `stored`.

    Raises:
        UserError: raw detector data of unknown sign.
    """
    padding = _padding(header, stored)
    shown = stored if padding is None else stored[~padding]
    levels, counts = histogram(shown)
    values = _modality(header, levels)
    sign = _sign_of_raw_data(header)
    if sign:
        curve = _of_raw_data(header, values, counts, sign)
    else:
        curve = _of_interest(header, values, counts)
        if curve is None and stored.dtype == np.uint8 and header.BitsStored == 8 and values is levels:
            curve = levels.astype(np.uint8)
        if curve is None:
            curve = spread(values, *film_range(values, counts))
        if str(header.PhotometricInterpretation).strip().upper() == 'MONOCHROME1':
            curve = 255 - curve
    if padding is None:
        return look_up(curve, stored, levels[0])
    image = np.zeros(stored.shape, np.uint8)
    image[~padding] = look_up(curve, shown, levels[0])
    return image


def numbers(header, keyword: str) -> list[float]:
    """The finite numbers of a tag; decimal commas are read, and what is no number is left out."""
    element = header.get_item(keyword)
    value = None if element is None else element.value
    if isinstance(value, bytes):  # as it stands in the file: pydicom would fail on the comma
        text = keyword in _DECIMALS and element.VR not in ('FD', 'FL', 'US', 'SS', 'UL', 'SL')
        value = value.decode('ascii', 'replace') if text else header.get(keyword)
    if isinstance(value, str):
        value = value.replace(',', '.').strip('\0 ').split('\\')
    elif value is None or isinstance(value, bytes) or not hasattr(value, '__iter__'):
        value = [value]
    found = []
    for part in value:
        try:
            number = float(part)
        except (TypeError, ValueError, OverflowError):
            continue
        if np.isfinite(number) and abs(number) < 1e9:
            found.append(number)
    return found


def _padding(header, stored: np.ndarray) -> np.ndarray | None:
    """Bool [H, W]: where the header says that the detector saw nothing; None where that is nowhere.

    Values of the film may be equal to it. So only whole rows and columns at the border are padding, and
    what reaches the border of the rest, if the values beside it are mostly other ones: saturated tissue
    fades into its surroundings.
    """
    first = numbers(header, 'PixelPaddingValue')[:1]
    if not first:
        return None
    low, high = sorted((first + numbers(header, 'PixelPaddingRangeLimit')[:1] + first)[:2])
    for wrapped in (0, -65536, 65536):  # the tag's sign need not be that of the values
        mask = (stored >= low + wrapped) & (stored <= high + wrapped)
        if mask.any():
            break
    else:
        return None
    if mask.all():
        return None
    rows, columns = (np.flatnonzero(~mask.all(axis)) for axis in (1, 0))
    inner = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    padding = np.ones(mask.shape, bool)
    first, last = film_range(*histogram(stored[~mask]))
    tolerance = (last - first) / 16
    alike = (stored >= low + wrapped - tolerance) & (stored <= high + wrapped + tolerance)
    padding[inner] = _parted(mask[inner], alike[inner])
    return padding if padding.any() else None


def _parted(mask: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """The regions of `mask` that reach the border and have mostly neighbours that are not `alike`."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    at_border, beside, beside_alike = np.zeros(count, bool), np.zeros(count), np.zeros(count)
    for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        at_border[line] = True
    all_but_first, all_but_last = slice(1, None), slice(None, -1)
    for one, other in ((all_but_first, all_but_last), (all_but_last, all_but_first)):
        for here, there in (((one,), (other,)), ((slice(None), one), (slice(None), other))):
            edge = mask[here] & ~mask[there]
            beside += np.bincount(labels[here][edge], minlength=count)
            beside_alike += np.bincount(labels[here][edge & alike[there]], minlength=count)
    at_border &= beside_alike <= beside / 2
    at_border[0] = False  # the label of what is not in the mask
    return at_border[labels]


def _modality(header, levels: np.ndarray) -> np.ndarray:
    """PS3.3 C.11.1: the modality table, or the slope and intercept; `levels` itself where there is neither."""
    for table in _tables(header, 'ModalityLUTSequence', levels):
        return table(levels)
    slope = (numbers(header, 'RescaleSlope') or [1])[0] or 1
    intercept = (numbers(header, 'RescaleIntercept') or [0])[0]
    return levels if (slope, intercept) == (1, 0) else levels * slope + intercept


def _sign_of_raw_data(header) -> int:
    """Of raw detector data: 1 where values grow with the X-rays that arrive, -1 where they fall; else 0.

    PS3.3 C.8.11.3.1.2.
    """
    intent = str(header.get('PresentationIntentType') or '').strip().upper()
    if intent != 'FOR PROCESSING' and header.get('SOPClassUID') != '1.2.840.10008.5.1.4.1.1.1.1.1':
        return 0
    for sign in numbers(header, 'PixelIntensityRelationshipSign'):
        if sign in (-1, 1):
            return int(sign)
    raise UserError(
        'raw detector data (FOR PROCESSING) whose header does not say if air is bright (no '
        'PixelIntensityRelationshipSign); export the film FOR PRESENTATION'
    )


def _of_raw_data(header, values: np.ndarray, counts: np.ndarray, sign: int) -> np.ndarray:
    """The curve of raw detector data: absorption, which is minus the logarithm of what arrives."""
    if str(header.get('PixelIntensityRelationship') or '').strip().upper() == 'LIN':
        values = np.log(np.maximum(values, 1))
    curve = spread(values, *film_range(values, counts))
    return 255 - curve if sign > 0 else curve


def _of_interest(header, values: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    """The curve of the first VOI table, or else of the first window, that shows the film; else None."""
    for table in _tables(header, 'VOILUTSequence', values):
        curve = spread(table(values), 0, table.white)
        if _shows_the_film(curve, values, counts):
            return curve
    function = str(header.get('VOILUTFunction') or 'LINEAR').strip().upper()
    for centre, width in zip(numbers(header, 'WindowCenter'), numbers(header, 'WindowWidth')):
        if width < (1 if function == 'LINEAR' else 1e-6):
            continue
        if function == 'SIGMOID':
            part = 1 / (1 + np.exp(-4 * np.clip((values - centre) / width, -20, 20)))
        elif function == 'LINEAR_EXACT':
            part = (values - centre) / width + 0.5
        else:  # PS3.3 C.11.2.1.2.1; a width of 1 is a threshold
            part = (values - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5
        curve = spread(part, 0, 1)
        if _shows_the_film(curve, values, counts):
            return curve
    return None


def _shows_the_film(curve: np.ndarray, values: np.ndarray, counts: np.ndarray) -> bool:
    """Whether a table or window leaves enough of the film unclipped, and spread over the grey scale."""
    low, high = film_range(values, counts)
    inside = counts * ((values > low) & (values < high))
    counts = inside if inside.any() else counts
    below = np.cumsum(np.bincount(curve, counts, 256)) / counts.sum()
    unclipped = below[254] - below[0]
    first, last = np.searchsorted(below, (0.01, 0.99))
    return bool(unclipped >= _INSIDE and last - first >= _SPREAD)


def _tables(header, keyword: str, values: np.ndarray):
    """The usable look-up tables of a sequence, read as the values to be looked up suggest."""
    for item in header.get(keyword) or ():
        descriptor, data = item.get('LUTDescriptor'), item.get('LUTData')
        if isinstance(descriptor, bytes):
            descriptor = np.frombuffer(descriptor[:6], '<u2').tolist()
        if data is None or isinstance(descriptor, str) or len(np.atleast_1d(descriptor)) != 3:
            continue
        count, first, bits = (int(number) & 0xFFFF for number in descriptor)
        entries = _entries(data, count or 65536, bits, '<' if header.original_encoding[1] else '>')
        if not len(entries) or entries.min() == entries.max():
            continue
        top, nominal = float(entries.max()), 2.0 ** min(bits, 16) - 1
        white = nominal if nominal / 2 < top <= nominal else top  # a descriptor that its entries contradict
        # The first value is signed or not as the values are: the reading that covers more of them.
        low, high = float(values.min()), float(values.max())
        first = max(
            (first, first - 65536), key=lambda start: min(high, start + len(entries) - 1) - max(low, start)
        )
        yield _Table(first, entries, white)


def _entries(data, count: int, bits: int, order: str) -> np.ndarray:
    """As many of a table's `count` entries as are there; of 8 bits they may be packed two to a word."""
    if not isinstance(data, bytes):
        data = (np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF).astype(order + 'u2').tobytes()
    packed = len(data) <= count + 1 and (bits <= 8 or len(data) >= count)
    words = np.frombuffer(data[: len(data) // 2 * 2], order + 'u2')
    # The first of two packed entries is the less significant byte of its word.
    return (words.astype('<u2').view(np.uint8) if packed else words)[:count].astype(np.int64)
