"""What a table shows of scores: the field's metrics, not available where undefined.

One rule for all: a label with one class in the images that are judged, or
without scores, is NaN in every one of them, so that their means are over the same labels. It is
never 0 or 0.5, which would be read as a result; `not_available` names it for the report.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from mlvicx_jax.data import NO_FINDING
from mlvicx_jax.errors import UserError

CALIBRATION_BINS = 15  # Guo et al., 2017 (arXiv:1706.04599), section 3


def judged(labels: np.ndarray, scores: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checks labels and scores, and tells which columns have both classes and a score.

    Args:
        labels: [n, k] of 0 and 1.
        scores: [n, k]. A column that is NaN throughout has no score (as `probe` gives for a class
            absent from training).
        metric: who asks, for the message.

    Returns:
        labels [n, k] as given, scores float64 [n, k], available bool [k].

    Raises:
        UserError: shapes differ, a label is neither 0 nor 1, or a score is not finite.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if labels.ndim != 2 or labels.shape != scores.shape:
        raise UserError(
            f'{metric}: labels have shape {labels.shape} and scores {scores.shape}; expected the '
            'same [images, classes]: score every labelled image once, one column per class'
        )
    if not np.isin(labels, (0, 1)).all():
        found = np.unique(labels[~np.isin(labels, (0, 1))])[:3]
        raise UserError(
            f'{metric}: labels hold {found}; expected 0 and 1: map or leave out '
            'uncertain and missing labels first'
        )
    available = labels.min(axis=0, initial=1) != labels.max(axis=0, initial=0)
    available &= ~np.isnan(scores).all(axis=0)
    bad = np.sum(~np.isfinite(scores), axis=0) * available
    if bad.any():
        c = np.argmax(bad > 0)
        raise UserError(
            f'{metric}: class {c} has {bad[c]} of {len(scores)} scores that are not '
            'finite; expected numbers: look for the images whose features overflow'
        )
    return labels, scores, available


def auroc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class: P(positive scores higher) + P(tie) / 2.

    This is the Mann-Whitney statistic divided by the number of (positive, negative) pairs.

    Args:
        labels: [n, k] of 0 and 1.
        scores: [n, k], higher means more likely positive; any monotone scale. A column that is NaN
            throughout has no score (as `probe` gives for a class absent from training).

    Returns:
        float64 [k]; NaN for a class that has no positive, no negative or no score.

    Raises:
        UserError: shapes differ, a label is neither 0 nor 1, or a score is not finite.
    """
    return _per_class(roc_auc_score, labels, scores, 'AUROC')


def auprc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the precision-recall curve of each class, as average precision.

    The sum over distinct scores of (step in recall) x precision: no interpolation between points,
    which would be optimistic (Davis and Goadrich, ICML 2006). Scores without information get the
    share of positives, so read it against that and not against 0.5.

    Args, Returns, Raises: as `auroc`.
    """
    return _per_class(average_precision_score, labels, scores, 'AUPRC')


def f1_threshold(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The score of each class from which calling an image positive gives the best F1.

    Choose it on validation and give it to `f1`: chosen on the images it is judged on, it flatters.

    Args, Raises: as `auroc`.

    Returns:
        float64 [k], the highest of the best ones; NaN where `auroc` is.
    """
    return _per_class(
        lambda label, score: _best_threshold(label, score, lambda tp, fp, p, n: 2 * tp / (tp + fp + p)),
        labels,
        scores,
        'F1',
    )


