"""The range of a film's values, and 8-bit grey by it; the rule is written down in docs/data.md.

Grey is a function of the value alone, so everything is worked out on the possible values ("levels") and
how many pixels have each ("counts"), and looked up for the pixels at the end.
"""

import numpy as np

_ENDS = 0.05  # of the pixels at each end, outside the middle that the range is measured by
_FEW = 0.02  # of the pixels at an end: so many may be left out


def stretch(values: np.ndarray) -> np.ndarray:
    """Integers of 16 bits, or numbers of 32, -> uint8 over the range of the film; NaN becomes black."""
    if values.dtype in (np.uint16, np.int16):
        levels, counts = histogram(values)
        return look_up(spread(levels, *film_range(levels, counts)), values, levels[0])
    sample = values.ravel()[:: max(1, values.size // 2**17)].astype(np.float64)
    levels, counts = np.unique(sample[np.isfinite(sample)], return_counts=True)
    image = np.zeros(values.shape, np.uint8)
    if not levels.size:
        return image
    low, high = film_range(levels, counts)
    for start in range(0, len(values), 256):  # rows; all at once would need 16 bytes a pixel
        rows = values[start : start + 256].astype(np.float64)
        image[start : start + 256] = spread(np.where(np.isfinite(rows), rows, -np.inf), low, high)
    return image


def film_range(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value of the film, without hot pixels, lead markers and undeclared padding.

    Left out are, at either end, a value farther from the next than all others span, as long as half of
    the pixels stay; then what lies outside the middle 90 % of the pixels by more than half the width of
    that middle, as long as it is less than 2 % of the pixels.

    Args:
        values: [n] different values.
        counts: [n] pixels that have them.
    """
    order = np.argsort(values, kind='stable')
    values, counts = values[order][counts[order] > 0].astype(np.float64), counts[order][counts[order] > 0]
    total = counts.sum()
    while len(values) > 2:
        gaps = values[1] - values[0], values[-1] - values[-2]
        rests = values[-1] - values[1], values[-2] - values[0]
        cut = [gap > rest and rest > 0 for gap, rest in zip(gaps, rests)]
        kept = slice(int(cut[0]), len(values) - int(cut[1]))
        if not any(cut) or counts[kept].sum() < total / 2:
            break
        values, counts = values[kept], counts[kept]
    below = np.cumsum(counts) / counts.sum()
    low, high = (values[np.searchsorted(below, part)] for part in (_ENDS, 1 - _ENDS))
    inside_low, inside_high = values >= low - (high - low) / 2, values <= high + (high - low) / 2
    few = _FEW * counts.sum()
    first, last = values[0], values[-1]
    if low < high and counts[~inside_low].sum() < few:
        first = values[inside_low][0]
    if low < high and counts[~inside_high].sum() < few:
        last = values[inside_high][-1]
    return float(first), float(last)


def histogram(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All values from the lowest to the highest, int64, and how many pixels have each."""
    low, high = int(stored.min()), int(stored.max())
    counts = np.zeros(high - low + 1, np.int64)
    for part in np.array_split(stored.ravel(), 1 + stored.size // 2**22):  # bincount needs 8 bytes a pixel
        counts += np.bincount(part.astype(np.int64) - low, minlength=len(counts))
    return np.arange(low, high + 1), counts


def look_up(curve: np.ndarray, stored: np.ndarray, first: int) -> np.ndarray:
    """The entries of `curve` for the stored values, of which `first` has entry 0."""
    index = stored if first == 0 else stored.astype(np.int32) - int(first)
    return curve[index]


def spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values -> uint8, `low` black and `high` white."""
    part = (values - low) * (255 / max(high - low, 1e-6))
    return np.rint(np.clip(part, 0, 255)).astype(np.uint8)
