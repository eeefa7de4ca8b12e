"""Finished runs of a grid, read for its tables; those that do not belong together are refused."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation.intervals import FEW
from mlvicx_jax.evaluation.metrics import NO_FINDING
from mlvicx_jax.grid.cell import Cell
from mlvicx_jax.run.record import Run


class Finished(NamedTuple):
    """A finished downstream run.

    Attributes:
        folder: its workdir.
        results: the content of results.json.
        labels: or structures, that it was judged on.
        judged: SHA-256 of the ids of the test images and their truth.
    """

    folder: str
    results: dict
    labels: tuple[str, ...]
    judged: str

    @property
    def head(self) -> dict:
        """The test numbers of the classifier that stands for the run."""
        return self.results['test'][self.results['primary']]

    @property
    def findings(self) -> list[str]:
        """The labels without No Finding, sorted."""
        return sorted(label for label in self.labels if label != NO_FINDING)

    @property
    def few(self) -> dict[str, str]:
        """Labels or structures that fewer than ten test patients show, with the number in words."""
        if 'primary' in self.results:
            return self.head.get('few', {})
        patients = {name: of.get('patients', FEW) for name, of in self.results['test'].items()}
        return {name: f'{count} patients' for name, count in patients.items() if count < FEW}

    @property
    def means(self) -> list[str]:
        """'mean14', 'mean15': over the findings first, then with No Finding, where that is a label."""
        return sorted(self.head['means'], key=lambda name: int(name.removeprefix('mean')))


def read_finished(folder: str | os.PathLike, cell: Cell) -> Finished:
    """Reads results.json and predictions.npz of a finished run.

    Raises:
        UserError: a file is missing or damaged, or the run is of another cell.
    """
    run = Run.open(folder)
    results: Any = run.ended
    if run.task != cell.task:
        raise UserError(
            f'{folder}: a run of {run.task}, expected {cell.task}; delete the folder to run it again'
        )
    for name in ('protocol', 'share', 'seed'):
        if results[name] != getattr(cell, name):
            raise UserError(
                f'{folder}: results.json has {name} {results[name]!r}, expected '
                f'{getattr(cell, name)!r}; delete the folder to run it again'
            )
    arrays = run.predictions
    if arrays is None:
        raise UserError(f'{folder}: predictions.npz is missing; delete the folder to run it again')
    names = arrays['label_names' if cell.task == 'classify' else 'structures'].tolist()
    truth = arrays['test_labels' if cell.task == 'classify' else 'test_has']
    judged = json.dumps([names, arrays['test_image_ids'].tolist(), np.asarray(truth, np.uint8).tolist()])
    return Finished(os.fspath(folder), results, tuple(names), hashlib.sha256(judged.encode()).hexdigest())


def refuse_mixtures(runs: Mapping[Cell, Finished]) -> None:
    """Raises a UserError where numbers that stand side by side are not of the same images.

    Of a set all runs must share data set, validation and test images, labels and truth; for one
    seed and share also the labelled part, which the paired test rests on. Of a method and a seed of
    its pretraining all must have begun with the same encoder.
    """
    frames: dict[tuple, tuple] = {}
    for cell, run in runs.items():
        results = run.results
        claims = {
            ('set', cell.set): {
                'data set': results['dataset'],
                'labels': run.labels,
                'test images (data/test_hash)': results['data/test_hash'],
                'validation images (data/validation_hash)': results['data/validation_hash'],
                'truth of the test images': run.judged,
            },
            ('labelled part of', cell.set, cell.share, cell.seed): {
                'images (labelled_hash)': results['labelled_hash']
            },
            ('method', cell.method, cell.encoder_seed): {
                'context bottlenecks (context)': results['context'],
                'encoder (init_proof)': (results['init_proof'] or {}).get('sha256'),
            },
        }
        for place, claim in claims.items():
            first, folder = frames.setdefault(place, (claim, run.folder))
            for what, value in claim.items():
                if value != first[what]:
                    raise UserError(
                        f'{" ".join(map(str, place))}: {run.folder} has other {what} than '
                        f'{folder}: {value} and {first[what]}. They can not stand in one table: '
                        'delete the folder that is out of date, or give the grid a new --workdir'
                    )


def headline(run: Finished) -> str:
    """A finished run in a few words, for the terminal."""
    if 'primary' in run.results:
        found = {name: run.head['means'][name] for name in run.means[:1]}
    else:
        found = {f'{name} Dice': run.results['test'][name]['dice_positives'] for name in run.labels}
    return ', '.join(f'{name} n/a' if value is None else f'{name} {value:.3f}' for name, value in found.items())
