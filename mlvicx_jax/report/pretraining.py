"""What the encoder of a pretraining run is worth, by its probes."""

from mlvicx_jax.report.content import NOT_AVAILABLE, Block, NotRun, Section, Table, Text, count, number
from mlvicx_jax.run.record import Run

_PROBES = {'probe': 'linear probe', 'knn': 'kNN'}


def probes(run: Run) -> Section | NotRun | None:
    """Tables of the linear probe and of kNN: trained against initial, and each finding."""
    results = run.results
    if results is None:
        return None
    if results.get('probe/auroc') is None:
        return NotRun('probes', 'config.eval_every_steps was 0')
    split = f'{results["eval/split"]} split of {run.config["data"]["name"]}'
    mean = [
        (name, *(number(results.get(f'{key}/auroc{suffix}')) for suffix in ('', '_init', '_init_uncalibrated')))
        for key, name in _PROBES.items()
    ]
    prefix = 'probe/auroc/'
    classes = [
        (name.removeprefix(prefix), number(value)) for name, value in results.items() if name.startswith(prefix)
    ]
    available = sum(value != NOT_AVAILABLE for _, value in classes)
    trained = number(results['probe/auroc'])
    initial = number(results.get('probe/auroc_init'))
    blocks: list[Block] = [
        Text(
            f'Linear probe on the frozen encoder, {split}: mean AUROC {trained}; initial encoder, '
            f'calibrated: {initial}. One run; no interval was computed.',
            'lead',
        ),
        Table(
            f'Mean AUROC on the {split}, over the {count(available, "finding")} that have one. '
            'Initial: the encoder before training, with BatchNorm calibrated on training images '
            'and as it was initialised.',
            ('', 'trained', 'initial, calibrated', 'initial, uncalibrated'),
            mean,
        ),
    ]
    if classes:
        blocks.append(Table(f'AUROC of the linear probe by finding, {split}.', ('finding', 'AUROC'), classes))
    return Section('What the encoder is worth', blocks)
