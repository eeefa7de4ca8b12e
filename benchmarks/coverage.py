"""How often a nominal 95 % interval over patients holds the truth, and how often a nominal 5 % test errs.

  python -m benchmarks.coverage [--simulations 1000] [--compare 300] [--out workdirs/coverage.md]

Prints Markdown tables. Test sets are simulated: 60 or 160 patients of 1 to 4 films; a finding that
5, 15 or 50 % of the patients have, on all of their films; normal scores, half of whose variance the
films of a patient share, set apart so that the AUROC is 0.65, 0.85 or 0.95. In each cell: the share
of intervals that hold the truth, their mean width, and the share that is n/a.

`--simulations` test sets a cell for the intervals of mlvicx_jax.evaluation.intervals, `--compare` for
other methods on the same data: bootstrap over patients (percentiles; BCa; studentised on the log
odds), DeLong over patients on the log odds with normal quantiles and with Student's. Then the tests,
Dice and hits, and with `--compare` test sets the mean over 14 findings and data of other kinds. One
core, some minutes; no accelerator.
"""

import argparse
import pathlib

import numpy as np
from scipy import special, stats

from benchmarks.other_intervals import OTHERS, other_methods
from mlvicx_jax.evaluation import comparison, intervals
from mlvicx_jax.evaluation.statistics import paired_t_test
from mlvicx_jax.grid.tables import holm

PATIENTS, SHARES, AREAS = (60, 160), (0.05, 0.15, 0.5), (0.65, 0.85, 0.95)
BATCH = 25  # test sets that have the same numbers of films


def noise(rng, patient, k, rho=0.5):
    """Normal [n, k] of variance 1; films of a patient correlate by rho."""
    shared, own = rng.standard_normal((patient.max() + 1, k)), rng.standard_normal((len(patient), k))
    return np.sqrt(rho) * shared[patient] + np.sqrt(1 - rho) * own


def films(rng, patients, k, share, truth, rho=0.5, per_film=1.0, shape='normal', models=1):
    """Patient of each film [n], labels [n, k] and the scores [n, k] of each model.

    per_film: how far the films of a patient agree in having the finding; 1 is entirely.
    shape: of the scores: 'normal', 'wide' (positives of twice the width) or 'skew' (exponential).
    models: they share half of their noise.
    """
    patient = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    labels = noise(rng, patient, k, per_film) < stats.norm.ppf(share)
    common = noise(rng, patient, k, rho) if models > 1 else 0
    scores = []
    for _ in range(models):
        error = noise(rng, patient, k, rho)
        error = np.sqrt(0.5) * (common + error) if models > 1 else error
        if shape == 'skew':
            scores.append(-stats.norm.logsf(error) * np.where(labels, truth / (1 - truth), 1))
        else:
            width = np.where(labels, 2, 1) if shape == 'wide' else 1
            apart = np.sqrt(5 if shape == 'wide' else 2) * stats.norm.ppf(truth)
            scores.append(error * width + labels * apart)
    return patient, labels, scores


def precision_truth(share, truth):
    """Average precision of infinitely many normal scores."""
    x = np.linspace(-9, 12, 100_001)
    apart = np.sqrt(2) * stats.norm.ppf(truth)
    hits, alarms = share * stats.norm.sf(x - apart), (1 - share) * stats.norm.sf(x)
    return np.trapezoid(hits / np.maximum(hits + alarms, 1e-300) * stats.norm.pdf(x - apart), x)


class Tally:
    """Intervals of one cell."""

    def __init__(self):
        self.held, self.widths, self.count = 0, 0.0, 0
        self.there = 0

    def add(self, low, high, truth):
        low, high = np.ravel(low), np.ravel(high)
        there = ~np.isnan(low) & ~np.isnan(high)
        self.count += len(low)
        self.there += there.sum()
        self.held += np.sum(((low <= truth) & (truth <= high))[there])
        self.widths += np.sum((high - low)[there])

    def __str__(self):
        if not self.there:
            return 'n/a'
        missing = 1 - self.there / self.count
        return f'{self.held / self.there:.3f} ({self.widths / self.there:.2f}' + (
            f'; {missing:.0%})' if missing >= 0.005 else ')'
        )


