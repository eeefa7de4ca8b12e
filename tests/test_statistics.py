"""Intervals and the paired test over runs against SciPy, and how often they err."""

import numpy as np
import pytest
from scipy import stats

from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation.statistics import paired_t_test, t_interval

pytestmark = pytest.mark.filterwarnings('error')


@pytest.mark.parametrize('shape', [(3,), (10,), (10, 14)])
def test_t_interval_and_paired_t_test_equal_scipy(shape):
    a, b = np.random.default_rng(0).normal(0.8, 0.02, (2, *shape))
    estimate = t_interval(a)
    oracle = stats.t.interval(0.95, len(a) - 1, a.mean(0), a.std(0, ddof=1) / np.sqrt(len(a)))
    np.testing.assert_allclose(estimate, [a.mean(0), *oracle], rtol=1e-10)
    test, oracle = paired_t_test(a, b), stats.ttest_rel(a, b)
    np.testing.assert_allclose(
        test, [(a - b).mean(0), *oracle.confidence_interval(0.95), oracle.statistic, oracle.pvalue], rtol=1e-9
    )
    assert np.shape(test.p) == np.shape(estimate.value) == shape[1:]


def test_runs_that_are_copies_or_lack_a_value_are_not_available():
    a = np.array([[0.7, 0.8, 0.9], [0.72, np.nan, 0.8], [0.75, 0.8, 0.7]])
    b = a - [0.01, 0.02, 0.03]
    test = paired_t_test(a, b)
    np.testing.assert_allclose(test.difference, [0.01, np.nan, 0.03])
    assert np.isnan(test[1:]).all()
    estimate = t_interval(a)
    np.testing.assert_array_equal(np.isnan(estimate), np.array([[False, True, False]] * 3))
    one = t_interval(a[:1])
    np.testing.assert_array_equal(one.value, a[0])
    assert np.isnan(one[1:]).all() and np.isnan(t_interval([0.1 + 0.2, 0.3, 0.3])[1:]).all()


@pytest.mark.parametrize('runs', [3, 10])
def test_the_paired_test_errs_as_often_as_it_says(runs):
    a, b = np.random.default_rng(0).normal(0.8, 0.02, (2, runs, 4000))
    seeds = np.random.default_rng(1).normal(0, 0.05, (runs, 4000))  # what both methods share
    assert np.mean(paired_t_test(a + seeds, b + seeds).p < 0.05) == pytest.approx(0.05, abs=0.011)


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: t_interval([]), 'no run'),
        (lambda: paired_t_test([0.7], [0.8]), 'two runs or more'),
        (lambda: paired_t_test([0.7, 0.8], [0.8]), r'\(2,\) and \(1,\)'),
    ],
)
def test_bad_input_says_what_was_found(call, message):
    with pytest.raises(UserError, match=message):
        call()
