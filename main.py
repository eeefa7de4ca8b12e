"""Trains what a config describes: python main.py --config=configs/mlvicx.py [--config.FIELD=VALUE ...]"""

import errno
import multiprocessing
import os
import pathlib
import signal
import sys
import time

from absl import app, flags, logging
from ml_collections import config_flags

from mlvicx_jax import config
from mlvicx_jax.errors import UserError

_CONFIG = config.define()
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; by default workdirs/<config>.')
_PREVIEW = flags.DEFINE_string('preview', None, 'Write a sheet of views to this PNG and stop.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'host:port of process 0 of several.')
_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes there are.')
_PROCESS = flags.DEFINE_integer('process_id', None, 'Which of them this is.')

DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
)
LAST = 3.0  # seconds that process 0, which hosts jax's coordinator, waits to exit last after an error
INTERRUPTED = 128 + signal.SIGINT  # exit code after Ctrl-C, that of a run that has saved too


def main(_):
    configured, workdir = _CONFIG.value, _WORKDIR.value or default_workdir()
    logging.set_verbosity(logging.ERROR)  # Orbax and TFDS report their every step
    if configured.get('task') == 'tables':
        if _PREVIEW.value:
            raise UserError('--preview draws the views of one recipe; configs/tables.py is a grid of many')
        from mlvicx_jax.grid import processes as grid

        return grid.run(configured, workdir, [sys.executable, os.path.abspath(__file__)])
    config.check(configured)
    # Imported here: worker processes of the data pipeline import this file again and need none.
    from mlvicx_jax import compilation, parallel, preview, train

    compilation.keep_programs()
    parallel.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    compilation.check_sums()
    if _PREVIEW.value:
        return preview.preview(configured, _PREVIEW.value)
    return train.train(configured, workdir)


def default_workdir() -> str:
    """configs/mlvicx.py:released -> workdirs/mlvicx_released."""
    path, _, argument = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    return os.path.join('workdirs', '_'.join(filter(None, (pathlib.Path(path).stem, argument))))


def run(step, *arguments):
    """Calls step(*arguments); a mistake of the user or of the disk ends in one line, not in a trace."""
    try:
        return step(*arguments)
    except UserError as error:
        leave('error: ' + ' '.join(str(error).split()))
    except KeyboardInterrupt:  # before the loop, or a second one within
        leave('stopped by Ctrl-C; run the same command to go on from the last checkpoint', INTERRUPTED)
    except OSError as error:
        if error.errno not in DISK:
            raise
        leave(
            f'error: {error.filename or "the disk"}: {error.strerror}; free space, mend the '
            'permissions or give another path, then run the same command'
        )


def leave(line: str, code: int = 1):
    """Prints the line and exits: one of several processes at once, whatever the others do.

    Within jax's exit barrier this process and the others would wait for each other. Their watchdogs
    notice that it is gone.
    """
    print(line, file=sys.stderr, flush=True)
    jax = sys.modules.get('jax')
    if jax is None or not jax.distributed.is_initialized():
        sys.exit(code)
    if not jax.process_index():
        time.sleep(LAST)  # the others may be about to print the same
    for child in multiprocessing.active_children():  # that decode images
        child.kill()
    os._exit(code)


if __name__ == '__main__':
    app.run(lambda argv: run(main, argv), flags_parser=lambda argv: run(config.parse, argv))
