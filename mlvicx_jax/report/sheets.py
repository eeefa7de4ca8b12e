"""Sheets of pictures that other commands left in the folder."""

import pathlib

from mlvicx_jax.errors import UserError, first_line
from mlvicx_jax.report import figures
from mlvicx_jax.report.content import INTERVAL, NotRun, Picture, Section, Table, estimate
from mlvicx_jax.run.reading import Grid, Run, read_json

_MEASURES = {'pointing': 'pointing game', 'iou': 'IoU', 'energy': 'share of energy in the box'}
_MOST = 12  # sheets: a page stays small enough to be sent


def heatmaps(run: Run | Grid) -> Section | NotRun:
    """The sheets of heatmaps/, and how the maps meet the boxes where heatmaps.json tells it."""
    folder = run.folder / 'heatmaps'
    paths = sorted(folder.glob('*.png'))
    if not paths:
        return NotRun('heatmaps', 'no heatmaps/*.png in the folder; python -m mlvicx_jax.heatmaps draws them')
    left = f' {len(paths) - _MOST} more are in heatmaps/.' if len(paths) > _MOST else ''
    blocks = [
        Picture(
            figures.of_file(path),
            f'Films with heatmaps of where the classifier looks: {path.stem}',
            f'{path.name}: Grad-CAM of the classifier, laid over films.{left}',
        )
        for path in paths[:_MOST]
    ]
    told = folder / 'heatmaps.json'
    return Section('Heatmaps', blocks + ([_localisation(told)] if told.exists() else []))


def _localisation(path: pathlib.Path) -> Table:
    """Pointing game, IoU and energy of each run and finding."""
    found = read_json(path)
    try:
        rows = [
            (
                run['name'],
                finding,
                f'{of["films"]:,}',
                name,
                *(
                    estimate(of[measure][key], of[measure][f'{key}_interval'])
                    for key in ('value', 'chance', 'above_chance', 'above_other_films')
                ),
            )
            for run in found['runs']
            for finding, of in run['localisation'].items()
            if of
            for measure, name in _MEASURES.items()
        ]
        where = f'{found["split"].capitalize()} split of {found["dataset"]}'
        level = found['level']
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f'{path}: is not what python -m mlvicx_jax.heatmaps writes ({first_line(error)}); run it again'
        ) from error
    return Table(
        f'{where}: Grad-CAM of {level} against the boxes of the finding. Chance: a random '
        'place; other films: with the boxes that other patients have, which tells where a '
        f'finding usually is. In brackets: {INTERVAL}.',
        ('run', 'finding', 'films', 'measure', 'value', 'by chance', 'minus chance', 'minus other films'),
        rows,
        left=(1, 3),
    )


def views(run: Run) -> Section | NotRun:
    """views.png: what the network is shown in training."""
    path = run.folder / 'views.png'
    if not path.exists():
        return NotRun(
            'sample views', 'no views.png in the folder; --views draws it where the data set can be opened'
        )
    return Section(
        'Sample views',
        [
            Picture(
                figures.of_file(path),
                'Training images, each beside the augmented views drawn of it',
                'The first training images, and views drawn of them as in a training step. Black and white '
                'are the ends of the range in every panel.',
            )
        ],
    )
