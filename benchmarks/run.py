"""Steps side by side: ours, our rivals' recipes and PyTorch's, in one sitting.

  python -m benchmarks.run                                             ours against both PyTorch programs
  python -m benchmarks.run --rivals all                                against every other method
  python -m benchmarks.run --batches 64 256 --dtypes bfloat16          on a GPU

`--ours` and `--rivals` are recipes (mlvicx:released, byol) or torch:naive and torch:tuned. A duel is
two processes on the same device, the step of one after the step of the other, so that whatever slows
the machine slows both; while one steps the other waits. Every size, batch and dtype has its duels.
Images/s count an image once, whatever its views, and leave out reading it. A ratio is the median of
the duel's pairs; brackets hold the least and the greatest of them. What does not fit into memory is
told and the rest goes on; no duel begins after `--minutes`. The first step counts from the start of
building network and state; ours compiles anew, torch.compile finds what it left on disk before.

Writes OUT/duels.json (devices, versions, every step's seconds), OUT/duels.md and OUT/duels.png.
"""

import argparse
import collections
import importlib.util
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from configs.quickstart import METHOD
from mlvicx_jax.files import write_json, write_text

TORCH = 'torch:naive', 'torch:tuned'
LIMIT = 300  # seconds that a contestant may take to its first step, and for any step
PAUSE = 0.3  # seconds after a step, in which a CPU gives back its memory


class Failure(Exception):
    """A contestant that could not step."""


