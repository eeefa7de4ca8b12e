"""The folder of a grid: its runs, and the tables made of them."""

import dataclasses
import pathlib

from mlvicx_jax.run.record import Run


@dataclasses.dataclass(frozen=True)
class Grid:
    """The folder of a grid (grid/processes.py)."""

    folder: pathlib.Path
    runs: list[Run]
    tables: list[pathlib.Path]


def read(folder: pathlib.Path) -> Run | Grid:
    """The run in a folder, or the grid that it is the folder of.

    Raises:
        UserError: neither is there.
    """
    runs = [
        path.parent for kind in ('pretrained', 'runs') for path in sorted(folder.glob(f'{kind}/*/config.json'))
    ]
    if runs:
        return Grid(folder, [Run.open(run) for run in runs], sorted(folder.glob('tables/*.md')))
    return Run.open(folder)
