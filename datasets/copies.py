"""Films that are there twice: equal files before they are decoded, equal pixels after."""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Hashable, Iterable

from .records import Record

_HEAD = 1 << 16  # bytes in which files that differ nearly always do


def equal_files(paths: Iterable[pathlib.Path]) -> list[list[pathlib.Path]]:
    """The groups, of two or more, of files with equal content.

    A file is read only as far as another could still be its equal: its size, its first bytes, the rest.
    What can not be read is equal to nothing.
    """
    groups = [list(paths)]
    for key in (lambda path: path.stat().st_size, _start, _whole):
        parts = (_part(group, key) for group in groups)
        groups = [group for part in parts for group in part if len(group) > 1]
    return groups


def _part(paths: list[pathlib.Path], key) -> Iterable[list[pathlib.Path]]:
    parts: dict[Hashable, list[pathlib.Path]] = collections.defaultdict(list)
    for path in paths:
        try:
            parts[key(path)].append(path)
        except (OSError, ValueError):  # it is told when it is decoded
            continue
    return parts.values()


def _start(path: pathlib.Path) -> bytes:
    with path.open('rb') as file:
        return hashlib.sha256(file.read(_HEAD)).digest()


def _whole(path: pathlib.Path) -> bytes:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').digest()


def of_one_patient(records: list[Record], groups: Iterable[list[str]]) -> list[Record]:
    """The records, where the films of a group count as one patient's as far as no patient is known.

    A split by patient then keeps them together.

    Args:
        groups: image ids of equal films.
    """
    known = {record.image_id: record for record in records if record.patient_id != record.image_id}
    patients = {}
    for group in groups:
        patient = next((known[i].patient_id for i in group if i in known), f'of {group[0]}')
        patients.update({i: patient for i in group if i not in known})
    return [
        dataclasses.replace(record, patient_id=patients.get(record.image_id, record.patient_id))
        for record in records
    ]


class Copies:
    """Films of equal stored pixels, met in the order of the splits.

    Args:
        keep: keep a film that an earlier split has: the split is the publisher's, whose figures would
            not compare if a film were left out, or the user wants it so.
    """

    def __init__(self, keep: bool):
        self._keep = keep
        self._first: dict[bytes, tuple[str, str]] = {}
        self._found: dict[tuple[str, str], list[tuple[str, str]]] = {}

    def meet(self, split: str, image_id: str, digest: bytes) -> str:
        """Takes note of a film; says why it can not be used where an earlier split has it."""
        earlier, other = self._first.setdefault(digest, (split, image_id))
        if (earlier, other) == (split, image_id):
            return ''
        if earlier == split or self._keep:
            self._found.setdefault((earlier, split), []).append((other, image_id))
            return ''
        return (
            f'{image_id}: shows the same pixels as {other}, which is in {earlier}; a film may be in one split '
            'only: take one of the two out, or keep both with option copies=keep'
        )

    def notes(self) -> list[str]:
        """A line for each two splits, or one, that share films which are kept."""
        lines = []
        for (one, other), pairs in self._found.items():
            where = f'of {other} are there more than once' if one == other else f'of {other} are also in {one}'
            kept = '' if one == other else '; they are kept there'
            lines.append(
                f'{len(pairs)} films {where}, pixel by pixel, such as {pairs[0][1]} = {pairs[0][0]}{kept}'
            )
        return lines
