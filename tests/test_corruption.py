"""Corruptions: what they touch, and how often, against the official procedures in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlvicx_jax.data import corruption
from mlvicx_jax.data.augment import standardise

cut_out, cut_or_shuffle = jax.jit(corruption.cut_out), jax.jit(corruption.cut_or_shuffle)


def numbered(count, size):
    """`count` times one picture without a grey that occurs twice, and none of them black."""
    picture = (jnp.arange(size * size, dtype=jnp.float32) + 1) / (size * size)
    return jnp.broadcast_to(picture.reshape(1, size, size, 1), (count, size, size, 1))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_cut_out_is_three_squares_with_centres_anywhere():
    size, side, count = 28, 4, 20000
    holes = np.asarray(cut_out(keys(count), jnp.ones((count, size, size, 1))) < 1)[..., 0]
    assert (holes.sum((1, 2)) <= 3 * side * side).all()
    assert (holes.sum((1, 2)) == 3 * side * side).any()
    hit = np.zeros(size)  # of a row, by one square
    for centre in range(size):
        for row in range(centre - side // 2, centre + side // 2):
            if 0 <= row < size:
                hit[row] += 1 / size
    expected = 1 - (1 - np.outer(hit, hit)) ** 3
    np.testing.assert_allclose(holes.mean(0), expected, atol=5 * np.sqrt(expected.max() / count))


@pytest.mark.parametrize('size,side', [(224, 32), (96, 14), (80, 11)])
def test_cut_out_fills_squares_of_a_seventh_with_the_mean_colour(size, side):
    views = numbered(40, size)
    cut = np.asarray(cut_out(keys(40), views))
    holes = cut != views
    assert np.unique(cut[holes]) == np.float32(corruption.MEAN_GREY)
    assert holes.sum((1, 2, 3)).max() <= 3 * side**2
    rows = holes[..., 0].any(2).sum(1)
    assert rows.max() <= 3 * side and rows.max() > 2 * side
    np.testing.assert_allclose(standardise(jnp.full((1, 1, 1, 1), corruption.MEAN_GREY)).mean(), 0, atol=0.01)


def np_boxes(rng, low, high, size=224):
    """The union of the boxes until one stops, and the number of boxes."""
    mask = np.zeros((size, size), bool)
    for _number in range(1, 11):
        height, width = rng.integers(low, high, 2, endpoint=True)
        top = rng.integers(3, size - height - 3, endpoint=True)
        left = rng.integers(3, size - width - 3, endpoint=True)
        mask[top : top + height, left : left + width] = True
        if rng.random() < 0.1:
            break
    return mask


def np_shuffled(rng, picture, size=224):
    changed = picture.copy()
    for _ in range(10):
        height, width = rng.integers(10, 15, 2, endpoint=True)
        (top1, top2), (left1, left2) = (
            rng.integers(3, size - length - 3, 2, endpoint=True) for length in (height, width)
        )
        one = np.s_[top1 : top1 + height, left1 : left1 + width]
        two = np.s_[top2 : top2 + height, left2 : left2 + width]
        changed[one] = picture[two]
        changed[two] = picture[one]
    return changed


@pytest.fixture(scope='module')
def kinds():
    """800 corruptions of one picture by their kind, and the picture."""
    views = numbered(800, 224)
    found = np.asarray(cut_or_shuffle(keys(800), views))[..., 0]
    picture = np.asarray(views[0, ..., 0])
    black, changed = (found == 0).mean((1, 2)), (found != picture).any((1, 2))
    border = (found[:, :3] == 0).all((1, 2))  # no window reaches the first rows
    return picture, {
        'inner': found[(black > 0) & ~border],
        'outer': found[border],
        'shuffle': found[(black == 0) & changed],
        'none': found[~changed],
    }


def test_kinds_are_as_frequent_as_in_the_official_code(kinds):
    _, kinds = kinds
    assert sum(map(len, kinds.values())) == 800
    for kind, share in {'inner': 0.30, 'outer': 0.05, 'shuffle': 0.30, 'none': 0.35}.items():
        assert abs(len(kinds[kind]) / 800 - share) < 4 * (share * (1 - share) / 800) ** 0.5, kind


@pytest.mark.parametrize('kind,low,high', [('inner', 10, 70), ('outer', 224 - 70, 224 - 50)])
def test_cut_outs_cover_what_the_official_code_covers(kinds, kind, low, high):
    picture, found = kinds[0], kinds[1][kind]
    boxes = found == 0 if kind == 'inner' else found != 0
    assert np.isin(found, [0, *picture.ravel()]).all()
    assert np.array_equal(found[found != 0], np.broadcast_to(picture, found.shape)[found != 0])
    rng = np.random.default_rng(0)
    expected = np.array([np_boxes(rng, low, high) for _ in range(2000)])
    for statistic in (
        lambda x: x.mean((1, 2)),
        lambda x: x.any(2).mean(1),
        lambda x: x[:, :112].mean((1, 2)),
        lambda x: x[:, :, 30].mean(1),
    ):
        ours, theirs = statistic(boxes), statistic(expected)
        error = (ours.var() / len(ours) + theirs.var() / len(theirs)) ** 0.5
        assert abs(ours.mean() - theirs.mean()) < 4 * error
        assert 0.5 < (ours.std() + 1e-6) / (theirs.std() + 1e-6) < 2
    for edge in (boxes[:, :3], boxes[:, -3:], boxes[:, :, :3], boxes[:, :, -3:]):
        assert not edge.any()


def test_shuffle_swaps_small_boxes_of_the_uncorrupted_picture(kinds):
    picture, found = kinds[0], kinds[1]['shuffle']
    place = np.rint(picture * picture.size).astype(int) - 1
    for image in found[:50]:
        source = np.rint(image * picture.size).astype(int) - 1
        rows, columns = np.nonzero(source != place)
        taken_from = source[rows, columns]
        shifts = {}
        for row, column, index in zip(rows, columns, taken_from):
            shift = (index // 224 - row, index % 224 - column)
            shifts.setdefault(shift, []).append((row, column))
        assert len(shifts) <= 20
        for pixels in shifts.values():
            assert (np.ptp(pixels, axis=0) < 15).all()
            assert np.min(pixels) >= 3 and np.max(pixels) < 221
        # A swap changes both places, where no later one overlaps.
        assert sum((-dy, -dx) in shifts for dy, dx in shifts) >= len(shifts) - 2
    rng = np.random.default_rng(0)
    theirs = np.array([(np_shuffled(rng, picture) != picture).mean() for _ in range(500)])
    ours = (found != picture).mean((1, 2))
    error = (ours.var() / len(ours) + theirs.var() / len(theirs)) ** 0.5
    assert abs(ours.mean() - theirs.mean()) < 4 * error


def test_lengths_scale_with_the_view(kinds):
    views = numbered(300, 56)
    found = np.asarray(cut_or_shuffle(keys(300), views))
    changed = (found != views)[..., 0]
    for edge in (changed[:, 0], changed[:, -1], changed[:, :, 0], changed[:, :, -1]):
        assert 0 < edge.any(1).mean() < 0.12  # the outer cut-out's alone: margins are 1 pixel
    full = sum((part == 0).mean((1, 2)).sum() for part in kinds[1].values()) / 800
    np.testing.assert_allclose((found == 0).mean(), full, rtol=0.15)


@pytest.mark.parametrize('corrupt', [cut_out, cut_or_shuffle])
def test_a_view_depends_on_its_own_key_alone(corrupt):
    views = jnp.asarray(np.random.default_rng(0).uniform(size=(12, 56, 56, 1)), jnp.float32)
    order = np.roll(np.arange(12), 5)
    whole = np.asarray(corrupt(keys(12), views))
    np.testing.assert_array_equal(corrupt(keys(12)[order], views[order]), whole[order])
    assert (np.asarray(corrupt(keys(12, 1), views)) != whole).any()
