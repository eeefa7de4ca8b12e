"""What a step of each method costs: images a second, memory, compilation; relative to VICReg.

  python -m benchmarks.step [--methods ...] [--batch 64] [--size 224] [--width 64] [--steps 3] [--dtype float32]
      [--out step.json]

Each method's own recipe, in a process of its own, on random images: the whole step (views, network,
loss, optimiser, update), without reading data. An image counts once, whatever the number of its views.
VICReg runs first and last; the two times tell how far the machine drifted in between. Prints a
Markdown table.
"""

import argparse
import importlib
import json
import math
import resource
import statistics
import subprocess
import sys
import time

import jax
import numpy as np

from configs.quickstart import METHOD as METHODS
from mlvicx_jax import methods, optim, parallel, state as states
from mlvicx_jax.log import write_json
from mlvicx_jax.step import make_train_step

LABELS = 15  # of ChestX-ray14


def measure(name: str, batch: int, size: int, width: int, steps: int, dtype: str) -> dict:
    """Seconds of the first step, which compiles, and of each after it; peak memory of this process."""
    config = importlib.import_module(f'configs.{name}').get_config()
    config.update(batch_size=batch, dtype=dtype)
    config.data.image_size = size
    config.model.width = width
    method = methods.create(config)
    optimizer = optim.create(config.optim, batch, 100, 1000)
    mesh = parallel.create_mesh(batch)
    state = states.create(method, optimizer, 0, parallel.replicated(mesh))
    rng = np.random.default_rng(0)
    stored = config.data.stored_size
    arrays = parallel.to_global({
        'image': rng.integers(0, 256, (batch, stored, stored, 1), np.uint8),
        'labels': rng.integers(0, 2, (batch, LABELS), np.uint8)}, mesh)
    train_step = make_train_step(method, optimizer, mesh, 0, 1000)
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        state, metrics, _ = train_step(state, arrays)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    memory = jax.local_devices()[0].memory_stats()
    peak = (memory['peak_bytes_in_use'] if memory else
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {'method': name, 'seconds': seconds[1:], 'first_step': seconds[0],
            'memory_gb': peak / 1e9, 'device': parallel.device_name()}


def table(rows: list[dict], batch: int) -> str:
    lines = ['| method | images/s | cost relative to VICReg | peak memory, GB | first step, s |',
             '|---|---|---|---|---|']
    median = lambda row: statistics.median(row['seconds'])
    references = [median(row) for row in rows if row['method'] == 'vicreg']
    for row in rows:
        lines.append(f'| {row["method"]} | {batch / median(row):.2f} '
                     f'({batch / max(row["seconds"]):.2f} to {batch / min(row["seconds"]):.2f}) | '
                     f'{median(row) / statistics.mean(references) if references else math.nan:.2f} | {row["memory_gb"]:.1f} | '
                     f'{row["first_step"]:.0f} |')
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--width', type=int, default=64)
    parser.add_argument('--steps', type=int, default=3)
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--out', default='step.json')
    parser.add_argument('--measure', choices=METHODS, help=argparse.SUPPRESS)  # one, in this process
    arguments = parser.parse_args()
    options = {name: getattr(arguments, name) for name in ('batch', 'size', 'width', 'steps', 'dtype')}
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, **options)))
        return
    rows = []
    rivals = [name for name in arguments.methods if name != 'vicreg']
    for name in ['vicreg', *rivals, 'vicreg']:
        command = [sys.executable, '-m', 'benchmarks.step', '--measure', name]
        for option, value in options.items():
            command += [f'--{option}', str(value)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:  # such as out of memory: the others are measured
            print(f'{name} failed: {(done.stderr.strip().splitlines() or ["killed"])[-1]}', flush=True)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
        write_json(arguments.out, {'options': options, 'rows': rows})
    if not rows:
        sys.exit('error: no method could be measured; give a smaller --batch')
    print(f'\n{rows[0]["device"]}, {options}\n\n{table(rows, arguments.batch)}')


if __name__ == '__main__':
    main()
