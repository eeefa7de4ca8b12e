"""DICOM files made for tests."""

import io

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage


def dataset(pixels: np.ndarray, modality='DX', bits=None, photometric='MONOCHROME2', **tags):
    """A header with `pixels` [H, W] uncompressed; `tags` are set last, None deletes one."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    kind = CTImageStorage if modality == 'CT' else SecondaryCaptureImageStorage
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, '1.2.3'
    header = FileDataset('', {}, file_meta=meta, preamble=b'\0' * 128)
    header.SOPClassUID, header.SOPInstanceUID, header.Modality = kind, '1.2.3', modality
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, photometric
    header.Rows, header.Columns = pixels.shape
    header.BitsAllocated = 8 * pixels.itemsize
    header.BitsStored = bits or header.BitsAllocated
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(pixels.dtype.kind == 'i')
    header.PixelData = pixels.tobytes()
    header['PixelData'].VR = 'OW' if pixels.itemsize > 1 else 'OB'
    for tag, value in tags.items():
        if value is None:
            delattr(header, tag)
        else:
            setattr(header, tag, value)
    return header


def to_bytes(header: FileDataset) -> bytes:
    file = io.BytesIO()
    pydicom.dcmwrite(file, header)
    return file.getvalue()


def write(path, pixels: np.ndarray, **tags) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_bytes(dataset(pixels, **tags)))


def encapsulated(header: FileDataset, stream: bytes, syntax) -> bytes:
    """A file with `stream` as its compressed pixel data."""
    header.PixelData = encapsulate([stream])
    header['PixelData'].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = syntax
    return to_bytes(header)
