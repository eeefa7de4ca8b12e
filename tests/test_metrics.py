"""Metrics against their definitions and scikit-learn, and what happens where they are undefined."""

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import masks, metrics
from mlvicx_jax.evaluation.metrics import auprc, auroc, calibration_error, mean_auroc

pytestmark = pytest.mark.filterwarnings('error')
FINDINGS = [f'finding {i}' for i in range(14)]


def by_pairs(label, score):
    positive, negative = score[label == 1][:, None], score[label == 0][None]
    return np.mean((positive > negative) + 0.5 * (positive == negative))


def by_ranks(label, score):
    n_pos, n_neg = label.sum(), (1 - label).sum()
    return (rankdata(score)[label == 1].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)


def by_cuts(label, score):
    """Average precision by its sum: at each distinct score, downwards, all images from there."""
    total, recall = 0.0, 0.0
    for cut in np.unique(score)[::-1]:
        hits = np.sum(label[score >= cut])
        total += (hits / label.sum() - recall) * hits / np.sum(score >= cut)
        recall = hits / label.sum()
    return total


def by_bins(label, probability):
    """Calibration error one bin at a time, after a sort: image i of n is in bin 15 i // n."""
    order = np.argsort(probability, kind='stable')
    label, probability, n = label[order], probability[order], len(label)
    bins = [15 * list(probability).index(p) // n for p in probability]  # ties go to the first's
    return sum(abs(sum(label[i] - probability[i] for i in range(n) if bins[i] == b)) for b in range(15)) / n


@pytest.fixture(scope='module')
def tied():
    """Labels and scores [200, 4] of seven values."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (200, 4)).astype(np.uint8)
    return labels, rng.integers(0, 7, (200, 4)) + labels


@pytest.fixture(scope='module')
def large():
    """Labels and scores [150,000, 2] of a thousand values."""
    # 150,000: positives x negatives exceed 2^32, where 32-bit pair counts would overflow.
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (150_000, 2))
    return labels, rng.integers(0, 1000, (150_000, 2)) + 100.0 * labels


def columns(function, labels, scores):
    return [function(*pair) for pair in zip(labels.T, scores.T)]


def test_auroc_equals_pair_counting_with_ties(tied):
    np.testing.assert_allclose(auroc(*tied), columns(by_pairs, *tied), rtol=0, atol=1e-12)


def test_auroc_equals_rank_formula_at_150_000_with_ties(large):
    np.testing.assert_allclose(auroc(*large), columns(by_ranks, *large), rtol=0, atol=1e-12)


def test_perfect_reversed_and_constant_scores():
    labels = np.array([[0, 0, 0], [0, 0, 0], [1, 1, 1]])
    scores = np.array([[1, 3, 0], [2, 2, 0], [3, 1, 0]])
    np.testing.assert_array_equal(auroc(labels, scores), [1, 0, 0.5])
    np.testing.assert_allclose(auprc(labels, scores), [1, 1 / 3, 1 / 3])


def test_auprc_equals_its_sum_over_cuts(tied, large):
    np.testing.assert_allclose(auprc(*tied), columns(by_cuts, *tied), rtol=0, atol=1e-12)
    labels, scores = large[0][:, :1], large[1][:, :1] // 10
    np.testing.assert_allclose(auprc(labels, scores), columns(by_cuts, labels, scores), rtol=0, atol=1e-12)


def test_thresholds_are_the_best_of_all_and_the_highest_of_these():
    rng = np.random.default_rng(2)
    labels = (rng.random((80, 5)) < (0.05, 0.2, 0.5, 0.8, 0.1)).astype(np.uint8)
    scores = rng.integers(0, 30, (80, 5)) / 7 + (0, 1, 2, 0, 4) * labels
    for choose, oracle in (
        (metrics.f1_threshold, sklearn_metrics.f1_score),
        (metrics.accuracy_threshold, sklearn_metrics.accuracy_score),
    ):
        for label, score, found in zip(labels.T, scores.T, choose(labels, scores)):
            cuts = [np.inf, *np.unique(score)[::-1]]
            values = [oracle(label, score >= cut) for cut in cuts]
            assert found == cuts[np.argmax(np.round(values, 12))]


def test_a_finding_best_never_called_has_an_infinite_accuracy_threshold():
    labels, scores = np.array([[1], [0], [0], [0]]), np.array([[0.1], [0.2], [0.3], [0.4]])
    threshold = metrics.accuracy_threshold(labels, scores)
    assert threshold == np.inf and metrics.accuracy(labels, scores, threshold) == 0.75
    assert metrics.f1(labels, scores, threshold) == 0


@pytest.mark.parametrize('data', ['tied', 'large'])
def test_f1_and_accuracy_equal_scikit_learn_at_thresholds_of_other_images(data, request):
    labels, scores = request.getfixturevalue(data)
    half = len(labels) // 2
    for choose, judge, oracle in (
        (metrics.f1_threshold, metrics.f1, sklearn_metrics.f1_score),
        (metrics.accuracy_threshold, metrics.accuracy, sklearn_metrics.accuracy_score),
    ):
        thresholds = choose(labels[:half], scores[:half])
        expected = columns(oracle, labels[half:], scores[half:] >= thresholds)
        np.testing.assert_allclose(
            judge(labels[half:], scores[half:], thresholds), expected, rtol=0, atol=1e-12
        )


def test_calibration_error_equals_a_loop_over_bins_and_the_rows_order_is_nothing():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, (217, 3))
    probabilities = np.stack([rng.random(217) ** 4, rng.integers(0, 5, 217) / 4, np.full(217, 0.25)], 1)
    found = calibration_error(labels, probabilities)
    np.testing.assert_allclose(found, columns(by_bins, labels, probabilities), atol=1e-12)
    assert found[2] == pytest.approx(abs(labels[:, 2].mean() - 0.25))
    order = rng.permutation(217)
    np.testing.assert_allclose(calibration_error(labels[order], probabilities[order]), found, atol=1e-12)


def test_calibration_error_equals_scikit_learn_s_curve_where_bins_are_equal():
    rng = np.random.default_rng(4)
    probability = rng.random(15_000) ** 3
    label = (rng.random(15_000) < probability**1.5).astype(int)
    share, mean = calibration_curve(label, probability, n_bins=15, strategy='quantile')
    assert calibration_error(label[:, None], probability[:, None])[0] == pytest.approx(
        np.abs(share - mean).mean(), abs=1e-12
    )


def test_a_perfect_model_s_calibration_error_is_the_noise_that_the_docstring_says():
    rng = np.random.default_rng(5)
    probabilities = 0.2 + 0.001 * rng.standard_normal((9_000, 40))
    found = calibration_error(rng.random((9_000, 40)) < probabilities, probabilities).mean()
    assert found == pytest.approx(np.sqrt(2 * 15 * 0.2 * 0.8 / (np.pi * 9_000)), rel=0.1)
    assert calibration_error(rng.random((9_000, 1)) < 0.3, probabilities[:, :1]) > 0.08


def test_undefined_classes_are_nan_and_left_out_of_the_mean():
    labels = np.array([[0, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 0]])
    scores = np.array([[0.1, 0.2, 0.3, np.nan], [0.4, 0.5, 0.6, np.nan], [0.7, 0.8, 0.2, np.nan]])
    areas = auroc(labels, scores)
    assert areas.dtype == np.float64
    np.testing.assert_array_equal(areas, [np.nan, np.nan, 0.5, np.nan])
    assert mean_auroc(areas) == (0.5, 1)
    assert mean_auroc(np.array([0.25, np.nan, 0.75])) == (0.5, 2)


def test_one_rule_of_what_is_not_available_for_all_metrics():
    labels = np.array([[0, 1, 0, 0, 1], [0, 1, 1, 1, 0], [0, 1, 1, 0, 0]])
    scores = np.full((3, 5), 0.5)
    scores[:, 3] = np.nan
    thresholds = np.array([0.4, 0.4, 0.4, 0.4, np.nan])  # the last: one class in validation
    for values in (
        auroc(labels, scores),
        auprc(labels, scores),
        metrics.f1_threshold(labels, scores),
        metrics.accuracy_threshold(labels, scores),
        calibration_error(labels, scores),
    ):
        np.testing.assert_array_equal(np.isnan(values), [True, True, False, True, False])
    for metric in (metrics.f1, metrics.accuracy):
        values = metric(labels, scores, thresholds)
        np.testing.assert_array_equal(np.isnan(values), [True, True, False, True, True])


def test_mean_of_no_class_is_nan():
    mean, available = mean_auroc(auroc(np.zeros((0, 3)), np.zeros((0, 3))))
    assert np.isnan(mean) and available == 0


def test_mean14_leaves_no_finding_out_and_mean15_has_it():
    names = [*FINDINGS[:5], 'No Finding', *FINDINGS[5:]]
    members = metrics.mean_members(names)
    assert members == {'mean14': [*range(5), *range(6, 15)], 'mean15': list(range(15))}
    assert list(metrics.mean_members(FINDINGS)) == ['mean14']
    assert metrics.not_available([0.5, np.nan, 0.7], names[:3]) == [names[1]]


@pytest.mark.parametrize('structures', [(), (3,)])
def test_dice_and_iou_equal_scikit_learn_on_pixels(structures):
    rng = np.random.default_rng(7)
    truth, predicted = rng.random((2, 6, 9, 7, *structures)) < 0.3
    truth[0] = predicted[0] = truth[1] = predicted[2] = False
    for metric, oracle in ((masks.dice, sklearn_metrics.f1_score), (masks.iou, sklearn_metrics.jaccard_score)):
        found = metric(truth, predicted)
        assert found.shape == (6, *structures)
        assert (found[0] == 1).all() and (found[1:3] == 0).all()
        flat = [np.moveaxis(mask.reshape(6, 63, -1), 1, 2).reshape(-1, 63) for mask in (truth, predicted)]
        expected = [oracle(*pair, zero_division=1.0) for pair in zip(*flat)]
        np.testing.assert_allclose(found.ravel(), expected, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(metric(truth.astype(np.uint8), predicted.astype(float)), found)


def test_mask_means_over_positives_and_over_all():
    values = np.array([[1.0, 0.4, 1.0], [0.0, 0.5, 1.0], [0.6, 0.9, 1.0], [1.0, 0.2, 0.0]])
    positive = np.array([[0, 1, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]])
    of_positives, of_all = masks.mask_means(values, positive)
    np.testing.assert_allclose(of_positives, [0.8, 0.5, np.nan])
    np.testing.assert_allclose(of_all, [0.65, 0.5, 0.75])
    assert masks.mask_means(values[:, 0], positive[:, 0]) == pytest.approx((0.8, 0.65))


@pytest.mark.parametrize(
    'labels, scores, message',
    [
        ([[0], [1]], [[0.1, 0.2], [0.3, 0.4]], 'shape'),
        ([[0], [1], [-1]], [[0.1], [0.2], [0.3]], r'\[-1\]'),
        ([[0], [1], [1]], [[0.1], [np.nan], [0.3]], '1 of 3 scores'),
        ([[0], [1], [1]], [[0.1], [np.inf], [0.3]], '1 of 3 scores'),
    ],
)
def test_bad_input_says_what_was_found(labels, scores, message):
    for metric in (
        auroc,
        auprc,
        metrics.f1_threshold,
        metrics.accuracy_threshold,
        calibration_error,
        lambda *data: metrics.f1(*data, np.zeros(1)),
        lambda *data: metrics.accuracy(*data, np.zeros(1)),
    ):
        with pytest.raises(UserError, match=message):
            metric(np.array(labels), np.array(scores))


def test_log_odds_are_no_probabilities():
    with pytest.raises(UserError, match='from -2 to 3; expected probabilities'):
        calibration_error(np.array([[0], [1]]), np.array([[-2.0], [3.0]]))


@pytest.mark.parametrize(
    'truth, predicted, message',
    [
        (np.zeros((2, 4, 4)), np.zeros((2, 4, 5)), r'\(2, 4, 5\)'),
        (np.zeros(4), np.zeros(4), r'\(4,\)'),
        (np.full((1, 2, 2), 255), np.zeros((1, 2, 2)), 'true ones go from 255 to 255'),
        (np.zeros((1, 2, 2)), np.full((1, 2, 2), 0.3), 'cut probabilities'),
    ],
)
def test_bad_masks_say_what_was_found(truth, predicted, message):
    for metric in (masks.dice, masks.iou):
        with pytest.raises(UserError, match=message):
            metric(truth, predicted)
