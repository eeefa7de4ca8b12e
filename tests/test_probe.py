"""Probes of frozen features: planted signal, noise, scale, absent classes, and a k-NN by loops."""

import numpy as np
import pytest

from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import probe
from mlvicx_jax.evaluation.metrics import auroc

N, M, D, K = 800, 1200, 32, 3


@pytest.fixture(scope='module')
def planted():
    """Training and test features whose labels are noisy half-spaces; two images per patient."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N + M, D))
    margin = x @ rng.standard_normal((D, K)) / np.sqrt(D) + 0.2 * rng.standard_normal((N + M, K))
    y = (margin > [-0.5, 0, 1]).astype(np.uint8)
    patients = np.array([f'patient{i // 2}' for i in range(N)])
    return x[:N], y[:N], patients, x[N:], y[N:]


def test_linear_probe_finds_a_planted_signal(planted):
    train_x, train_y, patients, test_x, test_y = planted
    scores = probe.linear_probe(train_x, train_y, patients, test_x)
    assert scores.shape == (M, K) and scores.dtype == np.float64
    assert auroc(test_y, scores).min() > 0.95
    np.testing.assert_array_equal(
        scores, probe.linear_probe(train_x, train_y, patients, test_x), 'not deterministic'
    )


def test_noise_stays_at_chance(planted):
    train_x, train_y, patients, test_x, test_y = planted
    rng = np.random.default_rng(1)
    noise, test_noise = rng.standard_normal(train_x.shape), rng.standard_normal(test_x.shape)
    for scores in (
        probe.linear_probe(noise, train_y, patients, test_noise),
        probe.knn(noise, train_y, test_noise),
    ):
        # 4 standard errors of the rarest label's AUROC on 1,200 images are below 0.1.
        np.testing.assert_allclose(auroc(test_y, scores), 0.5, atol=0.1)


def test_linear_probe_ignores_scale_offset_and_constant_features(planted):
    train_x, train_y, patients, test_x, _ = planted
    scale, offset = np.logspace(-3, 3, D), np.linspace(-1, 1, D)
    plain = probe.linear_probe(train_x, train_y, patients, test_x)
    moved = probe.linear_probe(
        np.c_[(train_x + offset) * scale, np.full(N, 7.0)],
        train_y,
        patients,
        np.c_[(test_x + offset) * scale, np.full(M, -1e4)],
    )
    np.testing.assert_allclose(moved, plain, atol=0.01 * plain.std())


def test_penalty_is_chosen_on_patients_not_fitted():
    # Four near copies an image: judged on copies of fitted images the weakest penalty would win.
    rng = np.random.default_rng(2)
    patients = np.repeat(np.arange(60), 4)
    x = np.repeat(rng.standard_normal((60, 200)), 4, axis=0)
    x += 0.01 * rng.standard_normal(x.shape)
    y = np.repeat(rng.integers(0, 2, (60, 1)), 4, axis=0)
    seen = []

    def spy(train_x, train_y, test_x, grid, logistic=probe._logistic):
        seen.append((train_x, test_x, list(grid)))
        return logistic(train_x, train_y, test_x, grid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, '_logistic', spy)
        probe.linear_probe(x, y, patients, x[:1])
    (fit, held_out, grid), (everything, _, chosen) = seen
    owner = {row.tobytes(): patient for row, patient in zip(x.astype(np.float32), patients)}
    fitted, judged = ({owner[row.tobytes()] for row in part} for part in (fit, held_out))
    assert not fitted & judged and len(judged) == 15 and len(fitted) == 45
    assert tuple(grid) == probe.GRID and len(chosen) == 1 and len(everything) == len(x)


def test_penalty_is_the_one_that_judges_best(planted):
    # With 250 features of noise on 800 images a strong penalty must win over a weak one.
    train_x, train_y, patients, test_x, test_y = planted
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((N + M, 250))
    train_x, test_x = np.c_[train_x, noise[:N]], np.c_[test_x, noise[N:]]
    chosen = probe.linear_probe(train_x, train_y, patients, test_x)
    fixed = {c: probe.linear_probe(train_x, train_y, patients, test_x, [c]) for c in probe.GRID}
    areas = {c: auroc(test_y, scores).mean() for c, scores in fixed.items()}
    assert max(areas.values()) - min(areas.values()) > 0.02, 'the grid makes no difference here'
    assert auroc(test_y, chosen).mean() > max(areas.values()) - 0.005
    assert any(np.array_equal(chosen, scores) for scores in fixed.values())


def test_the_score_of_a_film_does_not_depend_on_the_films_beside_it(planted):
    train_x, train_y, patients, test_x, _ = planted
    for scores in (
        lambda films: probe.linear_probe(train_x, train_y, patients, films),
        lambda films: probe.knn(train_x, train_y, films),
    ):
        moved = np.concatenate([test_x[:5], test_x[5:] * 10 + 3])
        np.testing.assert_allclose(scores(moved)[:5], scores(test_x[:5]), rtol=1e-5)


def test_label_with_one_class_in_training_has_no_score(planted):
    train_x, train_y, patients, test_x, test_y = planted
    train_y = train_y.copy()
    train_y[:, 1] = 0
    for scores in (probe.linear_probe(train_x, train_y, patients, test_x), probe.knn(train_x, train_y, test_x)):
        np.testing.assert_array_equal(np.isnan(scores).any(axis=0), [False, True, False])
        np.testing.assert_array_equal(np.isnan(auroc(test_y, scores)), [False, True, False])


def test_no_label_can_be_judged_takes_the_strongest_penalty():
    x = np.array([[0.0], [1.0], [2.0], [3.0]])
    y = np.array([[0], [0], [1], [1]])
    patients = [1, 2, 3, 4]  # one patient is held out, so one class there
    np.testing.assert_array_equal(
        probe.linear_probe(x, y, patients, x), probe.linear_probe(x, y, patients, x, [1e-4])
    )


@pytest.mark.parametrize('k', [5, 20, 10_000])
def test_knn_equals_a_loop(k):
    rng = np.random.default_rng(4)
    train_x, test_x = rng.standard_normal((70, 6)), rng.standard_normal((9, 6))
    train_y = rng.integers(0, 2, (70, 2))
    expected = np.empty((9, 2))
    for i, query in enumerate(test_x):
        similarity = np.array([query @ row / np.linalg.norm(query) / np.linalg.norm(row) for row in train_x])
        nearest = np.argsort(-similarity)[:k]
        weight = np.exp(similarity[nearest] / 0.07)
        expected[i] = weight @ train_y[nearest] / weight.sum()
    np.testing.assert_allclose(probe.knn(train_x, train_y, test_x, k=k), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        probe.knn(1e3 * train_x, train_y, 1e-3 * test_x, k=k), expected, rtol=1e-4, atol=1e-6
    )


def test_half_precision_features_are_taken(planted):
    # Values near 1,000 with a mean of squares above float16's largest number, 65,504.
    train_x, train_y, patients, test_x, test_y = planted
    low, test_low = (300 * train_x).astype(np.float16), (300 * test_x).astype(np.float16)
    assert auroc(test_y, probe.linear_probe(low, train_y, patients, test_low)).min() > 0.95
    assert auroc(test_y, probe.knn(low, train_y, test_low)).min() > 0.7


def test_features_that_are_not_finite_are_counted(planted):
    train_x, train_y, patients, test_x, _ = planted
    bad = test_x.copy()
    bad[3], bad[5, 1] = np.nan, np.inf
    with pytest.raises(UserError, match=f'2 of {M} rows of the test features'):
        probe.linear_probe(train_x, train_y, patients, bad)
    with pytest.raises(UserError, match=f'2 of {M} rows of the training features'):
        probe.knn(bad, np.zeros((M, 1)), train_x)


def test_one_patient_is_refused(planted):
    train_x, train_y, _, test_x, _ = planted
    with pytest.raises(UserError, match='one patient'):
        probe.linear_probe(train_x, train_y, ['a'] * N, test_x)


def test_knn_never_leaves_0_to_1_by_rounding():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 16)), np.ones((300, 1))
    y[0] = 0
    scores = probe.knn(x, y, rng.normal(size=(200, 16)))
    assert scores.min() >= 0 and scores.max() <= 1
