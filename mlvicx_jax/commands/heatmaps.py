"""Heatmaps of classifiers (Fig. 2 of the paper): Grad-CAM sheets, and how well maps meet boxes.

    mlvicx heatmaps --workdir workdirs/a workdirs/b --findings Nodule Mass --out maps

Writes heatmaps.png, a row per finding and a column per run, and heatmaps.json with pointing game,
IoU and share of energy in the boxes for each run and finding, beside what chance would give. The
film of a finding is the same for all runs: the first, by image id, that is positive for it and has
a box of it (of sets without boxes, the first positive one).
"""

import argparse
import pathlib
import sys
import textwrap

import numpy as np
from absl import logging
from matplotlib import colormaps, patheffects
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mlvicx_jax.audit.report import read_film
from mlvicx_jax.data.opening import open_data
from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import heatmaps
from mlvicx_jax.files import write_json
from mlvicx_jax.models.resnet import LEVELS
from mlvicx_jax.run import trained

RULE = 'first image id that is positive for the finding and has a box of it, if any has'
_PANEL, _DPI = 2.3, 160  # inches of a film's side; pixels an inch: sharp on a laptop and in print
_GRID = 320  # points of a drawn map's side, about the panel's pixels


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='mlvicx heatmaps', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--workdir', nargs='+', required=True, metavar='W', help='of classification runs on one data set'
    )
    parser.add_argument('--level', default='stage4', choices=LEVELS, help='feature of the encoder (stage4)')
    parser.add_argument('--split', default='test', choices=('train', 'validation', 'test'), help='(test)')
    parser.add_argument(
        '--findings', nargs='+', metavar='FINDING', help='by default all that have boxes in the split'
    )
    parser.add_argument('--data_dir', help='where prepared sets are kept, if not where the runs had it')
    parser.add_argument('--batch_size', type=int, default=32, help='images (32)')
    parser.add_argument('--out', required=True, help='folder for heatmaps.json and heatmaps.png')
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax tells every file it touches
    try:
        if args.batch_size < 1:
            raise UserError(f'--batch_size is {args.batch_size}, expected 1 or more')
        result = write(
            args.workdir, args.out, args.level, args.split, args.findings, args.data_dir, args.batch_size
        )
    except UserError as error:
        print('error: ' + ' '.join(str(error).split()), file=sys.stderr)
        return 2
    print(as_text(result))
    print(f'written: {args.out}/heatmaps.json, {args.out}/heatmaps.png')
    return 0


