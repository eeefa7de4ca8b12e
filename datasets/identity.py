"""Who a film is of: patients' ids in one form, from tables, headers and folders, and pseudonyms for them."""

import dataclasses
import hashlib
import hmac
import os
import pathlib
import re
import secrets
import unicodedata
from collections.abc import Iterable

from mlvicx_jax.errors import UserError

from . import dicom, discovery, words
from .names import printable

KEY_FILE = 'pseudonyms.key'
_NUMBER = re.compile(r'0*(\d+)(?:[.,]0+)?')
_FOLDER = re.compile(r'(?:patient|subject|case|pat)[ _-]?\d+', re.IGNORECASE)
# What stands in place of an id where it was taken away.
_TAKEN_AWAY = {'anonymous', 'anonymized', 'anonymised', 'anonym', 'anon', 'deidentified', 'removed', 'noid'}
_DEFLATED = b'1.2.840.10008.1.2.1.99'


def normal(text: str) -> str:
    """The form in which ids are compared: 3 = 3.0 = 0003, 'Ann ' = 'ann'."""
    text = ' '.join(unicodedata.normalize('NFKC', text).casefold().split())
    number = _NUMBER.fullmatch(text)
    return number[1] if number else text


def join(ids: Iterable[tuple[str, str]]) -> dict[str, str]:
    """{normal form: the one spelling that stands for all}: the shortest, of equals the first by letters.

    Args:
        ids: (normal form, spelling) pairs in any order.
    """
    chosen: dict[str, str] = {}
    for form, spelling in ids:
        known = chosen.setdefault(form, spelling)
        if known is not spelling:
            chosen[form] = min(known, spelling, key=lambda text: (len(text), text))
    return chosen


def is_missing(text: str) -> bool:
    """Whether a cell or tag holds no id: blank, nan, 'unknown', or the word of a de-identification."""
    return words.is_blank(text) or words.plain(text) in _TAKEN_AWAY or not text.strip('xX*-_. ')


def of_header(path: pathlib.Path) -> str:
    """PatientID of a DICOM file; empty where there is none, or the file is no DICOM or can not be read.

    Raises:
        dicom.NotInstalled: a DICOM, where pydicom is absent.
    """
    try:
        with path.open('rb') as file:
            head = file.read(discovery.HEAD)
        if not dicom.is_dicom(head):
            return ''
        if _DEFLATED in head:  # its header can not be had alone
            header = dicom.read_header(path.read_bytes())
        else:
            header = dicom.require().dcmread(
                path, stop_before_pixels=True, force=True, specific_tags=['PatientID']
            )
        found = printable(str(header.get('PatientID') or '').strip('\0 '))
    except dicom.NotInstalled:
        raise
    except Exception:  # what is wrong with the file is told when it is decoded
        return ''
    return '' if is_missing(found) or len(found) > 256 else found


def of_folders(name: str) -> str:
    """The patient that a folder of a relative path names, as patient00001 in CheXpert's; else empty."""
    return next((part for part in name.split('/')[:-1] if _FOLDER.fullmatch(part)), '')


class Pseudonyms:
    """Ids for ids: HMAC-SHA256 with a secret key that lies in `data_dir`, beside the prepared sets.

    The key is made once and readable by its owner only. A patient gets the same pseudonym in all sets
    prepared into one `data_dir`, so that the audit still finds a patient in two of them; without the key
    nobody can try out which id gives a pseudonym.
    """

    def __init__(self, data_dir: pathlib.Path):
        path = data_dir / KEY_FILE
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            try:
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'w') as file:
                    file.write(secrets.token_hex(32))
            except FileExistsError:
                pass
            self._key = bytes.fromhex(path.read_text().strip())
        except (OSError, ValueError) as error:
            raise UserError(
                f'{path}: the key of the pseudonyms can not be read ({error}); restore it, or delete it to '
                'have a new one, which gives new pseudonyms'
            ) from error
        if len(self._key) != 32:
            raise UserError(
                f'{path}: holds {len(self._key)} bytes, expected 32; restore it, or delete it to have a new one'
            )

    def of(self, patient_id: str) -> str:
        """The pseudonym of an id, the same for all its spellings."""
        return 'p' + hmac.new(self._key, normal(patient_id).encode(), hashlib.sha256).hexdigest()[:16]

    def replace(self, record):
        """The `records.Record` under pseudonyms: its patient id, and this id where the image id holds it."""
        patient_id, image_id = record.patient_id, record.image_id
        if patient_id != image_id:
            zeros = '0*' if patient_id.isdecimal() else ''
            whole = rf'(?<![^\W_]){zeros}{re.escape(patient_id)}(?![^\W_])'
            image_id = re.sub(whole, self.of(patient_id), image_id, flags=re.IGNORECASE)
        return dataclasses.replace(record, patient_id=self.of(patient_id), image_id=image_id)
