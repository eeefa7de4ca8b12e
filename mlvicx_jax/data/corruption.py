"""What methods that restore pictures first destroy in a view: pure functions of a key and a view.

Lengths are in pixels of a 224 px view and scale with its size. The keys may be those that drew the
views: here the draws are made from keys derived from them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mlvicx_jax.data.augment import IMAGENET_MEAN

REFERENCE_SIZE = 224  # px; the view size for which the official codes give their lengths
MEAN_GREY = float(np.mean(IMAGENET_MEAN))  # about 0 once it is standardised


def cut_out(keys: jax.Array, views: jax.Array) -> jax.Array:
    """PCRL's: three squares of side 32 in the mean colour (Luchixiang/PCRL, pytorch/utils.py).

    Their centres are uniform over all pixels; what of a square lies outside the view is lost. The
    official mean colour is that of each channel, here it is one grey: their mean.

    Args:
        keys: typed PRNG keys [b].
        views: float32 [b, n, n, 1] in [0, 1].
    """
    size = views.shape[1]
    side = _scaled(32, size)

    def corrupt(key, view):
        top, left = jax.random.randint(key, (2, 3), 0, size) - side // 2
        return jnp.where(_boxes(top, left, side, side, size).any(0)[..., None], MEAN_GREY, view)

    return _each(corrupt, keys, views)


def cut_or_shuffle(keys: jax.Array, views: jax.Array) -> jax.Array:
    """CAiD's: one of three corruptions or none (MR-HosseinzadehTaher/CAiD, transformation.py).

    0.30: up to ten boxes of sides 10 to 70 are black. 0.05: all is black but up to ten boxes whose
    sides are 50 to 70 shorter than the view's. After each box one in ten stops. 0.30: ten times two
    boxes of sides 10 to 15 change places; where boxes overlap, the last one is seen. 0.35: nothing.
    All boxes keep 3 pixels from the border.

    Args:
        keys: typed PRNG keys [b].
        views: float32 [b, n, n, 1] in [0, 1].
    """
    size, count = views.shape[1], 10
    margin, shortest, small, shorter, longest = (_scaled(x, size) for x in (3, 10, 15, 50, 70))

    def places(key, height, width):
        """Top and left of boxes [k] that keep the margin."""
        vertical, horizontal = jax.random.split(key)
        return tuple(
            jax.random.randint(key, length.shape, margin, size - length - margin + 1)
            for key, length in ((vertical, height), (horizontal, width))
        )

    def any_box(key, low, high):
        """Mask of the boxes drawn until one stops; sides from `low` to `high`."""
        sides, place, stop = jax.random.split(key, 3)
        height, width = jax.random.randint(sides, (2, count), low, high + 1)
        stops = jax.random.bernoulli(stop, 0.1, (count,))
        drawn = jnp.cumsum(stops) - stops == 0  # no box before this one was the last
        top, left = places(place, height, width)
        boxes = _boxes(top, left, height, width, size)
        return (boxes & drawn[:, None, None]).any(0)

    def shuffled(key, view):
        """Every pixel is fetched once, from where the last swap that met it takes it."""
        sides, first, second = jax.random.split(key, 3)
        height, width = jax.random.randint(sides, (2, count), shortest, small + 1)
        here = places(first, height, width)
        there = places(second, height, width)
        shift = (there[0] - here[0]) * size + there[1] - here[1]
        position = jnp.arange(size * size).reshape(size, size)
        source = position
        for swap in range(count):
            for (top, left), sign in ((here, 1), (there, -1)):
                box = _boxes(top[swap, None], left[swap, None], height[swap, None], width[swap, None], size)[0]
                source = jnp.where(box, position + sign * shift[swap], source)
        return view.reshape(-1).at[source].get(mode='promise_in_bounds')  # by the margin

    def corrupt(key, view):
        which, inner, outer, shuffle = jax.random.split(key, 4)
        draw, grey = jax.random.uniform(which), view[..., 0]
        holes = any_box(inner, shortest, longest)
        windows = any_box(outer, size - longest, size - shorter)
        return jnp.select(
            [draw < 0.30, draw < 0.35, draw < 0.65],
            [jnp.where(holes, 0, grey), jnp.where(windows, grey, 0), shuffled(shuffle, grey)],
            grey,
        )[..., None]

    return _each(corrupt, keys, views)


def _scaled(length, size):
    """`length` of a 224 px view in whole pixels of a view of `size`, 1 at least."""
    return max(1, round(length * size / REFERENCE_SIZE))


def _boxes(top, left, height, width, size):
    """Masks [k, size, size] of k boxes in whole pixels, which may reach over the border."""
    line = jnp.arange(size)
    rows = (line >= top[:, None]) & (line < (top + height)[:, None])
    columns = (line >= left[:, None]) & (line < (left + width)[:, None])
    return rows[:, :, None] & columns[:, None, :]


def _each(corrupt, keys, views):
    return jax.vmap(lambda key, view: corrupt(jax.random.fold_in(key, 0), view))(keys, views)
