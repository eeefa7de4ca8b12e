"""Where a classifier looks: Grad-CAM, and how its maps meet the boxes of a finding."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from mlvicx_jax.data import augment, pipeline
from mlvicx_jax.data.source import RadiographSet, Split
from mlvicx_jax.evaluation.comparison import difference_interval
from mlvicx_jax.evaluation.intervals import mean_interval
from mlvicx_jax.models.heads import resize_then_pool
from mlvicx_jax.models.precision import wide
from mlvicx_jax.models.resnet import ResNet18

MEASURES = ('pointing', 'iou', 'energy')
CUT = 0.5  # of a map's maximum; what is at least as high is the region whose IoU is taken
TIE = 1e-6  # of a map's range; what is as close to its maximum is one too: resizing rounds
OTHER_FILMS = 20  # whose boxes a map is also held against


@functools.partial(jax.jit, static_argnames=('network', 'level'))
def grad_cam(network, variables, images, labels, level: str = 'stage4'):
    """Grad-CAM of each image for each of `labels`, in evaluation mode, before its ReLU.

    sum_c a_c A_c with a_c the mean over positions of d logit / d A_c (Selvaraju et al., ICCV 2017,
    Eq. 1 and 2), A the encoder's feature `level`. `heatmap` makes of it what is looked at. The
    ReLU comes there, as it leaves nothing where every place speaks against the finding, which is
    usual for a rare one; the place that speaks against it least is still known.

    Behind `stage4` come an average and a linear layer only: there it is the class activation map of
    Zhou et al. (CVPR 2016) over the number of positions.

    Args:
        network: a classifier with a part called `encoder`, such as methods/supervised.py's.
        variables: its {'params', 'batch_stats'}.
        images: standardised, [b, h, w, 3].
        labels: int [k], positions of the logits.
        level: of models.resnet.LEVELS.

    Returns:
        maps float32 [b, k, h / stride, w / stride], not normalised, so that their heights compare
        between images; logits [b, L].
    """

    def forward(perturbations):
        found, kept = network.apply(
            variables | perturbations,
            images,
            train=False,
            mutable=['intermediates'],
            capture_intermediates=lambda module, _: isinstance(module, ResNet18),
        )
        return found['logits'], kept['intermediates']['encoder']['__call__'][0][level]

    like = jax.eval_shape(forward, {})[1]
    zero = {'perturbations': {'encoder': {level: jnp.zeros(like.shape, like.dtype)}}}
    logits, backward, feature = jax.vjp(forward, zero, has_aux=True)

    def of_label(label):
        (gradient,) = jax.tree.leaves(backward(jnp.zeros_like(logits).at[:, label].set(1)))
        weights = wide(gradient).mean((1, 2))
        return jnp.einsum('bc,bhwc->bhw', weights, wide(feature), precision=jax.lax.Precision.HIGHEST)

    # One label after the other: the gradients of all of them would not fit for the first levels.
    return jnp.moveaxis(jax.lax.map(of_label, labels), 0, 1), logits


def enlarge(maps: np.ndarray, size: int) -> np.ndarray:
    """Maps [..., h, w] to [..., size, size], bilinearly.

    As in all of the literature the map is laid over the whole image; cell i of a map of stride s
    sees what is centred on pixel s i, half a cell above and left of where it is shown.
    """
    rows, columns = (resize_then_pool(n, size, size) for n in maps.shape[-2:])
    return (rows @ maps @ columns.T).astype(maps.dtype)


def heatmap(maps: np.ndarray, size: int) -> np.ndarray:
    """What is looked at of `grad_cam`'s maps: their ReLU (Eq. 2), enlarged."""
    return enlarge(np.maximum(maps, 0), size)


def maxima(maps: np.ndarray, size: int) -> np.ndarray:
    """Where `grad_cam`'s maps [..., h, w] are greatest once enlarged, bool [..., size, size]."""
    maps = enlarge(maps, size)
    low, high = (extreme((-2, -1), keepdims=True) for extreme in (maps.min, maps.max))
    return maps >= high - TIE * (high - low)


def normalised(maps: np.ndarray) -> np.ndarray:
    """Heatmaps [..., h, w] over their own maxima, for the eye; one of zeros stays so."""
    highest = maps.max((-2, -1), keepdims=True)
    return maps / np.where(highest > 0, highest, 1)


