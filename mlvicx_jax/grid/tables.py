"""The paper's Tables I to IV from finished runs: ours over seeds, the paper's numbers beside them.

Rows are methods. I: AUROC of each class, a block for each set, protocol and share of the labels;
II: sets and shares; III: Dice, protocols x shares; IV: the loss ablation. A number that is not
available in one run is not available over runs; a mean over fewer labels is marked; runs that were
judged on different images are refused, not mixed.
"""

import csv
import dataclasses
import functools
import hashlib
import importlib.resources
import io
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np

from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import statistics
from mlvicx_jax.evaluation.metrics import NO_FINDING
from mlvicx_jax.files import write_text
from mlvicx_jax_datasets import nih_lists

PAPER = json.loads(importlib.resources.files(__package__).joinpath('paper_tables.json').read_text())
NIH = 'nih_chestxray14'
TITLES = {
    'table1': 'Table I: AUROC of each class',
    'table2': 'Table II: sets and label fractions',
    'table3': 'Table III: segmentation',
    'table4': 'Table IV: ablation of the losses',
}
OVER_MASKS = {
    'dice_positives': 'Dice over the images that show it',
    'dice_all': 'Dice over all images, 1 where both masks are empty',
    'iou_positives': 'IoU over the images that show it',
}


class Cell(NamedTuple):
    """What one downstream run is of: its place in the tables. `set` is the grid's name of it."""

    set: str
    task: str
    protocol: str
    share: float
    method: str
    seed: int


class Run(NamedTuple):
    """A finished run: its folder, results.json, and the labels or structures it was judged on.

    `judged` is the SHA-256 of the test images' ids and their truth.
    """

    folder: str
    results: dict
    labels: tuple[str, ...]
    judged: str


