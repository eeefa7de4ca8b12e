"""Intervals over patients: published sums, derivatives, literal pairs, and simulated truth."""

import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics import average_precision_score, roc_auc_score

from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation.comparison import delong_test, difference_interval, mean_auroc_difference
from mlvicx_jax.evaluation.contributions import area, average_precision, taken_apart
from mlvicx_jax.evaluation.intervals import (
    auprc_interval,
    auroc_interval,
    few_patients,
    mean_auroc_interval,
    mean_interval,
)

pytestmark = pytest.mark.filterwarnings('error')

# Mitotic figures of four slides, read by observer 1 in the microscope and on scanner A: how many
# have (truth, microscope, scanner) = 000, 001, 010, 011, 100, 101, 110, 111. Counted in
# data/dfClassify20180627.csv of github.com/DIDSR/mitoticFigureCounts, commit 5675b0b, CC0.
SLIDES = (
    (10, 0, 0, 0, 0, 0, 1, 3),
    (25, 2, 0, 0, 16, 6, 3, 10),
    (18, 2, 0, 0, 5, 1, 2, 11),
    (21, 2, 1, 0, 6, 0, 4, 6),
)


def films(patients, seed=0, findings=2, images=None, mixed=True, step=None, strength=1.0, share=0.4):
    """Labels, scores [n, findings] and patients of 1 to 4 films, half of whose scores they share.

    mixed: a third of the films differ from their patient's label; else none does. step: scores are
    rounded to it, so that they tie. strength: how far positives lie above, in standard deviations.
    """
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), rng.integers(1, 5, patients) if images is None else images)
    labels = rng.random((patients, findings))[patient] < share
    if mixed:
        labels ^= rng.random(labels.shape) < 0.3
    scores = strength * labels + np.sqrt(0.5) * rng.standard_normal((patients, findings))[patient]
    scores += np.sqrt(0.5) * rng.standard_normal(labels.shape)
    if step:
        scores = np.round(scores / step) * step
    return labels.astype(np.uint8), scores, np.array([f'p{i:05}' for i in patient])


def by_pairs(label, score):
    """Which share of each (positive, negative) pair is ranked right: [positives, negatives]."""
    positive, negative = score[label == 1][:, None], score[label == 0][None]
    return (positive > negative) + 0.5 * (positive == negative)


def covariance(label, models, patients):
    """Obuchowski's covariance of areas, patient by patient (section 3 of the paper of 1997).

    DeLong's where each patient has one image.
    """
    pairs = [by_pairs(label, score) for score in models]
    p, n = pairs[0].shape
    sums = np.zeros((2, len(models), len(set(patients))))
    places = np.unique(patients, return_inverse=True)[1]
    for k, pair in enumerate(pairs):
        np.add.at(sums[0, k], places[label == 1], (pair.mean(1) - pair.mean()) / p)
        np.add.at(sums[1, k], places[label == 0], (pair.mean(0) - pair.mean()) / n)
    counts = [len(set(patients[label == 1])), len(set(patients[label == 0])), len(set(patients))]
    of_positive, of_negative, of_all = (count / (count - 1) for count in counts)
    cross = sums[0] @ sums[1].T
    return of_positive * sums[0] @ sums[0].T + of_negative * sums[1] @ sums[1].T + of_all * (cross + cross.T)


def variances(measure, labels, scores, patients):
    return taken_apart(measure, labels, scores, patients)[0].variance


# --- What a patient adds ---


