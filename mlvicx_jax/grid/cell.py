"""What a downstream run of a grid is of. It lies in the run's folder, so that no name is ever parsed."""

import pathlib
from typing import Any, NamedTuple, TypedDict

from mlvicx_jax.errors import UserError
from mlvicx_jax.files import read_json, write_json
from mlvicx_jax.run.schema import mismatch


class Cell(NamedTuple):
    """The place of one downstream run in the tables.

    Attributes:
        set: the grid's name of the data set.
        task: 'classify' or 'segment'.
        protocol: 'frozen' or 'finetune'.
        share: of the training labels, above 0, at most 1.
        method: the grid's name of the encoder.
        seed: of this run.
        encoder_seed: of the pretraining of its encoder.
    """

    set: str
    task: str
    protocol: str
    share: float
    method: str
    seed: int
    encoder_seed: int


def write_cell(folder: pathlib.Path, cell: Cell) -> None:
    """Writes cell.json into the folder of a run, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / 'cell.json', cell._asdict())


def read_cell(folder: pathlib.Path) -> Cell | None:
    """The cell of the run in a folder; None where there is no cell.json.

    Raises:
        UserError: cell.json is damaged.
    """
    path = folder / 'cell.json'
    if not path.exists():
        return None
    way_out = 'the command of the grid writes it anew'
    found = read_json(path, way_out)
    fields: Any = TypedDict('fields', Cell.__annotations__)  # type: ignore[misc]
    if problem := mismatch(found, fields):
        raise UserError(f'{path}: {problem}; {way_out}')
    return Cell(**{name: found[name] for name in Cell._fields})
