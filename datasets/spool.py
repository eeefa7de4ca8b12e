"""Pictures that wait in a file until their split is asked for."""

import dataclasses
import os
import tempfile
from collections.abc import Iterable, Iterator

from .pictures import Picture
from .records import Record


class Spool:
    """Pictures by image id, or the reasons why there are none; their pixels lie in a file without a name.

    Args:
        folder: of the unfinished set, which goes with a killed run.
    """

    def __init__(self, folder: str | os.PathLike):
        self._file = tempfile.TemporaryFile(dir=os.fspath(folder))
        self._kept: dict[str, tuple[Picture | str, int, int]] = {}

    def keep(self, image_id: str, picture: Picture | str) -> None:
        if isinstance(picture, str):
            self._kept[image_id] = picture, 0, 0
            return
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(picture.png)
        self._kept[image_id] = dataclasses.replace(picture, png=b''), start, len(picture.png)

    def read(self, records: Iterable[Record]) -> Iterator[tuple[Record, Picture | str]]:
        for record in records:
            picture, start, length = self._kept[record.image_id]
            if isinstance(picture, Picture):
                self._file.seek(start)
                picture = dataclasses.replace(picture, png=self._file.read(length))
            yield record, picture

    def equal(self) -> list[list[str]]:
        """The image ids of each two or more pictures with equal pixels."""
        groups: dict[bytes, list[str]] = {}
        for image_id, (picture, _, _) in self._kept.items():
            if isinstance(picture, Picture):
                groups.setdefault(picture.digest, []).append(image_id)
        return [group for group in groups.values() if len(group) > 1]