def write(
    workdirs: list,
    out,
    level: str = 'stage4',
    split: str = 'test',
    findings: list[str] | None = None,
    data_dir: str | None = None,
    batch_size: int = 32,
) -> dict:
    """Writes heatmaps.json and heatmaps.png of classification runs to the folder `out`.

    Returns:
        What heatmaps.json holds: dataset, split, split_hash, level, cut, rule; films {finding:
        image id on the sheet}; runs [{name, workdir, method, init, step, localisation {finding:
        `evaluation.heatmaps.localisation`'s, or null for want of boxes}}].

    Raises:
        UserError: a workdir holds no classifier; runs of different sets; a finding that is
            unknown, or that no film of the split has; the folder can not be written.
    """
    out = pathlib.Path(out)
    runs = [_Run(workdir, split, data_dir) for workdir in workdirs]
    first = runs[0]
    for run in runs[1:]:
        if (run.data.name, run.split.hash) != (first.data.name, first.split.hash):
            raise UserError(
                f'{run.workdir}: its {split} split of {run.data.name} is not that of '
                f'{first.workdir} ({first.data.name}); give runs on one data set with '
                'the same validation_fraction and split_seed'
            )
    boxes = dict(zip(first.split.image_ids.tolist(), heatmaps.read_boxes(first.data, first.split)))
    findings = findings or [
        name for name in first.data.label_names if any(name in of_film for of_film in boxes.values())
    ]
    if not findings:
        raise UserError(
            f'{first.data.name}: no box is in its {split} split; name --findings of '
            f'{", ".join(first.data.label_names)}'
        )
    films = {finding: _films(first, finding, boxes) for finding in findings}
    results = [run.heatmaps(films, boxes, level, batch_size) for run in runs]
    result = {
        'dataset': first.data.name,
        'split': split,
        'split_hash': first.split.hash,
        'level': level,
        'cut': heatmaps.CUT,
        'rule': RULE,
        'films': {finding: ids[0] for finding, ids in films.items()},
        'runs': [
            {
                'name': name,
                'workdir': str(run.workdir),
                'method': run.trained.config.method.name,
                'init': run.trained.config.init,
                'step': run.trained.step,
                'localisation': localisation,
            }
            for name, run, (localisation, _) in zip(_names(runs), runs, results)
        ],
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        sheet = out / 'heatmaps.png.partial'
        _sheet(result, first, boxes, [shown for _, shown in results]).savefig(sheet, format='png', dpi=_DPI)
        sheet.replace(out / 'heatmaps.png')
        write_json(out / 'heatmaps.json', result)
    except OSError as error:
        raise UserError(f'{out}: can not be written ({error.strerror}); give another --out') from error
    return result


def as_text(result: dict) -> str:
    """The localisation as lines for a terminal, value with its interval (chance, other films)."""
    lines = [
        f'{result["dataset"]} {result["split"]}, Grad-CAM of {result["level"]}: value [95 % '
        'interval] (by chance, on the boxes of other films)'
    ]
    for run in result['runs']:
        for finding, found in run['localisation'].items():
            said = (
                'no boxes'
                if found is None
                else '  '.join(
                    f'{measure} {m["value"]:.3f} [{m["value_interval"][0]:.3f}, '
                    f'{m["value_interval"][1]:.3f}] ({m["chance"]:.3f}, {m["other_films"]:.3f})'
                    for measure, m in found.items()
                    if measure in heatmaps.MEASURES
                )
            )
            films = f' {found["films"]} films' if found else ''
            lines.append(f'{run["name"]}  {finding}{films}: {said}')
    return '\n'.join(lines)


class _Run:
    """A classifier, and the split of the set that it was trained on."""

    def __init__(self, workdir, split: str, data_dir: str | None):
        self.workdir = pathlib.Path(workdir)
        self.trained = trained.load(self.workdir)
        trained.require_classifier(self.trained, self.workdir)
        config = self.trained.config.copy_and_resolve_references()
        if data_dir:
            config.data.data_dir = str(data_dir)
        self.data = open_data(config)
        self.split = self.data.splits[split]
        self.image_size = config.data.image_size

    def heatmaps(
        self, films: dict[str, list[str]], boxes: dict, level: str, batch_size: int
    ) -> tuple[dict, dict]:
        """{finding: localisation or None} and {finding: what the sheet shows of its first film}."""
        positions = {image_id: i for i, image_id in enumerate(self.split.image_ids.tolist())}
        needed = sorted({positions[image_id] for ids in films.values() for image_id in ids})
        part = self.split.take(np.array(needed))
        wanted = np.stack([np.isin(part.image_ids, ids) for ids in films.values()], 1)
        names = list(self.trained.label_names)
        maps, probabilities = heatmaps.split_maps(
            self.trained.method.network,
            self.trained.variables,
            part,
            [names.index(finding) for finding in films],
            wanted,
            level,
            self.image_size,
            batch_size,
        )
        found, shown = {}, {}
        for k, (finding, ids) in enumerate(films.items()):
            chosen = np.flatnonzero(wanted[:, k])
            film = part.image_ids[chosen].tolist().index(ids[0])
            found[finding], scores = None, None
            if finding in boxes[ids[0]]:
                inside = np.stack(
                    [
                        heatmaps.box_mask(boxes[i][finding], self.image_size)
                        for i in part.image_ids[chosen].tolist()
                    ]
                )
                found[finding] = heatmaps.localisation(maps[k], inside, part.patient_ids[chosen])
                scores = heatmaps.localise(maps[k][film], inside[film])
            shown[finding] = maps[k][film], probabilities[chosen[film], k], scores
        return found, shown


def _films(run: _Run, finding: str, boxes: dict) -> list[str]:
    """Image ids, sorted, that are positive for a finding and have its box, or else the first one."""
    if finding not in run.data.label_names:
        raise UserError(f'--findings {finding}: {run.data.name} has {", ".join(run.data.label_names)}')
    column = run.data.label_names.index(finding)
    positive = sorted(run.split.image_ids[run.split.labels[:, column] == 1].tolist())
    if not positive:
        raise UserError(
            f'--findings {finding}: no film of the {run.split.name} split of '
            f'{run.data.name} has it; name others'
        )
    return [image_id for image_id in positive if finding in boxes[image_id]] or positive[:1]


def _names(runs: list[_Run]) -> list[str]:
    """The folders' names, or whole paths where two folders have one name."""
    names = [run.workdir.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.workdir) for run in runs]


