"""A grid of runs: numbers against the share of the labels, the tables, what is done."""

import math
import pathlib
import re
from typing import Any

import numpy as np

from mlvicx_jax.evaluation.statistics import t_interval
from mlvicx_jax.report import about, figures, page, sheets
from mlvicx_jax.report.about import asked, protocol
from mlvicx_jax.report.classification import main_mean
from mlvicx_jax.report.content import (
    INTERVAL,
    NotRun,
    Picture,
    Section,
    Table,
    Text,
    count,
    estimate,
    number,
    share,
)
from mlvicx_jax.run.reading import Grid, Run

_FEWEST_SEEDS = 3  # for an interval between seeds: of two it is 12.7 times their difference


def render(grid: Grid) -> str:
    """The HTML of a grid; the same input gives the same bytes."""
    parts = [*against_share(grid), *tables(grid), sheets.heatmaps(grid), runs(grid)]
    return page.assemble(about.title(grid), grid.folder, parts)


def against_share(grid: Grid) -> list[Section | NotRun]:
    """A figure for each set and task: AUROC or Dice against the share of the labels."""
    sections = []
    for task, what in (('classify', 'AUROC'), ('segment', 'Dice')):
        done = [run for run in grid.runs if run.task == task and run.results]
        sections += [
            _of_set(name, what, [run for run in done if _place(run)[0] == name])
            for name in dict.fromkeys(_place(run)[0] for run in done)
        ]
    return sections or [NotRun('figures', 'no run of the grid has ended')]


def _of_set(name: str, what: str, runs: list[Run]) -> Section:
    panels: dict[str, dict] = {}
    for run in runs:
        for panel, value, interval in _numbers(run):
            line = panels.setdefault(panel, {}).setdefault(_series(run, runs), {})
            line.setdefault(run.results['share'], []).append((value, interval))
    drawn = {
        panel: {
            series: [(part, *_summary(found)) for part, found in line.items()] for series, line in lines.items()
        }
        for panel, lines in panels.items()
    }
    picture = figures.against_share(drawn, f'{what}, test split', 0.5 if what == 'AUROC' else None)
    alt = '; '.join(
        f'{panel}, {series}: ' + ', '.join(f'{mean:.3f} at {share(part)}' for part, mean, *_ in sorted(points))
        for panel, lines in drawn.items()
        for series, points in lines.items()
    )
    seeds = len({run.results['seed'] for run in runs})
    caption = f'Test split of {runs[0].results["dataset"]}. '
    if seeds == 1:
        caption += f'One seed; bars: {INTERVAL}.'
    else:
        caption += (
            'Mean over seeds (dots: each seed); bars: 95 % Student t interval over seeds, '
            f'from {_FEWEST_SEEDS} seeds on; where there is one seed, the {INTERVAL}.'
        )
    if what == 'AUROC':
        caption += ' Dashed: chance.'
    return Section(f'{what} against labels: {name}', [Picture(picture, alt, caption)])


def tables(grid: Grid) -> list[Section | NotRun]:
    """The grid's own tables, a section for each file of tables/."""
    return [_markdown(path) for path in grid.tables] or [NotRun('tables', 'no tables/*.md in the folder')]


def runs(grid: Grid) -> Section:
    """Every run of the grid, with its number, or where it stands."""
    rows = []
    for run in grid.runs:
        data, seed = run.config['data'], str(run.config['seed'])
        name = str(run.folder.relative_to(grid.folder))
        if run.task == 'pretrain':
            rows.append(
                (name, run.task, data['name'], run.config['method']['name'], '', '', seed, _number(run))
            )
        else:
            rows.append(
                (
                    name,
                    run.task,
                    *_place(run),
                    run.config['protocol'],
                    share(data['labelled']['share']),
                    seed,
                    _number(run),
                )
            )
    done = sum(run.results is not None for run in grid.runs)
    return Section(
        'Runs',
        [
            Table(
                f'{done} of {count(len(rows), "run")} have ended. Mean AUROC over the findings, or Dice '
                f'over the images with the structure, on the test split; in brackets: {INTERVAL}.',
                ('run', 'task', 'set', 'method', 'protocol', 'labels', 'seed', 'result'),
                rows,
                left=range(1, 5),
            )
        ],
    )


