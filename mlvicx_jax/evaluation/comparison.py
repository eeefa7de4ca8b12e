"""Two methods on the images of the same patients: the difference, its interval and its test."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mlvicx_jax.evaluation.contributions import area, taken_apart
from mlvicx_jax.evaluation.intervals import (
    FEWEST,
    NO_SPREAD,
    Interval,
    area_model,
    mean_interval,
    means,
    of_parts,
    placed,
)
from mlvicx_jax.evaluation.statistics import TAILS, Comparison, Estimate

UNCORRELATED_DF = 1  # degrees of freedom with which no correlation counts


def difference_interval(a: np.ndarray, b: np.ndarray, patients: ArrayLike) -> Interval:
    """Differences of two means of values in 0..1 of the same images, A minus B, with their intervals.

    They come from the two means' intervals: a mean of 1 is as uncertain in a difference as alone.

    Args:
        a, b: [n, k] in 0..1, such as Dice of two methods.
        patients: [n] patient of each row.

    Returns, Raises: as `intervals.mean_interval`.
    """
    of_a, of_b = mean_interval(a, patients), mean_interval(b, patients)
    (_, sums_a, effective), (_, sums_b, _) = (means(np.asarray(of), patients) for of in (a, b))
    return _of_difference(of_a, of_b, sums_a, sums_b, effective - 1)


def delong_test(
    labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray, patients: ArrayLike
) -> Comparison:
    """Whether two models' AUROCs on one test set differ, for each label: A minus B.

    The statistic is Student's t, of the difference over the root of `intervals.auroc_interval`'s v
    of the patients' differences, which is var A + var B - 2 cov without its cancellation for models
    that are nearly one. The interval is made of those of the two AUROCs, as in `difference_interval`.

    Args:
        labels: [n, k] of 0 and 1.
        scores_a, scores_b: [n, k], the models' scores of the same images.
        patients: [n] patient of each row.

    Returns:
        Comparison of [k]; NaN where either AUROC is. Two models that rank all pairs alike have the
        interval 0..0 and p = 1. Where fewer than `intervals.FEWEST` patients have or lack the
        finding all but the difference are NaN; t and p also where that variance is zero, as of two
        perfect models.

    Raises:
        UserError: as `intervals.auroc_interval`.
    """
    scores = np.stack([scores_a, scores_b]).astype(np.float64)
    scores[:, :, np.isnan(scores).all(1).any(0)] = np.nan
    (a, available), (b, _) = (taken_apart(area, labels, one, patients) for one in scores)
    parts = a._replace(
        value=a.value - b.value, positive=a.positive - b.positive, negative=a.negative - b.negative
    )
    error = np.sqrt(parts.variance)
    enough = parts.patients.min(0) >= FEWEST
    alike = enough & (a.variance > NO_SPREAD**2) & ~parts.positive.any(0) & ~parts.negative.any(0)
    error[~enough | ((error < NO_SPREAD) & ~alike)] = np.nan
    t = np.where(alike, 0, parts.value / np.where(alike, 1, error))
    ends = _of_difference(
        of_parts(a, area_model),
        of_parts(b, area_model),
        a.positive + a.negative,
        b.positive + b.negative,
        np.minimum(a.df, b.df),
    )
    low, high = (np.where(alike, 0, end) for end in (ends.low, ends.high))
    found = parts.value, low, high, t, 2 * stats.t.sf(np.abs(t), parts.df)
    return Comparison(*(placed(column, available, np.nan) for column in found))


def mean_auroc_difference(
    labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray, patients: ArrayLike
) -> Estimate:
    """Mean over labels of the AUROC of A minus that of B, with its interval over patients.

    What a patient adds to the differences of all labels is summed before it is squared: the labels,
    and the two methods, are of the same patients. Student's t, with Satterthwaite's degrees of
    freedom of the labels' variances.

    Args:
        labels: [n, k] of 0 and 1. Those of one class alone, or without a method's score, are left out
            of both means. Those that fewer than `intervals.FEWEST` patients have or lack tell nothing
            of their spread; they count with the two areas' model variances, as if not correlated.
        scores_a, scores_b: [n, k], the methods' scores of the same images.
        patients: [n] patient of each row.

    Returns:
        Estimate of floats; NaN where no label is left, the ends also where all have too few patients.

    Raises:
        UserError: as `intervals.auroc_interval`.
    """
    scores = np.stack([scores_a, scores_b]).astype(np.float64)
    scores[:, :, np.isnan(scores).all(1).any(0)] = np.nan
    (a, _), (b, _) = (taken_apart(area, labels, one, patients) for one in scores)
    told, count = a.patients.min(0) >= FEWEST, len(a.value)
    value = float((a.value - b.value).mean()) if count else math.nan
    if not told.any():
        return Estimate(value, math.nan, math.nan)
    adds = (a.positive + a.negative - b.positive - b.negative)[:, told]
    untold = sum(area_model(of.value, of.effective)[~told].sum() for of in (a, b)) / count**2
    error = math.sqrt(np.sum((adds.sum(1) / count) ** 2) + untold)
    of_labels, df = np.sum(adds**2, 0), np.minimum(a.df, b.df)[told]
    df = of_labels.sum() ** 2 / np.sum(of_labels**2 / df) if of_labels.any() else df.min()
    reach = float(stats.t.ppf(TAILS[1], df) * error)
    return Estimate(value, value - reach, value + reach)


def _of_difference(a: Interval, b: Interval, adds_a, adds_b, df) -> Interval:
    """A minus B, from their intervals and from what the patients add to either, [patients, k].

    Zou and Donner, Statistics in Medicine 27 (2008), equations 8 and 9. The correlation is
    drawn to 0, as a variance is to its model, since that of few patients is poorly known.
    """
    scale = np.sqrt(np.sum(adds_a**2, 0) * np.sum(adds_b**2, 0))
    r = df / (df + UNCORRELATED_DF) * np.sum(adds_a * adds_b, 0) / np.where(scale > 0, scale, 1)

    def reach(one, other):  # rounding must not lead below 0
        return np.sqrt(np.maximum(one**2 + other**2 - 2 * r * one * other, 0))

    value = a.value - b.value
    low = value - reach(a.value - a.low, b.high - b.value)
    high = value + reach(a.high - a.value, b.value - b.low)
    return Interval(value, low, high, np.where(a.why == '', b.why, a.why))
