"""What a classifier does on the test images: its table, ROC curves, calibration."""

import numpy as np

from mlvicx_jax.evaluation.metrics import NO_FINDING, auroc
from mlvicx_jax.report import figures
from mlvicx_jax.report.about import test_split
from mlvicx_jax.report.content import (
    INTERVAL,
    NOT_AVAILABLE,
    Block,
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

_HEADS = {
    'classifier': 'fine-tuned classifier',
    'linear': 'linear layer',
    'lbfgs': 'logistic regression (L-BFGS)',
    'knn': 'kNN',
}
# Where results.json and predictions.npz differ by more, they are of two runs.
_ROUNDING = 1e-3


def results(run: Run) -> Section | None:
    """The number first, then the table of classes, then the other heads beside it."""
    if run.results is None:
        return None
    head = run.results['primary']
    test, where = run.results['test'][head], test_split(run)
    names = _names(run)
    blocks: list[Block] = []
    main = main_mean(test)
    if main:
        value = estimate(test['means'][main], test.get('means_interval', {}).get(main))
        blocks.append(
            Text(
                f'{where}, {_HEADS.get(head, head)}: AUROC of '
                f'{_membership(main, test, names)} {value} ({INTERVAL}).',
                'lead',
            )
        )
    if not _agree(run, names, test):
        blocks.append(
            Text(
                'predictions.npz and results.json are not of one run: their AUROCs '
                'differ. Run the command again before a number is used.',
                'warning',
            )
        )
    blocks.append(_class_table(run, names, head, where))
    if len(run.results['test']) > 1:
        blocks.append(_heads_table(run, names, where))
    return Section('Test results', blocks)


def main_mean(test: dict) -> str | None:
    """Name of the mean over the findings: 'mean14' of 'mean14' and 'mean15'."""
    return min(test.get('means', {}), key=lambda name: int(name.removeprefix('mean')), default=None)


def roc(run: Run) -> Section | NotRun | None:
    """A ROC curve of each class that has one."""
    return _per_class(
        run, 'ROC curves', figures.roc, 'auroc', 'AUROC', f'Dashed: chance. AUROC with its {INTERVAL}.'
    )


def calibration(run: Run) -> Section | NotRun | None:
    """A reliability diagram of each class."""
    return _per_class(
        run,
        'Calibration',
        figures.reliability,
        'calibration_error',
        'error',
        'Images in 15 bins of equal size by predicted probability; on the dashed '
        'line predictions are right on average. Error: expected calibration error. '
        'Axes differ between classes.',
    )


def _per_class(run, title, draw, measure, word, caption) -> Section | NotRun | None:
    if run.results is None:
        return None
    head = run.results['primary']
    if run.predictions is None or f'test_{head}' not in run.predictions:
        return NotRun(title, f'predictions.npz with the scores of {head} is not in the folder')
    labels, scores = run.predictions['test_labels'], run.predictions[f'test_{head}']
    test, names = run.results['test'][head], _names(run)
    drawn = [i for i, value in enumerate(auroc(labels, scores)) if not np.isnan(value)]
    if not drawn:
        return NotRun(title, 'no class has both positives and negatives in the test split')
    values = test.get(measure, {})
    intervals = test.get(f'{measure}_interval', {})
    told = [_short(values.get(names[i]), intervals.get(names[i])) for i in drawn]
    left = [name for i, name in enumerate(names) if i not in drawn]
    picture = Picture(
        draw(
            [names[i] for i in drawn], labels[:, drawn], scores[:, drawn], [f'{word} {text}' for text in told]
        ),
        f'{title} of {count(len(drawn), "class", "classes")}. '
        + '; '.join(f'{names[i]}: {word} {text}' for i, text in zip(drawn, told)).replace('\n', ' '),
        f'{test_split(run)}, {_HEADS.get(head, head)}. {caption}'
        + (f' {NOT_AVAILABLE}: {", ".join(left)} (one class only, or no score).' if left else '')
        + _of_few(test),
    )
    return Section(title, [picture])


def _of_few(test: dict) -> str:
    """Which numbers are of few patients, and which have no interval for that or another reason."""
    told = {
        'Few test patients': [f'{name} ({few})' for name, few in test.get('few', {}).items()],
        'No interval': [f'{name} ({why})' for name, why in test.get('no_interval', {}).items()],
    }
    return ''.join(f' {what}: {", ".join(names)}.' for what, names in told.items() if names)


def _short(value, interval) -> str:
    """An estimate on two lines, for a panel."""
    return estimate(value, interval).replace(' [', '\n[') if interval else number(value)


def _names(run: Run) -> list[str]:
    """Of the labels, in the order of the set: results.json is sorted by name."""
    return run.ended['label_names']


def _agree(run: Run, names: list[str], test: dict) -> bool:
    """Whether the AUROCs of predictions.npz are those of results.json."""
    arrays = run.predictions or {}
    scores = arrays.get(f'test_{run.ended["primary"]}')
    if scores is None:
        return True
    told = [test.get('auroc', {}).get(name) for name in names]
    known = np.array([np.nan if value is None else value for value in told])
    return np.allclose(auroc(arrays['test_labels'], scores), known, rtol=0, atol=_ROUNDING, equal_nan=True)


def _membership(mean: str, test: dict, names: list[str]) -> str:
    """Which classes are in a mean: '7 of 8 findings'."""
    every = int(mean.removeprefix('mean'))
    findings = [name for name in names if name != NO_FINDING]
    members = findings if every == len(findings) else names
    there = sum(test.get('auroc', {}).get(name) is not None for name in members)
    what = 'findings' if members == findings else f'labels with {NO_FINDING}'
    if every == 1:
        return members[0]
    return f'{every} {what}, mean' if there == every else f'{there} of {every} {what}, mean'


def _class_table(run: Run, names: list[str], head: str, where: str) -> Table:
    test = run.ended['test'][head]
    labels = (run.predictions or {}).get('test_labels')

    def value(measure, name):
        return test.get(measure, {}).get(name)

    def positives(i):
        return NOT_AVAILABLE if labels is None else f'{labels[:, i].sum():,} of {len(labels):,}'

    rows = [
        (
            name,
            positives(i),
            *(estimate(value(key, name), value(f'{key}_interval', name)) for key in ('auroc', 'auprc')),
            *(number(value(key, name)) for key in ('f1', 'accuracy', 'calibration_error')),
        )
        for i, name in enumerate(names)
    ]
    means = sorted(test.get('means', {}), key=lambda name: int(name.removeprefix('mean')))
    totals = [
        (
            f'{mean}: {_membership(mean, test, names)}',
            '',
            estimate(test['means'][mean], test.get('means_interval', {}).get(mean)),
            '',
            '',
            '',
            '',
        )
        for mean in means
        if len(names) > 1
    ]
    missing = test.get('not_available') or []
    caption = (
        f'{where}, {_HEADS.get(head, head)}. In brackets: {INTERVAL}. F1 and accuracy at '
        'thresholds chosen on the validation split; calibration error: expected, 15 bins of '
        'equal size.'
    )
    if missing:
        caption += (
            f' {NOT_AVAILABLE}: {", ".join(missing)}, one class only in the test split or '
            'no score; not in the means.'
        )
    return Table(
        caption + _of_few(test),
        ('class', 'positives', 'AUROC', 'AUPRC', 'F1', 'accuracy', 'calibration error'),
        rows + totals,
        totals=len(totals),
    )


def _heads_table(run: Run, names: list[str], where: str) -> Table:
    """AUROC of every head, the same encoder and images."""
    primary, found = run.ended['primary'], run.ended['test']
    tests = {head: found[head] for head in dict.fromkeys([primary, *_HEADS, *found]) if head in found}
    rows = [
        (
            name,
            *(
                estimate(test.get('auroc', {}).get(name), test.get('auroc_interval', {}).get(name))
                for test in tests.values()
            ),
        )
        for name in names
    ]
    means = sorted(
        {mean for test in tests.values() for mean in test.get('means', {})},
        key=lambda name: int(name.removeprefix('mean')),
    )
    rows += [
        (
            mean,
            *(
                estimate(test.get('means', {}).get(mean), test.get('means_interval', {}).get(mean))
                for test in tests.values()
            ),
        )
        for mean in means
    ]
    return Table(
        f'{where}. AUROC of each head on the same features; in brackets: {INTERVAL}.' + _of_few(found[primary]),
        ('class', *(_HEADS.get(head, head) for head in tests)),
        rows,
        totals=len(means),
    )
