"""The sheet of `mlvicx heatmaps`: films beside their maps, a row per finding and a column per run."""

import textwrap

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mlvicx_jax.data.films import read_film
from mlvicx_jax.data.source import Split
from mlvicx_jax.evaluation import grad_cam

DPI = 160  # sharp on a laptop and in print
_PANEL = 2.3  # inches of a film's side
_HEADER, _FOOTER, _LEFT, _UNDER = 0.45, 0.75, 0.3, 0.3  # inches; _UNDER is the text below a panel
_GRID = 320  # points of a drawn map's side, about the panel's pixels
_WHOLE = (0, 1, 1, 0)  # the extent of an image in a panel: parts of its side


def draw(result: dict, split: Split, boxes: dict, shown: list[dict]) -> Figure:
    """The film of each finding alone, and then with the map of each run.

    Args:
        result: the content of heatmaps.json.
        split: that has the films.
        boxes: {image id: {finding: [m, 4]}}, as `grad_cam.read_boxes`.
        shown: of each run {finding: (map [h, w], probability, `grad_cam.localise`'s [3] or None)}.
    """
    rows, columns = len(result['films']), 1 + len(shown)
    width = _LEFT + columns * _PANEL
    height = _HEADER + _FOOTER + rows * (_PANEL + _UNDER)
    figure, colours = Figure(figsize=(width, height)), _overlay()
    positions = {image_id: i for i, image_id in enumerate(split.image_ids.tolist())}
    for row, (finding, image_id) in enumerate(result['films'].items()):
        film = read_film(split, positions[image_id])
        frames = boxes[image_id].get(finding, ())
        for column in range(columns):
            axes = _panel(figure, row, column)
            axes.imshow(film, cmap='gray', vmin=0, vmax=255, extent=_WHOLE, aspect='auto')
            if column:
                said = _add_map(axes, colours, *shown[column - 1][finding])
            else:
                axes.set_ylabel(finding, fontsize=10, fontweight='bold')
                said = _about_film(image_id, frames)
            _add_boxes(axes, frames)
            axes.set_xlabel(said, fontsize=7, labelpad=3)
            if not row:
                title = result['runs'][column - 1]['name'] if column else 'film'
                axes.set_title('\n'.join(textwrap.wrap(title, 30)[:2]), fontsize=9, pad=4)
    _add_legend(figure, result, colours)
    return figure


def _panel(figure: Figure, row: int, column: int) -> Axes:
    width, height = figure.get_size_inches()
    bottom = height - _HEADER - row * (_PANEL + _UNDER) - _PANEL
    side = _PANEL - 0.08
    axes = figure.add_axes(
        ((_LEFT + column * _PANEL + 0.04) / width, bottom / height, side / width, side / height)
    )
    axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], facecolor='black')
    return axes


def _add_map(axes: Axes, colours: ListedColormap, image_map, probability: float, scores) -> str:
    """Lays a map over the film, with a cross at its maximum; returns what is said below."""
    seen = grad_cam.heatmap(image_map, _GRID)
    axes.imshow(grad_cam.normalised(seen), cmap=colours, vmin=0, vmax=1, extent=_WHOLE, aspect='auto')
    y, x = (np.argwhere(grad_cam.maxima(image_map, _GRID)).mean(0) + 0.5) / _GRID
    axes.plot(x, y, '+', color='white', markersize=7, markeredgewidth=1.1, path_effects=_outlined(2.4))
    said = f'p = {probability:.2f}'
    if scores is None:
        return said
    hit = 'maximum in box' if scores[0] >= 0.5 else 'maximum outside'
    energy = f'energy {100 * scores[2]:.0f} %' if seen.any() else 'map empty'
    return f'{said}, {hit}, {energy}'


def _about_film(image_id: str, frames) -> str:
    said = textwrap.shorten(image_id, 38, placeholder='...')
    if len(frames):
        said += f', box {100 * grad_cam.box_mask(frames, 256).mean():.1f} % of film'
    return said


def _add_boxes(axes: Axes, frames) -> None:
    for ymin, xmin, ymax, xmax in frames:
        axes.add_patch(
            Rectangle(
                (xmin, ymin),
                xmax - xmin,
                ymax - ymin,
                fill=False,
                edgecolor='#38e1ff',
                linewidth=0.9,
                path_effects=_outlined(1.9),
            )
        )


def _add_legend(figure: Figure, result: dict, colours: ListedColormap) -> None:
    width, height = figure.get_size_inches()
    bar = figure.add_axes((_LEFT / width, (_FOOTER - 0.3) / height, 1.6 / width, 0.1 / height))
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=colours, aspect='auto', extent=(0, 1, 0, 1))
    bar.set(xticks=[0, 0.5, 1], yticks=[], facecolor='0.45')
    bar.tick_params(labelsize=7, length=2, pad=1)
    bar.set_xlabel('map, of its own maximum', fontsize=7, labelpad=1)
    text = (
        f'{result["dataset"]}, {result["split"]} split. Grad-CAM of {result["level"]}; frames: '
        "the finding's boxes; cross: the map's maximum. Film: " + result['rule'] + '.'
    )
    lines = textwrap.wrap(text, max(30, int((width - _LEFT - 1.9) * 17)))
    figure.text((_LEFT + 1.85) / width, (_FOOTER - 0.2) / height, '\n'.join(lines), fontsize=7, va='top')


def _overlay() -> ListedColormap:
    """Inferno that fades to nothing at 0, so that the film is seen where the map is low."""
    colours = colormaps['inferno'](np.linspace(0.15, 1, 256))
    colours[:, 3] = np.linspace(0, 1, 256) ** 0.7 * 0.65
    return ListedColormap(colours)


def _outlined(width: float) -> list:
    """A black rim, so that a bright line is seen on bright and dark."""
    return [patheffects.withStroke(linewidth=width, foreground='black')]
