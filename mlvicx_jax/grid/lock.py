"""One grid at a time in a folder."""

import contextlib
import fcntl
import pathlib
import time
from collections.abc import Iterator

from mlvicx_jax.errors import UserError


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[int]:
    """Holds the folder for this process and its runs; the system lets go when all are dead."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / 'grid.lock').open('w')
    except OSError as error:
        raise UserError(
            f'--workdir={workdir} can not be used ({error.strerror}); give one that you may write to'
        ) from error
    with file:
        for _ in range(100):  # runs of a grid that was killed take a moment to die
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            raise UserError(
                f'{workdir}: another grid, or a run of one, is at work in this folder; '
                'wait for it, or give another --workdir'
            )
        yield file.fileno()
