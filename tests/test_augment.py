"""Views against independent implementations: Pillow, SciPy, NumPy."""

import dataclasses
import functools
import os
import pathlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mlvicx_jax.data import augment
from mlvicx_jax.errors import UserError
from mlvicx_jax.preview import write_preview

IDENTITY = augment.Recipe(area=(1, 1), aspect=(1, 1), flip=0, jitter_probability=0, blur_probability=0)
EVERYTHING = augment.Recipe(rotation=15, blur_probability=0.5, solarise_probability=0.5)
views_of = jax.jit(augment.augment, static_argnames=('size', 'recipe'))


@functools.cache
def pictures(count=8, size=256) -> np.ndarray:
    """Smooth pictures with the full range of grey, uint8 [count, size, size, 1]."""
    noise = np.random.default_rng(0).normal(size=(count, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, 6, 6), mode='reflect')
    low, high = smooth.min((1, 2), keepdims=True), smooth.max((1, 2), keepdims=True)
    return np.rint(255 * (smooth - low) / (high - low)).astype(np.uint8)[..., None]


def keys(count=8, seed=0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


def same(recipe=IDENTITY, **changes) -> np.ndarray:
    return np.asarray(views_of(keys(), pictures(), 96, dataclasses.replace(recipe, **changes)))


def test_identity_recipe_is_the_evaluation_resize():
    np.testing.assert_allclose(same(), augment.resize(pictures(), 96), atol=2e-6)


@pytest.mark.parametrize('shape', [(256, 256), (200, 256)])
def test_resize_is_pillows_antialiased_bicubic(shape):
    images = pictures()[:2, : shape[0], : shape[1]]
    ours = augment.resize(images, 96)[..., 0]
    for image, view in zip(images, ours):
        theirs = Image.fromarray(image[..., 0]).resize((96, 96), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(view, np.asarray(theirs) / 255, atol=1.5 / 255)


def test_resize_averages_what_it_cannot_show():
    """A checkerboard of single pixels becomes grey; without antialiasing it would alias."""
    board = (255 * (np.indices((256, 256)).sum(0) % 2)).astype(np.uint8)
    inside = augment.resize(board[None, ..., None], 96)[0, 4:-4, 4:-4]
    np.testing.assert_allclose(inside, 0.5, atol=0.03)


def test_a_crop_is_pillows_box_resize():
    boxes = np.array([[10.25, 31.5, 100.5, 140.75], [128, 0, 128, 64], [3.3, 200.1, 230.2, 50.5]])
    top, left, height, width = jnp.array(boxes.T, jnp.float32)
    rows = augment.resampling_matrix(top, height, 256, 96)
    columns = augment.resampling_matrix(left, width, 256, 96)
    ours = augment.sandwich(rows, pictures()[:3, ..., 0] / jnp.float32(255), columns)
    for image, view, (y, x, h, w) in zip(pictures(), ours, boxes):
        box = (x, y, x + w, y + h)
        theirs = Image.fromarray(image[..., 0]).resize((96, 96), Image.Resampling.BICUBIC, box)
        np.testing.assert_allclose(view, np.asarray(theirs) / 255, atol=2 / 255)


@pytest.mark.parametrize('shape', [(256, 256), (200, 256)])
def test_crop_boxes_have_the_area_and_aspect_asked_for_and_lie_inside(shape):
    draws = np.random.default_rng(1).random((4, 20000), np.float32)
    recipe = augment.Recipe()
    top, left, height, width = map(np.asarray, augment.crop_box(*draws, *shape, recipe))
    area, aspect = height * width / np.prod(shape), width / height
    assert top.min() >= 0 and (top + height).max() <= shape[0] + 1e-3
    assert left.min() >= 0 and (left + width).max() <= shape[1] + 1e-3
    quantiles = np.quantile(area, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, np.linspace(0.08, 1, 5), atol=0.01)
    assert aspect.min() >= 0.75 - 1e-4 and aspect.max() <= 4 / 3 + 1e-4
    small = area < 0.5  # every aspect fits
    np.testing.assert_allclose(np.log(aspect[small]).mean(), 0, atol=0.01)
    assert abs(np.corrcoef(top[area < 0.2], left[area < 0.2])[0, 1]) < 0.05


def test_a_box_that_no_aspect_fits_is_cut_to_the_image():
    draws = jnp.full((4, 1), 0.999)
    top, left, height, width = augment.crop_box(*draws, 64, 256, augment.Recipe(area=(1, 1)))
    assert top >= 0 and left >= 0 and top + height <= 64 and left + width <= 256


def test_flip_mirrors_columns():
    np.testing.assert_array_equal(same(flip=1), same()[:, :, ::-1])


@pytest.mark.parametrize('degrees', [-30, 7.5, 90])
def test_rotation_is_scipys(degrees):
    images = np.asarray(augment.resize(pictures()[:2], 96))[..., 0]
    ours = augment.rotate(jnp.asarray(images), jnp.full(2, np.deg2rad(degrees), jnp.float32))
    theirs = ndimage.rotate(images, degrees, axes=(2, 1), reshape=False, order=1, mode='nearest')
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_rotation_turns_both_ways_up_to_its_limit():
    """A ramp along the columns turns its gradient by the angle, which is read back."""
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, None, :, None], (64, 256, 256, 1))
    views = views_of(keys(64), ramp, 96, dataclasses.replace(IDENTITY, rotation=20))[..., 0]
    down, right = np.gradient(np.asarray(views)[:, 40:56, 40:56], axis=(1, 2))
    degrees = np.rad2deg(np.arctan2(down.mean((1, 2)), right.mean((1, 2))))
    assert -20.1 < degrees.min() < -15 and 15 < degrees.max() < 20.1
    assert abs(degrees.mean()) < 5


