"""The folder of a grid: its runs, each with its place in the tables, and the tables."""

import dataclasses
import pathlib

from mlvicx_jax.grid.cell import Cell, read_cell
from mlvicx_jax.run.record import Run


@dataclasses.dataclass(frozen=True)
class Grid:
    """What a grid left.

    Attributes:
        folder: its workdir.
        runs: pretrainings first.
        cells: of the downstream runs, by the run's folder; runs of older grids have none.
        tables: the Markdown files of the tables.
    """

    folder: pathlib.Path
    runs: list[Run]
    cells: dict[pathlib.Path, Cell]
    tables: list[pathlib.Path]


def read(folder: pathlib.Path) -> Run | Grid:
    """The run in a folder, or the grid that it is the folder of.

    Raises:
        UserError: neither is there.
    """
    folders = [
        path.parent for kind in ('pretrained', 'runs') for path in sorted(folder.glob(f'{kind}/*/config.json'))
    ]
    if not folders:
        return Run.open(folder)
    cells = {run: cell for run in folders if (cell := read_cell(run))}
    return Grid(folder, [Run.open(run) for run in folders], cells, sorted(folder.glob('tables/*.md')))
