"""Pixel data of every compression are decoded as they are, and refused where they are damaged or too much."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import dicom, radiograph

pydicom = pytest.importorskip('pydicom', reason="needs pip install 'mlvicx-jax[dicom]'")
from dicoms import dataset, encapsulated, to_bytes
from films import film
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

FILM = film()


def decode(header) -> np.ndarray:
    data = header if isinstance(header, bytes) else to_bytes(header)
    return radiograph.decode_radiograph(data, 'film').image


@pytest.mark.parametrize('form,syntax', [('jpeg', JPEGBaseline8Bit), ('jpeg2000', JPEG2000Lossless)])
def test_eight_bit_streams_under_a_header_of_sixteen(form, syntax):
    file = io.BytesIO()
    Image.fromarray((FILM // 16).astype(np.uint8)).save(
        file, form, **({'quality': 95} if form == 'jpeg' else {})
    )
    for tags in ({}, dict(bits=12), dict(bits=12, WindowCenter=2048, WindowWidth=4096)):
        image = decode(encapsulated(dataset(FILM, **tags), file.getvalue(), syntax))
        assert np.corrcoef(image.ravel(), FILM.ravel())[0, 1] > 0.99 and image.mean() > 60, tags


def test_box_of_length_zero_does_not_hang():
    file = io.BytesIO()
    Image.fromarray((FILM // 16).astype(np.uint8)).save(file, 'jpeg2000')
    boxes = file.getvalue()
    at = boxes.index(b'jp2c') - 4
    to_the_end = boxes[:at] + bytes(4) + boxes[at + 4 :]  # a legal last box
    decode(encapsulated(dataset(FILM, bits=12), to_the_end, JPEG2000Lossless))
    at = boxes.index(b'ftyp') - 4
    for length in (0, 1, 3, 2**32 - 1):
        broken = boxes[:at] + length.to_bytes(4) + boxes[at + 4 :]
        if length == 1:  # an extended length of 0 follows
            broken = broken[: at + 8] + bytes(8) + broken[at + 16 :]
        with pytest.raises(UserError, match='film: the DICOM is damaged'):
            decode(encapsulated(dataset(FILM, bits=12), broken.replace(b'jp2c', b'free'), JPEG2000Lossless))


def test_damaged_jpeg_2000_is_called_damaged():
    header = dataset(FILM, bits=12)
    header.compress(JPEG2000Lossless, generate_instance_uid=False)
    data = bytearray(to_bytes(header))
    start = data.index(b'\xff\x4f\xff\x51')
    data[start + 60 : start + 160] = bytes(100)
    with pytest.raises(UserError, match='damaged.*fetch or export') as error:
        decode(bytes(data))
    assert 'pip' not in str(error.value)


@pytest.mark.parametrize('syntax', [None, DeflatedExplicitVRLittleEndian, RLELossless])
def test_several_pictures_without_a_number_of_frames(syntax):
    header = dataset(FILM, bits=12)
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, 'RGB', 0
    header.BitsAllocated = header.BitsStored = 8
    header.PixelData = bytes(2 * 3 * FILM.size)
    if syntax == RLELossless:
        header.PixelData = encapsulate([bytes(64)] * 2)
        header['PixelData'].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = syntax or header.file_meta.TransferSyntaxUID
    with pytest.raises(UserError, match='more than one picture|2 pictures'):
        decode(header)


@pytest.mark.parametrize('shape,kind', itertools.product([(37, 53), (64, 64)], ['u1', 'u2', 'rgb']))
def test_run_lengths_match_what_pydicom_wrote(shape, kind):
    values = np.random.default_rng(0).integers(0, 4, shape) * 60
    header = dataset(values.astype('u2' if kind == 'u2' else 'u1'))
    if kind == 'rgb':
        header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, 'RGB', 0
        header.PixelData = np.dstack([values.astype(np.uint8)] * 3).tobytes()
    native = decode(header)
    header.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(decode(header), native)


def test_bombs_are_not_inflated(monkeypatch):
    monkeypatch.setattr(dicom, '_MOST_INFLATED', 2**20)
    header = dataset(FILM, bits=12)
    header.PixelData = bytes(2**21)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with pytest.raises(UserError, match='inflates to more than 1 MB'):
        decode(header)
    header = dataset(FILM)
    start = np.array([2, 64, 64 + 2**20] + [0] * 13, '<u4').tobytes()
    stream = start + b'\x81\1' * 2**19 + b'\x81\2' * 2**19  # each 64 MB, of which a film's size is made
    with pytest.raises(radiograph.BlankFilm):
        decode(encapsulated(header, stream, RLELossless))
