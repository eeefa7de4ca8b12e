"""Parts of a training split: what a probe or a fine-tuning may use of its labels."""

import collections
import dataclasses
import hashlib
from collections.abc import Hashable, Sequence

import numpy as np

from mlvicx_jax.data.source import Split
from mlvicx_jax.errors import UserError

SHARES = (0.01, 0.1, 0.3, 1.0)  # the paper's


def fraction(
    split: Split,
    share: float,
    seed: int,
    nested: bool = True,
    stratified: bool = False,
    by_patient: bool = False,
) -> Split:
    """Draws `share` of a split's images: exactly round(share n) of n, and at least one.

    The draw depends on the seed and the ids alone, not on the order of the records. Images are
    drawn, as the paper and those it compares with do, since a share stands for a number of films
    that someone has labelled; the test patients are apart in any case. Films of one patient are
    alike, so by patient is the harder and more honest measure of few data: 1 % of NIH's images
    come from about three times as many patients as the images of 1 % of its patients.

    Args:
        share: above 0, at most 1.
        nested: with one seed, a smaller share lies inside a larger one; False: shares are drawn
            independently of each other.
        stratified: draws evenly from S strata, one for each label and one for none: an image
            belongs to the rarest label that it has. A stratum of m images gets `share` m, off by
            no more than 1 + S m / 2n. By patient, strata are of patients, with the labels of all
            their images.
        by_patient: takes patients, all images of each, but for the last, who fills up the number.

    Returns:
        The part in the order of the split, named such as 'train 1%'. `absent_labels` tells which
        labels it has no example of: at 1 % of NIH's, Hernia may be one.

    Raises:
        UserError: a share that is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UserError(f'the share of {split.name} is {share}, expected above 0 and at most 1')
    salt = f'{seed}' if nested else f'{seed}/{share:g}'

    def rank(text: str) -> bytes:
        return hashlib.sha256(f'fraction/{salt}/{text}'.encode()).digest()

    units: dict[str, list[int]] = collections.defaultdict(list)
    for i in sorted(range(len(split)), key=lambda i: rank(f'image/{split.image_ids[i]}')):
        units[str((split.patient_ids if by_patient else split.image_ids)[i])].append(i)
    names = sorted(units, key=rank)
    if stratified:
        labels = np.array([split.labels[units[name]].max(0) for name in names])
        names = [names[i] for i in _interleave(_rarest(labels))]
    order = [i for name in names for i in units[name]]
    chosen = np.sort(order[: max(1, round(share * len(split)))])
    return dataclasses.replace(split.take(chosen), name=f'{split.name} {100 * share:g}%')


def absent_labels(split: Split, label_names: Sequence[str]) -> list[str]:
    """The labels without a positive in the split: no figure can be fitted or given for them."""
    return [name for name, some in zip(label_names, np.any(split.labels, 0)) if not some]


def _rarest(labels: np.ndarray) -> list[int]:
    """Multi-hot [n, L] -> of each row the rarest label that it has, -1 where it has none."""
    by_count = np.argsort(labels.sum(0, dtype=np.int64), kind='stable')
    return [next((int(k) for k in by_count if row[k]), -1) for row in labels]


def _interleave(strata: Sequence[Hashable]) -> np.ndarray:
    """An order of n positions of which every beginning holds each stratum in its proportion.

    Member j of m lies at (j + 1/2) / m of the way; so each stratum has round(t m) members before t.
    """
    sizes, place = collections.Counter(strata), []
    seen: collections.Counter[Hashable] = collections.Counter()
    for stratum in strata:
        place.append((seen[stratum] + 0.5) / sizes[stratum])
        seen[stratum] += 1
    return np.argsort(place, kind='stable')
