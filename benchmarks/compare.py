"""All methods under one budget on the phantom: the quickstart of each, for several seeds.

  python -m benchmarks.compare --out=workdirs/compare [--methods byol simsiam] [--seeds 0 1 2] [--jobs 2] \
      [--config.FIELD=VALUE ...]

Every run is `main.py --config=configs/quickstart.py:METHOD` in `OUT/METHOD/seed<N>`, with flags of
its own for one of `CONTROLS`: a finished one of the same recipe and options is kept, an unfinished
one goes on. `--jobs` runs share the cores evenly. Prints a Markdown table and writes it with the
numbers of every run to `OUT/compare.json`. Nothing is selected: the last step's encoder is read,
once.

Intervals are 95 % t-intervals over seeds; the difference to MLVICX is paired by seed, with the p-value
of a paired t-test, not corrected for the number of methods.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import queue
import subprocess
import sys

import numpy as np
from scipy import stats

from configs.quickstart import METHOD as METHODS
from configs.quickstart import get_config
from mlvicx_jax.files import write_json
from mlvicx_jax.run.record import Run

ROOT = pathlib.Path(__file__).parents[1]
READINGS = (
    'probe/auroc',
    'probe/auroc_init',
    'probe/auroc_init_uncalibrated',
    'probe/auroc_pixels',
    'knn/auroc',
    'probe/gain',
    'probe/gain_low',
)
# What tells a method's parts from its rival's: (recipe, flags).
CONTROLS = {
    'mlvicx_context': ('mlvicx', ('--config.model.context=True',)),
    'mlvicx_global': ('mlvicx', ('--config.method.loss_heads=global',)),
    'mlvicx_multi_level': ('mlvicx', ('--config.method.loss_heads=multi_level',)),
    'vicreg_context': ('vicreg', ('--config.model.context=True', '--config.model.zero_init_residual=False')),
    'vicreg_full_residual': ('vicreg', ('--config.model.zero_init_residual=False',)),
}


def finished(workdir: pathlib.Path, made_of: dict) -> bool:
    """Whether a run is there and at its end; one of another recipe or other options is refused."""
    if not (workdir / 'results.json').exists():
        return False
    if json.loads((workdir / 'made_of.json').read_text()) != made_of:
        sys.exit(
            f'error: {workdir} was made with another recipe or other options; give another --out, '
            'or delete it to have it made again'
        )
    return True


def run(workdir: pathlib.Path, method: str, seed: int, overrides: list[str], cores: set[int]) -> None:
    """One run to its end, on some of the cores; its output is in `output.txt` of its workdir."""
    recipe, flags = CONTROLS.get(method, (method, ()))
    with open(workdir / 'output.txt', 'a') as output:
        subprocess.run(
            [
                sys.executable,
                ROOT / 'main.py',
                f'--config={ROOT}/configs/quickstart.py:{recipe}',
                f'--workdir={workdir}',
                *flags,
                *overrides,
                f'--config.seed={seed}',
            ],
            check=True,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )


def run_all(out, methods, seeds, jobs, overrides) -> None:
    made_of = {
        method: {
            'recipe': json.loads(get_config(recipe).to_json_best_effort()),
            'options': [*flags, *overrides],
        }
        for method in methods
        for recipe, flags in [CONTROLS.get(method, (method, ()))]
    }
    free = queue.SimpleQueue()
    for cores in np.array_split(sorted(os.sched_getaffinity(0)), jobs):
        free.put({int(core) for core in cores})

    def work(method, seed):
        cores = free.get()
        try:
            workdir = out / method / f'seed{seed}'
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(workdir / 'made_of.json', made_of[method])
            run(workdir, method, seed, overrides, cores)
        finally:
            free.put(cores)
        print(f'{method} seed {seed} done', flush=True)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for done in [
            pool.submit(work, method, seed)
            for method in methods
            for seed in seeds
            if not finished(out / method / f'seed{seed}', made_of[method])
        ]:
            done.result()


def read(workdir: pathlib.Path) -> dict[str, float]:
    """What a finished run ended with, and the loss it began with."""
    run = Run.open(workdir)
    results, (_, losses) = run.ended, run.curve('train/loss')
    statistics = {
        kind: min(value for name, value in results.items() if name.startswith(f'train/{kind}/'))
        for kind in ('std', 'rankme')
    }
    return (
        {name: results[name] for name in READINGS}
        | statistics
        | {'first_loss': losses[0], 'loss': losses[-1], 'device': results['device']}
    )


def interval(values: np.ndarray) -> str:
    """Mean with its 95 % t-interval."""
    if len(values) < 2:
        return f'{values[0]:.3f}'
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f'{values.mean():.3f} ± {half:.3f}'


def table(runs: dict[str, list[dict]]) -> str:
    """Markdown, a row for each method, in the order of its mean probe."""
    lines = [
        '| method | probe AUROC | minus MLVICX (p) | initial: calibrated, not | pixels | '
        'above the best of these: mean, runs whose interval excludes 0 | kNN | '
        'loss, first to last logged | least std | least RankMe |',
        '|---|---|---|---|---|---|---|---|---|---|',
    ]
    column = lambda method, name: np.array([run[name] for run in runs[method]])
    for method in sorted(runs, key=lambda m: -column(m, 'probe/auroc').mean()):
        probe, difference = column(method, 'probe/auroc'), ''
        if method != 'mlvicx' and 'mlvicx' in runs:
            pairs = probe - column('mlvicx', 'probe/auroc')
            difference = interval(pairs)
            if len(pairs) > 1:
                difference += f' ({stats.ttest_1samp(pairs, 0).pvalue:.3f})'
        initial = [column(method, name).mean() for name in READINGS[1:4]]
        gain, sure = column(method, 'probe/gain'), np.sum(column(method, 'probe/gain_low') > 0)
        lines.append(
            f'| {method} | {interval(probe)} | {difference} | {initial[0]:.3f}, {initial[1]:.3f} | '
            f'{initial[2]:.3f} | {interval(gain)}, {sure} of {len(gain)} | '
            f'{interval(column(method, "knn/auroc"))} | '
            f'{column(method, "first_loss").mean():.3g} to {column(method, "loss").mean():.3g} | '
            f'{column(method, "std").min():.2g} | {column(method, "rankme").min():.3g} |'
        )
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', required=True, type=pathlib.Path)
    parser.add_argument('--methods', nargs='+', choices=[*METHODS, *CONTROLS], default=list(METHODS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=1)
    arguments, overrides = parser.parse_known_args()
    out = arguments.out.absolute()
    run_all(out, arguments.methods, arguments.seeds, arguments.jobs, overrides)
    runs = {
        method: [read(out / method / f'seed{seed}') for seed in arguments.seeds] for method in arguments.methods
    }
    text = table(runs)
    write_json(
        out / 'compare.json',
        {'overrides': overrides, 'seeds': arguments.seeds, 'runs': runs, 'table': text.splitlines()},
    )
    print(text)


if __name__ == '__main__':
    main()
