"""The figures of a page, as data URIs: lines as SVG, films as JPEG.

One style for all of them: colours of Okabe and Ito (https://jfly.uni-koeln.de/color/), which the
colour-blind tell apart, and a marker or line style of its own for each, so that they also differ in
grey print.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.rcsetup import cycler
from matplotlib.ticker import FuncFormatter, NullLocator
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from mlvicx_jax.evaluation.metrics import CALIBRATION_BINS
from mlvicx_jax.report.content import share
from mlvicx_jax.report.embedding import jpeg, svg

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
TRUTH, PREDICTED = '#56B4E9', '#E69F00'  # both are seen on black and on white
_MARKERS, _DASHES = 'os^Dv', ('-', '--', ':', '-.')
_REFERENCE = {'color': '0.45', 'linewidth': 1, 'linestyle': (0, (4, 3))}
_STYLE: Any = {  # matplotlib's own type of it is a Literal of all keys, and newer than 3.9
    'font.size': 9,
    'axes.titlesize': 9.5,
    'axes.labelsize': 9,
    'legend.fontsize': 8,
    'legend.frameon': False,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.alpha': 0.25,
    'lines.linewidth': 1.4,
    'lines.markersize': 4,
    'axes.prop_cycle': cycler(color=COLOURS),
    'svg.hashsalt': 'mlvicx_jax',  # names within an SVG: the same run gives the same bytes
}
_MOST_POINTS = 400  # of a curve: more are not seen, and make a page heavy
_PANEL_COLUMNS, _CLASS_COLUMNS = 3, 5


def curves(panels: Sequence[dict]) -> str:
    """Numbers over training, a panel each.

    Args:
        panels: of each `title`, `label` of the y axis, `lines` {name: (steps, values)}, `levels`
            {name: value}, horizontal lines to read them against, and `chosen`, the step that was
            kept, or None.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(len(panels), _PANEL_COLUMNS, 3.55, 2.6)
        for panel, what in zip(axes, panels):
            for i, (name, (steps, values)) in enumerate(what['lines'].items()):
                steps, values = _thinned(steps, values)
                panel.plot(
                    steps,
                    values,
                    label=name,
                    linestyle=_DASHES[i % 4],
                    marker='o' if len(steps) <= 30 else None,
                )
            for i, (name, value) in enumerate(what['levels'].items()):
                panel.axhline(
                    value, color='0.45', linewidth=1, linestyle=_DASHES[1 + i % 3], label=f'{name} {value:.4g}'
                )
            if what['chosen'] is not None:
                panel.axvline(
                    what['chosen'],
                    color='0.2',
                    linewidth=1,
                    linestyle=':',
                    label=f'chosen: step {what["chosen"]}',
                )
            panel.set(title=what['title'], xlabel='training step', ylabel=what['label'])
            if len(what['lines']) + len(what['levels']) > 1 or what['chosen'] is not None:
                panel.legend()
        return svg(figure)


def roc(names: Sequence[str], labels: np.ndarray, scores: np.ndarray, captions: Sequence[str]) -> str:
    """A ROC curve of each class, with a caption inside.

    Args:
        names: of the k classes.
        labels: [n, k] of 0 and 1, both in each column.
        scores: [n, k].
        captions: [k].
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(len(names), _CLASS_COLUMNS, 2.13, 2.35, sharex=True, sharey=True)
        for panel, name, label, score, caption in zip(axes, names, labels.T, scores.T, captions):
            fpr, tpr, _ = roc_curve(label, score)
            panel.plot([0, 1], [0, 1], **_REFERENCE)
            panel.plot(*_thinned(fpr, tpr))
            panel.text(0.98, 0.03, caption, ha='right', fontsize=8)
            _unit_square(panel, _plain(name))
        figure.supxlabel('false positive rate (1 - specificity)', fontsize=9)
        figure.supylabel('true positive rate (sensitivity)', fontsize=9)
        return svg(figure)


def reliability(
    names: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, captions: Sequence[str]
) -> str:
    """Share of positives against probability, in bins of equal mass; arguments as in `roc`."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(len(names), _CLASS_COLUMNS, 2.13, 2.35)
        for panel, name, label, p, caption in zip(axes, names, labels.T, probabilities.T, captions):
            positive, predicted = calibration_curve(label, p, n_bins=CALIBRATION_BINS, strategy='quantile')
            # A rare finding's points all lie near zero: each class has a scale of its own.
            top = max(0.02, 1.08 * max(positive.max(), predicted.max()))
            panel.plot([0, top], [0, top], **_REFERENCE)
            panel.plot(predicted, positive, marker='o', markersize=3)
            panel.text(0.98 * top, 0.03 * top, caption, ha='right', fontsize=8)
            panel.set(title=_plain(name), xlim=(0, top), ylim=(0, top), aspect='equal')
            panel.locator_params(nbins=4)
        figure.supxlabel('mean predicted probability of a bin', fontsize=9)
        figure.supylabel('share of positives', fontsize=9)
        return svg(figure)


