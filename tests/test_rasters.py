"""PNG, JPEG, TIFF, BMP and WebP: upright, of any depth, refused where damaged, blank or too large."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from films import film, is_like
from PIL import Image

from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import jpeg, limits, radiograph

FILM = film()
GREY = (FILM // 16).astype(np.uint8)


def decode(data: bytes) -> np.ndarray:
    return radiograph.decode_radiograph(data, 'film').image


def saved(image, form: str, **how) -> bytes:
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, form, **how)
    return file.getvalue()


@pytest.mark.parametrize('compression', [None, 'tiff_lzw', 'tiff_adobe_deflate', 'packbits'])
@pytest.mark.parametrize('mode', ['L', 'LA', 'RGB', 'RGBA', 'P', 'I;16', 'I', 'F', 'white is zero'])
def test_every_mode_of_tiff_is_the_same_picture(mode, compression):
    how = {'compression': compression}
    if mode == 'white is zero':
        image = decode(saved(GREY, 'tiff', tiffinfo={262: 0}, **how))  # Pillow inverts what it writes
        np.testing.assert_array_equal(image, GREY)
    elif mode in ('I;16', 'I', 'F'):
        image = (
            Image.fromarray(FILM) if mode == 'I;16' else Image.fromarray(FILM.astype(np.int32)).convert(mode)
        )
        assert is_like(decode(saved(image, 'tiff', **how)), FILM)
    else:
        np.testing.assert_array_equal(decode(saved(Image.fromarray(GREY).convert(mode), 'tiff', **how)), GREY)


def test_deep_tiffs():
    assert is_like(decode(saved(4095 - FILM, 'tiff', tiffinfo={262: 0})), FILM)  # 16 bits, white is zero
    _, colour = cv2.imencode('.tif', np.dstack([FILM] * 3))  # 12 used bits of 16
    assert is_like(decode(colour.tobytes()), FILM)
    gaps = FILM.astype(np.float32) / 1000
    gaps[5, 20:30], gaps[6, 20:30] = np.nan, np.inf
    image = decode(saved(gaps, 'tiff'))
    assert is_like(image[7:], FILM[7:]) and not image[5, 20:30].any()


def test_bmp_and_webp():
    for mode in ('L', 'RGB', 'P'):
        np.testing.assert_array_equal(decode(saved(Image.fromarray(GREY).convert(mode), 'bmp')), GREY)
    np.testing.assert_array_equal(
        decode(saved(Image.fromarray(GREY).convert('RGB'), 'webp', lossless=True)), GREY
    )


@pytest.mark.parametrize('form', ['png', 'tiff'])
@pytest.mark.parametrize(
    'change', ['hot pixel', 'marker', 'padding', 'dead pixel', 'two hot pixels', 'all of 16 bits']
)
def test_deep_files_have_the_range_of_the_film(form, change):
    values = FILM * (16 if change == 'all of 16 bits' else 1) + np.uint16(
        20000 * (change in ('padding', 'dead pixel'))
    )
    at, value = {
        'hot pixel': (np.s_[4:5, 20:21], 65535),
        'two hot pixels': (np.s_[4:5, 20:22], [60000, 65535]),
        'marker': (np.s_[4:14, 20:40], 65535),
        'padding': (np.s_[:15], 0),
        'dead pixel': (np.s_[4:5, 20:21], 0),
        'all of 16 bits': (np.s_[:0], 0),
    }[change]
    values[at] = value
    shown = np.ones(FILM.shape, bool)
    shown[at] = False
    image = decode(saved(values, form))
    assert is_like(np.where(shown, image, 0), np.where(shown, FILM, 0))


@pytest.mark.parametrize('form', ['jpeg', 'png', 'tiff', 'webp'])
@pytest.mark.parametrize('orientation', [*range(1, 9), 0, 99])
def test_orientation(form, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(GREY).convert('RGB' if form == 'webp' else 'L')
    how = {'tiff': {'tiffinfo': {274: orientation}}, 'webp': {'lossless': True, 'exif': exif}}
    data = saved(stored, form, **how.get(form, {'exif': exif}))
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        expected = image if form == 'tiff' else upright(image, orientation)  # Pillow turns a TIFF itself
        np.testing.assert_allclose(decode(data).astype(int), np.asarray(expected.convert('L')), atol=3)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = Image.Transpose
    turns = (turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE)
    turns += (turn.ROTATE_270, turn.TRANSVERSE, turn.ROTATE_90)
    return image.transpose(turns[orientation - 2]) if 2 <= orientation <= 8 else image


def test_cmyk_jpeg():
    image = Image.fromarray(GREY).convert('RGB').convert('CMYK')
    np.testing.assert_allclose(decode(saved(image, 'jpeg', quality=95)).astype(int), GREY, atol=4)


def jpegs() -> dict[str, bytes]:
    grain = np.clip(
        np.random.default_rng(1).normal(0, 6, (4 * 128, 4 * 112)) + np.kron(GREY, np.ones((4, 4))), 0, 255
    )
    image = Image.fromarray(grain.astype(np.uint8))
    return {
        'baseline': saved(image, 'jpeg', quality=90),
        'colour': saved(image.convert('RGB'), 'jpeg', quality=90),
        'optimised': saved(image, 'jpeg', quality=90, optimize=True),
        'progressive': saved(image, 'jpeg', quality=90, progressive=True),
        'restarts': saved(image, 'jpeg', quality=90, restart_marker_rows=2),
    }


JPEGS = jpegs()


@pytest.mark.parametrize('kind', JPEGS)
def test_jpeg_with_a_damaged_body_is_refused(kind):
    data = JPEGS[kind]
    decode(data)
    start = data.rindex(b'\xff\xda') + 10 if kind != 'progressive' else data.index(b'\xff\xda') + 10
    middle = (start + len(data)) // 2
    damaged = {
        'half lost but ended': data[:middle] + b'\xff\xd9',
        'a hole': data[:middle] + data[middle + 900 :],
    }
    for size in (64, 512, 4096):
        damaged[f'{size} bytes zeroed'] = data[: middle - size // 2] + bytes(size) + data[middle + size // 2 :]
    if kind == 'restarts':
        marks = [at for at in range(start, len(data)) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
        assert len(marks) > 8
        damaged['an interval lost'] = data[: marks[3]] + data[marks[4] :]
        damaged['eight intervals lost'] = data[: marks[3]] + data[marks[11] :]
    for name, bad in damaged.items():
        with pytest.raises(UserError, match='film: the JPEG is damaged .*fetch or export this image again'):
            print(name, decode(bad).mean())  # seen only if it is not refused


@pytest.mark.parametrize('kind', ['baseline', 'optimised', 'progressive'])
def test_jpeg_of_an_empty_picture_is_no_damage(kind):
    empty = np.zeros((1500, 1500), np.uint8)
    empty[:100, :100] = GREY[:100, :100]
    how = {'optimised': {'optimize': True}, 'progressive': {'progressive': True}}
    assert decode(saved(empty, 'jpeg', **how.get(kind, {}))).max() > 100


@pytest.mark.parametrize('form', ['tiff', 'bmp', 'webp'])
def test_any_truncation_is_refused(form):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).convert('RGB')
    data = saved(noise, form, **({'lossless': True} if form == 'webp' else {}))
    decode(data)
    for cut in [*range(3, len(data) - 100, 97), len(data) - 3]:
        with pytest.raises(UserError, match=r'film: .*(truncated|damaged|none of)'):
            decode(data[:cut])


def test_several_pages_are_refused():
    page = Image.fromarray(GREY)
    with pytest.raises(UserError, match='film: the TIFF has 2 pictures, expected one'):
        decode(saved(page, 'tiff', save_all=True, append_images=[page]))


def png_of(height: int, width: int) -> bytes:
    head = struct.pack('>IIBBBBB', width, height, 16, 6, 0, 0, 0)
    chunks = [(b'IHDR', head), (b'IDAT', zlib.compress(bytes(10))), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
        for name, body in chunks
    )


def enlarged(data: bytes, layout: str, small: tuple, large: tuple) -> bytes:
    assert struct.pack(layout, *small) in data
    return data.replace(struct.pack(layout, *small), struct.pack(layout, *large), 1)


BOMBS = {
    'png': lambda: png_of(16000, 16000),
    'jpeg': lambda: enlarged(saved(GREY, 'jpeg'), '>HH', (128, 112), (60000, 60000)),
    'bmp': lambda: enlarged(saved(GREY, 'bmp'), '<ii', (112, 128), (12000, 12000)),
    'tiff': lambda: enlarged(
        saved(GREY, 'tiff', compression='tiff_lzw'), '<HHIHH', (257, 3, 1, 128, 0), (257, 4, 1, 0, 16)
    ),
    'webp': lambda: enlarged(saved(GREY, 'webp', quality=50), '<HH', (112, 128), (12000, 12000)),
}


@pytest.mark.parametrize('form', BOMBS)
def test_size_is_asked_of_the_header(form):
    with pytest.raises(UserError, match=r'film: the header says \d+ x \d+ pixels, more than the limit of 100'):
        decode(BOMBS[form]())


def test_limit_may_be_set(monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, '0.01')
    with pytest.raises(UserError, match='112 x 128 pixels, more than the limit of 0.01 megapixels'):
        decode(saved(GREY, 'png'))
    monkeypatch.setenv(limits.VARIABLE, 'many')
    with pytest.raises(UserError, match="MLVICX_MAX_MEGAPIXELS is 'many', expected a number"):
        decode(saved(GREY, 'png'))


def test_blank_films_are_named_but_blank_masks_are_read(tmp_path):
    one_pixel = np.full((64, 64), 90, np.uint8)
    one_pixel[3, 3] = 200
    blank = {
        'black.png': saved(GREY * 0, 'png'),
        'grey.jpg': saved(GREY * 0 + 77, 'jpeg'),
        'white.bmp': saved(GREY * 0 + 255, 'bmp'),
        'deep.png': saved(FILM * 0 + 700, 'png'),
        'spot.png': saved(one_pixel, 'png'),
    }
    for name, data in blank.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(radiograph.BlankFilm, match=f'{name}: the film is blank'):
            radiograph.read_radiograph(tmp_path / name)
        assert radiograph.read_image(tmp_path / name).ndim == 2


def test_whatever_goes_wrong_in_a_file_is_one_line_with_its_name(monkeypatch):
    for error in (MemoryError(), RecursionError(), struct.error('x'), ValueError('DOE^JOHN'), AssertionError()):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(jpeg, 'decode', fail)
        with pytest.raises(UserError, match=r'^t\\udcf3rax: can not be decoded') as refused:
            radiograph.decode_radiograph(JPEGS['baseline'], 't\udcf3rax')
        assert 'DOE' not in str(refused.value)
    with pytest.raises(UserError, match=r'a\\x00b: the image file can not be read'):
        radiograph.read_radiograph('a\0b')
