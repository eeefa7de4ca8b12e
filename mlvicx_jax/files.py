"""Files that appear whole or not at all: a reader finds the old one or the new one, never a part."""

import json
import math
import os
import pathlib
from typing import Any

import jax
import numpy as np

from mlvicx_jax.errors import UserError, first_line


def write_bytes(path, content: bytes) -> None:
    """Writes a file so that a reader finds the old one or the new one, never a part."""
    path = pathlib.Path(path)
    partial = path.with_name(path.name + '.partial')
    partial.write_bytes(content)
    os.replace(partial, path)


def write_text(path, content: str) -> None:
    """Writes a file in UTF-8 as `write_bytes` does."""
    write_bytes(path, content.encode())


def write_json(path, content) -> None:
    """Writes a JSON file as `write_text` does.

    A number that is not finite is written as null: JSON has no other name for it.
    """
    write_text(path, json.dumps(without_nan(content), indent=2, sort_keys=True) + '\n')


def read_json(path, way_out: str = 'restore it, or run its command again') -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        way_out: ends the message of an error.

    Raises:
        UserError: the file can not be read, is not JSON, or holds something else than an object.
    """
    try:
        content = parse_json(pathlib.Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path}: can not be read ({first_line(error)}); {way_out}') from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: holds a {type(content).__name__}, expected an object; {way_out}')
    return content


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is not JSON, has NaN or Infinity, or a string that is not valid Unicode.
        RecursionError: it is nested too deeply.
    """

    def refuse(name):
        raise ValueError(f'{name} is not JSON')

    content = json.loads(text, parse_constant=refuse)
    if '\\u' in text:  # half of a surrogate pair can be escaped in JSON, but never written to a file
        json.dumps(content, ensure_ascii=False).encode()
    return content


def write_arrays(path, arrays) -> None:
    """Writes an .npz file from process 0, whole or not at all."""
    if jax.process_index():
        return
    path = pathlib.Path(path)
    partial = path.with_name(path.name + '.partial')
    with partial.open('wb') as file:
        np.savez_compressed(file, **arrays)
    os.replace(partial, path)


def without_nan(content):
    """JSON content with None for every number that is not finite."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
