"""predictions.npz: what a downstream run answered for each image, checked array by array."""

import pathlib
import zipfile

import numpy as np

from mlvicx_jax.errors import UserError, first_line

FILE = 'predictions.npz'
_WAY_OUT = 'delete results.json and run its command again'

# {array: (kinds of NumPy, its axes)}. n test images, k labels, s structures, m films to look at, p pixels.
_ARRAYS = {
    'classify': {
        'label_names': ('U', 'k'),
        'test_image_ids': ('U', 'n'),
        'test_patient_ids': ('U', 'n'),
        'test_labels': ('bu', 'nk'),
    },
    'segment': {
        'structures': ('U', 's'),
        'test_image_ids': ('U', 'n'),
        'test_patient_ids': ('U', 'n'),
        'test_dice': ('f', 'ns'),
        'test_has': ('b', 'ns'),
        'sample_image_ids': ('U', 'm'),
        'sample_images': ('u', 'mpp'),
        'sample_truth': ('b', 'mpps'),
        'sample_predicted': ('b', 'mpps'),
    },
}
TASKS = tuple(_ARRAYS)


def read(workdir, task: str, results) -> dict[str, np.ndarray] | None:
    """The arrays of a run; None where there is no file.

    Args:
        results: of the same run, whose names the arrays must have; None is not compared.

    Raises:
        UserError: the file is damaged, or of another run.
    """
    path = pathlib.Path(workdir) / FILE
    if not path.exists():
        return None
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError('no .npz file')  # NumPy would take it for a pickle
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zip, zlib and NumPy raise many kinds on damaged files
        raise UserError(f'{path}: can not be read ({first_line(error)}); {_WAY_OUT}') from error
    if found := _problem(arrays, task) or _other_run(arrays, task, results):
        raise UserError(f'{path}: {found}; {_WAY_OUT}')
    return arrays


def _problem(arrays: dict[str, np.ndarray], task: str) -> str | None:
    expected = _ARRAYS[task]
    missing = [name for name in expected if name not in arrays]
    if missing:
        return f'{", ".join(missing)} is missing'
    sizes: dict[str, int] = {}
    for name, (kinds, axes) in expected.items():
        array = arrays[name]
        if array.dtype.kind not in kinds or array.ndim != len(axes):
            return f'{name} is {array.dtype} of {array.ndim} axes, which no run writes'
        for axis, size in zip(axes, array.shape):
            if sizes.setdefault(axis, size) != size:
                return f'{name} is {list(array.shape)}, which does not fit the other arrays'
        if array.dtype.kind == 'f' and not _are_shares(array):
            return f'{name} has values outside 0 to 1'
    if task == 'classify' and arrays['test_labels'].size and arrays['test_labels'].max() > 1:
        return 'test_labels has values other than 0 and 1'
    return None


def _other_run(arrays: dict[str, np.ndarray], task: str, results) -> str | None:
    """How the arrays contradict results.json."""
    if results is None:
        return None
    of_arrays = arrays['label_names' if task == 'classify' else 'structures'].tolist()
    of_results = results['label_names'] if task == 'classify' else list(results['test'])
    if sorted(of_arrays) != sorted(of_results) or (task == 'classify' and of_arrays != of_results):
        return f'it is of {", ".join(of_arrays)[:60]}, results.json beside it of {", ".join(of_results)[:60]}'
    for head in results['test'] if task == 'classify' else ():
        scores = arrays.get(f'test_{head}')
        if scores is None:
            continue
        if scores.dtype.kind != 'f' or scores.shape != arrays['test_labels'].shape or not _are_shares(scores):
            return f'test_{head} is not one probability for each label of each image'
    return None


def _are_shares(array: np.ndarray) -> bool:
    """Whether all numbers lie from 0 to 1; NaN is a number that is not available."""
    known = array[~np.isnan(array)]
    return bool(((known >= 0) & (known <= 1)).all())
