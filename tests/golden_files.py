"""Golden files: what the methods' official code gives. How they were made: tests/golden/README.md.

A file holds official results alone. Inputs and weights are drawn from their names, by the two functions
below, on both sides: NumPy promises never to change the numbers of `RandomState`.
"""

import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'golden'
ENTRIES = 32  # of a leaf that a file keeps


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f'{name}.npz') as file:
        return dict(file)


def drawn(name: str, shape: tuple[int, ...], kind: str = 'standard_normal') -> np.ndarray:
    """Numbers that depend on `name` alone; `kind` is a method of RandomState, such as 'random_sample'."""
    return getattr(np.random.RandomState(zlib.crc32(name.encode())), kind)(shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of a PyTorch state dict that is called `name`, in PyTorch's layout."""
    last = name.rpartition('.')[2]
    if last in ('running_mean', 'running_var'):
        return np.full(shape, float(last == 'running_var'))
    if len(shape) == 1:
        return (last == 'weight') + 0.2 * drawn(name, shape)
    return drawn(name, shape) / np.prod(shape[1:]) ** 0.5


def sample(array) -> np.ndarray:
    """At most `ENTRIES` entries of an array, evenly spread, then its sum and its length."""
    flat = np.asarray(array, np.float64).ravel()
    places = np.linspace(0, flat.size - 1, min(flat.size, ENTRIES)).astype(int)
    return np.concatenate([flat[places], [flat.sum(), np.linalg.norm(flat)]])
