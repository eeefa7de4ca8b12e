"""What a builder reads a release into: records of films with their boxes, and splits of them by patient."""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from mlvicx_jax.errors import UserError

from . import identity


@dataclasses.dataclass(frozen=True)
class Box:
    """A finding's rectangle: edges in parts of the picture, or in its pixels where `pixels`."""

    label: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    pixels: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image as the text of a release describes it.

    patient_id: the image id where the patient is not known: each such image counts as a patient.
    path: the image file; None where the release lacks it; with `Builder.archives` not looked at.
    view, sex, age: where unknown, the DICOM header's.
    mask: returns the bool mask [H, W] of the image.
    """

    image_id: str
    patient_id: str
    path: pathlib.Path | None = None
    labels: tuple[str, ...] = ()
    view: str = 'unknown'
    sex: str = 'unknown'
    age: int = -1
    boxes: tuple[Box, ...] = ()
    mask: Callable[[], np.ndarray] | None = None

    @property
    def patient(self) -> str:
        """The patient in the form that is compared (`identity.normal`)."""
        return self.image_id if self.patient_id == self.image_id else identity.normal(self.patient_id)


def check(name: str, splits: dict[str, list[Record]]) -> None:
    """What must hold of every set, told before its images are read.

    Raises:
        UserError: an image is there twice, a split is empty, or a patient is in two splits.
    """
    everything = [record for records in splits.values() for record in records]
    twice = [i for i, n in collections.Counter(r.image_id for r in everything).items() if n > 1]
    if twice:
        raise UserError(
            f'{name}: image {some(twice)} is there twice; an image may be in one split only, and once'
        )
    for split, records in splits.items():
        if not records:
            raise UserError(f'{name}: no image is in the {split} split')
    shared = set.intersection(*({r.patient for r in records} for records in splits.values()))
    if shared:
        spellings = {r.patient_id for r in everything if r.patient in shared}
        written = f' (written {some(spellings)})' if spellings != shared else ''
        raise UserError(
            f'{name}: patient {some(shared)}{written} both in {" and ".join(splits)}; '
            'a patient may be in one split only'
        )


def draw_test(records: list[Record], fraction: float, seed: int) -> dict[str, list[Record]]:
    """Splits by patient: `fraction` of them to test, those whose seeded hashes come first.

    Which patients those are depends on the seed and the ids alone, not on their order.

    Raises:
        UserError: all records are of one patient.
    """
    spellings = identity.join((r.patient, r.patient_id) for r in records)

    def rank(patient: str) -> bytes:
        return hashlib.sha256(f'test/{seed}/{spellings[patient]}'.encode()).digest()

    patients = sorted(spellings, key=rank)
    if len(patients) < 2:
        raise UserError(
            f'{len(records)} images of one patient ({some(spellings.values())}) can not be split; give more '
            'films, or mend the ids, or leave them out with --column ignore="their column"'
        )
    test = set(patients[: max(1, round(fraction * len(patients)))])
    return {
        'train_val': [r for r in records if r.patient not in test],
        'test': [r for r in records if r.patient in test],
    }


def read_box(
    label: str, fields: Sequence[str], where: str, frame: float | None = None, corners: bool = False
) -> Box:
    """A box of four numbers: x, y, width, height, or with `corners` x, y of two corners.

    Args:
        frame: the side of the square picture that they are pixels of; None: the image's own.

    Raises:
        UserError: not four numbers, or an empty box, or one outside the picture.
    """
    try:
        x, y, a, b = map(float, fields)
    except ValueError:
        raise UserError(f'{where}: the box is {",".join(fields)[:80]!r}, expected four numbers') from None
    edges = np.array([x, y, a, b] if corners else [x, y, x + a, y + b])
    edges = np.clip(edges / (frame or 1), 0, 1 if frame else np.inf)
    xmin, ymin, xmax, ymax = edges.tolist()
    if not (ymin < ymax and xmin < xmax and np.isfinite(edges).all()):
        limit = f' or outside the {frame:g} x {frame:g} frame' if frame else ''
        raise UserError(f'{where}: the box {x:g},{y:g},{a:g},{b:g} is empty{limit}')
    return Box(label, xmin, ymin, xmax, ymax, pixels=frame is None)


def group(rows: Iterable[tuple[Hashable, Any]]) -> dict[Hashable, list]:
    """Collects (key, value) pairs by key, in the order they come."""
    groups: dict[Hashable, list] = {}
    for key, value in rows:
        groups.setdefault(key, []).append(value)
    return groups


def list_hash(names: Iterable[str]) -> str:
    """SHA-256 of the sorted names joined by newlines, the identity of a list."""
    return hashlib.sha256('\n'.join(sorted(names)).encode()).hexdigest()


def some(names: Iterable[str]) -> str:
    """The first three names, cut where they are long, and how many more there are."""
    names = sorted(names)
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return ', '.join(name if len(name) <= 120 else f'{name[:117]}...' for name in names[:3]) + more
