"""What a table shows of masks: Dice and intersection over union of each, and their means."""

import numpy as np

from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation.metrics import mean_of_available


def dice(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Dice of each mask, 2 |A and B| / (|A| + |B|); 1 where both are empty.

    Args:
        truth: [n, h, w] or [n, h, w, k], bool or 0 and 1.
        predicted: the same, already cut at a threshold.

    Returns:
        float64 [n] or [n, k]. Of images, not of all pixels together: concatenate batches, then
        take `mask_means`.

    Raises:
        UserError: shapes differ, or a mask holds other than 0 and 1.
    """
    both, a, b = _pixels(truth, predicted)
    return np.where(a + b, 2 * both / np.maximum(a + b, 1), 1.0)


def iou(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Intersection over union of each mask; 1 where both are empty. Otherwise as `dice`."""
    both, a, b = _pixels(truth, predicted)
    return np.where(a + b, both / np.maximum(a + b - both, 1), 1.0)


def mask_means(values: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of `dice` or `iou` over the images with a mask, and over all images.

    They differ by far: where 78 % of the images have no pneumothorax, an empty answer to every
    image has 0 over the positives and 0.78 over all. Published figures are of both kinds.

    Args:
        values: [n] or [n, k].
        truth: [n] or [n, k], whether the true mask has a pixel.

    Returns:
        (positives, all), each float64 scalar or [k]; NaN where there is no such image.
    """
    values = np.asarray(values, np.float64).T
    return (mean_of_available(np.where(np.asarray(truth, bool).T, values, np.nan)), mean_of_available(values))


def _pixels(truth, predicted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of each mask in both, in truth and in prediction, [n] or [n, k]."""
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape or truth.ndim not in (3, 4):
        raise UserError(
            f'masks: the true ones have shape {truth.shape}, the predicted ones '
            f'{predicted.shape}; expected the same [images, height, width] or '
            '[images, height, width, structures]'
        )
    for name, mask in (('true', truth), ('predicted', predicted)):
        if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
            raise UserError(
                f'masks: the {name} ones go from {mask.min():g} to {mask.max():g}; '
                'expected 0 and 1: cut probabilities at a threshold first'
            )
    truth, predicted = truth.astype(bool), predicted.astype(bool)
    return tuple(np.count_nonzero(mask, axis=(1, 2)) for mask in (truth & predicted, truth, predicted))