@dataclasses.dataclass
class Number:
    """One place of a table.

    Attributes:
        runs: of each seed that has run.
        values: read from them; NaN is not available.
        wanted: how many seeds the grid asks for.
        absent: of each seed, the labels that a mean does not hold.
        paper: (number, standard deviation or None) of the paper, or None.
        test: against the reference method, over the seeds of both, or None.
        p_holm: its p, adjusted for all tests of the table.
    """

    runs: dict[int, Run]
    values: dict[int, float]
    wanted: int
    absent: dict[int, tuple[str, ...]]
    paper: tuple[float, float | None] | None
    test: statistics.Comparison | None = None
    p_holm: float = math.nan

    @functools.cached_property
    def estimate(self) -> statistics.Estimate:
        """Mean over the seeds and its interval; NaN where one of them has no value."""
        if not self.values:
            return statistics.Estimate(math.nan, math.nan, math.nan)
        return statistics.t_interval(list(self.values.values()))

    @property
    def std(self) -> float:
        """Over the seeds, with 1 / (n - 1)."""
        values = list(self.values.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    @property
    def missing(self) -> int:
        """In how many seeds it is not available."""
        return sum(math.isnan(value) for value in self.values.values())


class Column(NamedTuple):
    """A column of a block: which runs, what is read from one, what the paper has for a method."""

    name: str
    protocol: str
    share: float
    value: Callable[[Run], float | None]
    paper: Callable[[str], tuple[float, float | None] | None]
    absent: Callable[[Run], Sequence[str]]
    tested: bool


class Block(NamedTuple):
    """Rows of one frame: the same test images throughout."""

    title: str
    set: str
    quantity: str
    rows: dict[str, str]  # name of the row: method of the grid
    columns: list[Column]
    numbers: dict[tuple[str, str], Number]  # by (row, name of the column)
    notes: list[str]


class Table(NamedTuple):
    """A table of the paper in our numbers, and what they are of."""

    name: str
    reference: str
    blocks: list[Block]
    notes: list[str]
    sets: list[dict[str, str]]
    encoders: list[dict[str, str]]
    parts: list[dict[str, str]]

    @property
    def title(self) -> str:
        return TITLES[self.name]


def read_run(folder: str | os.PathLike, cell: Cell) -> Run:
    """Reads results.json and predictions.npz of a finished run.

    Raises:
        UserError: a file or field is missing or damaged, or the run is of another cell.
    """
    folder = pathlib.Path(folder)
    truth = 'test_labels' if cell.task == 'classify' else 'test_has'
    try:
        results = json.loads((folder / 'results.json').read_text())
        with np.load(folder / 'predictions.npz') as arrays:
            names = arrays['label_names' if cell.task == 'classify' else 'structures'].tolist()
            judged = hashlib.sha256(
                json.dumps(
                    [names, arrays['test_image_ids'].tolist(), np.asarray(arrays[truth], np.uint8).tolist()]
                ).encode()
            ).hexdigest()
        found = {name: results[name] for name in ('protocol', 'share', 'seed')}
        needed = (
            'dataset',
            'labelled_images',
            'labelled_hash',
            'init',
            'init_proof',
            'context',
            'data/test_hash',
            'data/validation_hash',
            'test',
        )
        for name in needed + (('primary',) if cell.task == 'classify' else ()):
            results[name]
    except Exception as error:  # NumPy's zip files raise many kinds when damaged
        raise UserError(
            f'{folder}: no finished run can be read there ({type(error).__name__}: '
            f'{error}); delete the folder to run it again'
        ) from error
    for name, value in found.items():
        if value != getattr(cell, name):
            raise UserError(
                f'{folder}: results.json has {name} {value!r}, expected '
                f'{getattr(cell, name)!r}; delete the folder to run it again'
            )
    return Run(os.fspath(folder), results, tuple(names), judged)


def fill(
    cells: Iterable[Cell], runs: Mapping[Cell, Run], reference: str, ablation: Mapping[str, str]
) -> list[Table]:
    """The tables that the cells make up; those without a run yet are left blank.

    Args:
        cells: all that the grid asks for, in the order of its rows and columns.
        runs: those that have finished.
        reference: the method against which the others are tested (paired t-test over seeds).
        ablation: row of the paper's Table IV to the method that fills it. But for that of the row
            'both', these methods are in no other table.

    Raises:
        UserError: runs that belong together were judged on different images, saw different labelled
            parts for one seed, or began with different encoders.
    """
    cells = list(cells)
    refuse_mixtures(runs)
    in_ablation = {method for row, method in ablation.items() if row != 'both'}
    methods = _unique(cell.method for cell in cells if cell.method not in in_ablation)
    rows = {method: method for method in methods}
    ablated = {row: method for row, method in ablation.items() if any(cell.method == method for cell in cells)}
    made = {
        'classify': {'table1': (_table1, rows, reference), 'table2': (_table2, rows, reference)},
        'segment': {'table3': (_table3, rows, reference)},
    }
    if len(ablated) > 1:
        made['classify']['table4'] = (_table4, ablated, 'both')
    blocks = {name: [] for name in TITLES}
    for name in _unique(cell.set for cell in cells):
        of_set = [cell for cell in cells if cell.set == name]
        for table, (frames, of, against) in made[of_set[0].task].items():
            ran = {cell: runs[cell] for cell in of_set if cell in runs and cell.method in of.values()}
            if ran:
                blocks[table] += [
                    _block(title, quantity, of, columns, against, of_set, ran)
                    for title, quantity, columns in frames(of_set, ran)
                ]
    return [
        _table(name, 'both' if name == 'table4' else reference, some, runs)
        for name, some in blocks.items()
        if some
    ]


def refuse_mixtures(runs: Mapping[Cell, Run]) -> None:
    """Raises a UserError where numbers that stand side by side are not of the same images.

    Of a set all runs must share data set, validation and test images, labels and truth; for one
    seed and share also the labelled part, which the paired test rests on. Of a method and a seed
    all must have begun with the same encoder.
    """
    frames: dict[tuple, tuple] = {}
    for cell, run in runs.items():
        results = run.results
        claims = {
            ('set', cell.set): {
                'data set': results['dataset'],
                'labels': run.labels,
                'test images (data/test_hash)': results['data/test_hash'],
                'validation images (data/validation_hash)': results['data/validation_hash'],
                'truth of the test images': run.judged,
            },
            ('labelled part of', cell.set, cell.share, cell.seed): {
                'images (labelled_hash)': results['labelled_hash']
            },
            ('method', cell.method, cell.seed): {
                'context bottlenecks (context)': results['context'],
                'encoder (init_proof)': (results['init_proof'] or {}).get('sha256'),
            },
        }
        for place, claim in claims.items():
            first, folder = frames.setdefault(place, (claim, run.folder))
            for what, value in claim.items():
                if value != first[what]:
                    raise UserError(
                        f'{" ".join(map(str, place))}: {run.folder} has other {what} than '
                        f'{folder}: {value} and {first[what]}. They can not stand in one table: '
                        'delete the folder that is out of date, or give the grid a new --workdir'
                    )


def holm(p: Sequence[float]) -> np.ndarray:
    """P-values adjusted for their number, NaN left out: Holm, Scandinavian J. Statistics 6 (1979).

    The k-th smallest of m, times m - k + 1, made monotone and cut at 1.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p)  # NaN last
    m = int(np.sum(~np.isnan(p)))
    adjusted = np.full(len(p), np.nan)
    adjusted[order[:m]] = np.minimum(1, np.maximum.accumulate(p[order[:m]] * np.arange(m, 0, -1)))
    return adjusted


def _head(run: Run) -> dict:
    return run.results['test'][run.results['primary']]


def _findings(run: Run) -> list[str]:
    return sorted(label for label in run.labels if label != NO_FINDING)


def _means(run: Run) -> list[str]:
    """'mean14', 'mean15': over the findings first, then with No Finding, where that is a label."""
    return sorted(_head(run)['means'], key=lambda name: int(name.removeprefix('mean')))


def _mean_column(run: Run, protocol: str, share: float, name: str, paper: Callable, also: str):
    """A column for one of `_means`. The paper's mean holds No Finding, so it stands at the last."""
    means = _means(run)
    within = _findings(run) if name == means[0] else run.labels
    return Column(
        also or name,
        protocol,
        share,
        lambda run: _head(run)['means'][name],
        paper if name == means[-1] else _no_paper,
        lambda run: [label for label in _head(run)['not_available'] if label in within],
        tested=name == means[0],
    )


def _table1(cells, runs):
    run = next(iter(runs.values()))
    if len(_findings(run)) < 2:
        return
    for protocol, share in _unique((cell.protocol, cell.share) for cell in cells):

        def paper(method, label, protocol=protocol, share=share):
            return _paper(run, 'table1', protocol == 'finetune' and (str(share), method, label))

        columns = [
            Column(
                label,
                protocol,
                share,
                lambda run, label=label: _head(run)['auroc'][label],
                functools.partial(paper, label=label),
                _nothing_absent,
                False,
            )
            for label in (*_findings(run), *(name for name in run.labels if name == NO_FINDING))
        ]
        columns += [
            _mean_column(run, protocol, share, name, functools.partial(paper, label='Mean'), '')
            for name in _means(run)
        ]
        yield f'{protocol}, {_percent(share)} of the labels', 'AUROC', columns


def _table2(cells, runs):
    run = next(iter(runs.values()))
    shares = _unique(cell.share for cell in cells)
    findings = _findings(run)
    for protocol in _unique(cell.protocol for cell in cells):

        def paper(method, share, protocol=protocol):
            if run.results['dataset'] == NIH and protocol == 'finetune':
                return _paper(run, 'table1', (str(share), method, 'Mean'))
            return _paper(run, 'table2', (run.results['dataset'], protocol, str(share), method))

        if len(findings) > 1:
            for name in _means(run):
                yield (
                    f'{protocol}: AUROC, {name}',
                    name,
                    [
                        _mean_column(
                            run, protocol, share, name, functools.partial(paper, share=share), _percent(share)
                        )
                        for share in shares
                    ],
                )
            continue
        label = findings[0]
        for metric, tested in (('accuracy', False), ('auroc', True), ('auprc', False)):
            yield (
                f'{protocol}: {metric} of {label}',
                metric,
                [
                    Column(
                        _percent(share),
                        protocol,
                        share,
                        lambda run, metric=metric: _head(run)[metric][label],
                        functools.partial(paper, share=share) if metric == 'accuracy' else _no_paper,
                        _nothing_absent,
                        tested,
                    )
                    for share in shares
                ],
            )


def _table3(cells, runs):
    run = next(iter(runs.values()))
    for structure in run.labels:
        for quantity, said in OVER_MASKS.items():
            columns = []
            for protocol, share in _unique((cell.protocol, cell.share) for cell in cells):
                columns.append(
                    Column(
                        f'{protocol} {_percent(share)}',
                        protocol,
                        share,
                        lambda run, structure=structure, quantity=quantity: run.results['test'][structure][
                            quantity
                        ],
                        lambda method, quantity=quantity, protocol=protocol, share=share: _paper(
                            run, 'table3', quantity.startswith('dice') and (method, protocol, str(share))
                        ),
                        _nothing_absent,
                        quantity == 'dice_positives',
                    )
                )
            yield f'{structure}: {said}', f'{structure} {quantity}', columns


def _table4(cells, runs):
    run = next(iter(runs.values()))
    if len(_findings(run)) < 2:
        return
    fractions = PAPER['table4']['fractions']
    for name in _means(run):
        columns = []
        for protocol, share in _unique((cell.protocol, cell.share) for cell in cells):

            def paper(row, protocol=protocol, share=share):
                return _paper(
                    run, 'table4', str(share) in fractions and (protocol, row, fractions.index(str(share)))
                )

            columns.append(_mean_column(run, protocol, share, name, paper, f'{protocol} {_percent(share)}'))
        yield f'AUROC, {name}', name, columns


def _no_paper(method):
    return None


def _nothing_absent(run):
    return ()


def _paper(run: Run, table: str, path) -> tuple[float, float | None] | None:
    """The paper's number at a path of keys, where its test images and labels are what ours are."""
    facts = PAPER[table]
    dataset = run.results['dataset']
    if not path or dataset != facts.get('dataset', dataset) or not comparable(run):
        return None
    value: Any = facts['values']
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError):
            return None
    return tuple(value) if isinstance(value, list) else (value, None)


