"""One film in every encoding is one picture, air dark; what is no radiograph is refused."""

import io
import os
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip('pydicom', reason="needs pip install 'mlvicx-jax[dicom]'")
from dicoms import dataset, to_bytes, write
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import dicom, radiograph

REAL = pathlib.Path(os.environ.get('MLVICX_REAL_DATA', 'absent')) / 'dicom'
RAMP = np.round(np.add.outer(np.arange(40), np.arange(56)) * 4095 / 94).astype(np.uint16)
PICTURE = np.rint(RAMP * (255 / 4095)).astype(np.uint8)  # what 12 bits from 0 to 4095 show


def decode(header) -> np.ndarray:
    data = header if isinstance(header, bytes) else to_bytes(header)
    return radiograph.decode_radiograph(data, 'film').image


def test_full_range_without_a_window():
    np.testing.assert_array_equal(decode(dataset(RAMP, bits=12)), PICTURE)
    np.testing.assert_array_equal(decode(dataset(RAMP, bits=12, photometric='MONOCHROME1')), 255 - PICTURE)


def test_eight_bits_are_the_picture():
    grey = PICTURE // 2 + 40  # a part of the range stays a part
    np.testing.assert_array_equal(decode(dataset(grey)), grey)
    np.testing.assert_array_equal(decode(dataset(grey, photometric='MONOCHROME1')), 255 - grey)


@pytest.mark.parametrize(
    'function,expected',
    [
        # centre 2000, width 1001, of the values 1499, 1500, 1750, 2000, 2500, 2600 (PS3.3 C.11.2.1)
        (None, [0, 0.5 / 1000, 250.5 / 1000, 500.5 / 1000, 1, 1]),
        ('LINEAR_EXACT', [0, 0.5 / 1001, 250.5 / 1001, 0.5, 1000.5 / 1001, 1]),
        ('SIGMOID', [1 / (1 + np.exp(-4 * (v - 2000) / 1001)) for v in (1499, 1500, 1750, 2000, 2500, 2600)]),
    ],
)
def test_window(function, expected):
    values = np.array([[1499, 1500, 1750, 2000, 2500, 2600]], np.uint16)
    header = dataset(values, bits=12, WindowCenter=[2000, 7], WindowWidth=[1001, 9])
    if function:
        header.VOILUTFunction = function
    np.testing.assert_allclose(decode(header)[0], np.array(expected) * 255, atol=0.51)


def test_narrow_window():
    values = np.arange(6, 14, dtype=np.uint16)[None]  # of a width of 5 the standard makes 4 steps
    image = decode(dataset(values, bits=12, WindowCenter=10, WindowWidth=5))
    np.testing.assert_array_equal(image[0], np.rint(255 * np.clip((values[0] - 7.5) / 4, 0, 1)))
    step = decode(dataset(values, bits=12, WindowCenter=10, WindowWidth=1))  # a threshold shows no film
    np.testing.assert_array_equal(step[0], np.rint(255 * (values[0] - 6) / 7))


@pytest.mark.parametrize('width,centre', [(0, 100), (-5, 100), (10, 60000), (None, 100), ('', '')])
def test_window_that_shows_nothing_is_not_used(width, centre):
    header = dataset(RAMP, bits=12, WindowCenter=centre)
    if width is not None:
        header.WindowWidth = width
    np.testing.assert_array_equal(decode(header), PICTURE)


def test_window_is_of_rescaled_values():
    header = dataset(
        RAMP,
        bits=12,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=2048 * 2 - 1000,
        WindowWidth=4095 * 2 + 1,
    )
    np.testing.assert_allclose(decode(header).astype(int), PICTURE, atol=1)
    down = dataset(RAMP, bits=12, RescaleSlope=-1, RescaleIntercept=4095)
    np.testing.assert_array_equal(decode(down), 255 - PICTURE)


def _table(entries, first=0, bits=16):
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = list(map(int, entries))
    item['LUTDescriptor'].VR, item['LUTData'].VR = 'US', 'US'
    return Sequence([item])


def test_lookup_tables():
    square = np.arange(4096) ** 2 // 256
    header = dataset(
        RAMP, bits=12, VOILUTSequence=_table(square), WindowCenter=10, WindowWidth=5
    )  # the table goes before the window
    np.testing.assert_array_equal(decode(header), np.rint(square[RAMP] * (255 / 65535)))
    header = dataset(RAMP, bits=12, ModalityLUTSequence=_table(4095 - np.arange(4096)))
    np.testing.assert_array_equal(decode(header), 255 - PICTURE)


