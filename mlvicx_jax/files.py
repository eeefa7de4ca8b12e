"""Files that appear whole or not at all: a reader finds the old one or the new one, never a part."""

import json
import math
import os
import pathlib

import jax
import numpy as np


def write_text(path, content: str) -> None:
    """Writes a file so that a reader finds the old one or the new one, never a part."""
    path = pathlib.Path(path)
    partial = path.with_name(path.name + '.partial')
    partial.write_text(content, encoding='utf-8')
    os.replace(partial, path)


def write_json(path, content) -> None:
    """Writes a JSON file as `write_text` does.

    A number that is not finite is written as null: JSON has no other name for it.
    """
    write_text(path, json.dumps(_without_nan(content), indent=2, sort_keys=True) + '\n')


def write_arrays(path, arrays) -> None:
    """Writes an .npz file from process 0, whole or not at all."""
    if jax.process_index():
        return
    path = pathlib.Path(path)
    partial = path.with_name(path.name + '.partial')
    with partial.open('wb') as file:
        np.savez_compressed(file, **arrays)
    os.replace(partial, path)


def _without_nan(content):
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