def comparable(run: Run) -> bool:
    """Whether the paper's numbers may stand beside a run's.

    For ChestX-ray14, whose split is official: all 14 findings and No Finding, on the official test
    images. The paper does not say how it split its other sets, so there the name alone decides.
    """
    if run.results['dataset'] != NIH:
        return True
    findings = set(PAPER['table1']['values']['1.0']['mlvicx']) - {'Mean'}
    return (
        set(run.labels) == findings | {NO_FINDING}
        and run.results['data/test_hash'] == nih_lists.OFFICIAL['test']
    )


def _block(title, quantity, rows, columns, reference, cells, runs) -> Block:
    wanted = len(_unique(cell.seed for cell in cells))
    at: dict[tuple, dict[int, Run]] = {}
    for cell, run in runs.items():
        at.setdefault((cell.protocol, cell.share, cell.method), {})[cell.seed] = run
    numbers, notes = {}, []
    for row, method in rows.items():
        for column in columns:
            of_seed = dict(sorted(at.get((column.protocol, column.share, method), {}).items()))
            values = {seed: _or_nan(column.value(run)) for seed, run in of_seed.items()}
            absent = {seed: tuple(column.absent(run)) for seed, run in of_seed.items()}
            numbers[row, column.name] = Number(of_seed, values, wanted, absent, column.paper(row))
            notes += [
                f'{row}, {column.name}, seed {seed}: without {", ".join(labels)}, not available'
                for seed, labels in absent.items()
                if labels
            ]
    for column in columns:
        against = numbers.get((reference, column.name))
        for row in rows if column.tested and against else ():
            if row != reference:
                _compare(numbers[row, column.name], against)
    name = cells[0].set
    return Block(f'{name}, {title}', name, quantity, dict(rows), columns, numbers, notes)