def batches(simulations):
    """Sizes of the parts in which a cell is simulated."""
    return [min(BATCH, simulations - done) for done in range(0, simulations, BATCH)]


def cells():
    return [(patients, share, truth) for patients in PATIENTS for share in SHARES for truth in AREAS]


def name_of(cell):
    return f'{cell[0]}, {cell[1]:.0%}, {cell[2]}'


def areas(simulations, compare, seed=0):
    """Rows of AUROC, AUPRC and the other methods."""
    rows = []
    for place, (patients, share, truth) in enumerate(cells()):
        rng = np.random.default_rng([seed, place])
        tallies = {name: Tally() for name in ('AUROC', 'AUPRC', *OTHERS)}
        compared = 0
        for k in batches(simulations):
            patient, labels, (scores,) = films(rng, patients, k, share, truth)
            found = intervals.auroc_interval(labels, scores, patient)
            tallies['AUROC'].add(found.low, found.high, truth)
            found = intervals.auprc_interval(labels, scores, patient)
            tallies['AUPRC'].add(found.low, found.high, precision_truth(share, truth))
            if compared < compare:
                compared += k
                for name, ends in other_methods(rng, patient, labels, scores).items():
                    tallies[name].add(*ends, truth)
        rows.append([name_of((patients, share, truth)), *map(str, tallies.values())])
    return ['patients, prevalence, AUROC', *tallies], rows


OTHER_DATA = {
    'films of a patient differ (0.7)': {'per_film': 0.7},
    'scores of a patient alike (0.9)': {'rho': 0.9},
    'scores of a patient independent': {'rho': 0.0},
    'positives of twice the width': {'shape': 'wide'},
    'exponential scores': {'shape': 'skew'},
}


def other_data(simulations, seed=1):
    """Least coverage of AUROC over the cells, for data of other kinds."""
    rows = []
    for kind, given in OTHER_DATA.items():
        found = {}
        for place, cell in enumerate(cells()):
            rng, tally = np.random.default_rng([seed, place]), Tally()
            for k in batches(simulations):
                patient, labels, (scores,) = films(rng, cell[0], k, *cell[1:], **given)
                interval = intervals.auroc_interval(labels, scores, patient)
                tally.add(interval.low, interval.high, cell[2])
            found[name_of(cell)] = tally
        coverage = {name: tally.held / tally.there for name, tally in found.items()}
        least = min(coverage, key=coverage.get)
        rows.append([kind, f'{np.mean(list(coverage.values())):.3f}', f'{coverage[least]:.3f} ({least})'])
    return ['AUROC of other data', 'mean of the 18 cells', 'least'], rows


def findings(simulations, seed=2):
    """The mean AUROC over 14 findings that 1 to 50 % of the patients have."""
    shares = np.array([0.01, 0.02, 0.03, 0.05, 0.05, 0.08, 0.1, 0.1, 0.15, 0.15, 0.2, 0.3, 0.4, 0.5])
    rows = []
    for place, (patients, per_film, truth) in enumerate(
        (patients, per_film, truth) for patients in PATIENTS for per_film in (1.0, 0.7) for truth in AREAS
    ):
        rng, tally = np.random.default_rng([seed, place]), Tally()
        for _ in range(simulations):
            patient, labels, (error,) = films(rng, patients, 14, shares, 0.5, per_film=per_film)
            error = np.sqrt(0.5) * (error + noise(rng, patient, 1))  # findings of a film are alike
            scores = error + labels * np.sqrt(2) * stats.norm.ppf(truth)
            interval = intervals.mean_auroc_interval(labels, scores, patient)
            tally.add(interval.low, interval.high, truth)
        rows.append([f'{patients}, {"one label" if per_film == 1 else "films differ"}, {truth}', str(tally)])
    return ['patients, labels of a patient, AUROC', 'mean over 14 findings'], rows


