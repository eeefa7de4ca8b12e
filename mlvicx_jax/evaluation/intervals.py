"""How sure a number of one test set is: 95 % intervals over its patients.

A test set has several images of one patient, which are alike: NIH's 25,596 come from 2,797. To
count them as independent makes every interval too narrow, so patients are the units here.

One form for all. A number is taken apart, to first order, into what each patient adds to it, which
gives its variance v. Beside it stands V(x), the variance if the truth were x and each patient
counted as one independent image. The interval holds every x with

    (number - x)^2 <= t^2 k V(x),    k = (df v / V(number) + 4) / (df + 4).

With V(x), not V(number), it is Wilson's (J. American Statistical Association 22, 1927): it stays
within 0..1 and is no point at 0 or 1, where k is 1. Of few patients v is poorly known, so k is drawn
to 1 as if V had been seen with 4 degrees of freedom; t has df + 4 (the moderated t of Smyth,
Statistical Applications in Genetics and Molecular Biology 3, 2004). `python -m benchmarks.coverage`
simulates how often the truth is held: docs/results.md.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from mlvicx_jax.evaluation.contributions import (
    Parts,
    area,
    average_precision,
    effective_number,
    numbered,
    taken_apart,
)
from mlvicx_jax.evaluation.statistics import TAILS

FEWEST = 3  # patients with a finding, and without: where fewer have it there is no interval
FEW = 10  # where fewer have it their number is said beside the interval
MODEL_DF = 4  # degrees of freedom with which V counts
MODEL_DF_OF_MEAN = 1  # of `mean_interval`, whose V is a bound that Dice stays far below
BISECTIONS = 40  # ends are right to 2^-40 = 1e-12
NO_SPREAD = 1e-12  # a standard error below this is 0 but for rounding


class Interval(NamedTuple):
    """Values [k] and their intervals. `why` [k] says why there is none; '' where there is one.

    `low` and `high` are NaN where `why` is not ''.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    why: np.ndarray


def auroc_interval(labels: np.ndarray, scores: np.ndarray, patients: ArrayLike) -> Interval:
    """AUROC of each label with its interval.

    v is DeLong's (DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988), by the midranks of Sun
    and Xu (IEEE Signal Processing Letters 21, 2014), summed over patients (Obuchowski, Biometrics
    53, 1997). V is that of scores with two normal distributions of one width.

    Args:
        labels: [n, k] of 0 and 1.
        scores: [n, k]; a column that is NaN throughout has no score.
        patients: [n] patient of each row.

    Returns:
        Interval of [k]; the value is NaN where `auroc` is.

    Raises:
        UserError: as `auroc`, or patients differ in number.
    """
    return _of_labels(area, area_model, labels, scores, patients)


def auprc_interval(labels: np.ndarray, scores: np.ndarray, patients: ArrayLike) -> Interval:
    """Average precision of each label with its interval.

    v is from the average precision's derivatives by the weights of the images. V is that of a
    share of the positives (Boyd, Eng and Page, "Area under the precision-recall curve", ECML 2013).

    Args, Returns, Raises: as `auroc_interval`.
    """
    return _of_labels(average_precision, _precision_model, labels, scores, patients)


def mean_auroc_interval(labels: np.ndarray, scores: np.ndarray, patients: ArrayLike) -> Interval:
    """Mean of the labels' AUROCs with its interval; labels without AUROC are left out.

    The labels are of the same patients: what a patient adds to all of them is summed before it is
    squared. A label with too few patients tells nothing of their spread; it counts with V.

    Args, Raises: as `auroc_interval`.

    Returns:
        Interval of [1].
    """
    parts, _ = taken_apart(area, labels, scores, patients)
    told, count = parts.patients.min(0) >= FEWEST, len(parts.value)
    value = np.array([parts.value.mean() if count else np.nan])
    if not told.any():
        return _without(value, 'too few patients for any label')
    of_labels = lambda x: area_model(x, parts.effective) / count**2
    by_patient = (parts.positive + parts.negative)[:, told].sum(1) / count
    v = parts.variance[told]
    return _interval(
        value,
        np.sum(by_patient**2, keepdims=True) + of_labels(value)[~told].sum(),
        np.array([v.sum() ** 2 / np.sum(v**2 / parts.df[told]) if v.any() else parts.df[told].min()]),
        lambda x: of_labels(x).sum(keepdims=True),
    )