def against_share(panels: dict[str, dict[str, list]], label: str, chance: float | None) -> str:
    """A number against the share of the labels that was trained on.

    Args:
        panels: {title: {series: [(share, mean, low or NaN, high or NaN, values of the seeds)]}}.
        label: of the y axis.
        chance: a level to read it against, or None.
    """
    with matplotlib.rc_context(_STYLE):
        series = list(dict.fromkeys(name for panel in panels.values() for name in panel))
        figure, axes = _panels(len(panels), 2, 4.4, 3.2)
        looks: dict[str, dict[str, Any]] = {
            name: {'color': COLOURS[i % len(COLOURS)], 'marker': _MARKERS[i % 5], 'linestyle': _DASHES[i % 4]}
            for i, name in enumerate(series)
        }
        for panel, (title, lines) in zip(axes, panels.items()):
            shares = sorted({point[0] for points in lines.values() for point in points})
            for i, (name, points) in enumerate(lines.items()):
                places, *estimates, seeds = zip(*sorted(points, key=lambda point: point[0]))
                # Beside each other, not on top: steps of 4 % on a logarithmic axis.
                x = np.array(places) * 1.04 ** (i - (len(lines) - 1) / 2)
                mean, low, high = map(np.array, estimates)
                panel.errorbar(
                    x, mean, np.nan_to_num([mean - low, high - mean]), capsize=2.5, elinewidth=1, **looks[name]
                )
                for place, values in zip(x, seeds):
                    if len(values) > 1:
                        panel.plot(
                            [place] * len(values),
                            values,
                            '.',
                            markersize=3,
                            color=looks[name]['color'],
                            alpha=0.6,
                        )
            if chance is not None:
                panel.axhline(chance, **_REFERENCE)
            panel.set(title=_plain(title), xscale='log', ylabel=label, xlabel='share of the training labels')
            panel.set_xticks(shares)
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: share(value)))
            panel.margins(x=0.12)
        figure.legend(
            [Line2D([], [], **looks[name]) for name in series],
            map(_plain, series),
            loc='outside lower center',
            ncols=2,
        )
        return svg(figure)


def distributions(names: Sequence[str], values: Sequence[np.ndarray], label: str) -> str:
    """Histograms of numbers in 0..1, with their means."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(len(names), _PANEL_COLUMNS, 3.55, 2.3, sharex=True)
        for panel, name, numbers in zip(axes, names, values):
            panel.hist(numbers, bins=np.linspace(0, 1, 21), edgecolor='white', linewidth=0.5)
            panel.axvline(
                np.mean(numbers), color=COLOURS[1], linestyle='--', label=f'mean {np.mean(numbers):.3f}'
            )
            panel.set(title=_plain(name), xlabel=label, ylabel='images', xlim=(0, 1))
            panel.legend()
        return svg(figure)


def outlines(
    images: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    captions: Sequence[str],
    structures: Sequence[str],
    notes: Sequence[Sequence[str]],
) -> list[str]:
    """Films, each beside itself with the true and the predicted outline of each structure.

    Args:
        images: uint8 [m, S, S].
        truth, predicted: bool [m, S, S, k].
        captions: [m].
        structures: names [k].
        notes: [m][k], written below each.

    Returns:
        Data URIs of sheets, each low enough for a page of paper.
    """
    abreast = 2 if len(structures) < 3 else 1
    columns = abreast * (1 + len(structures))
    side = min(2.6, 10.6 / columns)  # inches
    per_sheet = abreast * max(1, int(9 // (side + 0.4)))
    sheets = []
    for start in range(0, len(images), per_sheet):
        chosen = range(start, min(start + per_sheet, len(images)))
        with matplotlib.rc_context(_STYLE | {'axes.grid': False}):
            rows = -(-len(chosen) // abreast)
            figure = Figure(figsize=(columns * side, rows * (side + 0.4) + 0.3), dpi=110, layout='constrained')
            panels = figure.subplots(rows, columns, squeeze=False)
            for panel in panels.flat:
                panel.set_axis_off()
            for i, place in zip(chosen, panels.reshape(-1, 1 + len(structures))):
                place[0].set_title(_plain(_end(captions[i], int(15 * side))), fontsize=7.5)
                for k, panel in enumerate(place):
                    panel.imshow(images[i], cmap='gray', vmin=0, vmax=255)
                    if k:
                        _outline(panel, truth[i, ..., k - 1], TRUTH, '-')
                        _outline(panel, predicted[i, ..., k - 1], PREDICTED, '--')
                        panel.set_title(_plain(f'{structures[k - 1]}\n{notes[i][k - 1]}'), fontsize=7.5)
            figure.legend(
                [Line2D([], [], color=TRUTH), Line2D([], [], color=PREDICTED, linestyle='--')],
                ['truth', 'predicted'],
                loc='outside upper center',
                ncols=2,
            )
            sheets.append(jpeg(figure))
    return sheets


def _panels(count: int, columns: int, width: float, height: float, **shared):
    """A figure and its first `count` panels, of `width` x `height` inches each."""
    columns = min(columns, count)
    rows = -(-count // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)  # inches
    figure = Figure(figsize=(columns * width, rows * height), layout=layout)
    panels = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for panel in panels[count:]:
        panel.remove()
    for panel in panels[max(0, count - columns) : count]:
        panel.xaxis.set_tick_params(labelbottom=True)  # none is below it that would show them
    return figure, panels[:count]


def _unit_square(panel, title: str) -> None:
    panel.set(title=title, xlim=(0, 1), ylim=(0, 1.01), aspect='equal', xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))


def _outline(panel, mask: np.ndarray, colour: str, dashes: str) -> None:
    if mask.any():
        framed = np.pad(mask, 1).astype(float)  # a mask that reaches the edge is closed there
        places = np.arange(-1, len(mask) + 1)
        panel.contour(places, places, framed, [0.5], colors=colour, linestyles=dashes, linewidths=1.2)


def _thinned(x: Sequence, y: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """At most 400 points of a curve, both ends among them."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).astype(int))
    return np.asarray(x)[chosen], np.asarray(y)[chosen]


def _end(text: str, length: int) -> str:
    """The last letters of a name, which tell films of one folder apart."""
    return text if len(text) <= length else f'...{text[3 - length :]}'


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return str(text).replace('$', r'\$')
