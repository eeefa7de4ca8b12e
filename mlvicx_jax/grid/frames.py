"""Columns of the paper's Tables I to IV: which runs, what is read from one, what the paper has beside it."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mlvicx_jax.evaluation.metrics import NO_FINDING
from mlvicx_jax.grid.cell import Cell
from mlvicx_jax.grid.paper import NIH, PAPER, paper_number
from mlvicx_jax.grid.reading import Finished

OVER_MASKS = {
    'dice_positives': 'Dice over the images that show it',
    'dice_all': 'Dice over all images, 1 where both masks are empty',
    'iou_positives': 'IoU over the images that show it',
}


def _nothing(method: str) -> None:
    """The paper has no number."""


def _no_labels(run: Finished) -> Sequence[str]:
    return ()


class Column(NamedTuple):
    """A column of a block.

    Attributes:
        name: its heading.
        protocol: of its runs.
        share: of the labels of its runs.
        value: reads the number of a run; None is not available.
        paper: the paper's number of a method, with its standard deviation, or None.
        absent: labels that the number of a run, a mean, does not hold.
        tested: whether methods are tested against the reference in it.
    """

    name: str
    protocol: str
    share: float
    value: Callable[[Finished], float | None]
    paper: Callable[[str], tuple[float, float | None] | None] = _nothing
    absent: Callable[[Finished], Sequence[str]] = _no_labels
    tested: bool = False


# Of a block: its title, the quantity and the columns.
Frame = tuple[str, str, list[Column]]


def table1(cells: Iterable[Cell], runs: Mapping[Cell, Finished]) -> Iterator[Frame]:
    """AUROC of each class and the means; a block for each protocol and share."""
    run = next(iter(runs.values()))
    if len(run.findings) < 2:
        return
    for protocol, share in _protocols_and_shares(cells):

        def paper(method, label, protocol=protocol, share=share):
            return paper_number(run, 'table1', protocol == 'finetune' and (str(share), method, label))

        columns = [
            Column(label, protocol, share, _auroc_of(label), functools.partial(paper, label=label))
            for label in (*run.findings, *(name for name in run.labels if name == NO_FINDING))
        ]
        columns += [
            _mean_column(run, name, protocol, share, name, functools.partial(paper, label='Mean'))
            for name in run.means
        ]
        yield f'{protocol}, {percent(share)} of the labels', 'AUROC', columns


def table2(cells: Iterable[Cell], runs: Mapping[Cell, Finished]) -> Iterator[Frame]:
    """Shares of the labels; a block for each protocol and mean, or measure of a single finding."""
    run = next(iter(runs.values()))
    shares = unique(cell.share for cell in cells)
    if not run.findings:
        return
    for protocol in unique(cell.protocol for cell in cells):

        def paper(method, share, protocol=protocol):
            if run.results['dataset'] == NIH and protocol == 'finetune':
                return paper_number(run, 'table1', (str(share), method, 'Mean'))
            return paper_number(run, 'table2', (run.results['dataset'], protocol, str(share), method))

        if len(run.findings) > 1:
            for name in run.means:
                columns = [
                    _mean_column(
                        run, name, protocol, share, percent(share), functools.partial(paper, share=share)
                    )
                    for share in shares
                ]
                yield f'{protocol}: AUROC, {name}', name, columns
            continue
        (label,) = run.findings
        for metric in ('accuracy', 'auroc', 'auprc'):
            columns = []
            for share in shares:

                def value(run, metric=metric, label=label):
                    return run.head[metric][label]

                column = Column(percent(share), protocol, share, value, tested=metric == 'auroc')
                if metric == 'accuracy':
                    column = column._replace(paper=functools.partial(paper, share=share))
                columns.append(column)
            yield f'{protocol}: {metric} of {label}', metric, columns


def table3(cells: Iterable[Cell], runs: Mapping[Cell, Finished]) -> Iterator[Frame]:
    """Dice and IoU, protocols x shares; a block for each structure and quantity."""
    run = next(iter(runs.values()))
    for structure in run.labels:
        for quantity, said in OVER_MASKS.items():
            columns = []
            for protocol, share in _protocols_and_shares(cells):

                def value(run, structure=structure, quantity=quantity):
                    return run.results['test'][structure][quantity]

                def paper(method, quantity=quantity, protocol=protocol, share=share):
                    path = quantity.startswith('dice') and (method, protocol, str(share))
                    return paper_number(run, 'table3', path)

                name = f'{protocol} {percent(share)}'
                columns.append(Column(name, protocol, share, value, paper, tested=quantity == 'dice_positives'))
            yield f'{structure}: {said}', f'{structure} {quantity}', columns


def table4(cells: Iterable[Cell], runs: Mapping[Cell, Finished]) -> Iterator[Frame]:
    """Mean AUROC, protocols x shares, of the methods of the ablation."""
    run = next(iter(runs.values()))
    if len(run.findings) < 2:
        return
    fractions = PAPER['table4']['fractions']
    for name in run.means:
        columns = []
        for protocol, share in _protocols_and_shares(cells):

            def paper(row, protocol=protocol, share=share):
                path = str(share) in fractions and (protocol, row, fractions.index(str(share)))
                return paper_number(run, 'table4', path)

            columns.append(_mean_column(run, name, protocol, share, f'{protocol} {percent(share)}', paper))
        yield f'AUROC, {name}', name, columns


def _auroc_of(label: str) -> Callable[[Finished], float | None]:
    return lambda run: run.head['auroc'][label]


def _mean_column(run: Finished, mean: str, protocol: str, share: float, name: str, paper: Callable) -> Column:
    """A column for one of `run.means`. The paper's mean holds No Finding, so it stands at the last."""
    within = run.findings if mean == run.means[0] else run.labels
    column = Column(
        name,
        protocol,
        share,
        lambda run: run.head['means'][mean],
        absent=lambda run: [label for label in run.head['not_available'] if label in within],
        tested=mean == run.means[0],
    )
    return column._replace(paper=paper) if mean == run.means[-1] else column


def _protocols_and_shares(cells: Iterable[Cell]) -> list[tuple[str, float]]:
    return unique((cell.protocol, cell.share) for cell in cells)


def unique(values: Iterable) -> list:
    """The values without repetition, in the order of their first."""
    return list(dict.fromkeys(values))


def percent(share: float) -> str:
    """0.1 as '10 %'."""
    return f'{100 * share:g} %'
