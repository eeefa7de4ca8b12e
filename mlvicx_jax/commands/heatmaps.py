"""Heatmaps of classifiers (Fig. 2 of the paper): Grad-CAM sheets, and how well maps meet boxes.

    mlvicx heatmaps --workdir workdirs/a workdirs/b --findings Nodule Mass --out maps

Writes heatmaps.png, a row per finding and a column per run, and heatmaps.json with pointing game,
IoU and share of energy in the boxes for each run and finding, beside what chance would give. The
film of a finding is the same for all runs: the first, by image id, that is positive for it and has
a box of it (of sets without boxes, the first positive one).
"""

import argparse
import functools
import pathlib

import numpy as np
from absl import logging

from mlvicx_jax import compilation
from mlvicx_jax.commands import _heatmap_sheet as sheets
from mlvicx_jax.commands._line import Parser, end
from mlvicx_jax.data.opening import open_data
from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import grad_cam
from mlvicx_jax.files import write_json
from mlvicx_jax.models.resnet import LEVELS
from mlvicx_jax.run.record import Run

RULE = 'first image id that is positive for the finding and has a box of it, if any has'


def main(argv: list[str] | None = None) -> int:
    parser = Parser('heatmaps', __doc__)
    parser.add_argument(
        '--workdir', nargs='+', required=True, metavar='W', help='of classification runs on one data set'
    )
    parser.add_argument('--level', default='stage4', choices=LEVELS, help='feature of the encoder (stage4)')
    parser.add_argument('--split', default='test', choices=('train', 'validation', 'test'), help='(test)')
    parser.add_argument(
        '--findings', nargs='+', metavar='FINDING', help='by default all that have boxes in the split'
    )
    parser.add_argument('--data-dir', help='where prepared sets are kept, if not where the runs had it')
    parser.add_argument('--batch-size', type=int, default=32, help='images (32)')
    parser.add_argument('--out', required=True, help='folder for heatmaps.json and heatmaps.png')
    return end(functools.partial(_run, parser.read(argv)))


def _run(args: argparse.Namespace) -> int:
    logging.set_verbosity(logging.ERROR)  # Orbax tells every file it touches
    compilation.keep_programs()
    compilation.check_sums()
    if args.batch_size < 1:
        raise UserError(f'--batch-size is {args.batch_size}, expected 1 or more')
    result = write(
        args.workdir, args.out, args.level, args.split, args.findings, args.data_dir, args.batch_size
    )
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
        `evaluation.grad_cam.localisation`'s, or null for want of boxes}}].

    Raises:
        UserError: a workdir holds no classifier; runs of different sets; a finding that is
            unknown, or that no film of the split has; the folder can not be written.
    """
    out = pathlib.Path(out)
    runs = [_Classifier(workdir, split, data_dir) for workdir in workdirs]
    first = runs[0]
    for run in runs[1:]:
        if (run.data.name, run.split.hash) != (first.data.name, first.split.hash):
            raise UserError(
                f'{run.workdir}: its {split} split of {run.data.name} is not that of '
                f'{first.workdir} ({first.data.name}); give runs on one data set with '
                'the same validation_fraction and split_seed'
            )
    boxes = dict(zip(first.split.image_ids.tolist(), grad_cam.read_boxes(first.data, first.split)))
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
        'cut': grad_cam.CUT,
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
        sheets.draw(result, first.split, boxes, [shown for _, shown in results]).savefig(
            sheet, format='png', dpi=sheets.DPI
        )
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
                    if measure in grad_cam.MEASURES
                )
            )
            films = f' {found["films"]} films of {found["patients"]} patients' if found else ''
            lines.append(f'{run["name"]}  {finding}{films}: {said}')
    return '\n'.join(lines)


class _Classifier:
    """A classifier, and the split of the set that it was trained on."""

    def __init__(self, workdir, split: str, data_dir: str | None):
        self.workdir = pathlib.Path(workdir)
        self.trained = Run.open(self.workdir).network()
        self.trained.require_classifier()
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
        names = list(self.trained.run.label_names)
        maps, probabilities = grad_cam.split_maps(
            self.trained.method.network,
            self.trained.variables,
            part,
            [names.index(finding) for finding in films],
            wanted,
            level,
            self.image_size,
            batch_size,
        )
        found: dict[str, dict | None] = {}
        shown: dict[str, tuple] = {}
        for k, (finding, ids) in enumerate(films.items()):
            chosen = np.flatnonzero(wanted[:, k])
            film = part.image_ids[chosen].tolist().index(ids[0])
            found[finding], scores = None, None
            if finding in boxes[ids[0]]:
                inside = np.stack(
                    [
                        grad_cam.box_mask(boxes[i][finding], self.image_size)
                        for i in part.image_ids[chosen].tolist()
                    ]
                )
                found[finding] = grad_cam.localisation(maps[k], inside, part.patient_ids[chosen])
                scores = grad_cam.localise(maps[k][film], inside[film])
            shown[finding] = maps[k][film], probabilities[chosen[film], k], scores
        return found, shown


def _films(run: _Classifier, finding: str, boxes: dict) -> list[str]:
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


def _names(runs: list[_Classifier]) -> list[str]:
    """The folders' names, or whole paths where two folders have one name."""
    names = [run.workdir.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.workdir) for run in runs]
