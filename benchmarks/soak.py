"""Does a long run stay as it is? One process for many steps, sampled from outside.

  python -m benchmarks.soak [--steps 2000] [--out workdirs/soak]

The tests' tiny recipe, saves and evaluations included; memory, open files, threads and the time of a
step are written down every 50 steps. Prints a section for docs/results.md, writes it with every sample
to OUT/soak.json, and exits non-zero if something rose.
"""

import argparse
import os
import pathlib
import re
import shutil
import statistics
import sys
import time

import numpy as np

from benchmarks.sessions import Session
from mlvicx_jax import parallel
from mlvicx_jax.files import write_json
from mlvicx_jax.run.metrics import read_metrics

SAMPLE = 50  # steps


def soak(out: pathlib.Path, steps: int) -> list[dict]:
    """Samples of one process every `SAMPLE` steps."""
    fields = {
        'data.data_dir': out / 'data',
        'total_steps': steps,
        'log_every_steps': SAMPLE,
        'checkpoint.every_steps': 2 * SAMPLE,
        'eval_every_steps': 10 * SAMPLE,
    }
    command = [sys.executable, 'main.py', '--config=tests/tiny.py', f'--workdir={out / "run"}']
    command += [f'--config.{field}={value}' for field, value in fields.items()]
    session = Session(command, out / 'log.txt', out / 'compiled')
    proc, samples = pathlib.Path('/proc') / str(session.process.pid), {}
    while session.running:
        step = session.steps()[-1:]
        if step and step[0] not in samples and step[0] % SAMPLE == 0:
            try:
                status = (proc / 'status').read_text()
                samples[step[0]] = {
                    'step': step[0],
                    'memory': int(re.search(r'VmRSS:\s+(\d+) kB', status)[1]) * 1024 / 1e6,
                    'files': len(os.listdir(proc / 'fd')),
                    'threads': int(re.search(r'Threads:\s+(\d+)', status)[1]),
                }
            except (OSError, TypeError):  # it has just ended
                break
        time.sleep(0.05)
    if session.process.wait():
        sys.exit(f'error: the soak failed:\n{session.said()}')
    seconds = {
        line['step']: line['time/step_seconds']
        for line in read_metrics(out / 'run')
        if 'time/step_seconds' in line
    }
    return [sample | {'milliseconds': 1000 * seconds[step]} for step, sample in samples.items()]


# (name, digits, share and number by which the last quarter may exceed the first).
COLUMNS = {
    'memory': ('resident memory, MB', 1, 0.03, 0),
    'files': ('open files', 1, 0, 1),
    'threads': ('threads', 1, 0, 1),
    'milliseconds': ('step, ms', 1, 0.2, 0),
}


def told(samples: list[dict]) -> tuple[list[str], list[str]]:
    """Lines of Markdown, and what is not flat."""
    last = samples[-1]['step']
    samples = [sample for sample in samples if sample['step'] > last // 4]
    quarters = np.array_split(np.arange(len(samples)), 4)
    lines = [
        f'### {last:,} steps in one process',
        '',
        f'Sampled every {SAMPLE} steps, a save every {2 * SAMPLE}, an evaluation every '
        f'{10 * SAMPLE}; the first {last // 4} steps are warm-up and left out. Medians of the '
        f'quarters, on {parallel.device_name()}.',
        '',
        '| | first quarter | second | third | last | slope per 1,000 steps |',
        '|---|---|---|---|---|---|',
    ]
    rising = []
    for key, (name, digits, share, number) in COLUMNS.items():
        values = np.array([sample[key] for sample in samples])
        medians = [statistics.median(values[quarter]) for quarter in quarters]
        slope = np.polyfit([sample['step'] / 1000 for sample in samples], values, 1)[0]
        lines.append(f'| {name} | ' + ' | '.join(f'{m:,.{digits}f}' for m in medians) + f' | {slope:+.2g} |')
        if medians[-1] > medians[0] * (1 + share) + number:
            rising.append(f'{name}: {medians[0]:.1f} -> {medians[-1]:.1f}')
    lines += ['', 'Flat.' if not rising else '**Not flat**: ' + '; '.join(rising)]
    return lines, rising


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=2000)
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('workdirs/soak'))
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    shutil.rmtree(out / 'run', ignore_errors=True)
    samples = soak(out, arguments.steps)
    lines, rising = told(samples)
    write_json(out / 'soak.json', {'samples': samples, 'told': lines})
    print('\n'.join(lines))
    if rising:
        sys.exit('error: ' + '; '.join(rising))


if __name__ == '__main__':
    main()