def _compare(number: Number, against: Number) -> None:
    """Tests over the seeds of both; not where one is not available or is a mean of other labels."""
    seeds = [seed for seed in number.values if seed in against.values]
    if len(seeds) > 1 and all(number.absent[seed] == against.absent[seed] for seed in seeds):
        number.test = statistics.paired_t_test(
            [number.values[seed] for seed in seeds], [against.values[seed] for seed in seeds]
        )


def _table(name, reference, blocks, runs) -> Table:
    tested = [
        number
        for block in blocks
        for number in block.numbers.values()
        if number.test and not math.isnan(number.test.p)
    ]
    for number, p in zip(tested, holm([number.test.p for number in tested])):
        number.p_holm = float(p)
    sets = {block.set for block in blocks}
    methods = {method for block in blocks for method in block.rows.values()}
    used = {cell: run for cell, run in runs.items() if cell.set in sets and cell.method in methods}
    notes = [
        "Mean ± standard deviation over seeds, [95 % interval of the mean over seeds, Student's "
        "t]. Intervals over patients are in each run's results.json.",
        f'p: paired t-test over seeds against {reference}; this table makes {len(tested)} tests, '
        '"Holm" is p adjusted for that.',
    ]
    if any(number.paper for block in blocks for number in block.numbers.values()):
        notes.append(
            f'"paper": {PAPER["source"]}.'
            + (
                ' Its Mean behaves like a mean of 15 labels with No Finding.'
                if name != 'table3'
                else ' It does not state its rule for empty masks, so it stands beside both kinds of Dice.'
            )
        )
        significance = PAPER['significance']
        if name == 'table1':
            notes.append(
                f"The paper's test, {significance['test']}: "
                + ', '.join(f'p {p:.3g} at {_percent(float(share))}' for share, p in significance['p'].items())
                + '.'
            )
        if name == 'table4':
            notes.append(f"The paper's rows: {PAPER['table4']['note']}")
    other = sorted({cell.set for cell, run in used.items() if not comparable(run)})
    if other:
        notes.append(
            f'{", ".join(other)}: not the labels or not the official test images of '
            f'{NIH}, so no number of the paper stands beside ours.'
        )
    notes.append(
        'Run with '
        + '; '.join(
            sorted(
                {
                    f'mlvicx_jax {run.results.get("version")} on {run.results.get("device")}'
                    for run in used.values()
                }
            )
        )
        + '.'
    )
    if any(any(number.absent.values()) for block in blocks for number in block.numbers.values()):
        notes.append(
            '†: in some seed a mean over fewer labels, named below the block. It is '
            'tested only against means of the same labels.'
        )
    return Table(name, reference, blocks, notes, *_provenance(used))


