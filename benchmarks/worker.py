"""What a contestant of benchmarks.run is: a process that makes one step for every line it reads."""

import json
import os
import resource
import sys
from collections.abc import Callable

import numpy as np


def parser(description: str):
    """The options that every contestant takes."""
    import argparse

    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument('--batch', type=int, default=16, help='images, each seen in two views')
    result.add_argument('--size', type=int, default=224, help='side of the views, px')
    result.add_argument('--stored', type=int, default=256, help='side of the stored images, px')
    result.add_argument('--width', type=int, default=64, help='channels of the stem')
    result.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
    return result


def images(batch: int, stored: int) -> np.ndarray:
    """The same uint8 [batch, stored, stored, 1] for every contestant: noise, read and decoded."""
    return np.random.default_rng(0).integers(0, 256, (batch, stored, stored, 1), np.uint8)


def serve(ready: dict, step: Callable[[], dict], memory: Callable[[], int | None]) -> None:
    """Prints `ready`, answers every line of standard input by a step, and at its end tells the memory.

    Args:
        step: makes one step to its end and returns what it took, {'seconds': ...} at least.
        memory: peak bytes on the device; None where it does not tell: those of this process then.
    """
    print(json.dumps(ready), flush=True)
    for _line in sys.stdin:
        print(json.dumps(step()), flush=True)
    peak = memory() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({'memory_bytes': peak}), flush=True)
    os._exit(0)  # threads of a runtime may take their time to end