def test_variances_are_the_published_ones_of_the_slides():
    # data/aucMRMCcluster.rda of the same commit, made with Obuchowski's program of the paper of 1997.
    rows = [
        (slide, *f'{i:03b}')
        for slide, counts in enumerate(SLIDES)
        for i, c in enumerate(counts)
        for _ in range(c)
    ]
    slides, truth, microscope, scanner = np.array(rows, int).T
    labels, scores = np.stack([truth, truth], 1), np.stack([microscope, scanner], 1)
    parts, _ = taken_apart(area, labels, scores, slides)
    contributions = parts.positive + parts.negative
    np.testing.assert_allclose(parts.value, [0.76409743, 0.71296296], atol=5e-9)
    np.testing.assert_allclose(
        contributions.T @ contributions,
        [[2.71256911e-03, 9.81239946e-04], [9.81239946e-04, 8.53454843e-04]],
        rtol=1e-8,
    )
    test = delong_test(truth[:, None], microscope[:, None], scanner[:, None], slides)
    error = np.sqrt(2.71256911e-03 + 8.53454843e-04 - 2 * 9.81239946e-04)
    assert test.statistic[0] == pytest.approx((0.76409743 - 0.71296296) / error, rel=1e-6)


@pytest.mark.parametrize('images', [1, None])
@pytest.mark.parametrize('step', [None, 1.0])
def test_variance_equals_obuchowski_s_over_all_pairs(images, step):
    labels, scores, patients = films(60, images=images, step=step)
    other = scores + np.random.default_rng(1).standard_normal(scores.shape)
    found, test = variances(area, labels, scores, patients), delong_test(labels, scores, other, patients)
    for k, label in enumerate(labels.T):
        expected = covariance(label, (scores[:, k], other[:, k]), patients)
        # Of films of both kinds the product's factor differs, by less than 1 / 30 of that product.
        assert found[k] == pytest.approx(expected[0, 0], rel=1e-10 if images else 0.01)
        error = np.sqrt(expected[0, 0] + expected[1, 1] - 2 * expected[0, 1])
        assert test.statistic[k] == pytest.approx(test.difference[k] / error, rel=1e-8 if images else 0.01)


@pytest.mark.parametrize(
    'measure, oracle', [(area, roc_auc_score), (average_precision, average_precision_score)]
)
def test_contributions_are_the_derivatives_by_the_weights(measure, oracle):
    labels, scores, _ = films(25, findings=1, step=0.5)
    label, score = labels[:, 0], scores[:, 0]
    value, derivatives = measure(label == 1, score)
    assert value == pytest.approx(oracle(label, score), abs=1e-12)
    more = 1 + 1e-6 * np.eye(len(label))
    numerical = [(oracle(label, score, sample_weight=weights) - value) / 1e-6 for weights in more]
    np.testing.assert_allclose(derivatives, numerical, atol=1e-6)


def test_area_s_variance_at_150_000_with_ties_equals_counting_by_value():
    rng = np.random.default_rng(0)
    label = (rng.random(150_000) < 0.4).astype(int)
    score = rng.integers(0, 50, 150_000) + 3 * label
    p, n = (np.bincount(score[label == c], minlength=60) for c in (1, 0))
    below, above = np.cumsum(n) - n, p.sum() - np.cumsum(p)
    positive = ((below + n / 2) / n.sum())[score[label == 1]]
    negative = ((above + p / 2) / p.sum())[score[label == 0]]
    expected = positive.var(ddof=1) / len(positive) + negative.var(ddof=1) / len(negative)
    found = variances(area, label[:, None], score[:, None], np.arange(150_000))
    assert found[0] == pytest.approx(expected, rel=1e-9)


# --- Intervals ---


def held(interval, truth):
    there = interval.why == ''
    return ((interval.low <= truth) & (truth <= interval.high))[there]


@pytest.mark.parametrize('share, truth', [(0.05, 0.65), (0.05, 0.95), (0.15, 0.95)])
def test_intervals_of_60_patients_hold_the_truth_over_patients_and_miss_it_over_images(share, truth):
    found = {'patients': [], 'images': []}
    for seed in range(10):
        labels, scores, patients = films(
            60, seed, 60, mixed=False, share=share, strength=np.sqrt(2) * stats.norm.ppf(truth)
        )
        found['patients'] += held(auroc_interval(labels, scores, patients), truth).tolist()
        found['images'] += held(auroc_interval(labels, scores, np.arange(len(labels))), truth).tolist()
    assert len(found['patients']) > 300  # a standard error of 0.013 or less
    assert np.mean(found['patients']) >= 0.93
    assert np.mean(found['images']) < np.mean(found['patients']) - 0.02