class Contestant:
    """A worker process (benchmarks/worker.py) at one size."""

    def __init__(self, name: str, size: int, batch: int, dtype: str, stored: int, width: int):
        self.name, self.ready, self.steps = name, {}, []
        variant = name.removeprefix('torch:')
        command = (
            ['benchmarks.torch_reference', '--variant', variant]
            if name in TORCH
            else ['benchmarks.step', '--recipe', name]
        )
        for option, value in (
            ('size', size),
            ('batch', batch),
            ('dtype', dtype),
            ('stored', stored),
            ('width', width),
        ):
            command += [f'--{option}', str(value)]
        # Two share the device: none may reserve most of its memory.
        environment = os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
        self._complaints = tempfile.TemporaryFile('w+')  # a pipe that nobody reads fills up
        self._process = subprocess.Popen(
            [sys.executable, '-m', *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env=environment,
        )

    def begin(self) -> None:
        """Waits until it is built and warm."""
        self.ready = self._answer()

    def step(self) -> None:
        try:
            self._process.stdin.write('step\n')
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # _answer tells why
        self.steps.append(self._answer())

    def end(self) -> int:
        """Lets it end; returns its peak memory in bytes."""
        self._process.stdin.close()
        return self._answer()['memory_bytes']

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict:
        patience = threading.Timer(LIMIT, self._process.kill)
        patience.start()
        line = self._process.stdout.readline()
        patience.cancel()
        try:
            return json.loads(line)
        except ValueError:
            raise Failure(f'{self.name}: {line.strip() or self._why()}') from None

    def _why(self) -> str:
        """Its last error; that of a device that is out of memory has many lines."""
        self._process.wait()
        self._complaints.seek(0)
        lines = self._complaints.read().strip().splitlines()
        errors = [line for line in lines if re.match(r'[\w.]*([Ee]rror|Exception)\b', line)]
        return (errors or lines or [f'it was killed, for memory or after {LIMIT} s without an answer'])[-1]


def duel(ours: str, rival: str, rounds: int, **options) -> dict:
    """Both contestants' steps in turn; {'contestants': [ours, rival], 'ratios': one for each round}."""
    both = []
    try:
        for name in (ours, rival):
            both.append(Contestant(name, **options))
            both[-1].begin()
        for _ in range(rounds):
            for contestant in both:
                contestant.step()
                time.sleep(PAUSE)
        memory = [contestant.end() for contestant in both]
    finally:
        for contestant in both:
            contestant.kill()
    seconds = [[step['seconds'] for step in contestant.steps] for contestant in both]
    return {
        **options,
        'ratios': [theirs / mine for mine, theirs in zip(*seconds)],
        'contestants': [
            {
                'name': contestant.name
                + ' (not compiled)' * (contestant.name == TORCH[1] and not contestant.ready['compiled']),
                'memory_bytes': peak,
                **contestant.ready,
                'steps': contestant.steps,
                'images_per_second': options['batch'] / statistics.median(taken),
            }
            for contestant, peak, taken in zip(both, memory, seconds)
        ],
    }


def table(duels: list[dict]) -> str:
    """A Markdown table, a row for each contestant of each duel."""
    lines = [
        '| size | batch | dtype | contestant | images/s | ours is ... times as fast | peak memory, '
        "GB | first step, s | of a step its views, s | TFLOP/s by XLA's count |",
        '|---|---|---|---|---|---|---|---|---|---|',
    ]
    for found in duels:
        for number, one in enumerate(found['contestants']):
            ratio = (
                f'{statistics.median(found["ratios"]):.2f} ({min(found["ratios"]):.2f} to '
                f'{max(found["ratios"]):.2f})'
                if number
                else ''
            )
            seconds = found['batch'] / one['images_per_second']
            views = [step['parts']['augmentation'] for step in one['steps'] if 'parts' in step]
            rate = f'{one["operations"] / seconds / 1e12:.3g}' if 'operations' in one else ''
            lines.append(
                f'| {found["size"]} | {found["batch"]} | {found["dtype"]} | {one["name"]} | '
                f'{one["images_per_second"]:.4g} | {ratio} | {one["memory_bytes"] / 1e9:.2f} | '
                f'{one["first_step_s"]:.0f} | {f"{statistics.median(views):.2g}" if views else ""} | '
                f'{rate} |'
            )
    return '\n'.join(lines)


def plot(duels: list[dict], title: str, path: pathlib.Path) -> None:
    """Images/s over the batch, a panel for each size and dtype."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    panels = sorted({(found['size'], found['dtype']) for found in duels})
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False, layout='constrained'
    )
    for axis, panel in zip(axes[0], panels):
        axis.set_prop_cycle(color=plt.colormaps['tab20'].colors)  # there are twelve methods
        rates = collections.defaultdict(lambda: collections.defaultdict(list))
        for found in duels:
            if (found['size'], found['dtype']) == panel:
                for one in found['contestants']:
                    rates[one['name']][found['batch']].append(one['images_per_second'])
        for name, by_batch in rates.items():  # ours has as many rates at a batch as there are rivals
            axis.plot(
                *zip(*sorted((batch, statistics.median(of)) for batch, of in by_batch.items())),
                'o-',
                label=name,
            )
        batches = sorted({found['batch'] for found in duels})
        axis.set(
            title=f'{panel[0]} px, {panel[1]}', xlabel='batch', ylabel='images/s', xscale='log', ylim=(0, None)
        )
        axis.set_xticks(batches, map(str, batches))
        axis.minorticks_off()
        axis.legend(fontsize='small')
    figure.suptitle(title, fontsize='medium')
    figure.savefig(path, dpi=150)
    plt.close(figure)


def known(name: str) -> str:
    """`name`, if it is that of a contestant; else argparse tells which there are."""
    if name not in TORCH and name.split(':')[0] not in METHOD:
        raise argparse.ArgumentTypeError(
            f'{name!r} is none of {", ".join((*TORCH, *METHOD))}; a recipe may bring its argument, as '
            'mlvicx:released does'
        )
    if name in TORCH and not importlib.util.find_spec('torch'):
        raise argparse.ArgumentTypeError(f"{name} needs torch: pip install -e '.[export]'")
    return name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ours', default='mlvicx:released', type=known, metavar='RECIPE')
    parser.add_argument('--rivals', nargs='+', default=TORCH, metavar='RECIPE', help='or all')
    parser.add_argument('--sizes', type=int, nargs='+', default=[224], help='side of the views, px')
    parser.add_argument('--batches', type=int, nargs='+', default=[16])
    parser.add_argument('--dtypes', nargs='+', default=['float32'], choices=('float32', 'bfloat16'))
    parser.add_argument('--stored', type=int, default=256, help='side of the stored images, px')
    parser.add_argument('--width', type=int, default=64, help='channels of the stem')
    parser.add_argument('--rounds', type=int, default=5, help='steps of each')
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--out', type=pathlib.Path, default='workdirs/benchmark')
    arguments = parser.parse_args()
    every = [name for name in METHOD if name != arguments.ours.split(':')[0]]
    try:
        rivals = list(map(known, every if arguments.rivals == ['all'] else arguments.rivals))
    except argparse.ArgumentTypeError as error:
        parser.error(f'argument --rivals: {error}')
    if arguments.rounds < 1:
        parser.error(f'argument --rounds: {arguments.rounds}, expected 1 or more')
    arguments.out.mkdir(parents=True, exist_ok=True)
    end, duels = time.monotonic() + 60 * arguments.minutes, []
    for size, batch, dtype, rival in itertools.product(
        arguments.sizes, arguments.batches, arguments.dtypes, rivals
    ):
        title = f'{arguments.ours} against {rival}, {size} px, batch {batch}, {dtype}'
        if time.monotonic() > end:
            print(f'{title}: left out, the {arguments.minutes:g} minutes are over', flush=True)
            continue
        print(f'{title} ...', flush=True)
        try:
            duels.append(
                duel(
                    arguments.ours,
                    rival,
                    arguments.rounds,
                    size=size,
                    batch=batch,
                    dtype=dtype,
                    stored=arguments.stored,
                    width=arguments.width,
                )
            )
        except Failure as failure:
            print(f'  failed: {failure}', flush=True)
            continue
        print(f'  ratio {statistics.median(duels[-1]["ratios"]):.2f}', flush=True)
        write_json(arguments.out / 'duels.json', duels)
    if not duels:
        sys.exit('error: no duel could be held; the lines above say why')
    device = duels[0]['contestants'][0]['device']
    content = f'{device}, {arguments.rounds} rounds\n\n{table(duels)}\n'
    write_text(arguments.out / 'duels.md', content)
    plot(duels, device, arguments.out / 'duels.png')
    print(f'\n{content}\n{arguments.out}/duels.json, duels.md, duels.png')


if __name__ == '__main__':
    main()