def test_brightness_and_contrast_are_the_formula():
    images = np.asarray(augment.resize(pictures(), 96))[..., 0]
    brightness = np.linspace(0.6, 1.4, 8)
    contrast = np.roll(brightness, 3)
    adjusted = augment.adjust(images, brightness, contrast)
    for ours, image, b, c in zip(adjusted, images, brightness, contrast):
        bright = np.clip(b * image.astype(np.float64), 0, 1)
        theirs = np.clip(c * bright + (1 - c) * bright.mean(), 0, 1)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_jitter_happens_as_often_and_as_strongly_as_the_recipe_says():
    grey = np.full((512, 8, 8, 1), 128, np.uint8)
    recipe = dataclasses.replace(IDENTITY, jitter_probability=0.8, brightness=0.4)
    factor = np.asarray(views_of(keys(512), grey, 8, recipe))[:, 0, 0, 0] * 255 / 128
    changed = np.abs(factor - 1) > 1e-5
    assert abs(changed.mean() - 0.8) < 0.06
    assert 0.6 - 1e-5 <= factor.min() < 0.62 and 1.38 < factor.max() <= 1.4 + 1e-5


def test_blur_is_a_gaussian_renormalised_at_the_border():
    sigma = 2.0  # of 224 px
    ours = same(blur_probability=1, blur_sigma=(sigma, sigma))[..., 0]
    plain = same()[..., 0].astype(np.float64)
    scaled = sigma * 96 / 224
    theirs, share_inside = (
        ndimage.gaussian_filter(array, (0, scaled, scaled), mode='constant', truncate=8)
        for array in (plain, np.ones_like(plain))
    )
    theirs /= share_inside
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.abs(ours - plain).max() > 0.005


def test_blur_that_is_not_drawn_leaves_the_view_alone():
    blurred = np.abs(same(blur_probability=0.5, blur_sigma=(2, 2)) - same()).max((1, 2, 3))
    assert np.any(blurred > 1e-3) and np.any(blurred < 1e-6)


