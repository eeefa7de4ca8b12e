"""What real DICOM headers say wrongly about the grey scale does not reach the picture.

Each group is a kind of complaint from the field, with several instances.
"""

import io

import numpy as np
import pytest

from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import dicom, radiograph

pydicom = pytest.importorskip('pydicom', reason="needs pip install 'mlvicx-jax[dicom]'")
from dicoms import dataset, to_bytes
from films import film, is_like
from pydicom.sequence import Sequence
from pydicom.uid import DigitalXRayImageStorageForProcessing, ExplicitVRBigEndian

FILM = film()
UP, DOWN = np.arange(4096), np.arange(4096)[::-1]


def decode(header) -> np.ndarray:
    data = header if isinstance(header, bytes) else to_bytes(header)
    return radiograph.decode_radiograph(data, 'film').image


def lut(entries, bits, first=0, count=None, packed=False, listed=False):
    item = pydicom.Dataset()
    item.LUTDescriptor = [count or len(entries), first & 0xFFFF, bits]
    item['LUTDescriptor'].VR = 'US'
    data = np.asarray(entries).astype(np.uint8 if packed else '<u2').tobytes()
    item.LUTData = np.frombuffer(data, '<u2').tolist() if listed else data + b'\0' * (len(data) % 2)
    item['LUTData'].VR = 'US' if listed else 'OW'
    return Sequence([item])


def voi(entries, bits, **how):
    return dict(bits=12, VOILUTSequence=lut(entries, bits, **how))


def modality(entries, bits, **how):
    return dict(bits=12, ModalityLUTSequence=lut(entries, bits, **how))


def spot(values, value, height=1, width=1):
    """A copy with `value` (or values) in its upper left corner, away from the border."""
    values = values.copy()
    values[3 : 3 + height, 12 : 12 + width] = value
    return values


