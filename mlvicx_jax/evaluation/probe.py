"""Probes of a frozen encoder: how well its features, as they are, separate the labels."""

from collections.abc import Sequence

import numpy as np
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation.metrics import auroc, mean_auroc

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse penalties: C x (summed log loss) + |w|^2 / 2
TEMPERATURE = 0.07  # Wu et al., 2018 (arXiv:1805.01978), section 3.4


def linear_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    train_patients: Sequence,
    test_x: np.ndarray,
    grid: Sequence[float] = GRID,
) -> np.ndarray:
    """Scores of one L2-penalised logistic regression per label on standardised features.

    The penalty, one for all labels, is the one with the best mean AUROC on a quarter of the
    training PATIENTS (fixed seed) after fitting on the others; the regressions are then refitted on
    all of them. Deterministic; one core takes 0.15 s for 2,000 x 128 features and 9 labels, and
    about 20 s for 80,000 x 512 and 15.

    Args:
        train_x: [n, d] features, any float type; mean and deviation for the standardisation come
            from these. A feature that is constant here has no weight.
        train_y: [n, k] of 0 and 1.
        train_patients: [n] patient of each row, any hashable type.
        test_x: [m, d] features.
        grid: values of C to choose from, strongest penalty first; ties, and data where no class
            can be judged on the inner part, go to the first.

    Returns:
        float64 [m, k] log odds; NaN in the columns of labels with one class in training.

    Raises:
        UserError: features are not finite, or all of them come from one patient.
    """
    train_x, test_x = _finite(train_x, 'training'), _finite(test_x, 'test')
    train_y, patients = np.asarray(train_y), np.asarray(train_patients)
    if len(np.unique(patients)) < 2:
        raise UserError(
            f'linear probe: {len(patients)} training images of one patient; expected '
            'two patients or more, to choose the penalty on patients not fitted: '
            'prepare more images'
        )
    split = GroupShuffleSplit(n_splits=1, test_size=0.25, random_state=0)
    fit, held_out = next(split.split(train_x, groups=patients))
    inner = [
        mean_auroc(auroc(train_y[held_out], scores))[0]
        for scores in _logistic(train_x[fit], train_y[fit], train_x[held_out], grid)
    ]
    best = int(np.argmax(np.nan_to_num(inner, nan=-1.0)))
    return next(_logistic(train_x, train_y, test_x, [grid[best]]))


def knn(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, k: int = 20) -> np.ndarray:
    """Weighted share of positives among the k training images nearest in cosine similarity.

    Each neighbour votes with weight exp(similarity / 0.07), as in Wu et al., "Unsupervised feature
    learning via non-parametric instance discrimination", CVPR 2018, section 3.4. Nothing is
    fitted, so this probe shows what the linear one could have mended.

    Args:
        train_x: [n, d] features, any float type.
        train_y: [n, l] of 0 and 1.
        test_x: [m, d] features.
        k: neighbours; n where there are fewer.

    Returns:
        float64 [m, l] in 0..1; NaN in the columns of labels with one class in training, where
        every vote is the same and would pass for an AUROC of 0.5.

    Raises:
        UserError: features are not finite.
    """
    train_x, test_x = _finite(train_x, 'training'), _finite(test_x, 'test')
    train_y = np.asarray(train_y)
    index = NearestNeighbors(n_neighbors=min(k, len(train_x)), metric='cosine', algorithm='brute').fit(train_x)
    with config_context(working_memory=128):  # MiB of distances at a time, instead of 1,024
        distance_MxK, neighbour_MxK = index.kneighbors(test_x)
    # Relative to the nearest: the same shares, and exp(1 / 0.07) = 1.6e6 does not appear.
    weight_MxK = np.exp((distance_MxK[:, :1] - distance_MxK).astype(np.float64) / TEMPERATURE)
    weight_MxK /= weight_MxK.sum(axis=1, keepdims=True)
    scores = np.einsum('mk,mkl->ml', weight_MxK, train_y[neighbour_MxK].astype(np.float64))
    scores = scores.clip(0, 1)  # rounding alone leads out
    scores[:, ~_two_classes(train_y)] = np.nan
    return scores


def _logistic(train_x, train_y, test_x, grid):
    """Yields the log odds [m, k] of `test_x` for each C in `grid`."""
    scaler = StandardScaler().fit(train_x)
    train_x, test_x = scaler.transform(train_x), scaler.transform(test_x)
    for c in grid:
        scores = np.full((len(test_x), train_y.shape[1]), np.nan)
        for label in np.flatnonzero(_two_classes(train_y)):
            model = LogisticRegression(C=c, solver='lbfgs', max_iter=1000)
            scores[:, label] = model.fit(train_x, train_y[:, label]).decision_function(test_x)
        yield scores


def _two_classes(labels):
    return labels.min(axis=0) != labels.max(axis=0)


def _finite(features, name):
    # float32: float16 sums overflow, and float64 would double 80,000 x 512 features for nothing.
    features = np.asarray(features, np.float32)
    bad = np.sum(~np.isfinite(features).all(axis=1))
    if bad:
        raise UserError(
            f'probe: {bad} of {len(features)} rows of the {name} features are not '
            'finite; expected numbers: the encoder has diverged or its BatchNorm '
            'statistics overflow, use an earlier checkpoint'
        )
    return features
