"""Sheets of pictures that other commands left in the folder."""

import pathlib
from typing import TypedDict

from mlvicx_jax.errors import UserError
from mlvicx_jax.files import read_json
from mlvicx_jax.report.content import INTERVAL, NotRun, Picture, Section, Table, estimate
from mlvicx_jax.report.embedding import of_file
from mlvicx_jax.run.record import Run
from mlvicx_jax.run.results import Interval, Number
from mlvicx_jax.run.schema import mismatch

_MEASURES = {'pointing': 'pointing game', 'iou': 'IoU', 'energy': 'share of energy in the box'}
_MOST = 12  # sheets: a page stays small enough to be sent


class Measure(TypedDict):
    """How maps meet boxes, beside what chance and the boxes of other patients would give."""

    value: Number
    value_interval: Interval
    chance: Number
    chance_interval: Interval
    above_chance: Number
    above_chance_interval: Interval
    above_other_films: Number
    above_other_films_interval: Interval


class Localisation(TypedDict):
    """Of one finding."""

    films: int
    patients: int
    pointing: Measure
    iou: Measure
    energy: Measure


class OfRun(TypedDict):
    """Of one classifier; a finding is None where no film has boxes of it."""

    name: str
    localisation: dict[str, Localisation | None]


class Heatmaps(TypedDict):
    """heatmaps.json, as far as a report looks at it."""

    dataset: str
    split: str
    level: str
    runs: list[OfRun]


def heatmaps(run) -> Section | NotRun:
    """The sheets of heatmaps/, and how the maps meet the boxes where heatmaps.json tells it.

    Args:
        run: a `Run`, or another object with a `folder`.
    """
    folder = run.folder / 'heatmaps'
    paths = sorted(folder.glob('*.png'))
    if not paths:
        return NotRun('heatmaps', 'no heatmaps/*.png in the folder; mlvicx heatmaps draws them')
    left = f' {len(paths) - _MOST} more are in heatmaps/.' if len(paths) > _MOST else ''
    blocks = [
        Picture(
            of_file(path),
            f'Films with heatmaps of where the classifier looks: {path.stem}',
            f'{path.name}: Grad-CAM of the classifier, laid over films.{left}',
        )
        for path in paths[:_MOST]
    ]
    told = folder / 'heatmaps.json'
    return Section('Heatmaps', blocks + ([_localisation(told)] if told.exists() else []))


def _localisation(path: pathlib.Path) -> Table:
    """Pointing game, IoU and energy of each run and finding."""
    found = read_json(path, 'run mlvicx heatmaps again')
    if problem := mismatch(found, Heatmaps):
        raise UserError(f'{path}: is not what mlvicx heatmaps writes ({problem}); run it again')
    rows = [
        (
            run['name'],
            finding,
            f'{of["films"]:,}',
            f'{of["patients"]:,}',
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
    return Table(
        f'{where}: Grad-CAM of {level} against the boxes of the finding. Chance: a random '
        'place; other films: with the boxes that other patients have, which tells where a '
        f'finding usually is. In brackets: {INTERVAL}.',
        (
            'run',
            'finding',
            'films',
            'patients',
            'measure',
            'value',
            'by chance',
            'minus chance',
            'minus other films',
        ),
        rows,
        left=(1, 4),
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
                of_file(path),
                'Training images, each beside the augmented views drawn of it',
                'The first training images, and views drawn of them as in a training step. Black and white '
                'are the ends of the range in every panel.',
            )
        ],
    )