def test_signed_values_and_unused_bits():
    signed = RAMP.astype(np.int16) - 2048
    np.testing.assert_array_equal(decode(dataset(signed, bits=12)), PICTURE)
    overlay = np.where(np.indices(RAMP.shape).sum(0) % 3 == 0, 0xF000, 0).astype(np.uint16)
    np.testing.assert_array_equal(decode(dataset(RAMP | overlay, bits=12)), PICTURE)
    np.testing.assert_array_equal(decode(dataset((signed & 0x0FFF) | overlay.view(np.int16), bits=12)), PICTURE)
    np.testing.assert_array_equal(decode(dataset(RAMP << 4, bits=12, HighBit=15)), PICTURE)


@pytest.mark.parametrize('photometric', ['MONOCHROME1', 'MONOCHROME2'])
def test_padding_is_black_and_does_not_stretch(photometric):
    padded = RAMP // 2 + 1000
    padded[:, :5] = 60000
    header = dataset(padded, photometric=photometric, PixelPaddingValue=60000)
    image = decode(header)
    assert not image[:, :5].any() and image[:, 5:].min() == 0 and image[:, 5:].max() == 255


def test_missing_tags_have_defaults():
    bare = dataset(
        RAMP,
        BitsStored=None,
        HighBit=None,
        PixelRepresentation=None,
        SamplesPerPixel=None,
        PhotometricInterpretation=None,
        Modality=None,
        BitsAllocated=None,
    )
    np.testing.assert_array_equal(decode(bare), PICTURE)
    file = io.BytesIO()  # as old files are: no preamble, no file meta information
    del bare.file_meta
    pydicom.dcmwrite(file, bare, implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(decode(file.getvalue()), PICTURE)


def test_colour_is_luminance():
    header = dataset(PICTURE)
    header.SamplesPerPixel, header.PhotometricInterpretation = 3, 'RGB'
    header.PlanarConfiguration = 0
    header.PixelData = np.dstack([PICTURE] * 3).tobytes()
    np.testing.assert_array_equal(decode(header), PICTURE)


@pytest.mark.parametrize('syntax', [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless])
def test_transfer_syntaxes(syntax):
    header = dataset(RAMP, bits=12)
    if syntax.is_compressed:
        header.compress(syntax, generate_instance_uid=False)
        data = to_bytes(header)
    else:
        header.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            header.PixelData = RAMP.astype('>u2').tobytes()
        file = io.BytesIO()
        pydicom.dcmwrite(file, header, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
        data = file.getvalue()
    np.testing.assert_array_equal(decode(data), PICTURE)


def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, 'jpeg', quality=95)
    return file.getvalue()


@pytest.mark.parametrize(
    'claimed', ['1.2.840.10008.1.2', '1.2.840.10008.1.2.1', '1.2.840.10008.1.2.4.90', '1.2.840.10008.1.2.4.70']
)
def test_header_that_lies_about_its_transfer_syntax(claimed):
    header = dataset(PICTURE)
    header.PixelData = encapsulate([_jpeg()])
    header['PixelData'].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data = to_bytes(header)
    honest = JPEGBaseline8Bit.encode()
    assert data.count(honest) == 1
    # The false id is as long as the true one, padded with the standard's null bytes.
    lie = data.replace(honest, claimed.encode().ljust(len(honest), b'\0'))
    np.testing.assert_allclose(decode(lie).astype(int), PICTURE, atol=4)
    native = to_bytes(dataset(PICTURE)).replace(
        b'UI\x14\x001.2.840.10008.1.2.1\0', b'UI\x14\x001.2.840.10008.1.2.5\0'
    )
    np.testing.assert_array_equal(decode(native), PICTURE)


def test_header_facts():
    header = dataset(PICTURE, ViewPosition='AP', PatientSex='F', PatientAge='047Y')
    shot = radiograph.decode_radiograph(to_bytes(header), 'film')
    assert (shot.view, shot.sex, shot.age) == ('AP', 'F', '047Y')


@pytest.mark.parametrize(
    'change,words',
    [
        (dict(modality='CT'), 'Modality CT'),
        (dict(modality='CT', Modality=None), 'SOP class CT Image Storage'),
        (dict(Modality='MR'), 'Modality MR'),
        (dict(PixelData=None), 'has no pixel data'),
        (dict(Rows=None), 'has no Rows'),
        (dict(NumberOfFrames=3), '3 frames'),
        (dict(Rows=4000), 'truncated or damaged .its pixel data have 4480 bytes, its header promises 448000'),
        (dict(Rows=20), 'more than one picture'),
        (dict(BitsAllocated=32), '32 bits'),
        (dict(Rows=60000), 'its header promises'),
        (dict(Rows=60000, Columns=60000), '60000 x 60000 pixels, more than the limit of 100 megapixels'),
    ],
)
def test_what_is_no_radiograph_is_refused(change, words):
    with pytest.raises(UserError, match=words) as error:
        decode(dataset(RAMP, **change))
    assert str(error.value).startswith('film: ') and '\n' not in str(error.value)


@pytest.mark.parametrize('syntax', [None, RLELossless, JPEG2000Lossless, JPEGBaseline8Bit])
def test_any_truncation_is_refused(syntax):
    noise = np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8)
    header = dataset(noise)
    if syntax == JPEGBaseline8Bit:
        file = io.BytesIO()
        Image.fromarray(noise).save(file, 'jpeg')
        header.PixelData = encapsulate([file.getvalue()])
        header['PixelData'].is_undefined_length = True
        header.file_meta.TransferSyntaxUID = syntax
    elif syntax:
        header.compress(syntax, generate_instance_uid=False)
    data = to_bytes(header)
    decode(data)
    for cut in [*range(1, len(data), 61), len(data) - 9]:
        with pytest.raises(UserError) as error:
            decode(data[:cut])
        assert '\n' not in str(error.value), cut


