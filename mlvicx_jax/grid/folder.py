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


def read_grid(folder: pathlib.Path) -> Grid | None:
    """The grid in a folder; None where the folder holds no run of one.

    Raises:
        UserError: the cell.json of one of its runs is damaged.
    """
    folders = [
        path.parent for kind in ('pretrained', 'runs') for path in sorted(folder.glob(f'{kind}/*/config.json'))
    ]
    if not folders:
        return None
    cells = {run: cell for run in folders if (cell := read_cell(run))}
    return Grid(folder, [Run.open(run) for run in folders], cells, sorted(folder.glob('tables/*.md')))