def _provenance(runs: Mapping[Cell, Run]) -> tuple[list, list, list]:
    """What the numbers are of: test sets, encoders with the proof that they were loaded, labels."""
    sets, encoders, parts = {}, {}, {}
    for cell, run in runs.items():
        results = run.results
        sets.setdefault(
            cell.set,
            {
                'set': cell.set,
                'data set': results['dataset'],
                'task': cell.task,
                'labels': ', '.join(run.labels),
                'split': 'test',
                'test images': results['data/test_hash'][:16],
                'validation images': results['data/validation_hash'][:16],
                'truth': run.judged[:16],
            },
        )
        proof = results['init_proof']
        encoders.setdefault(
            (cell.method, cell.seed),
            {
                'method': cell.method,
                'seed': str(cell.seed),
                'init': results['init'] or 'random',
                'context bottlenecks': 'yes' if results['context'] else 'no',
                'tensors loaded': str(proof['tensors']) if proof else '–',
                'sha256': proof['sha256'][:16] if proof else '–',
            },
        )
        parts.setdefault(
            (cell.set, cell.share, cell.seed),
            {
                'set': cell.set,
                'share': _percent(cell.share),
                'seed': str(cell.seed),
                'labelled images': str(results['labelled_images']),
                'sha256 of their ids': results['labelled_hash'][:16],
            },
        )
    return tuple([of[key] for key in sorted(of)] for of in (sets, encoders, parts))


def headline(run: Run) -> str:
    """A finished run in a few words, for the terminal."""
    if 'primary' in run.results:
        of = {name: _head(run)['means'][name] for name in _means(run)[:1]}
    else:
        of = {f'{name} Dice': run.results['test'][name]['dice_positives'] for name in run.labels}
    return ', '.join(f'{name} n/a' if value is None else f'{name} {value:.3f}' for name, value in of.items())


def text(number: Number, brief: bool = False) -> str:
    """A number in one line; `brief` leaves out the interval and the test."""
    if not number.values:
        return 'not run'
    if number.missing:
        return f'n/a ({number.missing} of {len(number.values)} seeds)'
    mean, low, high = number.estimate
    parts = [f'{mean:.3f}' + ('†' if any(number.absent.values()) else '')]
    if len(number.values) > 1:
        parts.append(f'± {number.std:.3f}')
    if not brief and not math.isnan(low):
        parts.append(f'[{low:.3f}, {high:.3f}]')
    if len(number.values) < number.wanted:
        parts.append(f'({len(number.values)} of {number.wanted} seeds)')
    if not brief and number.test:
        parts.append(said_p(number))
    return ' '.join(parts)


def said_p(number: Number) -> str:
    """The test's p and Holm's, or that there is none: differences without spread."""
    if math.isnan(number.test.p):
        return 'p n/a'
    return f'p {number.test.p:.2g}, Holm {number.p_holm:.2g}'


def said_paper(number: Number) -> str:
    if not number.paper:
        return ''
    value, std = number.paper
    return f'{value:.3f}' if std is None else f'{value:.2f} ± {std:.2f}'