def test_content_decides_not_the_extension(tmp_path):
    write(tmp_path / 'film.png', PICTURE)
    (tmp_path / 'picture.dcm').write_bytes(radiograph.encode_png(PICTURE))
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(radiograph.read_image(path), PICTURE)


def test_without_pydicom_the_extra_is_named(monkeypatch):
    data = to_bytes(dataset(PICTURE))
    dicom.require.cache_clear()
    monkeypatch.setitem(sys.modules, 'pydicom', None)
    with pytest.raises(dicom.NotInstalled, match=r"pip install 'mlvicx-jax\[dicom\]'"):
        decode(data)


def test_processes_give_what_threads_give():
    numbers = list(range(6))
    assert list(radiograph.parallel_map(abs, numbers, 2, processes=True)) == numbers


@pytest.mark.skipif(not REAL.is_dir(), reason='MLVICX_REAL_DATA names no folder with dicom/')
def test_real_files():
    shots = {path.name: radiograph.read_image(path) for path in sorted(REAL.glob('*.dcm'))}
    assert len(shots) == 9
    film = {name.split('_')[1]: image.astype(int) for name, image in shots.items() if name.startswith('RG1')}
    assert len(film) == 5 and film['UNCR'].shape == (1955, 1841)
    for name in ('J2KR', 'JPLL'):
        np.testing.assert_array_equal(film[name], film['UNCR'])
    for name in ('J2KI', 'JLSN'):
        assert np.abs(film[name] - film['UNCR']).mean() < 1
    stored = pydicom.dcmread(REAL / 'RG1_UNCR_chest_MONO1.dcm').pixel_array
    part = np.clip((stored - 14999.5) / 29999 + 0.5, 0, 1)  # its window, MONOCHROME1
    np.testing.assert_allclose(film['UNCR'], 255 * (1 - part), atol=0.51)
    # Air dark: the lungs are darker than the mediastinum between them.
    for name in ('RG1_UNCR_chest_MONO1.dcm', 'siim_1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm'):
        image = shots[name]
        height, width = image.shape
        strip = image[int(0.35 * height) : int(0.5 * height)].mean(0)
        middle = strip[int(0.45 * width) : int(0.55 * width)].mean()
        assert strip[int(0.22 * width) : int(0.32 * width)].mean() < middle - 10, name
        assert strip[int(0.68 * width) : int(0.78 * width)].mean() < middle - 10, name
    siim, fake = (next(i for n, i in shots.items() if n.startswith(start)) for start in ('siim_1', 'siim_txv'))
    np.testing.assert_array_equal(fake, 255 - siim)  # the tag is believed
