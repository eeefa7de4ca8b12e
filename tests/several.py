"""Several processes of one program on this machine, as several hosts run it; none outlives its test."""

import contextlib
import os
import socket
import subprocess
import sys

from conftest import ROOT


def free_address() -> str:
    """host:port that nobody listens to."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return f'127.0.0.1:{free.getsockname()[1]}'


@contextlib.contextmanager
def processes(program, arguments, devices=1, outputs=None, **environment):
    """`python -c program ...` for each list of `arguments`; what is left of them at the end is killed.

    Args:
        devices: virtual ones of each process.
        outputs: files that take what they say; None pipes it to who reads it.
    """
    environment = (
        os.environ
        | environment
        | {'JAX_NUM_CPU_DEVICES': str(devices), 'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'}
    )
    started = [
        subprocess.Popen(
            [sys.executable, '-c', program, *map(str, words)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=outputs[i] if outputs else subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for i, words in enumerate(arguments)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def run(program, arguments, devices=1, timeout=300, **environment):
    """Lets them come to their ends; exit codes and what each said."""
    with processes(program, arguments, devices, **environment) as started:
        said = [process.communicate(timeout=timeout)[0] for process in started]
    return [process.returncode for process in started], said
