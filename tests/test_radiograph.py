"""Files of every mode and depth become the same picture; a damaged one is refused."""

import io
import os
import pathlib
import threading
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import radiograph

REAL = pathlib.Path(os.environ.get('MLVICX_REAL_DATA', 'absent')) / 'originals'


@pytest.fixture
def picture():
    ramp = np.add.outer(np.arange(40), np.arange(56)) * 255 / 94
    return np.round(ramp).astype(np.uint8)  # every corner of [0, 255] is used


def _save(path, picture, mode):
    if mode == '16 bit':
        cv2.imwrite(str(path), picture.astype(np.uint16) * 257)
    elif mode == '12 of 16 bit':
        cv2.imwrite(str(path), np.round(picture * (4095 / 255)).astype(np.uint16))
    elif mode == '16 bit RGBA':
        cv2.imwrite(str(path), np.dstack([picture.astype(np.uint16) * 257] * 4))
    elif mode == 'RGBA':  # an opacity that varies must not show
        Image.fromarray(np.dstack([picture] * 3 + [picture[::-1]])).save(path)
    elif mode == 'LA':
        Image.merge('LA', [Image.fromarray(picture), Image.fromarray(picture[::-1])]).save(path)
    else:
        Image.fromarray(picture).convert(mode).save(path)


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGB', 'RGBA', 'P', '16 bit', '12 of 16 bit', '16 bit RGBA'])
def test_every_mode_of_png_is_the_same_picture(tmp_path, picture, mode):
    path = tmp_path / 'image.png'
    _save(path, picture, mode)
    image = radiograph.read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, picture)


def test_one_bit_png(tmp_path, picture):
    Image.fromarray(picture > 127).save(tmp_path / 'image.png')
    np.testing.assert_array_equal(
        radiograph.read_image(tmp_path / 'image.png'), np.where(picture > 127, 255, 0)
    )


@pytest.mark.parametrize('mode,progressive', [('L', False), ('RGB', False), ('RGB', True)])
def test_jpeg(tmp_path, picture, mode, progressive):
    path = tmp_path / 'image.jpg'
    Image.fromarray(picture).convert(mode).save(path, quality=95, progressive=progressive)
    np.testing.assert_allclose(radiograph.read_image(path), picture.astype(int), atol=4)


def test_constant_16_bit_image_is_black(tmp_path):
    cv2.imwrite(str(tmp_path / 'image.png'), np.full((8, 8), 700, np.uint16))
    assert not radiograph.read_image(tmp_path / 'image.png').any()


@pytest.mark.parametrize('form', ['png', 'jpeg'])
def test_any_truncation_is_refused(tmp_path, form):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, form)
    path = tmp_path / f'cut.{form}'
    cuts = [*range(3, len(data.getvalue()), 97), len(data.getvalue()) - 1]
    for cut in cuts:
        path.write_bytes(data.getvalue()[:cut])
        with pytest.raises(UserError, match=f'cut.{form}.*(truncated|none of)'):
            radiograph.read_image(path)


def test_thumbnail_does_not_end_a_jpeg(tmp_path, picture):
    data = io.BytesIO()
    Image.fromarray(picture).save(data, 'jpeg', exif=b'Exif\0\0' + b'\xff\xd8 thumbnail \xff\xd9')
    path = tmp_path / 'image.jpg'
    path.write_bytes(data.getvalue())
    assert radiograph.read_image(path).shape == picture.shape
    path.write_bytes(data.getvalue()[:-40])
    with pytest.raises(UserError, match='truncated'):
        radiograph.read_image(path)


def test_other_damage_is_refused(tmp_path, picture):
    png = bytearray(radiograph.encode_png(picture))
    png[len(png) // 2] ^= 1
    cases = {
        'missing.png': (None, 'does not exist'),
        'empty.png': (b'', 'is empty'),
        'page.png': (b'<html>not found</html>', 'none of PNG, JPEG'),
        'flipped.png': (bytes(png), 'checksum'),
        'hollow.jpg': (b'\xff\xd8\xff\xd9', 'can not be decoded'),
    }
    for name, (data, reason) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f'{name}: .*{reason}') as error:
            radiograph.read_image(tmp_path / name)
        assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='can not be read'):
        radiograph.read_image(tmp_path)


def test_png_round_trip_and_resize(picture):
    again = radiograph.decode_image(radiograph.encode_png(picture), 'memory')
    np.testing.assert_array_equal(again, picture)
    checker = np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 200
    assert set(np.unique(radiograph.resize(checker, 16))) == {100}  # averaged, not picked
    assert radiograph.resize(checker, 100).shape == (100, 100)
    assert radiograph.resize(picture, 32).shape == (32, 32)


def test_parallel_map_is_ordered_and_bounded():
    started, lock = [], threading.Lock()

    def work(item):
        with lock:
            started.append(item)
        time.sleep(0.002 * (item % 3))
        return item * item

    results = radiograph.parallel_map(work, range(100), workers=4, window=8)
    assert [next(results) for _ in range(10)] == [i * i for i in range(10)]
    time.sleep(0.05)
    assert max(started) <= 10 + 8
    assert list(results) == [i * i for i in range(10, 100)]
    with pytest.raises(ZeroDivisionError):
        list(radiograph.parallel_map(lambda x: 1 // x, [1, 0, 1], workers=2))


@pytest.mark.skipif(not REAL.is_dir(), reason='MLVICX_REAL_DATA names no folder with originals/')
def test_originals():
    images = {path.name: radiograph.read_image(path) for path in sorted(REAL.glob('*.*'))}
    assert len(images) == 8
    for name, image in images.items():
        assert image.dtype == np.uint8 and image.ndim == 2 and image.std() > 20, name
    np.testing.assert_array_equal(images['00002658_001.png'], images['00002658_002.png'])
    for name in ('00000773_001.png', '00001054_002.png'):  # RGBA of equal channels
        with Image.open(REAL / name) as original:
            np.testing.assert_array_equal(images[name], np.asarray(original)[..., 0])
