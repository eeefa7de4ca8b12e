"""What each patient adds to a number of a test set, which is what its variance is made of."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation.metrics import judged


class Parts(NamedTuple):
    """Values [k] and what each patient adds to value - truth.

    Attributes:
        positive, negative: [patients, k] of the patient's images with and without the finding,
            scaled so that the variance is the sum over patients of their sum's square.
        patients: [2, k], how many have an image with the finding, and one without.
        effective: [2, k], how many they would be by weight, if each had as many images.
    """

    value: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    patients: np.ndarray
    effective: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        return np.sum((self.positive + self.negative) ** 2, 0)

    @property
    def df(self) -> np.ndarray:
        """Satterthwaite's degrees of freedom, Biometrics Bulletin 2 (1946), of the two sides."""
        squares = np.stack([np.sum(part**2, 0) for part in (self.positive, self.negative)])
        of_side = np.maximum(self.effective - 1, 1)
        spread = squares.any(0)
        of_both = squares.sum(0) ** 2 / np.sum(np.where(spread, squares, 1) ** 2 / of_side, 0)
        return np.where(spread, of_both, of_side.min(0))


def taken_apart(measure: Callable, labels, scores, patients) -> tuple[Parts, np.ndarray]:
    """Parts of the labels that have a value, and which of all, bool, those are.

    `measure(positive [n], score [n])` gives a label's value and its derivatives by the weights of
    the images, [n]. Sums over patients and the factor m / (m - 1) of each side are Obuchowski's;
    her factor of the sides' product, I / (I - 1), is here the root of theirs.
    """
    labels, scores, available = judged(labels, scores, 'interval')
    patients, images = numbered(patients, labels)
    k, count = np.sum(available), len(images)
    positives, negatives = np.empty((2, count, k))
    parts = Parts(np.empty(k), positives, negatives, np.empty((2, k), int), np.empty((2, k)))
    for i, c in enumerate(np.flatnonzero(available)):
        positive = labels[:, c] == 1
        parts.value[i], influence = measure(positive, scores[:, c])
        for side, (rows, sums) in enumerate(((positive, parts.positive), (~positive, parts.negative))):
            of_patient = np.bincount(patients[rows], minlength=count)
            m = int(np.count_nonzero(of_patient))
            parts.patients[side, i], parts.effective[side, i] = m, effective_number(of_patient)
            sums[:, i] = np.bincount(patients[rows], influence[rows], count) * np.sqrt(m / max(m - 1, 1))
    return parts, available


def area(positive, score) -> tuple[float, np.ndarray]:
    """AUROC. Its derivatives are DeLong's placements.

    Of each positive the share of negatives below it, of each negative that of positives above it;
    ties count half. Midranks are whole or half numbers, exact in float64 whatever n.
    """
    rank, placement, p = stats.rankdata(score), np.empty(len(score)), np.sum(positive)
    placement[positive] = (rank[positive] - stats.rankdata(score[positive])) / (len(score) - p)
    placement[~positive] = 1 - (rank[~positive] - stats.rankdata(score[~positive])) / p
    value = placement[positive].mean()
    return value, (placement - value) / np.where(positive, p, len(score) - p)


def average_precision(positive, score) -> tuple[float, np.ndarray]:
    """Mean over positives of the precision among the images that score as high.

    An image's weight changes that precision of all positives at or below it.
    """
    hits, everyone = np.sort(score[positive]), np.sort(score)
    from_here = lambda ordered: len(ordered) - np.searchsorted(ordered, score)
    called = from_here(everyone)
    precision = from_here(hits) / called
    value = precision[positive].mean()
    order = np.flatnonzero(positive)[np.argsort(score[positive])]
    below = np.searchsorted(hits, score, 'right')  # how many positives are at or below each image
    up_to = lambda terms: np.concatenate([[0], np.cumsum(terms[order])])[below]
    gained = np.where(positive, precision - value + up_to(1 / called), 0)
    return value, (gained - up_to(precision / called)) / len(hits)


def numbered(patients: ArrayLike, rows) -> tuple[np.ndarray, np.ndarray]:
    """Patients [n] as numbers from 0, and how many images each has."""
    patients = np.asarray(patients)
    if not len(rows) or patients.shape != (len(rows),):
        raise UserError(
            f'interval: {len(rows)} rows and patients of shape {patients.shape}; expected one or more '
            'rows and the patient of each'
        )
    return np.unique(patients, return_inverse=True, return_counts=True)[1:]


def effective_number(images) -> float:
    """(sum n)^2 / sum n^2: Kish, "Survey sampling", 1965."""
    return np.sum(images) ** 2 / np.sum(images**2)
