"""A table as Markdown, HTML and CSV."""

import csv
import importlib.resources
import io
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2

from mlvicx_jax.files import write_text
from mlvicx_jax.grid.tables import Number, Table
from mlvicx_jax.report.about import without_paths


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
    if number.test is None:
        return ''
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
    lines = [
        {
            'table': table.name,
            'set': block.set,
            'row': row,
            'method': block.rows[row],
            'quantity': block.quantity,
        }
        | {'protocol': column.protocol, 'share': column.share, 'column': column.name}
        | _of_number(block.numbers[row, column.name], table.reference)
        | _of_runs([run.results for run in block.numbers[row, column.name].runs.values()])
        for block in table.blocks
        for row in block.rows
        for column in block.columns
    ]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(lines[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _of_number(number: Number, reference: str) -> dict:
    test, (paper, paper_std) = number.test, number.paper or ('', '')
    return {
        'seeds': ';'.join(map(str, number.values)),
        'seeds_wanted': number.wanted,
        'values': ';'.join('n/a' if math.isnan(v) else repr(v) for v in number.values.values()),
        'mean': _plain(number.estimate.value),
        'std': _plain(number.std),
        'low': _plain(number.estimate.low),
        'high': _plain(number.estimate.high),
        'without': ';'.join('+'.join(labels) for labels in number.absent.values()),
        'paper': paper,
        'paper_std': '' if paper_std is None else paper_std,
        'reference': reference if test else '',
        'difference': _plain(test.difference) if test else '',
        't': _plain(test.statistic) if test else '',
        'p': _plain(test.p) if test else '',
        'p_holm': _plain(number.p_holm),
    }


def _of_runs(results: list[dict]) -> dict:
    """What the runs of a number were made of; `refuse_mixtures` has seen that sets and encoders agree."""
    common = {'split': 'test'} | {
        name: results[0][key] if results else ''
        for name, key in (
            ('dataset', 'dataset'),
            ('test_hash', 'data/test_hash'),
            ('validation_hash', 'data/validation_hash'),
            ('context', 'context'),
        )
    }
    proofs = [run['init_proof'] or {} for run in results]
    return common | {
        'labelled_images': ';'.join(str(run['labelled_images']) for run in results),
        'labelled_hash': ';'.join(run['labelled_hash'] for run in results),
        'init': ';'.join(without_paths(run['init']) or 'random' for run in results),
        'init_tensors': ';'.join(str(proof.get('tensors', '')) for proof in proofs),
        'init_sha256': ';'.join(proof.get('sha256', '') for proof in proofs),
    }


def write(folder: str | os.PathLike, tables: Sequence[Table]) -> None:
    """Writes table1.md, table1.csv, table1.html and so on, each whole or not at all."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        for kind, content in (('md', markdown(table)), ('csv', as_csv(table)), ('html', html(table))):
            write_text(folder / f'{table.name}.{kind}', content)


def _plain(value: Any):
    """For a CSV file: empty where it is not available."""
    return '' if math.isnan(value) else float(value)
