"""What preparing and reading cost: images per second and core, and memory against size.

  python -m benchmarks.prepare [--images 1000 10000] [--large]

Prints a Markdown table of

- preparing 1024 x 1024 PNGs (phantom films with grain, as large as NIH's files) at 256 pixels,
- reading and decoding the prepared images,
- the phantom at several sizes, each in a process of its own, with that process's peak memory;
  --large adds 100,000 images.

Rates are per second of CPU time, all threads and the system's part included, so they say the same
on a busy machine as on an idle one, but for what neighbours do to caches and clocks; wall time is
given beside them.
"""

import argparse
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np

from mlvicx_jax.data.prepare import prepare
from mlvicx_jax.data.source import open_dataset
from mlvicx_jax_datasets import radiograph
from mlvicx_jax_datasets.phantom_cxr import render

IMAGES_PER_PATIENT = 2.39  # of the phantom, on average
FILMS = 12  # different ones; the release repeats them under other names


def write_films(folder: pathlib.Path, count: int) -> float:
    """Writes `count` PNGs of 1024 x 1024; returns their mean size in KB."""
    rng, films = np.random.default_rng(0), []
    for patient in range(FILMS):
        film = render.render(0, patient, 0, 256).image
        film = cv2.resize(film, (1024, 1024), interpolation=cv2.INTER_CUBIC)
        grain = rng.normal(0, 1, film.shape)
        films.append(radiograph.encode_png(np.clip(film + grain, 0, 255).astype(np.uint8)))
    for number in range(count):
        (folder / f'{number:05}.png').write_bytes(films[number % FILMS])
    return sum(map(len, films)) / len(films) / 1000


def timed(work) -> tuple[float, float]:
    """Runs `work`; CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def prepare_films(root: pathlib.Path, count: int) -> list[tuple]:
    """Rows for preparing films and for reading them."""
    (root / 'films').mkdir()
    kilobytes = write_films(root / 'films', count)
    options = {'size': 256, 'title': 'films'}
    cpu, wall = timed(lambda: prepare('image_folder_cxr', root / 'data', root / 'films', options))
    rows = [(f'prepare {count} PNGs of 1024 x 1024 ({kilobytes:.0f} KB)', count, cpu, wall, '')]
    data = open_dataset('image_folder_cxr', root / 'data', None, options)
    split = data.splits['train']

    def read():
        for record in split.records:
            radiograph.decode_image(split.source[record]['image'], 'record')

    read()  # files are in the system's memory from here on
    cpu, wall = timed(read)
    rows.append(('read and decode at 256', len(split), cpu, wall, ''))
    return rows


def prepare_phantom(root: pathlib.Path, count: int) -> tuple:
    """The row of a phantom of about `count` images, prepared by a process of its own."""
    patients = round(count / IMAGES_PER_PATIENT)
    start = time.perf_counter()
    process = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'mlvicx_jax.prepare',
            '--dataset',
            'phantom_cxr',
            '--data_dir',
            str(root / 'data'),
            '--option',
            f'patients={patients}',
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f'preparing the phantom failed with status {status}')
    images = sum(int(line.split()[1]) for line in printed.splitlines() if ' images' in line)
    memory = usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024) / 1e6
    return (
        f'phantom of {images} images',
        images,
        usage.ru_utime + usage.ru_stime,
        time.perf_counter() - start,
        f'{memory:.0f} MB',
    )


def device() -> str:
    names = (
        [line.partition(':')[2].strip() for line in open('/proc/cpuinfo') if line.startswith('model name')]
        if os.path.exists('/proc/cpuinfo')
        else []
    )
    return f'{os.cpu_count()} x {names[0] if names else platform.processor()}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--films', type=int, default=1000, help='how many 1024 x 1024 PNGs')
    parser.add_argument('--images', type=int, nargs='*', default=[1000, 10000], help='sizes of the phantom')
    parser.add_argument('--large', action='store_true', help='also a phantom of 100,000 images')
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows = prepare_films(pathlib.Path(folder), args.films)
        for count in [*args.images, *([100000] if args.large else [])]:
            rows.append(prepare_phantom(pathlib.Path(folder), count))
    print(f'{device()}, load {load:.1f} at the start\n')
    print('| work | images/s per core | wall s | peak memory |\n|---|---|---|---|')
    for name, count, cpu, wall, memory in rows:
        print(f'| {name} | {count / cpu:,.0f} | {wall:.1f} | {memory} |')


if __name__ == '__main__':
    main()
