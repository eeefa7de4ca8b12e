"""Parts of a training split: exact numbers, nested, stratified, and what they lack."""

import collections

import numpy as np
import pytest

from mlvicx_jax.data import fractions
from mlvicx_jax.data.fractions import absent_labels, fraction
from mlvicx_jax.data.source import Split
from mlvicx_jax.errors import UserError


def _split(n=2000, seed=0):
    """Labels of frequencies 20 %, 5 % and 0.2 %; one to six images a patient."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n), rng.integers(1, 7, n))[:n]
    labels = (rng.random((n, 3)) < (0.2, 0.05, 0.002)).astype(np.uint8)
    unknown = np.full(n, 'unknown')
    return Split(
        name='train',
        source=None,
        records=np.arange(n),
        image_ids=np.array([f'image_{i}' for i in range(n)]),
        patient_ids=patients.astype(str),
        labels=labels,
        view=unknown,
        sex=unknown,
        age=np.full(n, -1, np.int32),
    )


SPLIT = _split()
KINDS = [dict(stratified=s, by_patient=p) for s in (False, True) for p in (False, True)]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('nested', [True, False])
def test_number_is_exact_and_order_is_the_split_s(kind, nested):
    for share in (0.0001, 0.01, 0.1, 0.3, 1.0):
        part = fraction(SPLIT, share, 3, nested, **kind)
        assert len(part) == max(1, round(share * 2000))
        assert (np.diff(part.records) > 0).all() and len(set(part.image_ids)) == len(part)
        np.testing.assert_array_equal(part.labels, SPLIT.labels[part.records])
    assert part.hash == SPLIT.hash and part.name == 'train 100%'


@pytest.mark.parametrize('kind', KINDS)
def test_nested_shares_lie_in_each_other_and_others_do_not(kind):
    for nested in (True, False):
        small, middle, large = (
            set(fraction(SPLIT, share, 3, nested, **kind).image_ids) for share in (0.01, 0.1, 0.3)
        )
        assert (small < middle < large) is nested
    # Independent: a tenth and three tenths share a part as two draws do, 60 of 2,000.
    if not kind['by_patient']:
        assert 35 < len(middle & large) < 90


@pytest.mark.parametrize('kind', KINDS)
def test_draw_depends_on_seed_and_ids_alone(kind):
    base = fraction(SPLIT, 0.1, 3, **kind)
    assert fraction(SPLIT, 0.1, 4, **kind).hash != base.hash
    shuffled = SPLIT.take(np.random.default_rng(1).permutation(2000))
    assert fraction(shuffled, 0.1, 3, **kind).hash == base.hash


def test_images_are_drawn_evenly():
    """Of 30 seeds each image is drawn as often as 30 fair draws would."""
    counts = np.zeros(2000)
    for seed in range(30):
        counts[fraction(SPLIT, 0.1, seed).records] += 1
    assert abs(counts.mean() - 3) < 1e-9 and counts.max() < 13
    assert abs(counts.var() - 30 * 0.1 * 0.9) < 0.4  # its standard error is 0.09


def test_by_patient_takes_whole_patients_but_for_one():
    part = fraction(SPLIT, 0.1, 3, by_patient=True)
    sizes, drawn = (collections.Counter(s.patient_ids.tolist()) for s in (SPLIT, part))
    assert sum(drawn[patient] < sizes[patient] for patient in drawn) <= 1
    of_images = fraction(SPLIT, 0.1, 3)
    assert len(set(of_images.patient_ids)) > 2 * len(drawn)


@pytest.mark.parametrize('share', [0.01, 0.1, 0.3])
def test_strata_keep_their_proportions(share):
    strata = np.array(fractions._rarest(SPLIT.labels))
    kinds, sizes = np.unique(strata, return_counts=True)
    assert kinds.tolist() == [-1, 0, 1, 2]
    for seed in range(2):
        part = fraction(SPLIT, share, seed, stratified=True)
        for kind, size in zip(kinds, sizes):
            found = (strata[part.records] == kind).sum()
            assert abs(found - share * size) <= 1 + len(kinds) * size / (2 * 2000)


def test_rarest_label_of_each_row():
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    assert fractions._rarest(labels) == [1, 0, 2, -1, 2, 1]


def test_labels_without_a_positive_are_told():
    names = ['common', 'some', 'rare']
    assert absent_labels(SPLIT, names) == []
    part = fraction(SPLIT, 0.01, 0)
    assert not part.labels[:, 2].any() and absent_labels(part, names) == ['rare']


@pytest.mark.parametrize('share', [0, -0.1, 1.5, float('nan')])
def test_impossible_shares_are_refused(share):
    with pytest.raises(UserError, match='the share of train'):
        fraction(SPLIT, share, 0)
