"""How long a training takes to its first step, with no compiled programs on disk and with them.

  python -m benchmarks.start [--config configs/quickstart.py] [--rounds 3] [--out workdirs/start.json]

`main.py` is started, and killed when it says that the first step is done. The data set is prepared by
a start of its own that does not count. Cold starts begin with an empty folder of compiled programs,
each warm one with what the cold one before it left. Seconds are those from the launch.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from mlvicx_jax import parallel
from mlvicx_jax.files import write_json

ROOT = pathlib.Path(__file__).parents[1]


def seconds_to_first_step(config: str, folder: pathlib.Path) -> float:
    """A start in a new workdir below `folder`, which keeps data and compiled programs."""
    workdir = folder / 'run'
    shutil.rmtree(workdir, ignore_errors=True)
    began = time.monotonic()
    with subprocess.Popen(
        [
            sys.executable,
            'main.py',
            f'--config={config}',
            f'--workdir={workdir}',
            f'--config.data.data_dir={folder / "data"}',
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled')},
    ) as process:
        for line in process.stdout:
            if line.startswith('first step after'):
                process.kill()
                return time.monotonic() - began
    sys.exit(f'error: the run ended before its first step; run python main.py --config={config}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='configs/quickstart.py')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--out', type=pathlib.Path, default='workdirs/start.json')
    arguments = parser.parse_args()
    found = {'cold': [], 'warm': []}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        seconds_to_first_step(arguments.config, folder)
        for _ in range(arguments.rounds):
            shutil.rmtree(folder / 'compiled')
            for kind, taken in found.items():
                taken.append(seconds_to_first_step(arguments.config, folder))
                print(f'{kind}: {taken[-1]:.1f} s', flush=True)
    device = parallel.device_name()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, {'device': device, 'config': arguments.config, **found})
    print(
        f'{device}: '
        + ', '.join(
            f'{kind} {statistics.median(taken):.1f} s ({min(taken):.1f} to {max(taken):.1f})'
            for kind, taken in found.items()
        )
    )


if __name__ == '__main__':
    main()
