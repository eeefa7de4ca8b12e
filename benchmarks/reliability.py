"""Is a run that is killed again and again the run it would have been? And does a long one stay as it is?

  python -m benchmarks.reliability [--kills 50] [--soak-steps 2000] [--seed 0] [--out workdirs/reliability]

Kills: `main.py` with the tests' tiny recipe, which here saves and evaluates every few seconds, runs twice
in peace (the first compiles, the second tells how long a start takes and that two runs are the same)
and then again under `kill -9` at random moments, half of them drawn over the start-up and half over
what comes between two saves and a little more, until that many kills were dealt; the same command
goes on each time. A run that gets to its end before is followed by another. What must hold is
counted and printed: the same bits, no line lost or twice, no silent new beginning, no process or half
file left.

Soak: one process for many steps, whose memory, open files, threads and time of a step are
written down every 50 steps, saves and evaluations included.

Prints a section for docs/results.md, writes it with every kill to OUT/reliability.json, and exits
non-zero if something did not hold.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from mlvicx_jax import parallel
from mlvicx_jax.files import write_json
from mlvicx_jax.run.metrics import read_metrics
from mlvicx_jax.terminal import duration

ROOT = pathlib.Path(__file__).parents[1]
STEPS, SAVE, EVALUATE = 240, 8, 24  # length of the killed run, and its intervals
SAMPLE = 50  # steps
WORKER = 5  # each fifth start decodes its images in a process of its own


class Start:
    """One `main.py` in a session of its own, and what it has printed so far."""

    def __init__(self, out: pathlib.Path, name: str, fields: dict, number: int = 0):
        self.workdir = out / name
        self._log = out / 'logs' / f'{name}_{number}.txt'
        self._log.parent.mkdir(exist_ok=True)
        command = [
            sys.executable,
            'main.py',
            '--config=tests/tiny.py',
            f'--workdir={self.workdir}',
            f'--config.data.data_dir={out / "data"}',
            *(f'--config.{field}={value}' for field, value in fields.items()),
        ]
        environment = os.environ | {
            'JAX_COMPILATION_CACHE_DIR': str(out / 'compiled'),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        }
        self.began = time.monotonic()
        with self._log.open('w') as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )

    def said(self) -> str:
        return self._log.read_text()

    def steps(self) -> list[int]:
        return [int(step) for step in re.findall(r'^step (\d+)/', self.said(), re.MULTILINE)]

    def phase(self) -> str:
        """What it is doing, as far as one can tell from outside."""
        said, steps = self.said(), self.steps()
        if not steps:
            if 'evaluating the initial encoder' in said and 'BatchNorm uncalibrated' not in said:
                return 'initial evaluation'
            return 'imports, data, restoring, compilation'
        if list((self.workdir / 'checkpoints').glob('*tmp*')):
            return 'a save under way'
        if steps[-1] == STEPS:
            return 'after the last step'
        told = said.rfind('frozen encoder') > said.rfind(f'step {steps[-1]}/')
        if steps[-1] % EVALUATE == 0 and not told:
            return 'evaluation'
        return 'training'

    def survivors(self, patience: float = 10.0) -> list[str]:
        """Processes of this session that are still there after `patience` seconds."""
        end = time.monotonic() + patience
        while (left := _session(self.process.pid)) and time.monotonic() < end:
            time.sleep(0.1)
        return left


def _session(leader: int) -> list[str]:
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, _, session = path.read_text().rpartition(')')[2].split()[:4]
        except (OSError, ValueError):  # it has just ended
            continue
        if int(session) == leader and state != 'Z':
            found.append(path.parent.name)
    return found


def kill_again_and_again(out: pathlib.Path, kills: int, seed: int) -> dict:
    """Deals the kills; returns what was seen: counts, problems, seconds."""
    fields = {'total_steps': STEPS, 'checkpoint.every_steps': SAVE, 'eval_every_steps': EVALUATE}
    for name in ('straight', 'again'):
        straight = Start(out, name, fields)
        while straight.process.poll() is None and not straight.steps():
            time.sleep(0.01)
        start_up = time.monotonic() - straight.began
        if straight.process.wait():
            sys.exit(f'error: the run in peace failed:\n{straight.said()}')
        whole = time.monotonic() - straight.began
    problems = [f'two runs in peace: {what}' for what in differences(out / 'straight', out / 'again')]
    reach = 2.5 * SAVE * (whole - start_up) / STEPS
    print(
        f'in peace: {whole:.0f} s, first step after {start_up:.0f} s; kills up to {start_up:.0f} s '
        f'after the launch, or up to {reach:.1f} s after the first step',
        flush=True,
    )

    rng = np.random.default_rng(seed)
    dealt, runs, number = [], 0, 0
    began = time.monotonic()
    while len(dealt) < kills:
        runs += 1
        name = f'killed{runs}'
        finished = False
        while not finished:
            checkpoints = out / name / 'checkpoints'
            newest = max((int(p.name) for p in checkpoints.glob('*') if p.name.isdigit()), default=0)
            number += 1
            early = rng.random() < 0.5
            seconds = rng.uniform(0, start_up if early else reach) if len(dealt) < kills else None
            one = Start(out, name, fields | {'data.num_workers': int(number % WORKER == 0)}, number)
            due = None if seconds is None or not early else one.began + seconds
            while one.process.poll() is None and not (due and time.monotonic() >= due):
                if seconds is not None and due is None and one.steps():
                    due = time.monotonic() + seconds
                time.sleep(0.005)
            if one.process.poll() is None:
                phase = one.phase()
                one.process.send_signal(signal.SIGKILL)
                one.process.wait()
                dealt.append(
                    {
                        'run': runs,
                        'phase': phase,
                        'seconds': time.monotonic() - one.began,
                        'steps': one.steps()[-1:],
                        'resumed': newest,
                        'workers': number % WORKER == 0,
                    }
                )
                print(f'kill {len(dealt)}: {json.dumps(dealt[-1])}', flush=True)
            elif one.process.returncode:
                sys.exit(f'error: start {number} failed by itself:\n{one.said()}')
            else:
                finished = True
            problems += [f'start {number}: {what}' for what in faults(one, newest)]
        problems += [f'{name}: {what}' for what in differences(out / 'straight', out / name)]
    return {
        'kills': dealt,
        'runs': runs,
        'starts': number,
        'problems': problems,
        'seconds': time.monotonic() - began,
        'seconds_in_peace': whole,
        'seconds_to_first_step': start_up,
    }


def faults(start: Start, newest: int) -> list[str]:
    """What is wrong with a start before which the checkpoint of step `newest` was the newest."""
    found, said, steps = [], start.said(), start.steps()
    if left := start.survivors():
        found.append(f'processes {left} outlive it')
    if steps and steps[0] != newest + 1:
        found.append(f'began at step {steps[0]}, the newest checkpoint was of {newest}')
    if steps and newest and f'checkpoints/{newest}\n' not in said:
        found.append('did not say what it goes on from')
    for word in ('is damaged', 'Traceback', 'error:'):
        if word in said:
            found.append(f'said {word!r}')
    return found


def arrays(checkpoint: pathlib.Path) -> dict[str, np.ndarray]:
    """{name: array} of a saved state."""
    reader = ocp.PyTreeCheckpointer()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(checkpoint).item_metadata.tree
    )
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(reader.restore(checkpoint, restore_args=as_numpy))
    }


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """What two finished runs do not share, and what the second has left lying about."""
    found = []
    a, b = (arrays(workdir / 'checkpoints' / str(STEPS) / 'state') for workdir in (one, other))
    if a.keys() != b.keys() or len(a) < 100:
        found.append(f'{len(a)} and {len(b)} arrays')
    found += [f'{name} differs' for name in a.keys() & b.keys() if a[name].tobytes() != b[name].tobytes()]
    a, b = (
        [
            {name: value for name, value in line.items() if not name.startswith('time/')}
            for line in read_metrics(workdir)
        ]
        for workdir in (one, other)
    )
    if a != b or [line['step'] for line in a if 'train/loss' in line] != list(range(1, STEPS + 1)):
        found.append(f'metrics.jsonl differs ({len(a)} and {len(b)} lines)')
    a, b = (json.loads((workdir / 'results.json').read_text()) for workdir in (one, other))
    measured = ('goodput/', 'images_per_second')
    found += [
        f'results.json: {name}'
        for name in a.keys() | b.keys()
        if not name.startswith(measured) and a.get(name) != b.get(name)
    ]
    found += [
        f'{path} is left'
        for path in other.rglob('*')
        if 'tmp' in path.name or 'partial' in path.name or 'damaged' in path.name
    ]
    return found


def soak(out: pathlib.Path, steps: int) -> list[dict]:
    """Samples of one process every `SAMPLE` steps."""
    start = Start(
        out,
        'soak',
        {
            'total_steps': steps,
            'log_every_steps': SAMPLE,
            'checkpoint.every_steps': 2 * SAMPLE,
            'eval_every_steps': 10 * SAMPLE,
        },
    )
    proc, samples = pathlib.Path('/proc') / str(start.process.pid), {}
    while start.process.poll() is None:
        step = start.steps()[-1:]
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
    if start.process.wait():
        sys.exit(f'error: the soak failed:\n{start.said()}')
    seconds = {
        line['step']: line['time/step_seconds']
        for line in read_metrics(start.workdir)
        if 'time/step_seconds' in line
    }
    return [sample | {'milliseconds': 1000 * seconds[step]} for step, sample in samples.items()]


# Of the soak: (name, digits, share and number by which the last quarter may exceed the first).
COLUMNS = {
    'memory': ('resident memory, MB', 1, 0.03, 0),
    'files': ('open files', 1, 0, 1),
    'threads': ('threads', 1, 0, 1),
    'milliseconds': ('step, ms', 1, 0.2, 0),
}


def told_kills(seen: dict) -> list[str]:
    phases = collections.Counter(kill['phase'] for kill in seen['kills'])
    with_worker = sum(kill['workers'] for kill in seen['kills'])
    resumed = sum(kill['resumed'] > 0 for kill in seen['kills'])
    return [
        f'### {len(seen["kills"])} kills',
        '',
        f'A run of {STEPS} steps ({duration(seen["seconds_in_peace"])} in peace, of which '
        f'{duration(seen["seconds_to_first_step"])} to the first step) that saves every {SAVE} and '
        f'evaluates every {EVALUATE}, ended by `kill -9` at {len(seen["kills"])} random moments in '
        f'{seen["runs"]} run(s) of {seen["starts"]} starts, {duration(seen["seconds"])} in all. '
        f'{resumed} of the killed starts had a checkpoint to go on from; {with_worker} had a process '
        'of their own that decodes.',
        '',
        '| the kill fell in | kills |',
        '|---|---|',
        *(f'| {phase} | {count} |' for phase, count in phases.most_common()),
        '',
        'Each run came to its end with every array of the last checkpoint, every line of '
        '`metrics.jsonl` but its times, and the numbers of `results.json` the same, bit for bit, as '
        'those of the run in peace. Every start went on from the newest checkpoint and said so; no '
        'process outlived its start, no half file was left.'
        if not seen['problems']
        else f'**{len(seen["problems"])} problem(s)**: ' + '; '.join(seen['problems']),
    ]


def told_soak(samples: list[dict]) -> tuple[list[str], list[str]]:
    """Lines of Markdown, and what is not flat."""
    last = samples[-1]['step']
    samples = [sample for sample in samples if sample['step'] > last // 4]
    quarters = np.array_split(np.arange(len(samples)), 4)
    lines = [
        f'### {last:,} steps in one process',
        '',
        f'Sampled every {SAMPLE} steps, a save every {2 * SAMPLE}, an evaluation every '
        f'{10 * SAMPLE}; the first {last // 4} steps are warm-up and left out. Medians of the '
        'quarters.',
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
    parser.add_argument('--kills', type=int, default=50, help='0 leaves this part out')
    parser.add_argument('--soak-steps', type=int, default=2000, help='0 leaves this part out')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('workdirs/reliability'))
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    for name in ('logs', 'straight', 'again', 'soak', *(path.name for path in out.glob('killed*'))):
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        '## Killed, and soaked',
        '',
        f'`python -m benchmarks.reliability --kills {arguments.kills} '
        f"--soak-steps {arguments.soak_steps} --seed {arguments.seed}`, the tests' tiny recipe "
        f'(tests/tiny.py) on {parallel.device_name()}.',
        '',
    ]
    record, wrong = {}, []
    if arguments.kills:
        record['kills'] = kill_again_and_again(out, arguments.kills, arguments.seed)
        lines += [*told_kills(record['kills']), '']
        wrong += record['kills']['problems']
    if arguments.soak_steps:
        record['soak'] = soak(out, arguments.soak_steps)
        told, rising = told_soak(record['soak'])
        lines += told
        wrong += rising
    write_json(out / 'reliability.json', record | {'told': lines})
    print('\n'.join(lines))
    if wrong:
        sys.exit('error: ' + '; '.join(wrong))


if __name__ == '__main__':
    main()