def test_a_mean_over_findings_is_held_though_the_findings_share_patients():
    hits = []
    for seed in range(300):
        labels, scores, patients = films(
            60, seed, 8, mixed=False, share=[0.02, 0.05, 0.05, 0.1, 0.1, 0.2, 0.3, 0.5], strength=np.sqrt(2)
        )
        scores += np.random.default_rng(seed).standard_normal(60)[
            np.unique(patients, return_inverse=True)[1], None
        ]
        truth = stats.norm.cdf(1 / np.sqrt(2))
        hits += held(mean_auroc_interval(labels, scores, patients), truth).tolist()
    assert 0.92 <= np.mean(hits) <= 0.99


def test_the_mean_of_one_label_is_that_label_and_a_scarce_one_widens_it():
    labels, scores, patients = films(80, findings=3)
    one, alone = (
        mean_auroc_interval(labels[:, :1], scores[:, :1], patients),
        auroc_interval(labels, scores, patients),
    )
    np.testing.assert_allclose([one.low[0], one.high[0]], [alone.low[0], alone.high[0]], atol=1e-9)
    width = lambda found: found.high[0] - found.low[0]
    three = mean_auroc_interval(labels, scores, patients)
    assert width(three) < width(one)
    labels[:, 2] = patients == patients[0]  # one patient, of whose kind nothing is known
    assert width(mean_auroc_interval(labels, scores, patients)) > 1.2 * width(three)
    nothing = mean_auroc_interval(labels[:, 2:], scores[:, 2:], patients)
    assert np.isnan(nothing.low[0]) and nothing.why[0] == 'too few patients for any label'


def test_perfect_and_perfectly_wrong_scores_are_no_certainty():
    labels, _, patients = films(60, mixed=False, share=[0.15, 0.5])
    scores = labels + np.random.default_rng(0).random(labels.shape) / 2
    found, wrong = auroc_interval(labels, scores, patients), auroc_interval(labels, -scores, patients)
    np.testing.assert_array_equal([found.value, found.high], 1)
    assert 0.6 < found.low[0] < found.low[1] < 0.97  # of fewer positive patients less is known
    np.testing.assert_allclose(wrong.high, 1 - found.low, atol=1e-9)
    for interval in (
        auprc_interval(labels, scores, patients),
        mean_interval(np.ones((len(labels), 1)), patients),
    ):
        assert (interval.high == 1).all() and (interval.low < 0.97).all()
    assert (mean_interval(np.zeros((len(labels), 1)), patients).high > 0.03).all()
    mean = mean_auroc_interval(labels, scores, patients)
    assert mean.value[0] == mean.high[0] == 1 and mean.low[0] < 0.97
    assert np.isnan(delong_test(labels, scores, labels, patients).p).all()
    nearly = scores.copy()
    nearly[np.argmax(labels[:, 0]), 0] = 0.4  # one of the positives lies among the negatives
    found = auroc_interval(labels, nearly, patients)
    assert found.low[0] < found.value[0] < found.high[0] < 1