def accuracy_threshold(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The score of each class from which calling an image positive gives the best accuracy.

    Infinity where nothing beats calling all images negative. Choose it on validation.

    Args, Returns, Raises: as `f1_threshold`.
    """
    return _per_class(
        lambda label, score: _best_threshold(label, score, lambda tp, fp, p, n: (tp + n - fp) / (p + n)),
        labels,
        scores,
        'accuracy',
    )


def f1(labels: np.ndarray, scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """F1 of each class, 2 TP / (2 TP + FP + FN), where a score >= its threshold is positive.

    Args:
        labels, scores: as in `auroc`.
        thresholds: [k], from `f1_threshold` on validation.

    Returns:
        float64 [k]; NaN where `auroc` is or the threshold is.

    Raises:
        UserError: as `auroc`.
    """
    labels, scores, available = judged(labels, scores, 'F1')
    called, truth = scores >= thresholds, labels == 1
    # No positive leaves 0 / 0, but then the column has one class and is not available.
    ratio = 2.0 * (called & truth).sum(0) / np.maximum(called.sum(0) + truth.sum(0), 1)
    return np.where(available & ~np.isnan(thresholds), ratio, np.nan)


def accuracy(labels: np.ndarray, scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of the images called right of each class, where a score >= its threshold is positive.

    The larger class's share is reached without looking (0.775 on RSNA): give AUROC beside it.

    Args, Returns, Raises: as `f1`, with thresholds from `accuracy_threshold`.
    """
    labels, scores, available = judged(labels, scores, 'accuracy')
    right = np.sum((scores >= thresholds) == labels, axis=0) / max(len(labels), 1)
    return np.where(available & ~np.isnan(thresholds), right, np.nan)


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Expected calibration error of each class, in 15 bins of equal mass.

    sum_b (n_b / n) |share of positives in b - mean probability in b|. Equal mass (Nixon et al.,
    2019, arXiv:1904.01685), since most probabilities of a rare finding lie in the first of 15 bins
    of equal width. Images of one probability stay together in the bin of the first of them, so the
    order of the rows is nothing. Not zero for a perfect model: noise alone gives about
    sqrt(2 x 15 q (1 - q) / (pi n)) where the probabilities are near q.

    Args:
        labels: [n, k] of 0 and 1.
        probabilities: [n, k] in 0..1.

    Returns:
        float64 [k]; NaN where `auroc` is.

    Raises:
        UserError: as `auroc`, or a score is no probability.
    """
    labels, p, _ = judged(labels, probabilities, 'calibration error')
    if np.any((p < 0) | (p > 1)):
        raise UserError(
            f'calibration error: scores go from {np.nanmin(p):g} to {np.nanmax(p):g}; '
            'expected probabilities in 0..1: apply the sigmoid to log odds'
        )

    def of_class(label, p):
        bins = (rankdata(p, 'min').astype(np.int64) - 1) * CALIBRATION_BINS // len(p)
        return np.abs(np.bincount(bins, label - p)).sum() / len(p)

    return _per_class(of_class, labels, p, 'calibration error')


def mean_auroc(per_class: np.ndarray) -> tuple[float, int]:
    """Mean over the classes whose AUROC is defined, and how many those are.

    Give both: a mean over 9 of 15 classes is another quantity than a mean over 15.

    Args:
        per_class: [k], NaN where undefined (see `auroc`).

    Returns:
        (mean, number of classes in it); (NaN, 0) when no class is defined.
    """
    available = np.sum(~np.isnan(per_class))
    return float(mean_of_available(per_class)), int(available)


def mean_members(names: Sequence[str]) -> dict[str, list[int]]:
    """Which labels are in which mean: the findings, and all, where 'No Finding' is one of them.

    NIH's labels give 'mean14' and 'mean15'; other sets the like by their own numbers. Published
    means are of both kinds and seldom say which. They are over the labels that are available: give
    `not_available` beside them.

    Args:
        names: of the k labels.

    Returns:
        'mean<count>' to positions of the labels.
    """
    findings = [i for i, name in enumerate(names) if name != NO_FINDING]
    return {f'mean{len(members)}': members for members in (findings, list(range(len(names))))}


def not_available(values: np.ndarray, names: Sequence[str]) -> list[str]:
    """Names of the labels whose value, of [k], is NaN: what a table prints as n/a."""
    return [name for name, value in zip(names, values, strict=True) if np.isnan(value)]


def mean_of_available(values) -> np.ndarray:
    """Mean over the last axis without its NaN; NaN where that leaves nothing."""
    values = np.asarray(values, np.float64)
    there = ~np.isnan(values)
    count = there.sum(-1)
    mean = np.where(there, values, 0).sum(-1) / np.maximum(count, 1)
    return np.where(count, mean, np.nan)[()]  # of one row a float, not an array of no axes


def _per_class(metric: Callable, labels, scores, name) -> np.ndarray:
    """`metric(label [n], score [n])` of each column that is available, NaN of the others."""
    labels, scores, available = judged(labels, scores, name)
    values = np.full(labels.shape[1], np.nan)
    for c in np.flatnonzero(available):
        values[c] = metric(labels[:, c], scores[:, c])
    return values


def _best_threshold(label, score, quality: Callable) -> float:
    """The highest cut with the best `quality(true positives, false positives, P, N)`."""
    fpr, tpr, thresholds = roc_curve(label, score, drop_intermediate=False)  # the first: infinity
    p, n = np.sum(label == 1), np.sum(label == 0)
    return thresholds[np.argmax(quality(tpr * p, fpr * n, p, n))]