def test_solarise_inverts_the_bright_pixels():
    plain = same()
    solarised = same(solarise_probability=1, solarise_threshold=0.6)
    np.testing.assert_array_equal(solarised, np.where(plain >= 0.6, 1 - plain, plain))


def test_views_are_finite_and_in_range():
    views = np.asarray(views_of(keys(), pictures(), 96, EVERYTHING))
    assert views.shape == (8, 96, 96, 1) and views.dtype == np.float32
    assert np.isfinite(views).all() and views.min() >= 0 and views.max() <= 1


def test_a_view_depends_on_its_own_key_and_image_alone():
    whole = views_of(keys(), pictures(), 96, EVERYTHING)
    halves = [views_of(keys()[part], pictures()[part], 96, EVERYTHING) for part in (slice(4), slice(4, 8))]
    np.testing.assert_allclose(whole, np.concatenate(halves), atol=1e-6)
    again = views_of(keys(), pictures(), 96, EVERYTHING)
    np.testing.assert_array_equal(whole, again)
    other = views_of(keys(seed=1), pictures(), 96, EVERYTHING)
    assert np.abs(whole - other).mean((1, 2, 3)).min() > 0.01


def test_the_views_of_an_image_are_drawn_independently():
    """Of one recipe twice: the same draws would be the same view."""
    recipes = dict.fromkeys(('first', 'second'), EVERYTHING)
    drawn = jax.jit(lambda: augment.views(keys(), pictures(), 48, recipes))()
    assert np.abs(drawn['first'] - drawn['second']).mean((1, 2, 3)).min() > 0.01


def test_standardise_is_imagenets():
    grey = jnp.array([0, 0.485, 1]).reshape(1, 1, 3, 1)
    out = augment.standardise(grey, jnp.bfloat16)
    assert out.shape == (1, 1, 3, 3) and out.dtype == jnp.bfloat16
    expected = (np.array([0, 0.485, 1])[:, None] - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(augment.standardise(grey)[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize(
    'field, value',
    [('area', (0, 1)), ('aspect', (2, 1)), ('flip', 1.5), ('rotation', -5), ('blur_sigma', (1,))],
)
def test_a_wrong_recipe_is_named(field, value):
    with pytest.raises(UserError, match=field):
        augment.Recipe(**{field: value})


def test_real_radiographs_stay_in_range_and_resize_as_area_averages():
    root = pathlib.Path(os.environ.get('MLVICX_REAL_DATA', 'absent')) / 'nih_sample' / 'images'
    files = sorted(root.glob('*.png'))[:8]
    if not files:
        pytest.skip('MLVICX_REAL_DATA does not lead to nih_sample/images')
    images = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files]
    images = [cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA) for image in images]
    images = np.stack(images)[..., None]
    views = np.asarray(views_of(keys(), images, 96, EVERYTHING))
    assert np.isfinite(views).all() and views.min() >= 0 and views.max() <= 1
    resized = [cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA) for image in images]
    difference = augment.resize(images, 64)[..., 0] - np.stack(resized) / 255
    assert np.abs(difference).mean() < 0.01


def test_the_sheet_has_a_row_per_image_and_a_column_per_view(tmp_path):
    views = np.stack([np.zeros((64, 64, 1)), np.ones((64, 64, 1))])
    path = tmp_path / 'new' / 'views.png'
    write_preview(path, pictures()[:2], [views, 1 - views], ['view 1', 'view 2'])
    sheet = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert sheet.shape == (int(2 * 240 + 0.4 * 120), 3 * 240)
    middle = sheet[[48 + 120, 48 + 360]][:, [360, 600]]
    np.testing.assert_array_equal(middle, [[0, 255], [255, 0]])
    with pytest.raises(ValueError, match='1 titles for 2 views'):
        write_preview(path, pictures()[:2], [views, views], ['view 1'])
