"""Compiled programs are kept on disk, so that a second start of the same training need not compile."""

import contextlib
import os
import pathlib

import jax

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
