"""AUROC against its definition by pairs and by ranks, and what happens where it is not defined."""

import numpy as np
import pytest
from scipy.stats import rankdata

from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation.metrics import auroc, mean_auroc


def by_pairs(label, score):
    positive, negative = score[label == 1][:, None], score[label == 0][None]
    return np.mean((positive > negative) + 0.5 * (positive == negative))


def by_ranks(label, score):
    n_pos, n_neg = label.sum(), (1 - label).sum()
    return (rankdata(score)[label == 1].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)


def test_equals_pair_counting_with_ties():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (200, 4)).astype(np.uint8)
    scores = rng.integers(0, 7, (200, 4)) + labels
    expected = [by_pairs(*columns) for columns in zip(labels.T, scores.T)]
    np.testing.assert_allclose(auroc(labels, scores), expected, rtol=0, atol=1e-12)


def test_equals_rank_formula_at_150_000_with_ties():
    # 150,000: positives x negatives exceed 2^32, where 32-bit pair counts would overflow.
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (150_000, 2))
    scores = rng.integers(0, 1000, (150_000, 2)) + 100.0 * labels
    expected = [by_ranks(*columns) for columns in zip(labels.T, scores.T)]
    np.testing.assert_allclose(auroc(labels, scores), expected, rtol=0, atol=1e-12)


def test_perfect_reversed_and_constant_scores():
    labels = np.array([[0, 0, 0], [0, 0, 0], [1, 1, 1]])
    scores = np.array([[1, 3, 0], [2, 2, 0], [3, 1, 0]])
    np.testing.assert_array_equal(auroc(labels, scores), [1, 0, 0.5])


def test_undefined_classes_are_nan_and_left_out_of_the_mean():
    labels = np.array([[0, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 0]])
    scores = np.array([[0.1, 0.2, 0.3, np.nan], [0.4, 0.5, 0.6, np.nan], [0.7, 0.8, 0.2, np.nan]])
    areas = auroc(labels, scores)
    assert areas.dtype == np.float64
    np.testing.assert_array_equal(areas, [np.nan, np.nan, 0.5, np.nan])
    assert mean_auroc(areas) == (0.5, 1)
    assert mean_auroc(np.array([0.25, np.nan, 0.75])) == (0.5, 2)


@pytest.mark.filterwarnings('error')
def test_mean_of_no_class_is_nan():
    mean, available = mean_auroc(auroc(np.zeros((0, 3)), np.zeros((0, 3))))
    assert np.isnan(mean) and available == 0


@pytest.mark.parametrize('labels, scores, message', [
    ([[0], [1]], [[0.1, 0.2], [0.3, 0.4]], 'shape'),
    ([[0], [1], [-1]], [[0.1], [0.2], [0.3]], r'\[-1\]'),
    ([[0], [1], [1]], [[0.1], [np.nan], [0.3]], '1 of 3 scores'),
    ([[0], [1], [1]], [[0.1], [np.inf], [0.3]], '1 of 3 scores'),
])
def test_bad_input_says_what_was_found(labels, scores, message):
    with pytest.raises(UserError, match=message):
        auroc(np.array(labels), np.array(scores))