def _place(run: Run) -> tuple[str, str]:
    """What the grid calls the set and the method of a downstream run, from the name of its folder.

    grid/processes.py makes it of set, protocol, share, method and seed.
    """
    config = run.config
    middle = f'-{config["protocol"]}-{config["data"]["labelled"]["share"]:g}-'
    name, _, method = run.folder.name.removesuffix(f'-seed{config["seed"]}').partition(middle)
    if method:
        return name, method
    return (
        config['data']['name'] + (f' ({asked(run)})' if asked(run) else ''),
        pathlib.Path(config['init']).name or 'random',
    )


def _numbers(run: Run) -> list[tuple[str, float, Any]]:
    """(panel, value, interval) of a run's numbers that are available."""
    test = run.results['test']
    if run.task == 'classify':
        head, names = test[run.results['primary']], run.results['label_names']
        mean = main_mean(head)
        found = (
            []
            if mean is None
            else [
                (
                    f'{mean}: mean over the findings' if len(names) > 1 else names[0],
                    head['means'][mean],
                    head.get('means_interval', {}).get(mean),
                )
            ]
        )
    else:
        found = [
            (name, of.get('dice_positives'), of.get('dice_positives_interval')) for name, of in test.items()
        ]
    return [row for row in found if row[1] is not None]


def _number(run: Run) -> str:
    if run.results is None:
        return f'not ended, step {run.lines[-1]["step"]}' if run.lines else 'not ended'
    if run.task == 'pretrain':
        return f'step {run.results["step"]}'
    several = len(run.results['test']) > 1 and run.task == 'segment'
    return '; '.join(
        (f'{name} ' if several else '') + estimate(value, interval) for name, value, interval in _numbers(run)
    ) or number(None)


def _series(run: Run, others: list[Run]) -> str:
    """What a line of a figure is called: the method of its encoder, and the protocol."""
    text = f'{_place(run)[1]}, {protocol(run.config["protocol"])}'
    if len({other.results.get('context') for other in others}) > 1:
        text += '' if run.results.get('context') else ', no context'
    return text


def _summary(found: list) -> tuple[float, float, float, list[float]]:
    """Mean over seeds, its interval (over patients where there is one seed), the seeds' values."""
    values = [value for value, _ in found]
    if len(values) == 1:
        low, high = found[0][1] or (math.nan, math.nan)
        return values[0], _or_nan(low), _or_nan(high), values
    mean, low, high = t_interval(np.array(values))
    if len(values) < _FEWEST_SEEDS:
        low = high = math.nan
    return float(mean), float(low), float(high), values


def _or_nan(value) -> float:
    return math.nan if value is None else value


def _markdown(path: pathlib.Path) -> Section:
    """A file of tables: its `#` the title, each `##` the caption of the table below, `-` notes."""
    title, heading, blocks, rows = path.stem, '', [], []
    for line in [*path.read_text(encoding='utf-8').splitlines(), '']:
        if line.startswith('|'):
            rows.append([_cell(text) for text in re.split(r'(?<!\\)\|', line.strip())[1:-1]])
            continue
        if rows:
            blocks.append(Table(heading, rows[0], rows[2:]))  # the second is its line
            heading, rows = '', []
        if line.startswith('# '):
            title = line[2:]
        elif line.startswith('## '):
            heading = line[3:]
        elif line.strip():
            blocks.append(Text(line.removeprefix('- '), 'dim'))
    return Section(title, blocks)


def _cell(text: str) -> str:
    """The text of a Markdown cell; an interval stays on one line."""
    text = text.strip().replace('\\|', '|')
    return re.sub(r'\[[\d., -]+\]', lambda found: found[0].replace(' ', '\N{NO-BREAK SPACE}'), text)