MONO1 = dict(photometric='MONOCHROME1')
RAW = dict(bits=12, PresentationIntentType='FOR PROCESSING')
SIGNED = FILM.astype(np.int16) - 2048
NOISY = np.random.default_rng(0).integers(60000, 65535, (14, 14))
CASES = {
    # tables whose descriptor the entries contradict
    'voi 16 bits, entries to 4095': (FILM, voi(UP, 16)),
    'voi 14 bits, entries to 1023': (FILM, voi(UP // 4, 14)),
    'voi 8 bits, entries to 4095': (FILM, voi(UP, 8)),
    'voi 0 bits': (FILM, voi(UP, 0)),
    'voi inverted, 16 bits, entries to 1023': (FILM, voi(DOWN // 4, 16) | MONO1),
    # 8-bit entries: a word each, two to a word
    'voi 8 bits, a word each': (FILM, voi(UP // 16, 8)),
    'voi 8 bits, a list': (FILM, voi(UP // 16, 8, listed=True)),
    'voi 8 bits, packed': (FILM, voi(UP // 16, 8, packed=True)),
    'voi 8 bits, packed, odd count': (FILM, voi(UP[:-1] // 16, 8, packed=True)),
    'voi 8 bits, packed, a list': (FILM, voi(UP // 16, 8, packed=True, listed=True)),
    'voi 12 bits, packed': (FILM, voi(UP // 16, 12, packed=True)),
    # short tables
    'voi 3900 of 4096 entries': (FILM, voi(UP[:3900], 12, count=4096)),
    'voi 3500 of 4096 entries, a list': (FILM, voi(UP[:3500], 12, count=4096, listed=True)),
    'voi without entries': (FILM, voi([], 12, count=4096)),
    'voi of one value': (FILM, voi(UP * 0 + 7, 12)),
    # modality tables of odd depths, and first values below zero
    'modality 12 bits': (FILM, modality(UP, 12)),
    'modality 10 bits': (FILM, modality(UP // 4, 10)),
    'modality 16 bits, inverted': (FILM, modality(DOWN, 16) | MONO1),
    'modality signed first value': (SIGNED, modality(UP, 12, first=-2048)),
    'voi signed first value': (SIGNED, voi(UP, 12, first=-2048)),
    'voi of rescaled values': (FILM, voi(UP, 12, first=-1024) | dict(RescaleSlope=1, RescaleIntercept=-1024)),
    'voi that misses the film': (FILM, voi(UP, 12, first=9000)),
    # hot pixels, markers, padding that nobody declared
    'one hot pixel': (spot(FILM, 65535), {}),
    'hot pixels of several values': (spot(FILM, [[20000, 30000, 41000, 52000, 65535]], 1, 5), {}),
    'one dead pixel': (spot(FILM + 20000, 0), {}),
    'marker': (spot(FILM, 65535, 8, 8), {}),
    'marker with grain': (spot(FILM, NOISY, 14, 14), {}),
    'dark marker': (spot(FILM + 30000, 3, 14, 14), {}),
    # windows that do not show the film
    'window 32768/65536': (FILM, dict(bits=12, WindowCenter=32768, WindowWidth=65536)),
    'window 0/1': (FILM, dict(bits=12, WindowCenter=0, WindowWidth=1)),
    'window 40/400': (FILM, dict(bits=12, WindowCenter=40, WindowWidth=400)),
    'window 128/256, inverted': (4095 - FILM, dict(bits=12, WindowCenter=128, WindowWidth=256) | MONO1),
    'unsigned window on signed values': (SIGNED, dict(bits=12, WindowCenter=2048, WindowWidth=4096)),
    'signed window on unsigned values': (FILM, dict(bits=12, WindowCenter=0, WindowWidth=4096)),
    'sigmoid far away': (FILM, dict(bits=12, WindowCenter=9000, WindowWidth=500, VOILUTFunction='SIGMOID')),
    'window of another slope': (
        FILM, dict(bits=12, WindowCenter=2048, WindowWidth=4096, RescaleSlope=8, RescaleIntercept=0)
    ),
    # bits and signs that the pixels contradict
    '10 bits stored of 12': (FILM, dict(bits=10)),
    '12 bits stored of 14': (FILM * 4, dict(bits=12)),
    '11 bits stored, high bit 10, of 12': (FILM, dict(bits=11, HighBit=10)),
    '7 bits stored of 8': ((FILM // 32).astype(np.uint8), dict(bits=7)),
    '6 bits stored of 8': ((FILM // 16).astype(np.uint8), dict(bits=6)),
    '40 bits stored': (FILM, dict(BitsStored=40)),
    'signed flag, 12 bits': (FILM, dict(bits=12, PixelRepresentation=1)),
    'signed flag, 16 bits': (FILM * 15, dict(PixelRepresentation=1)),
    'unsigned flag on signed values': ((SIGNED * 4).view(np.uint16), dict(PixelRepresentation=0)),
    # decimal commas
    'commas': (FILM, dict(bits=12, RescaleSlope='0,25', RescaleIntercept='-1,5')),
    'commas in a window': (FILM, dict(bits=12, WindowCenter='2048,0', WindowWidth='4096,00')),
    'no numbers': (FILM, dict(bits=12, WindowCenter='x', WindowWidth='4096', RescaleSlope='one')),
    # raw detector data: air is bright where values grow with the X-rays
    'raw, linear': (
        np.rint(3800 * np.exp(FILM / -1500)).astype(np.uint16),
        RAW | dict(PixelIntensityRelationship='LIN', PixelIntensityRelationshipSign=1),
    ),
    'raw, logarithm': (
        4095 - FILM,
        RAW | dict(PixelIntensityRelationship='LOG', PixelIntensityRelationshipSign=1),
    ),
    'raw by class, absorption': (
        FILM,
        dict(SOPClassUID=DigitalXRayImageStorageForProcessing, PixelIntensityRelationshipSign=-1) | MONO1,
    ),
    # what else comes from X-ray departments
    'fluoroscopy': (FILM, dict(bits=12, modality='RF')),
}  # fmt: skip


def with_texts(header, **texts: str) -> bytes:
    """The file with texts as numbers that pydicom would not write."""
    for name, text in texts.items():
        header.add(pydicom.DataElement(pydicom.tag.Tag(name), 'LO', text))
    data = to_bytes(header)
    for name in texts:
        tag = pydicom.tag.Tag(name)
        number = tag.group.to_bytes(2, 'little') + tag.element.to_bytes(2, 'little')
        data = data.replace(number + b'LO', number + b'DS')
    return data


@pytest.mark.parametrize('case', CASES)
def test_film_comes_out_as_a_film(case):
    values, tags = CASES[case]
    tags = {name: value for name, value in tags.items() if value is not None}
    raw = {}
    for name in ('RescaleSlope', 'RescaleIntercept', 'WindowCenter', 'WindowWidth'):
        if isinstance(tags.get(name), str):  # pydicom writes no such number
            raw[name] = tags.pop(name)
    image = decode(with_texts(dataset(values, **tags), **raw))
    spots = np.ones(FILM.shape, bool)
    spots[3:17, 12:26] = 'marker' not in case and 'hot' not in case  # they may look as they like
    if case.endswith('of 8'):
        assert image.mean() > 60 and image.max() > 200
    else:
        assert is_like(np.where(spots, image, 0), np.where(spots, FILM, 0))


@pytest.mark.parametrize('bits', [8, 16])
def test_big_endian(bits):
    header = dataset(FILM, bits=12)
    header.PixelData = FILM.astype('>u2').tobytes()
    entries = UP if bits == 16 else (UP // 16).astype(np.uint8).view('<u2')  # 8 bits: packed
    header.VOILUTSequence = lut(entries, bits, count=4096)
    header.VOILUTSequence[0].LUTData = entries.astype('>u2').tobytes()
    header.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    file = io.BytesIO()
    pydicom.dcmwrite(file, header, implicit_vr=False, little_endian=False)
    assert is_like(decode(file.getvalue()), FILM)


def test_raw_data_of_unknown_sign_are_refused_by_name():
    with pytest.raises(UserError, match='film: raw detector data .FOR PROCESSING.'):
        decode(dataset(FILM, **RAW))


def test_decimal_commas_are_decimal_points():
    comma, point = (
        decode(with_texts(dataset(FILM, bits=12), WindowCenter=centre, WindowWidth='2500'))
        for centre in ('1500,75', '1500.75')
    )
    np.testing.assert_array_equal(comma, point)
    assert not np.array_equal(comma, decode(dataset(FILM, bits=12)))


@pytest.mark.parametrize('value', [65535, np.arange(60000, 60064).reshape(8, 8)])
def test_what_is_left_out_is_white(value):
    assert (decode(dataset(spot(FILM, value, 8, 8)))[3:11, 12:20] == 255).all()


def test_first_window_that_shows_the_film_is_used():
    windows = dict(WindowCenter=[60000, 2048, 40], WindowWidth=[100, 4096, 400])
    one = dict(WindowCenter=2048, WindowWidth=4096)
    np.testing.assert_array_equal(
        decode(dataset(FILM, bits=12, **windows)), decode(dataset(FILM, bits=12, **one))
    )


@pytest.mark.parametrize('value,dtype', [(-32768, np.int16), (0, np.uint16), (65535, np.uint16)])
def test_rows_of_padding_that_nobody_declared(value, dtype):
    padded = (FILM.astype(np.int32) + (20000 if value == 0 else 0)).astype(dtype)
    padded[:20] = value
    image = decode(dataset(padded))
    assert is_like(image[20:], FILM[20:]) and len(np.unique(image[:20])) == 1


def test_padding_inside_the_film_stays_tissue():
    values = np.minimum(FILM, 2400)
    bright = values == 2400
    assert bright[0].any() and 0.01 < bright.mean() < 0.3  # it reaches the border, too
    plain = decode(dataset(values, bits=12))
    np.testing.assert_array_equal(decode(dataset(values, bits=12, PixelPaddingValue=2400)), plain)
    framed = values.copy()
    framed[:9], framed[:, -5:] = 2400, 2400  # and here it is padding
    image = decode(dataset(framed, bits=12, PixelPaddingValue=2400))
    assert not image[:9, :40].any() and not image[:, -5:].any()
    assert (image[20:110, :100][bright[20:110, :100]] == 255).all()


def test_padding_value_of_another_sign_than_the_values():
    padded = SIGNED.copy()
    padded[:9] = -2000
    header = dataset(padded, PixelPaddingValue=63536)
    header['PixelPaddingValue'].VR = 'US'
    image = decode(header)
    assert not image[:9].any() and is_like(image[9:], FILM[9:])


def test_messages_quote_no_names():
    header = dataset(FILM, Modality='DOE^JOHN^M', PatientName='DOE^JOHN', PatientID='1' * 900)
    header['Modality'].VR = 'LO'
    with pytest.raises(UserError, match='Modality that is no code') as error:
        decode(header)
    assert 'DOE' not in str(error.value) and len(str(error.value)) < 200
    facts = dicom.facts(dataset(FILM, ViewPosition=' PA', PatientSex='F', PatientAge='0' * 5000))
    assert facts['view'] == 'PA' and facts['sex'] == 'F' and len(facts['age']) <= 64
