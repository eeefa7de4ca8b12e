"""How sure a number over runs is: 95 % intervals and the paired test of two methods.

They are of the spread between runs (seeds, draws of the training part). That between the patients
of one test set is in `intervals`.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from mlvicx_jax.errors import UserError

LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
ROUNDING = 1e-12  # runs of a metric, of order 1, that differ by less are one run


class Estimate(NamedTuple):
    """A value and its interval, floats or float64 [k]; NaN is not available."""

    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


class Comparison(NamedTuple):
    """A difference, its interval, and the test of its being zero (two-sided `p`)."""

    difference: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray
    statistic: float | np.ndarray
    p: float | np.ndarray


def t_interval(values: np.ndarray) -> Estimate:
    """Mean over runs and Student's t interval of it.

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
