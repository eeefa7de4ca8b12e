"""What two ends of one run do not share, bit for bit, and what the second has left lying about."""

import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from mlvicx_jax import lock
from mlvicx_jax.errors import UserError
from mlvicx_jax.run.metrics import read_metrics
from mlvicx_jax.run.proof import steps_in

MEASURED = ('goodput/', 'images_per_second', 'time/')  # of results.json and metrics.jsonl: times


def arrays(checkpoint: pathlib.Path) -> dict[str, np.ndarray]:
    """{name: array} of a saved state."""
    reader = ocp.PyTreeCheckpointer()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(checkpoint).item_metadata.tree
    )
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(reader.restore(checkpoint, restore_args=as_numpy))
    }


def of_runs(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Of two workdirs: the states of all checkpoints, metrics.jsonl, results.json, predictions.npz."""
    found = []
    steps = [steps_in(workdir / 'checkpoints') for workdir in (one, other)]
    if steps[0] != steps[1] or not steps[0]:
        found.append(f'checkpoints of steps {steps[0]} and {steps[1]}')
    for step in set(steps[0]) & set(steps[1]):
        states = [arrays(workdir / 'checkpoints' / str(step) / 'state') for workdir in (one, other)]
        found += [f'state {step}: {what}' for what in _different_arrays(*states)]
    logs = [list(map(_without_times, read_metrics(workdir))) for workdir in (one, other)]
    if logs[0] != logs[1]:
        found.append(f'metrics.jsonl differs ({len(logs[0])} and {len(logs[1])} lines)')
    a, b = (_without_times(json.loads((workdir / 'results.json').read_text())) for workdir in (one, other))
    found += [f'results.json: {name} differs' for name in a.keys() | b.keys() if a.get(name) != b.get(name)]
    there = [(workdir / 'predictions.npz').exists() for workdir in (one, other)]
    if there[0] != there[1]:
        found.append('predictions.npz is in one alone')
    elif all(there):
        files = [dict(np.load(workdir / 'predictions.npz')) for workdir in (one, other)]
        found += [f'predictions.npz: {what}' for what in _different_arrays(*files)]
    return found


def of_grids(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Of two grids: all their runs, and every file of their tables."""
    runs = [
        {str(path.parent.relative_to(folder)) for path in folder.glob('*/*/results.json')}
        for folder in (one, other)
    ]
    found = [f'{name} is in one alone' for name in runs[0] ^ runs[1]]
    for name in sorted(runs[0] & runs[1]):
        found += [f'{name}: {what}' for what in of_runs(one / name, other / name)]
    tables = [
        {path.name: path.read_bytes() for path in (folder / 'tables').iterdir()} for folder in (one, other)
    ]
    return found + [
        f'tables/{name} differs'
        for name in sorted(tables[0].keys() | tables[1].keys())
        if tables[0].get(name) != tables[1].get(name)
    ]


def left(*folders: pathlib.Path) -> list[str]:
    """Half files and temporary folders that lie there, and locks that somebody still holds."""
    found = []
    for folder in folders:
        for path in folder.rglob('*'):
            if any(word in path.name for word in ('tmp', 'partial', 'damaged', 'incomplete')):
                found.append(f'{path} is left')
            if path.name.endswith('.lock'):
                try:
                    lock.take(path).close()
                except UserError:
                    found.append(f'{path} is held')
    return found


def _without_times(line: dict) -> dict:
    return {name: value for name, value in line.items() if not name.startswith(MEASURED)}


def _different_arrays(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
    found = [f'{name} is in one alone' for name in sorted(a.keys() ^ b.keys())]
    return found + [
        f'{name} differs'
        for name in sorted(a.keys() & b.keys())
        if (a[name].dtype, a[name].shape, a[name].tobytes())
        != (b[name].dtype, b[name].shape, b[name].tobytes())
    ]