def split_maps(
    network,
    variables,
    split: Split,
    labels: Sequence[int],
    wanted: np.ndarray,
    level: str,
    image_size: int,
    batch_size: int,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Grad-CAM of a split's whole images, preprocessed as in every evaluation.

    Args:
        labels: [k], positions of the logits.
        wanted: bool [n, k], the images whose maps of a label are kept.

    Returns:
        For each label its maps as `grad_cam` gives them, float32 [images wanted, h, w]; the
        probabilities [n, k].
    """
    of_label: list[np.ndarray] = []
    place = np.cumsum(wanted, 0) - 1
    probabilities = np.zeros(wanted.shape, np.float32)
    positions = jnp.asarray(labels)
    for batch in pipeline.eval_batches(split, batch_size):
        maps, scores = jax.device_get(_maps(network, variables, batch['image'], positions, level, image_size))
        if not of_label:
            of_label = [np.zeros((count, *maps.shape[2:]), np.float32) for count in wanted.sum(0)]
        for row in np.flatnonzero(batch['mask']):
            record = batch['record'][row]
            probabilities[record] = scores[row]
            for k in np.flatnonzero(wanted[record]):
                of_label[k][place[record, k]] = maps[row, k]
    return of_label, probabilities


@functools.partial(jax.jit, static_argnames=('network', 'level', 'image_size'))
def _maps(network, variables, images, labels, level, image_size):
    images = augment.standardise(augment.resize(images, image_size))
    maps, logits = grad_cam(network, variables, images, labels, level)
    return maps, jax.nn.sigmoid(wide(logits))[:, labels]


def read_boxes(data: RadiographSet, split: Split) -> list[dict[str, np.ndarray]]:
    """For each image its boxes by finding, [m, 4]: ymin, xmin, ymax, xmax in parts of the image.

    Reads the records without decoding an image.
    """
    names = tfds.builder_from_directory(data.folder).info.features['bboxes']['label'].names
    boxes = []
    for position in range(len(split)):
        found = split.record(position)['bboxes']
        numbers, corners = np.asarray(found['label']), np.reshape(found['bbox'], (-1, 4))
        boxes.append({names[k]: corners[numbers == k] for k in np.unique(numbers)})
    return boxes


def box_mask(boxes: np.ndarray, size: int) -> np.ndarray:
    """Bool [size, size]: pixels whose centres lie in one of the boxes [m, 4] (as `read_boxes`).

    A box that is narrower than a pixel has the pixel that its centre lies in.
    """
    mask = np.zeros((size, size), bool)
    centres = (np.arange(size) + 0.5) / size
    for ymin, xmin, ymax, xmax in boxes:
        rows, columns = ((low <= centres) & (centres < high) for low, high in ((ymin, ymax), (xmin, xmax)))
        for axis, middle in ((rows, (ymin + ymax) / 2), (columns, (xmin + xmax) / 2)):
            axis[min(int(middle * size), size - 1)] = True
        mask |= rows[:, None] & columns
    return mask


def localise(maps: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """How `grad_cam`'s maps [..., h, w] meet boxes, bool [..., size, size] with a pixel: [..., 3].

    - pointing: whether the maximum, before the ReLU, is in a box (the pointing game of Zhang et
      al., ECCV 2016, without their tolerance of 15 pixels: beside a nodule is a miss). Of several
      equal maxima the share that is.
    - iou: of the region where the heatmap is at least `CUT` times its maximum, and the boxes
      together.
    - energy: the share of the heatmap's sum that is in the boxes (Wang et al., CVPR Workshops
      2020).

    None depends on the map's scale. Where no place speaks for the finding, iou and energy are 0.
    """
    size = inside.shape[-1]
    peak, shown = maxima(maps, size), heatmap(maps, size)
    region = _region(shown)
    total = lambda x: x.sum((-2, -1), dtype=np.float64)
    share = lambda part, whole: total(part) / np.where(total(whole) > 0, total(whole), 1)
    return np.stack(
        np.broadcast_arrays(
            share(peak & inside, peak),
            share(region & inside, region | inside),
            share(np.where(inside, shown, 0), shown),
        ),
        -1,
    )


def _region(shown):
    highest = shown.max((-2, -1), keepdims=True)
    return (shown >= CUT * highest) & (highest > 0)


def chance(image_map: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """What one map [h, w] would have by `localise` if it knew nothing of the place, [3].

    The mean over all shifts of what is shown by whole pixels, what leaves on one side coming back
    on the other. For pointing and energy that is the share of the image that the boxes cover (also
    where no place speaks for the finding).
    """
    covered = inside.mean()
    region = _region(heatmap(image_map, inside.shape[-1]))
    spectrum = np.fft.rfft2(region) * np.conj(np.fft.rfft2(inside))
    common = np.rint(np.fft.irfft2(spectrum, s=inside.shape))  # pixels, at each shift
    return np.array([covered, (common / (region.sum() + inside.sum() - common)).mean(), covered])


def localisation(maps: np.ndarray, inside: np.ndarray, patients: np.ndarray) -> dict:
    """Means over the images of one finding, against two answers that need no look at the image.

    `chance` is `chance`'s; `other_films` is each map with the boxes of (up to 20) other patients'
    films: what a map has that shows where the finding usually is. A difference whose interval
    leaves out 0 says that the map beats it. Intervals are over patients, of
    `intervals`; NaN where it has none.

    Args:
        maps: of `grad_cam`, [n, h, w], n of 1 or more.
        inside: bool [n, size, size], the boxes.
        patients: [n].

    Returns:
        films, patients, empty_maps (without a place that speaks for the finding); for each of
        `MEASURES` value, chance, other_films, above_chance, above_other_films, each also with
        _interval [low, high].
    """
    patients = np.asarray(patients)
    rng = np.random.default_rng(0)
    others = np.full((len(maps), 3), np.nan)
    for i, image_map in enumerate(maps):
        strangers = np.flatnonzero(patients != patients[i])
        if len(strangers):
            drawn = rng.choice(strangers, min(OTHER_FILMS, len(strangers)), replace=False)
            others[i] = localise(image_map, inside[drawn]).mean(0)
    scores = localise(maps, inside)
    by_chance = np.array([chance(*pair) for pair in zip(maps, inside)])
    count = len(np.unique(patients))
    result: dict[str, Any] = {
        'films': len(maps),
        'patients': count,
        'empty_maps': int((maps.max((-2, -1)) <= 0).sum()),
    }
    result |= {measure: {} for measure in MEASURES}
    for name, found in {
        'value': mean_interval(scores, patients),
        'chance': mean_interval(by_chance, patients),
        'other_films': mean_interval(others, patients),
        'above_chance': difference_interval(scores, by_chance, patients),
        'above_other_films': difference_interval(scores, others, patients),
    }.items():
        for measure, value, *ends in zip(MEASURES, found.value, found.low, found.high):
            result[measure] |= {name: float(value), f'{name}_interval': [float(end) for end in ends]}
    return result
