"""Does any file end the program, hang it or fill the memory?

  python -m benchmarks.fuzz [--inputs 60000] [--seed 0] [--processes 1] [--out workdirs/fuzz]

Small films in every format, archives and tables are damaged at random (the same for the same seed) and
read as `prepare` and `predict` read them. Each has to end in a picture or in one line that names the
file. The work is done in processes of their own with 2 GB of memory on top of what they start with; one
that says nothing for 20 seconds is killed and counts as a hang, and another goes on after that input.

Prints a section for docs/results.md. Inputs that did not end well are kept in OUT, and the exit code is
then 1.
"""

import argparse
import collections
import dataclasses
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import platform
import random
import resource
import sys
import time

from benchmarks.wounds import damaged, originals
from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import archives, radiograph, tables

MEMORY = 2 * 2**30  # bytes
PATIENCE = 20  # seconds
LONGEST = 600  # signs of a message
NAME = 'damaged'


def read(kind: str, data: bytes, folder: pathlib.Path) -> None:
    """Reads an input as the program does."""
    if kind == 'CSV':
        (folder / NAME).write_bytes(data)
        for _ in tables.open_table(folder / NAME).rows():
            pass
    elif kind == 'tar':
        (folder / NAME).write_bytes(data)
        for name, content in archives.stream_tar([folder / NAME], {f'{i}.png' for i in range(4)}):
            if isinstance(content, bytes):
                try:
                    radiograph.decode_radiograph(content, name)
                except UserError as error:
                    _check_message(error, name)
    else:
        radiograph.decode_radiograph(data, NAME)


def _check_message(error: UserError, name: str) -> None:
    text = str(error)
    if name not in text or '\n' in text or len(text) > LONGEST or 'DOE' in text:
        raise ValueError(f'not a message: {text[:200]!r}')


def _input(number: int, seed: int, kinds: dict[str, list[bytes]]) -> tuple[str, bytes]:
    """The kind and bytes of input `number`; kinds take turns."""
    draw = random.Random(f'{seed}/{number}')
    kind = list(kinds)[number % len(kinds)]
    return kind, damaged(draw.choice(kinds[kind]), draw.choice(kinds[kind]), kind, draw)


def work(numbers: range, seed: int, folder: pathlib.Path, pipe) -> None:
    """Reads inputs one after the other; sends (number, None) before each and (number, outcome) after it."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = originals()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # decoders in C print what they think of each file
    used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number in numbers:
        kind, data = _input(number, seed, kinds)
        pipe.send((number, None))
        try:
            read(kind, data, folder)
            outcome = 'read'
        except UserError as error:
            try:
                _check_message(error, NAME)
                outcome = 'out of memory' if '(MemoryError)' in str(error) else 'refused'
            except ValueError as wrong:
                outcome = str(wrong)
        except BaseException as error:
            outcome = f'escaped: {type(error).__name__}: {str(error)[:200]}'
        pipe.send((number, outcome))
    pipe.send((-1, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)))


@dataclasses.dataclass
class Seen:
    """Outcomes by kind, what did not end well, and the largest memory of a process in MB."""

    counts: dict[str, collections.Counter]
    problems: list[tuple[int, str]]
    memory: float = 0.0


def watch(numbers: list[range], seed: int, out: pathlib.Path) -> Seen:
    """Runs the inputs of each range in a process, and again after one that was lost."""
    names = list(originals())
    seen = Seen({name: collections.Counter() for name in names}, [])
    context = multiprocessing.get_context('spawn')
    running = {}

    def start(part: range, slot: int) -> None:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(part, seed, out / f'process{slot}', theirs))
        process.start()
        theirs.close()
        running[ours] = [process, part, slot, part.start, time.monotonic() + 60]

    for slot, part in enumerate(numbers):
        start(part, slot)
    while running:
        for pipe in multiprocessing.connection.wait(list(running), timeout=1):
            state = running[pipe]
            try:
                number, outcome = pipe.recv()
            except EOFError:  # it has ended
                process, part, slot, at, _ = running.pop(pipe)
                process.join()
                if process.exitcode:
                    seen.problems.append((at, f'process ended with {process.exitcode}'))
                    seen.counts[names[at % len(names)]]['lost'] += 1
                    start(range(at + 1, part.stop), slot)
                continue
            if number < 0:
                seen.memory = max(seen.memory, float(outcome))
                continue
            state[3], state[4] = number, time.monotonic()
            if outcome is None:
                continue
            good = outcome in ('read', 'refused')
            seen.counts[names[number % len(names)]][outcome if good else 'problem'] += 1
            if not good:
                seen.problems.append((number, outcome))
        for process, *_, last in running.values():
            if time.monotonic() - last > PATIENCE:
                process.kill()
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--inputs', type=int, default=60000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('workdirs/fuzz'))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    edges = [args.inputs * i // args.processes for i in range(args.processes + 1)]
    seen = watch([range(a, b) for a, b in itertools.pairwise(edges)], args.seed, args.out)
    minutes = (time.monotonic() - began) / 60

    print(f'### {args.inputs:,} damaged inputs\n')
    print(
        f'`python -m benchmarks.fuzz --inputs {args.inputs} --seed {args.seed}`, {args.processes} '
        f'process(es), {os.cpu_count()} cores of {platform.machine()}, {minutes:.0f} min. Most memory of one '
        f'{seen.memory:.0f} MB.\n'
    )
    print('| | read | refused in one line | lost or escaped |\n|---|---|---|---|')
    for name, counts in seen.counts.items():
        print(f'| {name} | {counts["read"]:,} | {counts["refused"]:,} | {counts["problem"] + counts["lost"]} |')
    kinds = originals()
    for number, what in seen.problems:
        kind, data = _input(number, args.seed, kinds)
        path = args.out / f'{args.seed}_{number}_{kind.replace(", ", "_").replace(" ", "")}'
        path.write_bytes(data)
        print(f'{path}: {what}', file=sys.stderr)
    return 1 if seen.problems else 0


if __name__ == '__main__':
    sys.exit(main())
