"""Compiled programs are kept on disk, so that a second start of the same training need not compile."""

import os
import pathlib

import jax


def keep_programs() -> None:
    """Has jax write and find compiled programs; must come before the first compilation.

    They lie in `mlvicx_jax/compiled` of the user's cache folder ($XDG_CACHE_HOME, else ~/.cache);
    jax's own variable JAX_COMPILATION_CACHE_DIR names another folder, and empty none. jax finds a
    program by all that made it: the traced step, its versions, the devices and the processor. The
    folder grows by a few megabytes with every new recipe and may be deleted at any time. Who has no
    home, as in some containers, keeps nothing.
    """
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        try:
            home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path('~/.cache').expanduser()
        except RuntimeError:
            return
        jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(home, 'mlvicx_jax', 'compiled')))
    # Not only programs that take a second: a start is made of hundreds of smaller ones.
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
