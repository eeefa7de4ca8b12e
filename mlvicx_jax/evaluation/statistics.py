"""How sure a number is: intervals and tests, over patients of one test set and over runs.

A test set has several images of one patient, which are alike: NIH's 25,596 come from 2,797. To
count them as independent makes every interval too narrow, so patients are the units here.
Intervals are of 95 %.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation.metrics import auprc, auroc, judged

LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
# Share of resamples that may be undefined: e^-3 = 0.05 of them miss a finding that three patients
# have, e^-2 = 0.14 one that two have, who say nothing of the spread among patients.
MOST_UNDEFINED = 0.1
ROUNDING = 1e-12  # runs of a metric, of order 1, that differ by less are one run


class Estimate(NamedTuple):
    """A value and its interval, floats or float64 [k]; NaN is not available."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Comparison(NamedTuple):
    """A difference, its interval, and the test of its being zero (two-sided `p`)."""

    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    statistic: np.ndarray
    p: np.ndarray


def bootstrap(
    metric: Callable,
    labels: np.ndarray,
    scores: np.ndarray,
    patients: Sequence,
    resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """A metric in test sets made of patients drawn with replacement, each with all images.

    `percentile_interval` makes an interval of it. The draws depend on the seed and the patients'
    ids alone, so values of two models (or of two metrics) subtract resample by resample, and
    `percentile_interval(a - b)` is that of the paired difference. Field and Welsh, "Bootstrapping
    clustered data", JRSS B 69 (2007): the cluster bootstrap.

    `auroc` and `auprc` sort each label once and then count how often each image was drawn: 1,000
    resamples of 25,596 x 14 take a second on one core. Any other metric is called with rows.

    Args:
        metric: of (labels, scores), to a float or an array: `auroc`, or a function of one's own
            such as `lambda truth, dice: mask_means(dice, truth)`.
        labels: [n, ...].
        scores: [n, ...].
        patients: [n] patient of each row.
        resamples: how many test sets.
        seed: of the draws.

    Returns:
        float64 [resamples, ...], what the metric gave in each.

    Raises:
        UserError: labels, scores and patients differ in number, or what the metric raises.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    patients = _numbered(patients, labels, scores)
    if metric in _PREPARED:
        of_draw = _PREPARED[metric](labels, scores, patients)
    else:

        def of_draw(times):
            rows = np.repeat(np.arange(len(labels)), times[patients])
            return metric(labels[rows], scores[rows])

    rng, count = np.random.default_rng(seed), patients.max() + 1
    return np.array(
        [of_draw(np.bincount(rng.integers(count, size=count), minlength=count)) for _ in range(resamples)],
        np.float64,
    )


def percentile_interval(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interval between the 2.5 and 97.5 percentiles of what `bootstrap` gave.

    Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13. It never leaves the
    metric's range.

    Args:
        resampled: [resamples, ...].

    Returns:
        (low, high), each [...]; NaN where over a tenth of the resamples are, as for a finding
        that fewer than three patients have, or lack.
    """
    resampled = np.asarray(resampled, np.float64)
    undefined = np.isnan(resampled).mean(axis=0) > MOST_UNDEFINED
    low, high = np.nanquantile(np.where(undefined, 0, resampled), TAILS, axis=0)
    return np.where(undefined, np.nan, low)[()], np.where(undefined, np.nan, high)[()]


def delong_interval(labels: np.ndarray, scores: np.ndarray, patients: Sequence | None = None) -> Estimate:
    """AUROC of each class with DeLong's interval, on the scale of log odds of the area.

    DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), by the midranks of Sun and Xu, IEEE
    Signal Processing Letters 21 (2014), in n log n; for several images of a patient Obuchowski,
    Biometrics 53 (1997), which is DeLong's where each has one. On the scale of log odds, as Pepe's
    book of 2003 has it, the interval stays within 0..1.

    Args:
        labels: [n, k] of 0 and 1.
        scores: [n, k]; a column that is NaN throughout has no score.
        patients: [n] patient of each row; None: each image is a patient of its own.

    Returns:
        Estimate of [k]. Value and interval are NaN where `auroc` is; the interval alone is where
        the positives or the negatives come from one patient, or the variance is zero, which is no
        certainty: an area of 0 or 1, or constant scores.

    Raises:
        UserError: as `auroc`, or patients differ in number.
    """
    labels, scores, available = judged(labels, scores, 'DeLong')
    patients = _numbered(patients, labels, scores)
    value, low, high = np.full((3, labels.shape[1]), np.nan)
    for c in np.flatnonzero(available):
        positive, negative = _placements(labels[:, c], scores[:, c])
        value[c] = positive.mean()
        variance = _variance(positive, negative, labels[:, c], patients)
        if variance > 0:
            odds = value[c] / (1 - value[c])
            step = stats.norm.ppf(TAILS[1]) * np.sqrt(variance) / (value[c] * (1 - value[c]))
            low[c], high[c] = (odds * factor / (1 + odds * factor) for factor in np.exp([-step, step]))
    return Estimate(value, low, high)


def delong_test(
    labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray, patients: Sequence | None = None
) -> Comparison:
    """Whether two models' AUROCs on one test set differ, for each class: A minus B.

    Sources as in `delong_interval`. The variance is that of the placements' differences, which is
    var A + var B - 2 cov without its cancellation for models that are nearly one.

    Args:
        labels: [n, k] of 0 and 1.
        scores_a, scores_b: [n, k], the models' scores of the same images.
        patients: [n] patient of each row; None: each image is a patient of its own.

    Returns:
        Comparison of [k] with a normal interval and statistic z; NaN where either AUROC is. Two
        models that rank all pairs alike have the interval 0..0 and p = 1; otherwise, where the
        positives or the negatives come from one patient or the variance is zero, interval, z and p
        are NaN.

    Raises:
        UserError: as `delong_interval`.
    """
    labels, scores_a, available = judged(labels, scores_a, 'DeLong')
    _, scores_b, available_b = judged(labels, scores_b, 'DeLong')
    patients = _numbered(patients, labels, scores_a)
    difference, error = np.full((2, labels.shape[1]), np.nan)
    for c in np.flatnonzero(available & available_b):
        label = labels[:, c]
        positive, negative = (
            a - b for a, b in zip(_placements(label, scores_a[:, c]), _placements(label, scores_b[:, c]))
        )
        difference[c] = positive.mean()
        variance = _variance(positive, negative, label, patients)
        if variance > 0:
            error[c] = np.sqrt(variance)
        elif not positive.any() and not negative.any():
            error[c] = 0
    z = difference / np.where(error == 0, 1, error)
    margin = stats.norm.ppf(TAILS[1]) * error
    return Comparison(difference, difference - margin, difference + margin, z, 2 * stats.norm.sf(np.abs(z)))


def t_interval(values: np.ndarray) -> Estimate:
    """Mean over runs and Student's t interval of it.

    It is of the spread between runs (seeds, draws of the training part), not between patients.

    Args:
        values: [runs] or [runs, k].

    Returns:
        Estimate of float or [k]; NaN where a run has no value. The interval alone is NaN where
        there is one run, or all have one value to rounding: copies of one run.

    Raises:
        UserError: no run.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        raise UserError('t interval: no run; expected one or more')
    mean, margin = values.mean(axis=0), np.full(values.shape[1:], np.nan)
    if len(values) > 1:
        margin = stats.t.ppf(TAILS[1], len(values) - 1) * stats.sem(values, axis=0)
    margin = np.where(np.ptp(values, axis=0) > ROUNDING, margin, np.nan)[()]
    return Estimate(mean, mean - margin, mean + margin)


def paired_t_test(a: np.ndarray, b: np.ndarray) -> Comparison:
    """Whether two methods differ over runs that share seed and data: the paper's test, A minus B.

    Args:
        a, b: [runs] or [runs, k], run i of both with one seed and one part of the training data.

    Returns:
        Comparison of float or [k], with Student's t of the differences as statistic. NaN where a
        run has no value; all but the difference NaN where it is the same in every run.

    Raises:
        UserError: shapes differ, or fewer than two runs.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or len(a) < 2:
        raise UserError(
            f'paired t-test: runs of shapes {a.shape} and {b.shape}; expected the same '
            'shape and two runs or more: run both methods with the same seeds'
        )
    estimate = t_interval(a - b)
    t, p = stats.ttest_1samp(np.where(np.isnan(estimate.low), np.nan, a - b), 0)
    return Comparison(*estimate, t, p)


def _numbered(patients: Sequence | None, labels, scores) -> np.ndarray:
    """Patients [n] as numbers from 0, in the order of their ids."""
    n = len(labels)
    patients = np.arange(n) if patients is None else np.asarray(patients)
    if not n or patients.shape != (n,) or len(scores) != n:
        raise UserError(
            f'{n} rows of labels, {len(scores)} of scores and patients of shape '
            f'{patients.shape}; expected one of each for every image'
        )
    return np.unique(patients, return_inverse=True)[1]


def _placements(label, score) -> tuple[np.ndarray, np.ndarray]:
    """Of each positive the share of negatives below it, of each negative that of positives above.

    Ties count half. DeLong's V10 [positives] and V01 [negatives]; the mean of either is the AUROC.
    Their midranks are whole or half numbers, exact in float64 whatever n.
    """
    positive, rank = label == 1, stats.rankdata(score)
    p, n = np.sum(positive), np.sum(~positive)
    return (
        (rank[positive] - stats.rankdata(score[positive])) / n,
        1 - (rank[~positive] - stats.rankdata(score[~positive])) / p,
    )


def _variance(positive, negative, label, patients) -> float:
    """Variance of the placements' mean, from sums over patients; NaN with one patient of a class.

    Obuchowski, 1997: patients' sums of deviations take the place of the images' deviations, and
    S11 is the covariance of a patient's positive and negative images.
    """
    is_positive = label == 1
    count = patients.max() + 1
    sums = [
        np.bincount(patients[rows], values - values.mean(), count)
        for rows, values in ((is_positive, positive), (~is_positive, negative))
    ]
    with_positive, with_negative = (len(np.unique(patients[rows])) for rows in (is_positive, ~is_positive))
    if min(with_positive, with_negative) < 2:
        return np.nan
    s10 = with_positive / (with_positive - 1) * np.sum(sums[0] ** 2) / len(positive) ** 2
    s01 = with_negative / (with_negative - 1) * np.sum(sums[1] ** 2) / len(negative) ** 2
    s11 = count / (count - 1) * np.sum(sums[0] * sums[1]) / (len(positive) * len(negative))
    return s10 + s01 + 2 * s11


def _prepare_auroc(labels, scores, patients) -> Callable:
    """A function of how often each patient was drawn, [patients], to the AUROCs [k]."""
    labels, scores, available = judged(labels, scores, 'AUROC')
    columns = {}
    for c in np.flatnonzero(available):
        positive, score = labels[:, c] == 1, scores[:, c]
        order = np.argsort(score[~positive])
        columns[c] = (
            patients[positive],
            patients[~positive][order],
            *(np.searchsorted(score[~positive][order], score[positive], side) for side in ('left', 'right')),
        )

    def of_draw(times):
        areas = np.full(len(available), np.nan)
        for c, (positive, negative, below, up_to) in columns.items():
            drawn, negatives = times[positive], _cumulative(times[negative])
            pairs = drawn.sum() * negatives[-1]
            if pairs:  # in whole numbers up to here: twice the pairs that are ranked right
                areas[c] = drawn @ (negatives[below] + negatives[up_to]) / (2 * pairs)
        return areas

    return of_draw


def _prepare_auprc(labels, scores, patients) -> Callable:
    """A function of how often each patient was drawn, [patients], to the average precisions [k]."""
    labels, scores, available = judged(labels, scores, 'AUPRC')
    columns = {}
    for c in np.flatnonzero(available):
        order = np.argsort(-scores[:, c])
        descending, positive = -scores[order, c], labels[order, c] == 1
        columns[c] = (
            patients[order],
            patients[order][positive],
            *(
                np.searchsorted(some, descending[positive], 'right')
                for some in (descending, descending[positive])
            ),
        )

    def of_draw(times):
        areas = np.full(len(available), np.nan)
        for c, (everyone, positive, called, hits) in columns.items():
            drawn, images, positives = (
                times[positive],
                _cumulative(times[everyone]),
                _cumulative(times[positive]),
            )
            if 0 < positives[-1] < images[-1]:
                # A positive that was not drawn may be the first: 0 of 0, at weight 0.
                precision = positives[hits] / np.maximum(images[called], 1)
                areas[c] = np.sum(drawn * precision) / positives[-1]
        return areas

    return of_draw


def _cumulative(counts) -> np.ndarray:
    """Sums [n + 1] of the first 0, 1, .. n counts."""
    return np.concatenate([[0], np.cumsum(counts)])


_PREPARED = {auroc: _prepare_auroc, auprc: _prepare_auprc}
