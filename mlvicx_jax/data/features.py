"""features.json of a prepared set names Python classes, which TFDS imports: they are looked at before."""

import json
import os
import pathlib
import re

from mlvicx_jax.errors import UserError, first_line

_NAMES = 'pythonClassName', 'python_class_name', 'type', 'proto_cls'  # keys under which TFDS reads a class
_OWN = re.compile(r'tensorflow_datasets(\.\w+)+', re.ASCII)


def refuse_foreign_classes(folder: str | os.PathLike) -> None:
    """Refuses a prepared set whose features.json names a class that is not TFDS's own.

    Raises:
        UserError: it does, or the file can not be read.
    """
    path = pathlib.Path(folder) / 'features.json'
    way_out = 'take the set from a source that you trust, or prepare it yourself'

    def look(pairs):
        for key, value in pairs:
            if key in _NAMES and isinstance(value, str) and not _OWN.fullmatch(value):
                raise UserError(
                    f'{path}: names the class {value[:80]!r}, expected one of TFDS; nothing of it was '
                    f'imported; {way_out}'
                )
        return dict(pairs)

    try:
        json.loads(path.read_text(encoding='utf-8'), object_pairs_hook=look)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path}: can not be read ({first_line(error)}); {way_out}') from error
