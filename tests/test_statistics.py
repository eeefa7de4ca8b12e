"""Intervals and tests against literal loops, brute force over pairs, SciPy and simulated truth."""

import time

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import metrics
from mlvicx_jax.evaluation.metrics import auprc, auroc
from mlvicx_jax.evaluation.statistics import (
    bootstrap,
    delong_interval,
    delong_test,
    paired_t_test,
    percentile_interval,
    t_interval,
)

pytestmark = pytest.mark.filterwarnings('error')


def films(patients, images, seed=0, findings=2, mixed=True, step=None):
    """Labels, scores [n, findings] and patients of films whose scores share a patient's part.

    mixed: each film has its own labels; else a patient's films all have the patient's.
    step: scores are rounded to it, so that they tie.
    """
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), images)
    labels = rng.random((patients, findings))[patient] < 0.4
    if mixed:
        labels ^= rng.random(labels.shape) < 0.3
    scores = labels + rng.standard_normal((patients, findings))[patient]
    scores += 0.5 * rng.standard_normal(labels.shape)
    if step:
        scores = np.round(scores / step) * step
    return labels.astype(np.uint8), scores, np.array([f'p{i:05}' for i in patient])


def by_rows(metric, labels, scores, patients, resamples, seed):
    """The bootstrap as it is told: draw patients, lay their rows below each other, measure."""
    rng, names = np.random.default_rng(seed), np.unique(patients)
    rows_of = {name: np.flatnonzero(patients == name) for name in names}
    for _ in range(resamples):
        drawn = names[rng.integers(len(names), size=len(names))]
        rows = np.concatenate([rows_of[name] for name in drawn])
        yield [
            metric(*pair) if 0 < pair[0].mean() < 1 else np.nan for pair in zip(labels[rows].T, scores[rows].T)
        ]


def by_pairs(label, score):
    """Which share of each (positive, negative) pair is ranked right: [positives, negatives]."""
    positive, negative = score[label == 1][:, None], score[label == 0][None]
    return (positive > negative) + 0.5 * (positive == negative)


def covariance_by_pairs(label, *models):
    """DeLong's covariance of the models' areas from all pairs (their equations 4 to 6)."""
    pairs = np.stack([by_pairs(label, score) for score in models])
    p, n = pairs.shape[1:]
    return np.cov(pairs.mean(2)).reshape(2, 2) / p + np.cov(pairs.mean(1)).reshape(2, 2) / n


def clustered_covariance_by_pairs(label, score, other, patients):
    """Obuchowski's covariance, patient by patient (section 3 of the paper of 1997)."""
    models = [by_pairs(label, score), by_pairs(label, other)]
    p, n = models[0].shape
    sums = [{'10': {}, '01': {}} for _ in models]
    for pairs, of_model in zip(models, sums):
        for i, patient in enumerate(patients[label == 1]):
            of_model['10'].setdefault(patient, []).append(pairs[i].mean() - pairs.mean())
        for j, patient in enumerate(patients[label == 0]):
            of_model['01'].setdefault(patient, []).append(pairs[:, j].mean() - pairs.mean())

    def s(part, other_part, a, b):
        left, right = sums[a][part], sums[b][other_part]
        clusters = len(left) if part == other_part else len(set(patients))
        return (
            clusters
            / (clusters - 1)
            * sum(sum(left.get(patient, [])) * sum(right.get(patient, [])) for patient in set(patients))
        )

    return np.array(
        [
            [
                s('10', '10', a, b) / p**2
                + s('01', '01', a, b) / n**2
                + (s('10', '01', a, b) + s('01', '10', a, b)) / (p * n)
                for b in range(2)
            ]
            for a in range(2)
        ]
    )


def logit_interval(area, variance):
    margin = 1.959963984540054 * np.sqrt(variance) / (area * (1 - area))
    return 1 / (1 + np.exp(-np.log(area / (1 - area)) + np.array([margin, -margin])))


# --- The bootstrap over patients ---


