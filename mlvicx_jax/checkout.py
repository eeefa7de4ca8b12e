"""Which source the program runs from. Two checkouts never mix."""

import hashlib
import pathlib
import sys

import mlvicx_jax
import mlvicx_jax_datasets
from mlvicx_jax.errors import UserError


def root() -> pathlib.Path:
    """The checkout that the program runs from, or the folder of packages where it is installed."""
    return pathlib.Path(mlvicx_jax.__file__).resolve().parents[1]


def code_hash() -> str:
    """sha256 of the sources of the program, its builders of data sets and its recipes, with their names.

    Raises:
        UserError: see `refuse_mixture`.
    """
    refuse_mixture()
    digest = hashlib.sha256()
    configs = root() / 'configs'  # an installed program has none
    for name, folder in (
        ('mlvicx_jax', pathlib.Path(mlvicx_jax.__file__).parent),
        ('datasets', pathlib.Path(mlvicx_jax_datasets.__file__).parent),
        ('configs', configs),
    ):
        for path in sorted(folder.rglob('*.py')):
            digest.update(f'{name}/{path.relative_to(folder).as_posix()}\0'.encode() + path.read_bytes())
    return digest.hexdigest()


def refuse_mixture() -> None:
    """Raises a UserError where the parts of the program are not of one checkout."""
    here = root()
    datasets = pathlib.Path(mlvicx_jax_datasets.__file__).resolve().parent
    if datasets not in (here / 'datasets', here / 'mlvicx_jax_datasets'):
        _refuse('mlvicx_jax_datasets', datasets.parent)
    base = sys.modules.get('configs.base')
    recipes = pathlib.Path(base.__file__).resolve().parents[1] if base and base.__file__ else here
    if recipes != here and (recipes / 'mlvicx_jax').is_dir():
        _refuse('configs', recipes)


def _refuse(what: str, other: pathlib.Path) -> None:
    raise UserError(
        f'mlvicx_jax comes from {root()}, {what} from {other}: two checkouts can not mix. Install the one '
        f'that you mean (pip install -e {root()}), or start the program of {other}'
    )
