"""A folder for one process at a time: a lock on a file, which dies with its process."""

import errno
import logging
import math
import os
import pathlib
import socket
import time
from typing import IO

from mlvicx_jax.errors import UserError

log = logging.getLogger('mlvicx_jax')


def take(path, wait: float | None = 0.0) -> IO:
    """Locks a file, made where it is not there, until what is returned is closed.

    The system lets go of it when the process has ended, however it ended, and so have all that
    inherited the file's descriptor. Within are this process's id and host, for the message of who
    comes second. Windows, and file systems that can not lock, keep nobody out.

    Args:
        wait: seconds to wait for another process; None waits without end.

    Raises:
        UserError: another process holds it.
        OSError: the file can not be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return open(path, 'a+')
    file = open(path, 'a+')
    until = math.inf if wait is None else time.monotonic() + wait
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait is None else fcntl.LOCK_NB))
            break
        except BlockingIOError:
            if until and time.monotonic() < until:
                time.sleep(0.05)
                continue
            file.seek(0)
            holder = ' '.join(file.read(200).split()) or 'another process'
            file.close()
            raise UserError(
                f'{pathlib.Path(path).parent}: {holder} is at work in this folder; wait for it, or give '
                'another one'
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                file.close()
                raise
            log.warning('%s: this file system can not lock; start one process at a time there', path)
            break
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    return file