@pytest.mark.parametrize('metric, oracle', [(auroc, roc_auc_score), (auprc, average_precision_score)])
@pytest.mark.parametrize('step', [None, 1.0])
def test_bootstrap_equals_measuring_the_drawn_rows(metric, oracle, step):
    data = films(30, np.random.default_rng(0).integers(1, 9, 30), step=step)
    expected = list(by_rows(oracle, *data, resamples=40, seed=3))
    np.testing.assert_allclose(bootstrap(metric, *data, resamples=40, seed=3), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('metric', [auroc, auprc])
def test_bootstrap_with_counts_equals_rows_at_150_000_with_ties(metric):
    data = films(30_000, 5, step=0.5)
    found = bootstrap(metric, *data, resamples=2)
    expected = bootstrap(lambda *rows: metric(*rows), *data, resamples=2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_bootstrap_of_any_metric_equals_measuring_the_drawn_rows():
    labels, scores, patients = films(20, 4)
    found = bootstrap(lambda *rows: metrics.f1(*rows, [0.5, 0.5]), labels, scores, patients, 10)
    expected = by_rows(
        lambda label, score: metrics.f1(label[:, None], score[:, None], [0.5])[0],
        labels,
        scores,
        patients,
        10,
        0,
    )
    np.testing.assert_allclose(found, list(expected), rtol=0, atol=1e-12)
    dice = np.random.default_rng(0).random(80)
    found = bootstrap(lambda truth, dice: metrics.mask_means(dice, truth), labels[:, 0], dice, patients, 10)
    assert found.shape == (10, 2)


def test_bootstrap_depends_on_seed_and_patients_alone():
    labels, scores, patients = films(25, 3)
    base = bootstrap(auroc, labels, scores, patients, 20)
    order = np.random.default_rng(1).permutation(len(labels))
    np.testing.assert_array_equal(bootstrap(auroc, labels[order], scores[order], patients[order], 20), base)
    np.testing.assert_array_equal(bootstrap(auroc, labels, scores, patients, 5), base[:5])
    assert not np.array_equal(bootstrap(auroc, labels, scores, patients, 20, seed=1), base)


def test_resamples_of_two_models_are_paired():
    labels, scores, patients = films(40, 3)
    other = scores + 0.1 * np.random.default_rng(1).standard_normal(scores.shape)
    found = bootstrap(auroc, labels, scores, patients, 50) - bootstrap(auroc, labels, other, patients, 50)
    expected = bootstrap(
        lambda labels, both: auroc(labels, both[..., 0]) - auroc(labels, both[..., 1]),
        labels,
        np.stack([scores, other], -1),
        patients,
        50,
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_percentiles_are_order_statistics_and_undefined_resamples_have_a_limit():
    rng = np.random.default_rng(0)
    resampled = rng.permuted(np.arange(1001.0)[:, None].repeat(4, 1), axis=0)
    resampled[rng.permutation(1001)[:60], 1] = np.nan  # a finding of three patients
    resampled[rng.permutation(1001)[:130], 2] = np.nan  # of two
    resampled[:, 3] = np.nan
    low, high = percentile_interval(resampled)
    assert low[0] == pytest.approx(25) and high[0] == pytest.approx(975)
    there = np.sort(resampled[~np.isnan(resampled[:, 1]), 1])
    assert there[23] <= low[1] <= there[24] and there[-25] <= high[1] <= there[-24]
    assert np.isnan([low[2:], high[2:]]).all()
    assert percentile_interval(resampled[:, 0]) == pytest.approx((25, 975))


def test_interval_is_not_available_where_fewer_than_three_patients_have_or_lack_a_finding():
    labels, scores, patients = films(60, 4, findings=6)
    for finding, carriers in enumerate((0, 1, 2, 6, 59)):
        labels[:, finding] = np.isin(patients, np.unique(patients)[:carriers])
    for metric in (auroc, auprc):
        low, high = percentile_interval(bootstrap(metric, labels, scores, patients))
        np.testing.assert_array_equal(np.isnan(low), [True, True, True, False, True, False])
        np.testing.assert_array_equal(np.isnan(high), np.isnan(low))


def test_interval_of_single_images_equals_scipy_s_bootstrap():
    labels, scores, patients = films(150, 1, findings=1)
    low, high = percentile_interval(bootstrap(auroc, labels, scores, patients, 4000))
    oracle = stats.bootstrap(
        (labels[:, 0], scores[:, 0]),
        lambda label, score: by_pairs(label, score).mean(),
        paired=True,
        vectorized=False,
        n_resamples=4000,
        method='percentile',
        rng=1,
    )
    np.testing.assert_allclose([low[0], high[0]], oracle.confidence_interval, atol=0.01)


def test_intervals_cover_the_truth_over_patients_and_miss_it_over_images():
    # All films of a patient have the patient's label, so that a positive and a negative are always
    # of two patients, and their difference is normal: mean 1, variance 2 (1 + 1/4).
    truth, rounds = stats.norm.cdf(1 / np.sqrt(2 * 1.25)), 200
    hits = {'bootstrap': 0, 'DeLong': 0, 'images': 0, 'DeLong of images': 0}
    for seed in range(rounds):
        labels, scores, patients = films(60, 8, seed=seed, findings=1, mixed=False)
        images = np.arange(len(labels))
        for name, (low, high) in {
            'bootstrap': percentile_interval(bootstrap(auroc, labels, scores, patients, 200)),
            'images': percentile_interval(bootstrap(auroc, labels, scores, images, 200)),
            'DeLong': delong_interval(labels, scores, patients)[1:],
            'DeLong of images': delong_interval(labels, scores)[1:],
        }.items():
            hits[name] += low[0] <= truth <= high[0]
    # 200 rounds at 0.95 have a standard error of 0.015; percentiles of 60 patients are a bit short.
    assert 0.90 <= hits['bootstrap'] / rounds <= 0.98
    assert 0.91 <= hits['DeLong'] / rounds <= 0.98
    assert hits['images'] / rounds < 0.7 and hits['DeLong of images'] / rounds < 0.7


def test_a_thousand_resamples_of_nih_s_test_set_take_under_a_minute():
    labels, scores, patients = films(2844, 9, findings=14)
    start = time.process_time()
    for metric in (auroc, auprc):
        bootstrap(metric, labels, scores, patients, 25)
    assert time.process_time() - start < 2 * 60 * 25 / 1000


# --- DeLong ---


@pytest.mark.parametrize('step', [None, 1.0])
def test_delong_equals_the_covariance_over_all_pairs(step):
    labels, scores, _ = films(130, 1, step=step)
    other = films(130, 1, seed=1, step=step)[1] + labels
    interval, test = delong_interval(labels, scores), delong_test(labels, scores, other)
    for k, label in enumerate(labels.T):
        covariance = covariance_by_pairs(label, scores[:, k], other[:, k])
        area, other_area = (by_pairs(label, x[:, k]).mean() for x in (scores, other))
        assert interval.value[k] == pytest.approx(area, abs=1e-12)
        np.testing.assert_allclose(
            [interval.low[k], interval.high[k]], logit_interval(area, covariance[0, 0]), rtol=1e-10
        )
        error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        z = (area - other_area) / error
        np.testing.assert_allclose(
            [test.difference[k], test.low[k], test.high[k], test.statistic[k], test.p[k]],
            [
                area - other_area,
                area - other_area - 1.959963984540054 * error,
                area - other_area + 1.959963984540054 * error,
                z,
                2 * stats.norm.cdf(-abs(z)),
            ],
            rtol=1e-9,
        )


@pytest.mark.parametrize('mixed', [True, False])
def test_delong_over_patients_equals_obuchowski_s_sums_patient_by_patient(mixed):
    images = np.random.default_rng(0).integers(1, 7, 40)
    labels, scores, patients = films(40, images, mixed=mixed, step=0.5)
    other = scores + np.random.default_rng(1).standard_normal(scores.shape)
    interval = delong_interval(labels, scores, patients)
    test = delong_test(labels, scores, other, patients)
    for k, label in enumerate(labels.T):
        covariance = clustered_covariance_by_pairs(label, scores[:, k], other[:, k], patients)
        np.testing.assert_allclose(
            [interval.low[k], interval.high[k]], logit_interval(interval.value[k], covariance[0, 0]), rtol=1e-10
        )
        error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        assert test.statistic[k] == pytest.approx(test.difference[k] / error, rel=1e-9)


@pytest.mark.parametrize('images, mixed', [(1, True), (6, True), (6, False)])
def test_delong_s_errors_are_the_bootstrap_s(images, mixed):
    labels, scores, patients = films(250, images, findings=1, mixed=mixed)
    other = scores + 0.7 * np.random.default_rng(1).standard_normal(scores.shape)
    test = delong_test(labels, scores, other, patients)
    resampled = [bootstrap(auroc, labels, x, patients) for x in (scores, other)]
    error = (test.difference / test.statistic)[0]
    assert error == pytest.approx(np.std(resampled[0] - resampled[1], ddof=1), rel=0.1)
    interval = delong_interval(labels, scores, patients)
    np.testing.assert_allclose(np.ravel(interval[1:]), np.ravel(percentile_interval(resampled[0])), atol=0.01)


def test_delong_at_150_000_with_ties_equals_counting_by_value():
    rng = np.random.default_rng(0)
    label = (rng.random(150_000) < 0.4).astype(int)
    models = [rng.integers(0, 50, 150_000) + 3 * label for _ in range(2)]
    placements = []
    for score in models:
        p, n = (np.bincount(score[label == c], minlength=60) for c in (1, 0))
        below, above = np.cumsum(n) - n, p.sum() - np.cumsum(p)
        placements.append(
            [((below + n / 2) / n.sum())[score[label == 1]], ((above + p / 2) / p.sum())[score[label == 0]]]
        )
    (a10, a01), (b10, b01) = placements
    variance = a10.var(ddof=1) / len(a10) + a01.var(ddof=1) / len(a01)
    interval = delong_interval(label[:, None], models[0][:, None])
    assert interval.value[0] == pytest.approx(a10.mean(), abs=1e-12)
    np.testing.assert_allclose(np.ravel(interval[1:]), logit_interval(a10.mean(), variance), rtol=1e-10)
    assert 0.002 < interval.high[0] - interval.low[0] < 0.01
    error = np.sqrt((a10 - b10).var(ddof=1) / len(a10) + (a01 - b01).var(ddof=1) / len(a01))
    test = delong_test(label[:, None], models[0][:, None], models[1][:, None])
    assert test.statistic[0] == pytest.approx((a10.mean() - b10.mean()) / error, rel=1e-8)


def test_delong_s_p_is_uniform_where_models_are_equally_good():
    p = []
    for seed in range(300):
        labels, scores, patients = films(60, 3, seed=seed, findings=1)
        noise = np.random.default_rng(1000 + seed).standard_normal((2, *scores.shape))
        p.append(delong_test(labels, scores + noise[0], scores + noise[1], patients).p[0])
    assert stats.kstest(p, 'uniform').pvalue > 0.01


def test_delong_of_models_that_rank_alike_and_of_nearly_alike():
    labels, scores, patients = films(50, 2)
    test = delong_test(labels, scores, np.exp(scores), patients)
    np.testing.assert_array_equal(test, [[0, 0]] * 4 + [[1, 1]])
    nearly = scores.copy()
    top = np.argsort(scores[:, 0])[-3:]
    nearly[top, 0] = scores[top, 0][::-1]
    test = delong_test(labels, scores, nearly, patients)
    assert np.isfinite(test).all() and 0 < test.p[0] <= 1 == test.p[1]


def test_delong_is_not_available_rather_than_certain():
    labels = np.array([[0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    scores = np.array(
        [[1, 1, 4, 1, 1, np.nan], [2, 2, 3, 1, 2, np.nan], [3, 3, 2, 1, 3, np.nan], [2, 4, 1, 1, 4, np.nan]]
    )  # one positive, 1, 0, 0.5, one class, no score
    interval = delong_interval(labels, scores)
    np.testing.assert_allclose(interval.value, [0.5, 1, 0, 0.5, np.nan, np.nan])
    assert np.isnan(interval[1:]).all()
    test = delong_test(labels, scores, np.array([2, 3, 1, 4])[:, None].repeat(6, 1))
    np.testing.assert_array_equal(np.isnan(test.difference), [False] * 4 + [True] * 2)
    assert np.isnan(test.p[[0, 4, 5]]).all() and np.isfinite(test.p[1:4]).all()
    mixed, scores, _ = films(8, 3)
    assert np.isnan(delong_interval(mixed, scores, np.zeros(24))[1:]).all()
    # Perfect against perfectly wrong: no pair varies, and no p follows.
    assert np.isnan(delong_test(labels[:, 1:2], labels[:, 1:2], 1 - labels[:, 1:2]).p).all()


def test_delong_interval_stays_within_0_and_1():
    label = np.repeat([0, 1], [40, 8])[:, None]
    score = np.arange(48.0)[:, None]
    score[40] = 38.5  # one pair in 320 is ranked wrong
    interval = delong_interval(label, score)
    assert 0 < interval.low[0] < interval.value[0] == 319 / 320 < interval.high[0] < 1


# --- Over runs ---


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


# --- What was wrong is said ---


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda labels, scores: bootstrap(auroc, labels, scores, np.zeros(3)), r'4 rows.*\(3,\)'),
        (lambda labels, scores: bootstrap(auroc, labels, scores[:3], np.zeros(4)), '4 rows.*3 of sco'),
        (lambda labels, scores: bootstrap(auroc, labels * 2, scores, np.zeros(4)), r'AUROC.*\[2\]'),
        (lambda labels, scores: bootstrap(auprc, labels, scores / 0, np.zeros(4)), 'AUPRC.*4 of 4'),
        (lambda labels, scores: bootstrap(auroc, labels[:0], scores[:0], []), '0 rows'),
        (lambda labels, scores: delong_interval(labels, scores[:, 0]), r'DeLong.*shape'),
        (lambda labels, scores: delong_interval(labels, scores, np.zeros(5)), r'4 rows.*\(5,\)'),
        (lambda labels, scores: delong_test(labels, scores, scores[:3]), r'DeLong.*shape'),
        (lambda labels, scores: t_interval([]), 'no run'),
        (lambda labels, scores: paired_t_test([0.7], [0.8]), 'two runs or more'),
        (lambda labels, scores: paired_t_test([0.7, 0.8], [0.8]), r'\(2,\) and \(1,\)'),
    ],
)
def test_bad_input_says_what_was_found(call, message):
    with pytest.raises(UserError, match=message), np.errstate(all='ignore'):
        call(np.array([[0], [1], [0], [1]]), np.ones((4, 1)))
