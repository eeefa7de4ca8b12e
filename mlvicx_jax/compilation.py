"""Compiled programs: kept on disk for a second start of the same training, and wrong ones refused."""

import contextlib
import os
import pathlib

import jax
import jaxlib
import numpy as np

from mlvicx_jax.errors import UserError

_ROWS = 40_000  # of the sums that are checked; wrong from a few thousand on
_TOLERANCE = 0.1  # of a sum: TPUs multiply with 8 bits; what is wrong is wrong a thousandfold

MOST = 4 << 30  # bytes of compiled programs that are kept


def keep_programs() -> None:
    """Has jax write and find compiled programs; must come before the first compilation.

    They lie in `mlvicx_jax/compiled` of the user's cache folder ($XDG_CACHE_HOME, else ~/.cache);
    jax's own variable JAX_COMPILATION_CACHE_DIR names another folder, and empty none. jax finds a
    program by all that made it: the traced step, its versions, the devices and the processor. The
    folder grows by a few megabytes with every new recipe; a start leaves at most `MOST` bytes of it,
    those used last. It may be deleted at any time. Who has no home, as in some containers, keeps
    nothing.
    """
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        try:
            home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path('~/.cache').expanduser()
        except RuntimeError:
            return
        folder = pathlib.Path(home, 'mlvicx_jax', 'compiled')
        _trim(folder, MOST)
        jax.config.update('jax_compilation_cache_dir', str(folder))
    # Not only programs that take a second: a start is made of hundreds of smaller ones.
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def _trim(folder: pathlib.Path, most: int) -> None:
    """Removes the files that were used longest ago, until the others have no more than `most` bytes.

    jax has a limit of its own, but with it every use of a program writes a file and needs a further
    package. A program that another process is about to read is compiled again there.
    """
    found = []
    for path in folder.rglob('*'):
        with contextlib.suppress(OSError):  # another process removes, too
            status = path.stat()
            if path.is_file():
                found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


def _squared_norms(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """sum_i (matrix row)_i ** 2 of each row [n, 3]: float32 [n]."""
    return jax.device_get(jax.jit(jax.vmap(lambda row: ((matrix @ row) ** 2).sum()))(rows))


def check_sums(squared_norms=_squared_norms) -> None:
    """Refuses to compute where compiled sums are wrong.

    Compares one pattern, which jaxlib 0.10.2 gets wrong on CPUs (jax-ml/jax 39103), with NumPy. Call
    it once a process, after `keep_programs` and `parallel.start`.

    Args:
        squared_norms: what is checked; for tests.

    Raises:
        UserError: the sums are wrong.
    """
    rng = np.random.default_rng(0)
    matrix, rows = (rng.normal(size=(n, 3)).astype(np.float32) for n in (3, _ROWS))
    expected = ((rows @ matrix.T) ** 2).sum(1)
    found = squared_norms(matrix, rows)
    worst = float(np.max(np.abs(found - expected) / (expected + expected.mean())))
    if not worst <= _TOLERANCE:  # NaN too
        raise UserError(
            f'jaxlib {jaxlib.__version__} computes wrong sums on this {jax.default_backend()} (one is off '
            f'by {worst:.0%}), so no result would be right; install another version, such as: '
            "pip install 'jax==0.10.1' 'jaxlib==0.10.1'"
        )