def _overlay() -> ListedColormap:
    """Inferno that fades to nothing at 0, so that the film is seen where the map is low."""
    colours = colormaps['inferno'](np.linspace(0.15, 1, 256))
    colours[:, 3] = np.linspace(0, 1, 256) ** 0.7 * 0.65
    return ListedColormap(colours)


def _outlined(width: float) -> list:
    """A black rim, so that a bright line is seen on bright and dark."""
    return [patheffects.withStroke(linewidth=width, foreground='black')]


def _sheet(result: dict, first: _Run, boxes: dict, shown: list[dict]) -> Figure:
    """Films beside their maps: a row per finding, the film alone and then a column per run."""
    rows, columns = len(result['films']), 1 + len(shown)
    header, footer, left, under = 0.45, 0.75, 0.3, 0.3  # inches
    width, height = left + columns * _PANEL, header + footer + rows * (_PANEL + under)
    figure, colours = Figure(figsize=(width, height)), _overlay()

    def panel(row, column):
        bottom = height - header - row * (_PANEL + under) - _PANEL
        axes = figure.add_axes(
            [
                (left + column * _PANEL + 0.04) / width,
                bottom / height,
                (_PANEL - 0.08) / width,
                (_PANEL - 0.08) / height,
            ]
        )
        axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], facecolor='black')
        return axes

    positions = {image_id: i for i, image_id in enumerate(first.split.image_ids.tolist())}
    for row, (finding, image_id) in enumerate(result['films'].items()):
        film = read_film(first.split, positions[image_id])
        for column in range(columns):
            axes = panel(row, column)
            axes.imshow(film, cmap='gray', vmin=0, vmax=255, extent=(0, 1, 1, 0), aspect='auto')
            if column:
                image_map, probability, scores = shown[column - 1][finding]
                seen = heatmaps.heatmap(image_map, _GRID)
                axes.imshow(
                    heatmaps.normalised(seen), cmap=colours, vmin=0, vmax=1, extent=(0, 1, 1, 0), aspect='auto'
                )
                under_text = f'p = {probability:.2f}'
                if scores is not None:
                    hit = 'maximum in box' if scores[0] >= 0.5 else 'maximum outside'
                    energy = f'energy {100 * scores[2]:.0f} %' if seen.any() else 'map empty'
                    under_text += f', {hit}, {energy}'
                y, x = (np.argwhere(heatmaps.maxima(image_map, _GRID)).mean(0) + 0.5) / _GRID
                axes.plot(
                    x, y, '+', color='white', markersize=7, markeredgewidth=1.1, path_effects=_outlined(2.4)
                )
            else:
                axes.set_ylabel(finding, fontsize=10, fontweight='bold')
                under_text = textwrap.shorten(image_id, 38, placeholder='...')
                if finding in boxes[image_id]:
                    covered = heatmaps.box_mask(boxes[image_id][finding], 256).mean()
                    under_text += f', box {100 * covered:.1f} % of film'
            for ymin, xmin, ymax, xmax in boxes[image_id].get(finding, ()):
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
            axes.set_xlabel(under_text, fontsize=7, labelpad=3)
            if not row:
                title = result['runs'][column - 1]['name'] if column else 'film'
                axes.set_title('\n'.join(textwrap.wrap(title, 30)[:2]), fontsize=9, pad=4)
    bar = figure.add_axes([left / width, (footer - 0.3) / height, 1.6 / width, 0.1 / height])
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=colours, aspect='auto', extent=(0, 1, 0, 1))
    bar.set(xticks=[0, 0.5, 1], yticks=[], facecolor='0.45')
    bar.tick_params(labelsize=7, length=2, pad=1)
    bar.set_xlabel('map, of its own maximum', fontsize=7, labelpad=1)
    text = (
        f'{result["dataset"]}, {result["split"]} split. Grad-CAM of {result["level"]}; frames: '
        "the finding's boxes; cross: the map's maximum. Film: " + result['rule'] + '.'
    )
    lines = textwrap.wrap(text, max(30, int((width - left - 1.9) * 17)))
    figure.text((left + 1.85) / width, (footer - 0.2) / height, '\n'.join(lines), fontsize=7, va='top')
    return figure