def means(simulations, seed=3):
    """Dice, hits and their differences, of few and of many patients."""
    rows = []
    normal = np.random.default_rng(seed).standard_normal(1_000_000)
    for patients in (10, 20, *PATIENTS):
        for name, of_normal in (
            ('Dice, mean 0.77', lambda x: special.expit(1.6 + 1.2 * x)),
            ('Dice, mean 0.90', lambda x: special.expit(2.6 + x)),
            ('hits, 50 %', lambda x: (x < 0).astype(float)),
            ('hits, 95 %', lambda x: (x < stats.norm.ppf(0.95)).astype(float)),
        ):
            rng = np.random.default_rng([seed, len(rows)])
            tallies, truth = [Tally(), Tally()], of_normal(normal).mean()
            for k in batches(simulations):
                patient = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
                common = noise(rng, patient, k)
                a, b = (of_normal(np.sqrt(0.5) * (common + noise(rng, patient, k))) for _ in range(2))
                for tally, interval, target in (
                    (tallies[0], intervals.mean_interval(a, patient), truth),
                    (tallies[1], comparison.difference_interval(a, b, patient), 0),
                ):
                    tally.add(interval.low, interval.high, target)
            rows.append([f'{patients}, {name}', *map(str, tallies)])
    return ['patients, values', 'mean', 'difference of two methods'], rows


def comparisons(simulations, seed=4):
    """How often p < 0.05 where nothing differs, and coverage of a difference that is there."""
    rows = []
    for place, cell in enumerate(cells()):
        rng, wrong, tally = np.random.default_rng([seed, place]), [], Tally()
        for k in batches(simulations):
            patient, labels, (a, b) = films(rng, cell[0], k, *cell[1:], models=2)
            wrong.append(comparison.delong_test(labels, a, b, patient).p)
            weaker = b - labels * np.sqrt(2) * (stats.norm.ppf(cell[2]) - stats.norm.ppf(cell[2] - 0.1))
            test = comparison.delong_test(labels, a, weaker, patient)
            tally.add(test.low, test.high, 0.1)
        wrong = np.concatenate(wrong)
        wrong = np.mean(wrong[~np.isnan(wrong)] < 0.05)
        rows.append([name_of(cell), f'{wrong:.3f}', str(tally)])
    header = [
        'patients, prevalence, AUROC',
        'DeLong, p < 0.05 of equal models',
        'interval of a difference of 0.1',
    ]
    return header, rows


def runs(simulations, seed=5):
    """The paired t-test over runs, and the smallest of ten p after Holm's correction."""
    rows, rng = [], np.random.default_rng(seed)
    for count in (3, 5, 10):
        a, b = rng.normal(size=(2, count, simulations, 10))
        p = paired_t_test(a, b).p
        rows.append(
            [f'{count}', f'{np.mean(p < 0.05):.3f}', f'{np.mean([holm(of).min() < 0.05 for of in p]):.3f}']
        )
    return ['runs', 'paired t-test, p < 0.05', 'any of ten after Holm'], rows


def table(header, rows):
    return '\n'.join(f'| {" | ".join(row)} |' for row in (header, ['---'] * len(header), *rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--simulations', type=int, default=1000)
    parser.add_argument('--compare', type=int, default=300)
    parser.add_argument('--out', type=pathlib.Path, help='a file for the tables, too')
    args = parser.parse_args()
    many, some = args.simulations, args.compare
    error = lambda count: f'{np.sqrt(0.95 * 0.05 / count):.3f}'
    parts = [
        f'Coverage (mean width; n/a) of {many:,} test sets a cell, or of {some:,}, as above each table: '
        f'standard errors at 0.95 of {error(many)} and {error(some)}.'
    ]
    for count, found in (
        (f'{many:,}, other methods {some:,}', lambda: areas(many, some)),
        (f'{many:,}', lambda: comparisons(many)),
        (f'{many:,}', lambda: means(many)),
        (f'{many:,}', lambda: runs(many)),
        (f'{some:,}', lambda: findings(some)),
        (f'{some:,}', lambda: other_data(some)),
    ):
        parts.append(f'{count}:\n\n{table(*found())}')
        print(f'\n{parts[-1]}', flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text('\n\n'.join(parts) + '\n')


if __name__ == '__main__':
    main()
