"""What the frozen protocol costs beside the one pass over the images that it needs.

  python -m benchmarks.frozen [--images 112120] [--size 224] [--width 64] [--stored 256] [--out ...]

The pass: images/s of `tasks/linear.features` on phantoms, reading included; for `--images` of them
the time follows. The rest, for 4 fractions and 3 seeds: the three heads and all their figures with
intervals, measured on features and labels of ChestX-ray14's shape (normal features, of which each label
is a noisy threshold at its share among the release's images). The target is (pass + rest) / pass <= 1.3.
"""

import argparse
import pathlib
import statistics
import tempfile
import time
import types

import jax
import numpy as np
from scipy.special import ndtri

from configs import classify
from mlvicx_jax import methods, parallel
from mlvicx_jax.data import opening
from mlvicx_jax.data.fractions import SHARES as FRACTIONS
from mlvicx_jax.files import write_json
from mlvicx_jax.tasks import classify as classification
from mlvicx_jax.tasks import linear

SEEDS = 0, 1, 2
PARTS = {'train': 0.695, 'validation': 0.077, 'test': 0.228}  # of ChestX-ray14's official lists
# Shares of its images, Wang et al. 2017; the last is No Finding.
SHARES = (
    0.103,
    0.025,
    0.119,
    0.177,
    0.052,
    0.056,
    0.013,
    0.047,
    0.042,
    0.021,
    0.022,
    0.015,
    0.030,
    0.002,
    0.538,
)
IMAGES_OF_A_PATIENT = 3.6


class NoLog:
    """Takes what a run would write."""

    def write(self, step, numbers):
        pass


def images_per_second(config, rounds: int) -> list[float]:
    """Of the pass over phantoms, features deleted before each round."""
    with tempfile.TemporaryDirectory() as folder:
        config.data.data_dir = folder
        data = opening.open_set(config)
        config.method.labels = len(data.label_names)
        mesh, method = parallel.create_mesh(config.eval.batch_size), methods.create(config)
        variables, _ = jax.jit(method.init)(jax.random.key(0))
        encoder = {name: tree['encoder'] for name, tree in variables.items()}
        rates = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            linear.features(config, method.encoder, encoder, data, data.splits, mesh)
            rates.append(sum(map(len, data.splits.values())) / (time.perf_counter() - start))
            for path in (pathlib.Path(folder) / 'features').iterdir():
                path.unlink()
    return rates[1:]  # the first compiles


def fabricate(images: int, width: int):
    """{split: features}, {split: labels and patients} of ChestX-ray14's shape."""
    rng = np.random.default_rng(0)
    direction = rng.standard_normal((width, len(SHARES)))
    x, splits = {}, {}
    for name, share in PARTS.items():
        count = round(images * share)
        x[name] = rng.standard_normal((count, width), np.float32)
        strength = x[name] @ direction / width**0.5 + rng.standard_normal((count, len(SHARES)))
        labels = (strength > 2**0.5 * ndtri(1 - np.array(SHARES))).astype(np.uint8)
        patients = rng.integers(0, round(count / IMAGES_OF_A_PATIENT), count).astype(str)
        splits[name] = types.SimpleNamespace(labels=labels, patient_ids=patients)
    return x, splits


def seconds_of_heads(config, x, splits, fraction: float, seed: int) -> float:
    """All of one run but the pass."""
    config.seed = seed
    count = len(x['train'])
    chosen = np.random.default_rng(seed).permutation(count)[: round(fraction * count)]
    train = types.SimpleNamespace(
        labels=splits['train'].labels[chosen], patient_ids=splits['train'].patient_ids[chosen]
    )
    names = (*(f'finding {i}' for i in range(len(SHARES) - 1)), 'No Finding')
    start = time.perf_counter()
    *_, scores = linear.heads(
        config, x | {'train': x['train'][chosen]}, splits | {'train': train}, names, NoLog()
    )
    for head, of_test in scores['test'].items():
        classification.judge(
            names,
            splits['validation'].labels,
            scores['validation'][head],
            splits['test'].labels,
            of_test,
            splits['test'].patient_ids,
        )
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=112120)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--stored', type=int, default=256)
    parser.add_argument('--width', type=int, default=64)
    parser.add_argument('--patients', type=int, default=100, help='of the phantom of the pass')
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--out', type=pathlib.Path, default='workdirs/frozen.json')
    arguments = parser.parse_args()
    config = classify.get_config('dataset=phantom_cxr,protocol=frozen')
    config.data.options.patients = arguments.patients
    config.data.update(stored_size=arguments.stored, image_size=arguments.size)
    config.model.width = arguments.width
    rates = images_per_second(config, arguments.rounds)
    one_pass = arguments.images / statistics.median(rates)
    print(
        f'{parallel.device_name()}: {statistics.median(rates):.1f} images/s '
        f'({min(rates):.1f} to {max(rates):.1f}); {arguments.images} images take {one_pass:.0f} s',
        flush=True,
    )
    x, splits = fabricate(arguments.images, 8 * arguments.width)
    config = classify.get_config('dataset=nih_chestxray14,protocol=frozen')
    rest = {}
    for fraction in FRACTIONS:
        rest[fraction] = [seconds_of_heads(config, x, splits, fraction, seed) for seed in SEEDS]
        print(f'{fraction:.0%}: ' + ', '.join(f'{s:.0f} s' for s in rest[fraction]), flush=True)
    total = sum(map(sum, rest.values()))
    print(f'pass {one_pass:.0f} s, the rest {total:.0f} s: {1 + total / one_pass:.2f} times the pass')
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.out,
        {
            'device': parallel.device_name(),
            'images': arguments.images,
            'images_per_second': rates,
            'pass': one_pass,
            'rest': {str(f): s for f, s in rest.items()},
        },
    )


if __name__ == '__main__':
    main()