def test_why_there_is_no_interval():
    labels, scores, patients = films(40, findings=7, share=0.5)
    names = np.unique(patients)
    for finding, carriers in enumerate((0, 1, 2, 3, 38)):
        labels[:, finding] = np.isin(patients, names[:carriers])
    scores[:, 5] = 0.3
    scores[:, 6] = np.nan
    for interval in (auroc_interval, auprc_interval):
        found = interval(labels, scores, patients)
        assert found.why.tolist()[:5] == [
            'one class only, or no score',
            '1 positive patient, 3 are needed',
            '2 positive patients, 3 are needed',
            '',
            '2 negative patients, 3 are needed',
        ]
        np.testing.assert_array_equal(np.isnan(found.low), found.why != '')
        np.testing.assert_array_equal(np.isnan(found.value), [True] + [False] * 5 + [True])
    assert auroc_interval(labels, scores, patients).why[5] == 'no spread between patients'
    two = mean_interval(np.random.default_rng(0).random((4, 1)), ['a', 'a', 'b', 'b'])
    assert np.isnan(two.low[0]) and two.why[0] == '2 patients, 3 are needed'


def test_labels_of_few_patients_are_told_with_their_number():
    labels, _, patients = films(40, findings=4)
    names = np.unique(patients)
    for finding, carriers in enumerate((1, 9, 10, 33)):
        labels[:, finding] = np.isin(patients, names[:carriers])
    assert few_patients(labels, patients, 'abcd') == {
        'a': '1 positive patient',
        'b': '9 positive patients',
        'd': '7 negative patients',
    }


@pytest.mark.parametrize('interval', [auroc_interval, auprc_interval, mean_auroc_interval])
def test_the_same_films_twice_tell_no_more(interval):
    labels, scores, patients = films(50)
    once = interval(labels, scores, patients)
    twice = interval(labels.repeat(2, 0), scores.repeat(2, 0), patients.repeat(2))
    np.testing.assert_allclose([twice.low, twice.high], [once.low, once.high], atol=1e-9)


# --- Means and differences ---


