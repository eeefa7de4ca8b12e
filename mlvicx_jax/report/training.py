"""The curves of a training: loss between its levels, diagnostics, probes, validation."""

from mlvicx_jax.evaluation import baselines
from mlvicx_jax.report import figures
from mlvicx_jax.report.content import NotRun, Picture, Section
from mlvicx_jax.run.record import Run

_LEVELS = {'share_nothing': 'views that share nothing', 'floor': 'floor'}


def curves(run: Run) -> Section | NotRun:
    """One figure; a panel for each kind of number that the run logged."""
    panels = [
        panel
        for panel in (
            _panel('Loss', 'training loss', {'training': run.curve('train/loss')}, _levels(run)),
            *_validation(run),
            _panel('Spread of the embeddings', 'std of a feature', run.curves('train/std/')),
            _panel('Rank of the embeddings', 'RankMe (effective dimensions)', run.curves('train/rankme/')),
            _probe(run, 'probe', 'Linear probe of the frozen encoder'),
            _probe(run, 'knn', 'kNN of the frozen encoder'),
        )
        if panel['lines']
    ]
    if not panels:
        return NotRun('curves', 'metrics.jsonl holds no step yet')
    split = (run.results or run.config['eval']).get('eval/split') or run.config['eval']['split']
    caption = 'What the run logged. Loss, spread and rank are of training batches.'
    if any(panel['title'].startswith(('Linear', 'kNN')) for panel in panels):
        caption += (
            f' Probes: mean AUROC on the {split} split, beside the encoder before training '
            '(calibrated: with BatchNorm statistics of training images; uncalibrated: as '
            'it was initialised).'
        )
    if run.task != 'pretrain':
        caption += ' The checkpoint is chosen on the validation split alone.'
    picture = Picture(figures.curves(panels), _alt(panels), caption)
    return Section('Training', [picture])


def _panel(title: str, label: str, lines: dict, levels: dict | None = None, chosen: int | None = None) -> dict:
    return {
        'title': title,
        'label': label,
        'levels': levels or {},
        'chosen': chosen,
        'lines': {name: curve for name, curve in lines.items() if curve[0]},
    }


def _levels(run: Run) -> dict[str, float]:
    found = {name: run.curve(f'train/level/{key}')[1] for key, name in _LEVELS.items()}
    return {name: values[-1] for name, values in found.items() if values}


def _validation(run: Run) -> list[dict]:
    chosen = (run.results or {}).get('step') if run.task != 'pretrain' else None
    names = {'auroc': 'mean AUROC', 'dice': 'Dice', 'loss': 'loss'}
    found = {name: curve for name, curve in run.curves('validation/').items() if name in names}
    return [
        _panel(
            f'Validation {names[name]}',
            f'{names[name]}, validation split',
            {'validation': curve},
            chosen=chosen,
        )
        for name, curve in found.items()
    ]


def _probe(run: Run, key: str, title: str) -> dict:
    found = {name: run.curve(f'{key}/auroc{ending}')[1] for name, ending in baselines.ENDINGS.items()}
    return _panel(
        title,
        'mean AUROC',
        {'trained': run.curve(f'{key}/auroc')},
        {name: values[0] for name, values in found.items() if values},
    )


def _alt(panels: list[dict]) -> str:
    told = []
    for panel in panels:
        for name, (steps, values) in panel['lines'].items():
            text = (
                f'{panel["title"]}, {name}: {values[0]:.4g} at step {steps[0]}, '
                f'{values[-1]:.4g} at step {steps[-1]}'
            )
            if panel['chosen'] is not None:
                text += f', best {max(values):.4g}' if 'loss' not in panel['title'] else ''
            told.append(text)
        told += [f'{name} at {value:.4g}' for name, value in panel['levels'].items()]
    return '; '.join(told)
