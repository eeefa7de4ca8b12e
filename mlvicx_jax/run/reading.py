"""A run's folder, read and checked, or a grid of them."""

import dataclasses
import json
import math
import pathlib
import zipfile
from typing import Any

import numpy as np

from mlvicx_jax.errors import UserError, first_line
from mlvicx_jax.run.folder import with_later
from mlvicx_jax.run.metrics import read_metrics

# Of results.json, without which nothing can be told of a downstream run.
_NEEDED = {
    'pretrain': ('step',),
    'classify': ('dataset', 'share', 'seed', 'primary', 'label_names', 'test'),
    'segment': ('dataset', 'share', 'seed', 'test'),
}
_ARRAYS = {
    'classify': ('label_names', 'test_image_ids', 'test_patient_ids', 'test_labels'),
    'segment': (
        'structures',
        'test_image_ids',
        'test_patient_ids',
        'test_dice',
        'test_has',
        'sample_image_ids',
        'sample_images',
        'sample_truth',
        'sample_predicted',
    ),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run left.

    Attributes:
        folder: its workdir.
        task: 'pretrain', 'classify' or 'segment'.
        config: the content of config.json, with the fields that older runs had not.
        lines: of metrics.jsonl.
        results: of results.json; None where the run has not ended.
        goodput: of goodput.json; None where there is none.
        predictions: the arrays of predictions.npz; None where there are none.
    """

    folder: pathlib.Path
    task: str
    config: dict[str, Any]
    lines: list[dict]
    results: dict[str, Any] | None
    goodput: dict[str, Any] | None
    predictions: dict[str, np.ndarray] | None

    @property
    def is_linear(self) -> bool:
        """Whether no network was trained, but a linear layer on frozen features."""
        return self.task == 'classify' and self.config['protocol'] == 'frozen'

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a logged number, where it is one."""
        points = [(line['step'], line[name]) for line in self.lines if line.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def curves(self, prefix: str) -> dict[str, tuple[list[int], list[float]]]:
        """{what follows `prefix`: curve}, of all numbers that were logged under it."""
        names = dict.fromkeys(name for line in self.lines for name in line)
        found = {name.removeprefix(prefix): self.curve(name) for name in names if name.startswith(prefix)}
        return {name: curve for name, curve in found.items() if curve[0]}


@dataclasses.dataclass(frozen=True)
class Grid:
    """The folder of a grid (grid/processes.py): its runs, and the tables made of them."""

    folder: pathlib.Path
    runs: list[Run]
    tables: list[pathlib.Path]


def read(folder: pathlib.Path) -> Run | Grid:
    """The run in a folder, or the grid that it is the folder of.

    Raises:
        UserError: neither is there, or one of its files is damaged.
    """
    runs = [
        path.parent for kind in ('pretrained', 'runs') for path in sorted(folder.glob(f'{kind}/*/config.json'))
    ]
    if runs:
        return Grid(folder, [read_run(run) for run in runs], sorted(folder.glob('tables/*.md')))
    if (folder / 'config.json').is_file():
        return read_run(folder)
    raise UserError(
        f'{folder}: no run is there (no config.json, no runs/*/config.json); give the '
        '--workdir of a run, or the folder of a grid'
    )


def read_run(folder: pathlib.Path) -> Run:
    """Raises a UserError for a file that is damaged."""
    config = read_json(folder / 'config.json')
    if not all(isinstance(config.get(part), dict) for part in ('data', 'method', 'model', 'eval')):
        raise UserError(
            f'{folder / "config.json"}: data, method, model or eval is missing; '
            'restore the file, or run its command again'
        )
    config = with_later(config)
    task = config['task']
    if task not in _NEEDED:
        raise UserError(f'{folder / "config.json"}: task is {task!r}; a report is made of {", ".join(_NEEDED)}')
    results, goodput = (
        read_json(path) if (path := folder / name).exists() else None
        for name in ('results.json', 'goodput.json')
    )
    if results is not None:
        _check_results(folder / 'results.json', task, results)
    if goodput is not None and not _is_numbers(goodput.get('seconds')):
        raise UserError(
            f'{folder / "goodput.json"}: "seconds" should be a number for each phase; '
            'delete the file to have a report without it'
        )
    path = folder / 'predictions.npz'
    predictions = _arrays(path, task) if task in _ARRAYS and path.exists() else None
    return Run(folder, task, config, read_metrics(folder), results, goodput, predictions)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object of a JSON file; a UserError where it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f'{path}: can not be read ({first_line(error)}); restore it, or run its command again'
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f'{path}: holds a {type(content).__name__}, expected an object; restore '
            'it, or run its command again'
        )
    return content


def _check_results(path: pathlib.Path, task: str, results: dict) -> None:
    missing = [name for name in _NEEDED[task] if name not in results]
    tests = results.get('test') if task != 'pretrain' else {}
    if not missing and not (isinstance(tests, dict) and all(isinstance(test, dict) for test in tests.values())):
        missing = ['test, an object of objects']
    if not missing and task == 'classify' and results['primary'] not in tests:
        missing = [f'test.{results["primary"]}, which "primary" names']
    if missing:
        raise UserError(
            f'{path}: {", ".join(missing)} is missing; restore it, or delete it and run its command again'
        )
    for name, value in _leaves(tests):
        if '.not_available.' not in name and not (value is None or _is_number(value)):
            raise UserError(
                f'{path}: test.{name} is {value!r}, expected a number or null; restore '
                'it, or delete it and run its command again'
            )


def _leaves(tree, name=''):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        yield name.removeprefix('.'), tree
    else:
        for key, value in items:
            yield from _leaves(value, f'{name}.{key}')


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_numbers(value) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _arrays(path: pathlib.Path, task: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f'{path}: can not be read ({first_line(error)}); delete results.json and run its command again'
        ) from error
    missing = [name for name in _ARRAYS[task] if name not in arrays]
    if missing:
        raise UserError(
            f'{path}: {", ".join(missing)} is missing; delete results.json and run its command again'
        )
    return arrays
