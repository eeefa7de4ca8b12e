"""Does pretraining learn? Runs a config for several seeds and probes what came out of it.

  python -m benchmarks.learning --config=configs/quickstart.py --seeds 0 1 2 --out=workdirs/learning \
      [--config.FIELD=VALUE ...]

For every seed: `main.py` in `OUT/seed<N>` (a finished run is kept, an unfinished one goes on), then
linear probes on the data set's held-out test patients, side by side: the pretrained
encoder, the same encoder before training (BatchNorm calibrated on training images, and as it was
initialised), and raw 32 x 32 pixels. Prints a Markdown table and writes it with the numbers of
every seed to `OUT/learning.json`.
"""

import argparse
import pathlib
import subprocess
import sys

import jax
import numpy as np
from ml_collections import ConfigDict

from mlvicx_jax import methods, parallel
from mlvicx_jax.data.opening import open_data
from mlvicx_jax.data.questions import ask
from mlvicx_jax.data.source import RadiographSet
from mlvicx_jax.evaluation import baselines, frozen, metrics
from mlvicx_jax.evaluation.metrics import auroc
from mlvicx_jax.evaluation.probe import linear_probe
from mlvicx_jax.files import write_json
from mlvicx_jax.run.record import Run


def questions(data) -> dict[str, RadiographSet]:
    """{name: the images that it is asked of, with it as their one label}.

    On ChestX-ray14: any finding, AP view, male sex, and one finding inside the images of another;
    on every other set, each finding by itself.
    """
    if data.name == 'nih_chestxray14':
        return {name: ask(data, (name,)) for name in ('any finding', 'AP view', 'male')} | {
            'Edema inside Pneumonia': ask(data, ('Edema',), 'Pneumonia')
        }
    return {name: ask(data, (name,)) for name in data.label_names if name != metrics.NO_FINDING}


def probe_all(features: dict[str, np.ndarray], data) -> dict[str, float]:
    """AUROC on the test split of a linear probe for each question; features [n, d] of each split."""
    result = {}
    for name, asked in questions(data).items():
        train, test = asked.splits['train'], asked.splits['test']
        x = {
            split: rows[np.isin(data.splits[split].image_ids, asked.splits[split].image_ids)]
            for split, rows in features.items()
        }
        scores = linear_probe(x['train'], train.labels, train.patient_ids, x['test'])
        result[name] = float(auroc(test.labels, scores)[0])
    return result


def evaluate(workdir) -> dict[str, dict[str, float]]:
    """{'pretrained' | 'calibrated' | 'uncalibrated' | 'pixels': {question: AUROC}} of a run."""
    run = Run.open(workdir)
    config = ConfigDict(run.config)
    mesh = parallel.create_mesh(config.batch_size)
    data, method = open_data(config), methods.create(config)
    splits = {name: data.splits[name] for name in ('train', 'test')}
    trained = run.encoder()
    variables, _ = jax.jit(method.init)(jax.random.key(config.seed))
    initial = frozen.initial_readings(
        method.encoder,
        {kind: variables[kind]['encoder'] for kind in variables},
        splits['train'],
        config.data.image_size,
        config.batch_size,
        mesh,
    )

    def probe(network, variables, size, output):
        return probe_all(
            {
                name: frozen.extract(network, variables, split, size, config.eval.batch_size, mesh, output)
                for name, split in splits.items()
            },
            data,
        )

    found = {
        name: probe(method.encoder, encoder, config.data.image_size, config.eval.readout)
        for name, encoder in ({'pretrained': trained} | initial).items()
    }
    found['pixels'] = probe(baselines.Pixels(), {}, baselines.PIXELS, 'pixels')
    for values in found.values():
        values['mean'] = float(np.mean(list(values.values())))
    return found


def table(seeds: list[dict]) -> str:
    """Markdown: mean over seeds (and range) of each question, for the four things probed."""
    lines = [
        '| test AUROC | pretrained | initial, calibrated | initial, uncalibrated | '
        f'{baselines.PIXELS} x {baselines.PIXELS} pixels | gain over initial, each seed |',
        '|---|---|---|---|---|---|',
    ]
    for question in seeds[0]['pretrained']:
        values = {
            name: np.array([seed[name][question] for seed in seeds])
            for name in ('pretrained', 'calibrated', 'uncalibrated', 'pixels')
        }
        cells = [f'{v.mean():.3f} ({v.min():.3f} to {v.max():.3f})' for v in values.values()]
        gain = ' '.join(f'{x:+.3f}' for x in values['pretrained'] - values['calibrated'])
        lines.append(f'| {question} | {" | ".join(cells)} | {gain} |')
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', required=True)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--out', required=True, type=pathlib.Path)
    arguments, overrides = parser.parse_known_args()
    root = pathlib.Path(__file__).parents[1]
    seeds = []
    for seed in arguments.seeds:
        workdir = arguments.out / f'seed{seed}'
        subprocess.run(
            [
                sys.executable,
                root / 'main.py',
                f'--config={arguments.config}',
                f'--workdir={workdir}',
                *overrides,
                f'--config.seed={seed}',
            ],
            check=True,
        )
        seeds.append(evaluate(workdir))
    text = table(seeds)
    write_json(
        arguments.out / 'learning.json',
        {
            'config': arguments.config,
            'overrides': overrides,
            'seeds': arguments.seeds,
            'device': parallel.device_name(),
            'results': seeds,
            'table': text.splitlines(),
        },
    )
    print(text)


if __name__ == '__main__':
    main()
