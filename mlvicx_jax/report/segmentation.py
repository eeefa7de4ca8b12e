"""What a segmentation does on the test images: its table, the spread of Dice, outlines."""

import numpy as np

from mlvicx_jax.report import figures
from mlvicx_jax.report.about import test_split
from mlvicx_jax.report.content import (
    INTERVAL,
    NOT_AVAILABLE,
    NotRun,
    Picture,
    Section,
    Table,
    Text,
    count,
    estimate,
    number,
)
from mlvicx_jax.run.record import Run

_MEASURES = {
    'dice_positives': 'Dice, positives',
    'dice_all': 'Dice, all',
    'iou_positives': 'IoU, positives',
    'iou_all': 'IoU, all',
}


def results(run: Run) -> Section | None:
    """The numbers first, then the table of structures."""
    if run.results is None:
        return None
    where, test = test_split(run), run.results['test']
    images = len(run.predictions['test_image_ids']) if run.predictions else None
    rows = []
    for name in _names(run):
        found = test.get(name, {})
        positives = found.get('positives')
        of_all = f' of {images:,}' if images else ''
        rows.append(
            (
                name,
                NOT_AVAILABLE if positives is None else f'{positives:,}{of_all}',
                NOT_AVAILABLE if 'patients' not in found else f'{found["patients"]:,}',
                *(estimate(found.get(key), found.get(f'{key}_interval')) for key in _MEASURES),
            )
        )
    return Section(
        'Test results',
        [
            Text(
                f'{where}, images with the structure: Dice '
                + ', '.join(f'of {row[0]} {row[3]}' for row in rows)
                + f' ({INTERVAL}).',
                'lead',
            ),
            Table(
                f'{where}. Mean over images. Positives: the images whose true mask is not empty; '
                f'all: empty and empty counts as 1; patients: whose those positives are. '
                f'In brackets: {INTERVAL}.',
                ('structure', 'positives', 'patients', *_MEASURES.values()),
                rows,
            ),
        ],
    )


def distribution(run: Run) -> Section | NotRun | None:
    """Histograms of Dice over the images with the structure."""
    if run.results is None:
        return None
    if run.predictions is None:
        return NotRun('distribution of Dice, outlines', 'predictions.npz is not in the folder')
    found = [
        (str(name), dice[has])
        for name, dice, has in zip(
            run.predictions['structures'],
            run.predictions['test_dice'].T,
            run.predictions['test_has'].astype(bool).T,
        )
        if has.any()
    ]
    if not found:
        return NotRun('distribution of Dice', 'no test image has a structure')
    names, values = zip(*found)
    return Section(
        'Distribution of Dice',
        [
            Picture(
                figures.distributions(names, values, 'Dice'),
                'Histograms of Dice. '
                + '; '.join(
                    f'{name}: median {np.median(dice):.3f}, quartiles {np.quantile(dice, 0.25):.3f} and '
                    f'{np.quantile(dice, 0.75):.3f} over {count(len(dice), "image")}'
                    for name, dice in found
                ),
                f'{test_split(run)}, the images whose true mask is not empty.',
            )
        ],
    )


def outlines(run: Run) -> Section | None:
    """The sample films with both outlines."""
    arrays = run.predictions
    if run.results is None or arrays is None or not len(arrays['sample_images']):
        return None
    place = {name: i for i, name in enumerate(arrays['test_image_ids'].tolist())}
    rows = [place.get(name) for name in arrays['sample_image_ids'].tolist()]
    notes = [
        [
            _told(None if i is None else arrays['test_dice'][i, k], truth[..., k].any())
            for k in range(truth.shape[-1])
        ]
        for i, truth in zip(rows, arrays['sample_truth'])
    ]
    captions = [str(name) for name in arrays['sample_image_ids']]
    structures = [str(name) for name in arrays['structures']]
    sheets = figures.outlines(
        arrays['sample_images'], arrays['sample_truth'], arrays['sample_predicted'], captions, structures, notes
    )
    told = '; '.join(
        f'{caption}: ' + ', '.join(map(' '.join, zip(structures, note)))
        for caption, note in zip(captions, notes)
    )
    return Section(
        'Outlines',
        [
            Picture(
                sheet,
                f'Films with the true and the predicted outline. {told}' if not i else 'More of these films.',
                f'{count(len(captions), "image")} of the test split of {run.results["dataset"]}: the film, '
                'then each structure with the true (solid) and the predicted (dashed) outline, and the '
                'Dice of this image.'
                if not i
                else 'Continued.',
            )
            for i, sheet in enumerate(sheets)
        ],
    )


def _names(run: Run) -> list[str]:
    if run.predictions is not None:
        return [str(name) for name in run.predictions['structures']]
    return list(run.ended['test'])


def _told(dice: float | None, has: bool) -> str:
    return f'Dice {number(dice)}' + ('' if has else ' (none in truth)')
