"""Two real processes that were not given the same: both end at the start and say what differs."""

import several

PROGRAM = """
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
"""


def test_processes_that_differ_say_in_what():
    address = several.free_address()
    _, everyone = several.run(PROGRAM, [(address, i) for i in range(2)], timeout=120)
    for said in everyone:
        assert 'refused: the processes of this run do not have the same code: process 1' in said