def markdown(table: Table) -> str:
    """The table in Markdown, columns padded so that it also reads on a terminal."""
    lines = [f'# {table.title}', '', *(f'- {note}' for note in table.notes)]
    for block in table.blocks:
        lines += ['', f'## {block.title}', '']
        shown = []
        for row in block.rows:
            numbers = [block.numbers[row, column.name] for column in block.columns]
            mark = ' (reference)' if row == table.reference else ''
            shown.append(
                [row + mark]
                + [
                    text(number, brief=table.name == 'table1' and not column.tested)
                    for number, column in zip(numbers, block.columns)
                ]
            )
            if any(number.paper for number in numbers):
                shown.append(['· paper', *map(said_paper, numbers)])
        lines += _grid(['', *(column.name for column in block.columns)], shown)
        lines += ([''] + [f'- † {note}' for note in block.notes]) if block.notes else []
    for title, rows in (('Sets', table.sets), ('Encoders', table.encoders), ('Labelled parts', table.parts)):
        lines += ['', f'## {title}', '', *_grid(list(rows[0]), [list(row.values()) for row in rows])]
    return '\n'.join(lines) + '\n'


def _grid(head: list[str], rows: list[list[str]]) -> list[str]:
    rows = [[text.replace('|', '\\|') for text in row] for row in [head, *rows]]
    widths = [max(3, *map(len, column)) for column in zip(*rows)]
    rows.insert(1, ['-' * width for width in widths])
    return ['| ' + ' | '.join(map(str.ljust, row, widths)) + ' |' for row in rows]


def html(table: Table) -> str:
    """The table as one page with nothing outside it."""
    source = importlib.resources.files(__package__).joinpath('tables.html').read_text()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(source).render(
        table=table, isnan=math.isnan, said_p=said_p, said_paper=said_paper
    )


def as_csv(table: Table) -> str:
    """One line for each number, with everything that it carries; lists over seeds joined by ';'."""
    lines = []
    for block in table.blocks:
        for (row, name), number in block.numbers.items():
            column = next(column for column in block.columns if column.name == name)
            results = [run.results for run in number.runs.values()]
            test = number.test

            def joined(get, results=results):
                return ';'.join(str(get(of)) for of in results)

            def common(name, results=results):  # `refuse_mixtures` has seen that they agree
                return results[0][name] if results else ''

            lines.append(
                {
                    'table': table.name,
                    'set': block.set,
                    'protocol': column.protocol,
                    'share': column.share,
                    'row': row,
                    'method': block.rows[row],
                    'quantity': block.quantity,
                    'column': name,
                    'seeds': ';'.join(map(str, number.values)),
                    'seeds_wanted': number.wanted,
                    'values': ';'.join('n/a' if math.isnan(v) else repr(v) for v in number.values.values()),
                    'mean': _plain(number.estimate.value),
                    'std': _plain(number.std),
                    'low': _plain(number.estimate.low),
                    'high': _plain(number.estimate.high),
                    'without': ';'.join('+'.join(labels) for labels in number.absent.values()),
                    'paper': number.paper[0] if number.paper else '',
                    'paper_std': '' if not number.paper or number.paper[1] is None else number.paper[1],
                    'reference': table.reference if test else '',
                    'difference': _plain(test.difference) if test else '',
                    't': _plain(test.statistic) if test else '',
                    'p': _plain(test.p) if test else '',
                    'p_holm': _plain(number.p_holm),
                    'dataset': common('dataset'),
                    'split': 'test',
                    'test_hash': common('data/test_hash'),
                    'validation_hash': common('data/validation_hash'),
                    'labelled_images': joined(lambda r: r['labelled_images']),
                    'labelled_hash': joined(lambda r: r['labelled_hash']),
                    'context': common('context'),
                    'init': joined(lambda r: r['init'] or 'random'),
                    'init_tensors': joined(lambda r: (r['init_proof'] or {}).get('tensors', '')),
                    'init_sha256': joined(lambda r: (r['init_proof'] or {}).get('sha256', '')),
                }
            )
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(lines[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def write(folder: str | os.PathLike, tables: Sequence[Table]) -> None:
    """Writes table1.md, table1.csv, table1.html and so on, each whole or not at all."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        for kind, content in (('md', markdown(table)), ('csv', as_csv(table)), ('html', html(table))):
            write_text(folder / f'{table.name}.{kind}', content)


def _unique(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def _percent(share: float) -> str:
    return f'{100 * share:g} %'


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _plain(value: float):
    """For a CSV file: empty where it is not available."""
    return '' if math.isnan(value) else float(value)
