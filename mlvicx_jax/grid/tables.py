"""The paper's Tables I to IV from finished runs: ours over seeds, the paper's numbers beside them.

Rows are methods. I: AUROC of each class, a block for each set, protocol and share of the labels;
II: sets and shares; III: Dice, protocols x shares; IV: the loss ablation. A number that is not
available in one run is not available over runs; a mean over fewer labels is marked; runs that were
judged on different images are refused, not mixed.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mlvicx_jax.evaluation import statistics
from mlvicx_jax.grid import frames, notes
from mlvicx_jax.grid.cell import Cell
from mlvicx_jax.grid.reading import Finished, refuse_mixtures

TITLES = {
    'table1': 'Table I: AUROC of each class',
    'table2': 'Table II: sets and label fractions',
    'table3': 'Table III: segmentation',
    'table4': 'Table IV: ablation of the losses',
}


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

    runs: dict[int, Finished]
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
            return statistics.Estimate(*np.full(3, math.nan))
        return statistics.t_interval(np.array(list(self.values.values())))

    @property
    def std(self) -> float:
        """Over the seeds, with 1 / (n - 1)."""
        values = list(self.values.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    @property
    def missing(self) -> int:
        """In how many seeds it is not available."""
        return sum(math.isnan(value) for value in self.values.values())


class Block(NamedTuple):
    """Rows of one frame: the same test images throughout."""

    title: str
    set: str
    quantity: str
    rows: dict[str, str]  # name of the row: method of the grid
    columns: list[frames.Column]
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


def fill(
    cells: Iterable[Cell], runs: Mapping[Cell, Finished], reference: str, ablation: Mapping[str, str]
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
    methods = frames.unique(cell.method for cell in cells if cell.method not in in_ablation)
    rows = {method: method for method in methods}
    ablated = {row: method for row, method in ablation.items() if any(cell.method == method for cell in cells)}
    made = {
        'classify': {'table1': (frames.table1, rows, reference), 'table2': (frames.table2, rows, reference)},
        'segment': {'table3': (frames.table3, rows, reference)},
    }
    if len(ablated) > 1:
        made['classify']['table4'] = (frames.table4, ablated, 'both')
    blocks: dict[str, list[Block]] = {name: [] for name in TITLES}
    for name in frames.unique(cell.set for cell in cells):
        of_set = [cell for cell in cells if cell.set == name]
        for table, (make, of, against) in made[of_set[0].task].items():
            ran = {cell: runs[cell] for cell in of_set if cell in runs and cell.method in of.values()}
            if ran:
                blocks[table] += [
                    _block(title, quantity, of, columns, against, of_set, ran)
                    for title, quantity, columns in make(of_set, ran)
                ]
    return [
        _table(name, 'both' if name == 'table4' else reference, some, runs)
        for name, some in blocks.items()
        if some
    ]


def holm(p: Sequence[float]) -> np.ndarray:
    """P-values adjusted for their number, NaN left out: Holm, Scandinavian J. Statistics 6 (1979).

    The k-th smallest of m, times m - k + 1, made monotone and cut at 1.
    """
    each = np.asarray(p, np.float64)
    order = np.argsort(each)  # NaN last
    m = int(np.sum(~np.isnan(each)))
    adjusted = np.full(len(each), np.nan)
    adjusted[order[:m]] = np.minimum(1, np.maximum.accumulate(each[order[:m]] * np.arange(m, 0, -1)))
    return adjusted


def _block(title, quantity, rows, columns, reference, cells, runs) -> Block:
    wanted = len(frames.unique(cell.seed for cell in cells))
    at: dict[tuple, dict[int, Finished]] = {}
    for cell, run in runs.items():
        at.setdefault((cell.protocol, cell.share, cell.method), {})[cell.seed] = run
    numbers, marks = {}, []
    for row, method in rows.items():
        for column in columns:
            of_seed = dict(sorted(at.get((column.protocol, column.share, method), {}).items()))
            values = {seed: _or_nan(column.value(run)) for seed, run in of_seed.items()}
            absent = {seed: tuple(column.absent(run)) for seed, run in of_seed.items()}
            numbers[row, column.name] = Number(of_seed, values, wanted, absent, column.paper(row))
            marks += [
                f'{row}, {column.name}, seed {seed}: without {", ".join(labels)}, not available'
                for seed, labels in absent.items()
                if labels
            ]
    for column in columns:
        against = numbers.get((reference, column.name))
        for row in rows:
            if column.tested and against and row != reference:
                _compare(numbers[row, column.name], against)
    name = cells[0].set
    return Block(f'{name}, {title}', name, quantity, dict(rows), columns, numbers, marks)


def _compare(number: Number, against: Number) -> None:
    """Tests over the seeds of both; not where one is not available or is a mean of other labels."""
    seeds = [seed for seed in number.values if seed in against.values]
    if len(seeds) > 1 and all(number.absent[seed] == against.absent[seed] for seed in seeds):
        number.test = statistics.paired_t_test(
            *(np.array([of.values[seed] for seed in seeds]) for of in (number, against))
        )


def _table(name, reference, blocks, runs) -> Table:
    numbers = [number for block in blocks for number in block.numbers.values()]
    tested = [number for number in numbers if number.test and not math.isnan(number.test.p)]
    for number, p in zip(tested, holm([number.test.p for number in tested])):
        number.p_holm = float(p)
    sets = {block.set for block in blocks}
    methods = {method for block in blocks for method in block.rows.values()}
    used = {cell: run for cell, run in runs.items() if cell.set in sets and cell.method in methods}
    said = notes.of_table(
        name,
        reference,
        used,
        tests=len(tested),
        paper=any(number.paper for number in numbers),
        marked=any(any(number.absent.values()) for number in numbers),
    )
    return Table(name, reference, blocks, said, *notes.provenance(used))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
