"""A film made for tests, and what is asked of a picture of it."""

import numpy as np
import scipy.stats


def film(height: int = 128, width: int = 112) -> np.ndarray:
    """Something like a chest, uint16 [height, width] of 12 bits, air dark, with grain."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    values = 1700 - 500 * x**2 + 900 * np.exp(-((x / 0.15) ** 2))
    values += 800 * np.exp(-((x + 0.1) ** 2) / 0.1 - (y - 0.4) ** 2 / 0.1)
    for side in (-0.5, 0.5):
        values -= 1200 * np.exp(-(((x - side) / 0.25) ** 4) - (y / 0.65) ** 4)
    values[np.abs(x) > 0.93] = 60
    grain = np.random.default_rng(0).normal(0, 5, values.shape)
    return np.clip(values + grain, 0, 4095).astype(np.uint16)


def is_like(image: np.ndarray, values: np.ndarray) -> bool:
    """Whether uint8 `image` shows `values` well: same order of pixels, neither dark nor bright nor coarse."""
    assert image.shape == values.shape and image.dtype == np.uint8
    rank = scipy.stats.spearmanr(image.ravel(), values.ravel())[0]
    return rank > 0.99 and 60 <= image.mean() <= 190 and len(np.unique(image)) > 100
