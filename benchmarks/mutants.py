"""Whether the tests notice faults: each fault of `benchmarks/faults.py` is planted, and its test has to fail.

    python -m benchmarks.mutants [--only NAME ...] [--jobs N] [--list]

A fault is planted in a copy of the checkout in a temporary folder, never in the checkout itself. First all
named tests run on copies without a fault, where they have to pass. Prints a Markdown table on stdout; what
happens meanwhile goes to stderr.

Exit code: 0, or 1 where a fault survives, a test does not run or fails without a fault, or a fault's old
text does not stand exactly once in its file.
"""

import argparse
import concurrent.futures
import contextlib
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.faults import FAULTS, Fault

ROOT = pathlib.Path(__file__).resolve().parents[1]
TIMEOUT = 600  # seconds for a test; one that hangs has not told anything
CAUGHT = 'caught'
WORDS = {0: 'SURVIVED', 1: CAUGHT}  # by pytest's exit code; any other: tests did not run


class Outcome(NamedTuple):
    """What pytest said: its exit code (-1: it did not end), the tests that failed, and how long it took."""

    code: int
    failed: list[str]
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', metavar='NAME', help='these faults alone')
    parser.add_argument('--jobs', type=int, default=2, help='copies that are tested at a time (2)')
    parser.add_argument('--list', action='store_true', help='checks and prints the faults and plants none')
    args = parser.parse_args()
    unknown = set(args.only or ()) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f'--only {" ".join(sorted(unknown))}: no such fault; --list names all')
    faults = [fault for fault in FAULTS if not args.only or fault.name in args.only]
    stale = list(filter(None, map(problem, faults)))
    for line in stale:
        print(line, file=sys.stderr)
    if args.list or stale:
        for fault in faults:
            print(f'{fault.row:<4} {fault.name:<44} {fault.file}')
        return int(bool(stale))
    return run(faults, max(1, args.jobs))


def problem(fault: Fault, root: pathlib.Path = ROOT) -> str | None:
    """Why a fault can not be planted in the checkout `root`, in one line; None where it can."""
    path = root / fault.file
    count = path.read_text().count(fault.old) if path.is_file() else 0
    if count == 1:
        return None
    return (
        f'benchmarks/faults.py: {fault.name} is stale: its old text stands {count} times in {fault.file}, '
        'expected once; give the text as it is now'
    )


def run(faults: list[Fault], jobs: int) -> int:
    """Tests without and with each fault; prints the table and returns the exit code."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='mutants-') as folder, contextlib.ExitStack() as stack:
        copies: queue.Queue[Copy] = queue.Queue()
        for number in range(jobs):
            copies.put(Copy(pathlib.Path(folder) / str(number)))
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(jobs))

        def in_a_copy(fault: Fault | None, tests: list[str]) -> Outcome:
            copy = copies.get()
            try:
                with copy.planted(fault):
                    return copy.test(tests)
            finally:
                copies.put(copy)

        tests = sorted({fault.test for fault in faults})
        parts = [tests[len(tests) * i // jobs : len(tests) * (i + 1) // jobs] for i in range(jobs)]
        sound = list(pool.map(lambda part: in_a_copy(None, part), filter(None, parts)))
        broken = [line for outcome in sound for line in outcome.failed]
        say('\n'.join(['without a fault:', *broken]) if broken else 'without a fault all tests pass')
        found = []
        for fault, outcome in zip(faults, pool.map(lambda fault: in_a_copy(fault, [fault.test]), faults)):
            told = WORDS.get(outcome.code, 'did not run')
            if any(line.startswith(fault.test) for line in broken) or any(of.code not in WORDS for of in sound):
                told = 'proves nothing: its test fails without it'
            say(f'{fault.name}: {told} in {outcome.seconds:.0f} s')
            found.append((fault, told, outcome.seconds))
    print_table(found, time.monotonic() - began)
    return int(any(told != CAUGHT for _, told, _ in found))


class Copy:
    """A copy of the checkout's files in `folder`, for one fault at a time."""

    def __init__(self, folder: pathlib.Path):
        self._root = folder / 'checkout'
        listed = subprocess.run(
            ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in filter(None, listed.stdout.split('\0')):
            if (ROOT / name).is_file():
                target = self._root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, target)
        # An editable installation would give the data sets of the checkout it was made from.
        packages = folder / 'packages'
        packages.mkdir()
        (packages / 'mlvicx_jax_datasets').symlink_to(self._root / 'datasets')
        self._environment = os.environ | {
            'PYTHONPATH': os.pathsep.join(map(str, (self._root, packages))),
            # A .pyc is told by its second and size, which a fault may share with what it replaces.
            'PYTHONDONTWRITEBYTECODE': '1',
            'JAX_COMPILATION_CACHE_DIR': os.environ.get('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.jax_cache')),
        }

    @contextlib.contextmanager
    def planted(self, fault: Fault | None) -> Iterator[None]:
        """The copy has the fault, if it is one, and afterwards what it had before."""
        if fault is None:
            yield
            return
        path = self._root / fault.file
        sound = path.read_text()
        path.write_text(sound.replace(fault.old, fault.new))
        try:
            yield
        finally:
            path.write_text(sound)

    def test(self, tests: list[str]) -> Outcome:
        words = ['-n', '0', '-q', '-m', '', '-p', 'no:cacheprovider', '--tb=no', '-rfE']
        words += ['-x'] if len(tests) == 1 else []
        began, code, said = time.monotonic(), -1, ''
        with (
            tempfile.TemporaryDirectory(dir=self._root.parent) as scratch,
            contextlib.suppress(subprocess.TimeoutExpired),
        ):
            ended = subprocess.run(
                [sys.executable, '-m', 'pytest', *words, f'--basetemp={scratch}/tests', *tests],
                cwd=self._root,
                env=self._environment,
                timeout=TIMEOUT * max(1, len(tests) // 10),
                capture_output=True,
                text=True,
            )
            code, said = ended.returncode, ended.stdout
            if code not in WORDS:
                say(ended.stdout[-2000:] + ended.stderr[-1000:])
        return Outcome(code, re.findall(r'^(?:FAILED|ERROR) (.+)', said, re.M), time.monotonic() - began)


def print_table(found: list[tuple[Fault, str, float]], seconds: float) -> None:
    """The faults as a Markdown table, and how many of them were caught."""
    print('| row | fault | file | test | | s |\n|---|---|---|---|---|---|')
    for fault, told, took in found:
        test = fault.test.removeprefix('tests/').replace('|', '\\|')
        print(f'| {fault.row} | {fault.why} | `{fault.file}` | `{test}` | {told} | {took:.0f} |')
    caught = sum(told == CAUGHT for _, told, _ in found)
    print(f'\n{caught} of {len(found)} faults caught, in {seconds / 60:.0f} minutes.')


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == '__main__':
    sys.exit(main())
