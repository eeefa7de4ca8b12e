"""Small whole inputs of every kind that the program reads, and random damage to them, for `fuzz`."""

import io
import random
import tarfile
import zlib

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

EXTREMES = (
    [bytes(n) for n in (1, 2, 4)] + [b'\xff' * n for n in (1, 2, 4)] + [b'\x7f\xff\xff\xff', b'\0\0\0\x80']
)


def originals() -> dict[str, list[bytes]]:
    """Whole inputs of each kind."""
    rows, columns = np.mgrid[:48, :40]
    grain = np.random.default_rng(0).normal(0, 3, rows.shape)
    grey = np.clip(120 + 80 * np.sin(rows / 9) * np.cos(columns / 7) + grain, 0, 255).astype(np.uint8)
    deep = grey.astype(np.uint16) * 16 + (rows % 16).astype(np.uint16)

    def saved(form, image=grey, **how) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, form, **how)
        return file.getvalue()

    colour = np.dstack([grey] * 3)
    kinds = {
        'PNG': [saved('png'), saved('png', deep), saved('png', colour)],
        'JPEG': [saved('jpeg'), saved('jpeg', colour, progressive=True), saved('jpeg', optimize=True)],
        'TIFF': [saved('tiff'), saved('tiff', deep, compression='tiff_lzw'), saved('tiff', compression='jpeg')],
        'BMP': [saved('bmp'), saved('bmp', colour)],
        'WebP': [saved('webp', colour), saved('webp', colour, lossless=True)],
    }
    kinds |= _dicoms(grey, deep, saved)
    table = 'image,patient,age,sex,labels\n' + ''.join(f'{i}.png,P{i},0{i}Y,F,"A|B"\n' for i in range(20))
    kinds['CSV'] = [
        table.encode(),
        table.replace(',', ';').encode('utf-16'),
        table.replace('A', 'Ä').encode('cp1252'),
    ]
    kinds['tar'] = []
    for form in ('w', 'w:gz'):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=form) as archive:
            for number in range(4):
                member = tarfile.TarInfo(f'images/{number}.png')
                member.size = len(kinds['PNG'][0])
                archive.addfile(member, io.BytesIO(kinds['PNG'][0]))
        kinds['tar'].append(file.getvalue())
    return kinds


def _dicoms(grey: np.ndarray, deep: np.ndarray, saved) -> dict[str, list[bytes]]:
    def made(values, syntax=uid.ExplicitVRLittleEndian, stream=None, **tags) -> bytes:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if syntax == uid.RLELossless else syntax
        header = FileDataset('', {}, file_meta=meta, preamble=bytes(128))
        bits = 12 if values.itemsize == 2 else 8
        header.SOPClassUID, header.Modality = uid.ComputedRadiographyImageStorage, 'CR'
        header.PatientName, header.PatientID, header.PatientAge = 'DOE^JOHN', 'P1', '047Y'
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, 'MONOCHROME2'
        header.Rows, header.Columns, header.PixelRepresentation = 48, 40, 0
        header.BitsAllocated, header.BitsStored, header.HighBit = 8 * values.itemsize, bits, bits - 1
        header.WindowCenter, header.WindowWidth = '2000', '4000'
        for tag, value in tags.items():
            setattr(header, tag, value)
        header.PixelData = values.tobytes() if stream is None else encapsulate([stream])
        header['PixelData'].VR = 'OW' if stream is None and values.itemsize == 2 else 'OB'
        header['PixelData'].is_undefined_length = stream is not None
        if syntax == uid.RLELossless:
            header.compress(syntax, generate_instance_uid=False)
        file = io.BytesIO()
        pydicom.dcmwrite(file, header)
        return file.getvalue()

    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], list(range(4096))
    table['LUTDescriptor'].VR = table['LUTData'].VR = 'US'
    return {
        'DICOM': [
            made(deep),
            made(grey, PixelPaddingValue=0),
            made(deep, VOILUTSequence=pydicom.Sequence([table])),
            made(deep, uid.DeflatedExplicitVRLittleEndian),
        ],
        'DICOM, RLE': [made(deep, uid.RLELossless), made(grey, uid.RLELossless)],
        'DICOM, JPEG': [
            made(grey, uid.JPEGBaseline8Bit, saved('jpeg')),
            made(deep, uid.JPEGBaseline8Bit, saved('jpeg')),
        ],
        'DICOM, JPEG 2000': [
            made(grey, uid.JPEG2000, saved('jpeg2000')),
            made(deep, uid.JPEG2000Lossless, saved('jpeg2000', deep, no_jp2=True)),
        ],
    }


def damaged(data: bytes, other: bytes, kind: str, draw: random.Random) -> bytes:
    """A copy with one to four wounds, half of them near the start; a PNG mostly gets new checksums."""
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        size = len(data)
        if size < 2:
            break
        at = draw.randrange(min(size, 700) if draw.random() < 0.5 else size)
        wound = draw.randrange(8)
        if wound == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif wound == 1:
            data[at] = draw.randrange(256)
        elif wound == 2:
            extreme = draw.choice(EXTREMES)
            data[at : at + len(extreme)] = extreme
        elif wound == 3:
            length = min(size - at, draw.choice([4, 32, 512]))
            data[at : at + length] = bytes(length)
        elif wound == 4:
            del data[at : at + draw.choice([1, 4, 32, 512])]
        elif wound == 5:
            data[at:at] = data[at : at + draw.choice([1, 4, 32, 512])]
        elif wound == 6:
            del data[at:]
        else:
            data[at:] = other[min(at, len(other)) :]
    return _with_checksums(data) if kind == 'PNG' and draw.random() < 0.7 else bytes(data)


def _with_checksums(data: bytearray) -> bytes:
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(data)