def dice(patients, seed, findings=1, middle=1.6):
    """Values in 0..1, skewed as Dice is, and who they are of."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    noise = np.sqrt(0.6) * rng.standard_normal((patients, findings))[patient]
    noise += np.sqrt(0.4) * rng.standard_normal((len(patient), findings))
    return 1 / (1 + np.exp(-middle - noise)), patient, noise


def test_means_and_their_differences_hold_the_truth():
    truth = np.mean(1 / (1 + np.exp(-1.6 - np.random.default_rng(0).standard_normal(400_000))))
    hits, differences = [], []
    for seed in range(10):
        values, patient, noise = dice(20, seed, 50)
        again = np.random.default_rng(100 + seed).standard_normal((20, 50))[patient]
        other = 1 / (1 + np.exp(-1.6 - np.sqrt(0.7) * noise - np.sqrt(0.3) * again))
        hits += held(mean_interval(values, patient), truth).tolist()
        found, apart = difference_interval(values, other, patient), mean_interval(values, patient)
        differences += held(found, 0).tolist()
        assert np.median((found.high - found.low) / (apart.high - apart.low)) < 1.2, 'sqrt(2) unpaired'
    assert np.mean(hits) >= 0.93 and np.mean(differences) >= 0.93


def test_a_difference_from_hits_without_a_miss_is_as_unsure_as_the_hits():
    patients = np.repeat(np.arange(12), 2)
    chance = np.random.default_rng(0).uniform(0.02, 0.1, (24, 1))
    hits, found = (
        mean_interval(np.ones((24, 1)), patients),
        difference_interval(np.ones((24, 1)), chance, patients),
    )
    assert found.value[0] == pytest.approx(1 - chance.mean())
    assert found.high[0] - found.low[0] > hits.high[0] - hits.low[0]
    same = difference_interval(chance, chance, patients)
    assert same.low[0] <= 0 == same.value[0] <= same.high[0]
    assert difference_interval(chance[:4], chance[:4], [0, 0, 1, 1]).why[0] == '2 patients, 3 are needed'


# --- DeLong's test ---


@pytest.mark.parametrize('strength', [0.55, 2.3])
def test_delong_s_test_of_equally_good_models_errs_as_often_as_it_says(strength):
    p = []
    for seed in range(20):
        labels, scores, patients = films(60, seed, 40, share=0.15, mixed=False, strength=strength)
        noise = np.random.default_rng(1000 + seed).standard_normal((2, *scores.shape))
        p += delong_test(labels, scores + noise[0], scores + noise[1], patients).p.tolist()
    assert np.nanmean(np.array(p) < 0.05) <= 0.07


def test_delong_of_models_that_rank_alike_and_of_nearly_alike():
    labels, scores, patients = films(50)
    test = delong_test(labels, scores, np.exp(scores), patients)
    np.testing.assert_array_equal(test, [[0, 0]] * 4 + [[1, 1]])
    nearly = scores.copy()
    top = np.argsort(scores[:, 0])[-3:]
    nearly[top, 0] = scores[top, 0][::-1]
    test = delong_test(labels, scores, nearly, patients)
    assert np.isfinite(test).all() and 0 < test.p[0] <= 1 == test.p[1]


def test_delong_is_not_available_rather_than_certain():
    labels, scores, patients = films(40, findings=4)
    other = scores + np.random.default_rng(1).standard_normal(scores.shape)
    other[:, 1] = np.nan
    labels[:, 2] = np.isin(patients, np.unique(patients)[:2])
    test = delong_test(labels, scores, other, patients)
    np.testing.assert_array_equal(np.isnan(test.difference), [False, True, False, False])
    np.testing.assert_array_equal(np.isnan(test.p), [False, True, True, False])
    # Perfect against perfectly wrong: no pair varies, and no p follows.
    assert np.isnan(delong_test(labels, labels, 1 - labels, patients).p).all()


def test_bad_input_says_what_was_found():
    labels, scores = np.array([[0], [1], [0], [1]]), np.ones((4, 1))
    for call, message in (
        (lambda: auroc_interval(labels, scores, np.zeros(3)), r'4 rows.*\(3,\)'),
        (lambda: auroc_interval(labels * 2, scores, np.zeros(4)), r'\[2\]'),
        (lambda: auprc_interval(labels, scores * np.inf, np.zeros(4)), '4 of 4'),
        (lambda: auroc_interval(labels, scores[:, 0], np.zeros(4)), 'shape'),
        (lambda: mean_interval(scores[:0], []), '0 rows'),
        (lambda: delong_test(labels, scores, scores, np.zeros(5)), r'4 rows.*\(5,\)'),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_the_difference_of_mean_areas_holds_the_truth_as_often_as_it_says():
    """Two methods of AUROC 0.80 and 0.85 on the same patients, three labels; 200 test sets."""
    rng, held, away = np.random.default_rng(4), 0, 0
    shift = special.ndtri([0.85, 0.80]) * np.sqrt(2)
    for _ in range(200):
        patients = np.repeat(np.arange(80), rng.integers(1, 4, 80))
        labels = rng.random((len(patients), 3)) < 0.3
        noise = rng.normal(size=(80, 3))[patients] * 0.7 + rng.normal(size=labels.shape) * 0.51**0.5
        own = rng.normal(size=(2, *labels.shape)) * 0.6 + 0.8 * noise
        found = mean_auroc_difference(labels, *(z + s * labels for z, s in zip(own, shift)), patients)
        held += found.low <= 0.05 <= found.high
        away += found.low > 0
    assert held >= 0.92 * 200 and away > 100
    same = mean_auroc_difference(labels, own[0], own[0], patients)
    np.testing.assert_allclose(same, 0, atol=1e-15)


def test_the_difference_of_one_label_is_that_of_delong():
    rng = np.random.default_rng(5)
    patients, labels = np.repeat(np.arange(60), 3), rng.random((180, 1)) < 0.3
    a, b = rng.normal(size=(2, 180, 1)) + labels
    one, test = mean_auroc_difference(labels, a, b, patients), delong_test(labels, a, b, patients)
    np.testing.assert_allclose(one.value, test.difference[0], rtol=1e-12)
    assert (one.low <= 0 <= one.high) == (test.p[0] >= 0.05)
