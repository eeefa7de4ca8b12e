"""One image of the phantom, from three integers.

`render(seed, patient, image, size)` depends on nothing else: not on the number of patients, the
order of rendering or the number of workers.
"""

import dataclasses

import cv2
import numpy as np

from . import detector
from .anatomy import MU_BONE, MU_LEAD, MU_LUNG, MU_SOFT, Chest
from .findings import ACUTE, FINDINGS, LABELS, SMALLEST_MM2, Lesions, draw_findings, shape_of
from .geometry import NATIVE, Canvas, band, ellipse
from .subject import Patient, Pose

_PERSON, _ILLNESS, _TREE, _LESION, _IMAGE = range(5)  # what a stream is for


@dataclasses.dataclass(frozen=True)
class Example:
    """One radiograph with its exact truth.

    image: uint8 [S, S], dense tissue bright, patient's left on the picture's right.
    labels: uint8 [9], the eight FINDINGS and 'No Finding'.
    mask: uint8 [S, S], bit k set where finding k lies.
    anatomy: uint8 [S, S], bit 0 right lung, bit 1 left lung, bit 2 heart.
    boxes: (finding, ymin, xmin, ymax, xmax) per connected region, in 0..1.
    """

    image: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    anatomy: np.ndarray
    boxes: list[tuple[int, float, float, float, float]]
    view: str
    sex: str
    age: int


def stream(seed: int, patient: int, *purpose: int) -> np.random.Generator:
    """The generator of one purpose of one patient."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(patient, *purpose)))


def person(seed: int, patient: int) -> Patient:
    """The patient's constant traits, the number of images among them."""
    return Patient.draw(stream(seed, patient, _PERSON))


def render(seed: int, patient: int, image: int, size: int) -> Example:
    """Renders image number `image` of patient number `patient` at size x size pixels."""
    rng = stream(seed, patient, _IMAGE, image)
    traits, pose = person(seed, patient), Pose.draw(rng)
    illness = stream(seed, patient, _ILLNESS)
    present = draw_findings(illness)
    gone = rng.random(8) < 0.15
    present &= ~(gone & np.isin(FINDINGS, ACUTE))

    canvas = Canvas(max(size, NATIVE), pose.affine)
    chest = Chest(traits, pose, canvas, stream(seed, patient, _TREE), **shape_of(present, illness))
    lesions = Lesions(chest)
    for k in np.flatnonzero(present):
        lesions.add(k, stream(seed, patient, _LESION, k))

    depth = _optical_depth(chest, lesions, rng)
    depth += detector.devices(canvas, pose.view, rng)
    depth += MU_LEAD * detector.markers(canvas.grid, pose.view, rng)
    picture = detector.expose(depth, canvas, pose.view, rng)
    keep = detector.collimate(picture, rng)
    picture = detector.display(picture, keep, rng)
    if size != canvas.grid:
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)

    lungs = [chest.lung_mask[-1] > 0.5, chest.lung_mask[1] > 0.5, chest.heart_mask > 0.5]
    masks = lesions.masks & keep
    masks = [_without_specks(plane, SMALLEST_MM2 * canvas.per_mm**2) for plane in masks]
    mask = _pack(masks, size)
    labels = np.zeros(len(LABELS), np.uint8)
    labels[:-1] = [plane.any() for plane in masks]
    labels[-1] = not labels.any()
    return Example(picture, labels, mask, _pack(lungs, size), boxes(mask), pose.view, traits.sex, traits.age)


def _optical_depth(chest: Chest, lesions: Lesions, rng: np.random.Generator) -> np.ndarray:
    """Sum of thickness times attenuation along the beam [G, G]."""
    canvas, p = chest.canvas, chest.patient
    lung = np.minimum(chest.lung, 0.9 * chest.body)
    solid = np.minimum(lesions.soft, 0.95 * lung)
    marks = np.clip(chest.marks * lesions.marks, -2, 30) * (lung > 5)
    top = np.array([[0, -240], [1, -120], [3, -62]]) * (1, p.height) + (0.4 * chest.pose.yaw, 0)
    right = np.array([top[-1], top[-1] + (-14, 16), top[-1] + (-26, 26)])
    left = np.array([top[-1], top[-1] + (16, 17), top[-1] + (34, 26)])
    air = 15 * canvas.fill(band(top, 16)) + 8 * canvas.fill(band(right, 10), band(left, 9))
    if rng.random() < 0.5:  # gas under the left dome
        x, y = rng.uniform(45, 80), chest.dome[1] + rng.uniform(16, 34)
        a, b, tilt = rng.uniform((14, 8, -25), (34, 16, 10)).tolist()
        gas = canvas.fill(ellipse(x, y, a, b, tilt))
        air = air + rng.uniform(20, 50) * gas
    air = canvas.blur(air, 1.5) * (1 - chest.lung_mask[1])
    soft = np.maximum(chest.body - lung - np.minimum(air, 0.5 * chest.body), 0)
    aerated = lung - solid
    return (
        MU_SOFT * (soft + solid)
        + MU_LUNG * lesions.density * aerated
        + (MU_SOFT - MU_LUNG) * marks
        + (MU_BONE - MU_SOFT) * chest.bone * (chest.body > 5)
    )


def _without_specks(mask: np.ndarray, least: float) -> np.ndarray:
    """A mask [G, G] less its connected regions under `least` pixels."""
    if not mask.any():
        return mask
    _, regions, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= least
    keep[0] = False
    return keep[regions]


def _pack(masks, size: int) -> np.ndarray:
    """Bool masks [K, G, G] -> uint8 [S, S] with bit k set; no mask is lost by the reduction."""
    out = np.zeros((size, size), np.uint8)
    for k, mask in enumerate(masks):
        if mask.any():
            cover = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
            out |= (cover >= min(0.5, cover.max())).astype(np.uint8) << k
    return out


def boxes(mask: np.ndarray) -> list[tuple[int, float, float, float, float]]:
    """(finding, ymin, xmin, ymax, xmax) of each bit's 8-connected regions, in parts of the side."""
    found, size = [], len(mask)
    for k in range(len(FINDINGS)):
        if not (mask >> k & 1).any():
            continue
        count, _, stats, _ = cv2.connectedComponentsWithStats(mask >> k & 1, connectivity=8)
        for x, y, w, h, _ in stats[1:count]:
            found.append((k, y / size, x / size, (y + h) / size, (x + w) / size))
    return found
