"""Two real processes that were not given the same: both end at the start and say what differs."""

import os
import socket
import subprocess
import sys

from conftest import ROOT

PROGRAM = '''
import sys
from mlvicx_jax import parallel
from mlvicx_jax.errors import UserError
address, process = sys.argv[1:]
parallel.start(address, 2, int(process))
parallel.agree(config='one', code='the same')
try:
    parallel.agree(config='one', code='other' * int(process), data_set='d')
except UserError as error:
    print('refused:', error)
'''


def test_processes_that_differ_say_in_what():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    environment = os.environ | {'JAX_NUM_CPU_DEVICES': '1', 'PYTHONPATH': str(ROOT)}
    processes = [subprocess.Popen([sys.executable, '-c', PROGRAM, address, str(i)], text=True,
                                  env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                 for i in range(2)]
    try:
        for process in processes:
            said, _ = process.communicate(timeout=120)
            assert 'refused: the processes of this run do not have the same code: process 1' in said
    finally:
        for process in processes:
            process.kill()
            process.wait()
