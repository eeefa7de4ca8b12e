"""Area under the ROC curve per class, and its mean over the classes that have one."""

import numpy as np
from sklearn.metrics import roc_auc_score

from mlvicx_jax.errors import UserError


def auroc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class: P(positive scores higher) + P(tie) / 2.

    This is the Mann-Whitney statistic divided by the number of (positive, negative) pairs.

    Args:
        labels: [n, k] of 0 and 1.
        scores: [n, k], higher means more likely positive; any monotone scale. A column that is NaN
            throughout has no score (as `probe` gives for a class absent from training).

    Returns:
        float64 [k]; NaN for a class that has no positive, no negative or no score: its area is
        not defined, and 0.5 or 0 in its place would be read as a result.

    Raises:
        UserError: shapes differ, a label is neither 0 nor 1, or a score is not finite.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if labels.ndim != 2 or labels.shape != scores.shape:
        raise UserError(
            f'AUROC: labels have shape {labels.shape} and scores {scores.shape}; expected the '
            'same [images, classes]: score every labelled image once, one column per class')
    if not np.isin(labels, (0, 1)).all():
        found = np.unique(labels[~np.isin(labels, (0, 1))])[:3]
        raise UserError(f'AUROC: labels hold {found}; expected 0 and 1: map or leave out '
                        'uncertain and missing labels first')
    areas = np.full(labels.shape[1], np.nan)
    for c, (label, score) in enumerate(zip(labels.T, scores.T)):
        if label.min(initial=1) == label.max(initial=0) or np.isnan(score).all():
            continue
        if not np.isfinite(score).all():
            raise UserError(f'AUROC: class {c} has {np.sum(~np.isfinite(score))} of {len(score)} '
                            'scores that are not finite; expected numbers: look for the images '
                            'whose features overflow')
        areas[c] = roc_auc_score(label, score)
    return areas


def mean_auroc(per_class: np.ndarray) -> tuple[float, int]:
    """Mean over the classes whose AUROC is defined, and how many those are.

    Give both: a mean over 9 of 15 classes is another quantity than a mean over 15.

    Args:
        per_class: [k], NaN where undefined (see `auroc`).

    Returns:
        (mean, number of classes in it); (NaN, 0) when no class is defined.
    """
    available = np.asarray(per_class, np.float64)
    available = available[~np.isnan(available)]
    return float(available.mean()) if available.size else float('nan'), int(available.size)
