"""One grid at a time in a folder."""

import contextlib
import pathlib
from collections.abc import Iterator

from mlvicx_jax import lock
from mlvicx_jax.errors import UserError

WAIT = 10.0  # seconds: the runs of a killed grid take a moment to die


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[int]:
    """Holds the folder for this process and its runs; the system lets go when all are dead.

    Yields:
        The descriptor of the lock, for the runs to inherit.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = lock.take(workdir / 'grid.lock', wait=WAIT)
    except OSError as error:
        raise UserError(
            f'--workdir={workdir} can not be used ({error.strerror}); give one that you may write to'
        ) from error
    with file:
        yield file.fileno()