def mean_interval(values: np.ndarray, patients: ArrayLike) -> Interval:
    """Means over images of values in 0..1, such as Dice or hits, with their intervals.

    v is that of a ratio of sums over patients (Cochran, "Sampling techniques", 1977, 6.4). V is that
    of a share, the most that it can be.

    Args:
        values: [n, k] in 0..1.
        patients: [n] patient of each row.

    Returns:
        Interval of [k].

    Raises:
        UserError: patients differ in number.
    """
    values = np.asarray(values, np.float64)
    value, sums, effective = means(values, patients)
    if len(sums) < FEWEST:
        return _without(value, f'{_said(len(sums))}, {FEWEST} are needed')
    df = np.full(len(value), max(effective - 1, 1))
    return _interval(value, np.sum(sums**2, 0), df, lambda x: x * (1 - x) / effective, MODEL_DF_OF_MEAN)


def few_patients(labels: np.ndarray, patients: ArrayLike, names: Sequence[str]) -> dict[str, str]:
    """Labels that fewer than `FEW` patients have, or lack, and how many those are, in words.

    Args:
        labels: [n, k] of 0 and 1.
        patients: [n] patient of each row.
        names: of the k labels.

    Returns:
        Such as {'Hernia': '4 positive patients'}.
    """
    labels, patients = np.asarray(labels), np.asarray(patients)
    sides = {
        name: [len(np.unique(patients[column == side])) for side in (1, 0)]
        for name, column in zip(names, labels.T, strict=True)
    }
    return {name: _said_of_side(*side) for name, side in sides.items() if min(side) < FEW}


def _of_labels(measure, model, labels, scores, patients) -> Interval:
    parts, available = taken_apart(measure, labels, scores, patients)
    *numbers, why = of_parts(parts, model)
    value, low, high = (placed(column, available, np.nan) for column in numbers)
    return Interval(value, low, high, placed(why, available, 'one class only, or no score'))


def of_parts(parts: Parts, model: Callable) -> Interval:
    """Intervals of the labels that have a value, or why there is none."""
    found = _interval(parts.value, parts.variance, parts.df, lambda x: model(x, parts.effective))

    def lacking(value, variance, sides):
        if min(sides) < FEWEST:
            return f'{_said_of_side(*sides)}, {FEWEST} are needed'
        flat = 0 < value < 1 and variance < NO_SPREAD**2  # such as of constant scores
        return 'no spread between patients' if flat else ''

    why = np.array([lacking(*of) for of in zip(parts.value, parts.variance, parts.patients.T)], object)
    low, high = (np.where(why == '', ends, np.nan) for ends in (found.low, found.high))
    return Interval(found.value, low, high, why)


def _interval(value, variance, df, model: Callable, model_df: float = MODEL_DF) -> Interval:
    """The form of the module's docstring. value, variance, df: [k]; model: V, of [k]."""
    edge = (value == 0) | (value == 1)
    ratio = variance / model(np.where(edge, 0.5, value))
    ratio = np.where(edge, 1, (df * ratio + model_df) / (df + model_df))
    reach = stats.t.ppf(TAILS[1], df + model_df) ** 2 * ratio
    ends = []
    for end in (0.0, 1.0):
        inside, outside = value, np.full(len(value), end)
        for _ in range(BISECTIONS):
            middle = (inside + outside) / 2
            held = (value - middle) ** 2 <= reach * model(middle)
            inside, outside = np.where(held, middle, inside), np.where(held, outside, middle)
        ends.append(inside)
    low, high = ends
    return Interval(value, low, high, np.full(len(value), ''))


def means(values, patients) -> tuple[np.ndarray, np.ndarray, float]:
    """Means [k], what each patient adds to mean - truth [patients, k], and their effective number."""
    patients, images = numbered(patients, values)
    value, count = values.mean(0), len(images)
    sums = np.stack([np.bincount(patients, column, count) for column in (values - value).T], 1)
    return value, sums * np.sqrt(count / max(count - 1, 1)) / len(values), effective_number(images)


def _without(value, why: str) -> Interval:
    low, high = np.full((2, len(value)), np.nan)
    return Interval(value, low, high, np.full(len(value), why))


def area_model(x, effective) -> np.ndarray:
    """Variance of an area x with `effective` [2, k] positives and negatives, of normal scores.

    x - 2 T(z, 3^-1/2) is P(two positives lie above one negative): Owen, Annals of Mathematical
    Statistics 27 (1956).
    """
    shared = x * (1 - x) - 2 * special.owens_t(special.ndtri(x), 3**-0.5)
    return (x * (1 - x) + (effective.sum(0) - 2) * shared) / effective.prod(0)


def _precision_model(x, effective) -> np.ndarray:
    return x * (1 - x) / effective[0]


def _said_of_side(positive: int, negative: int) -> str:
    return _said(positive, 'positive ') if positive <= negative else _said(negative, 'negative ')


def _said(count: int, kind: str = '') -> str:
    return f'{count} {kind}patient' + ('s' if count != 1 else '')


def placed(column, available, missing) -> np.ndarray:
    """The available labels' values among all labels."""
    every = np.full(len(available), missing, object if isinstance(missing, str) else np.float64)
    every[available] = column
    return every
