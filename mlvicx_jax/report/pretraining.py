"""What the encoder of a pretraining run is worth, by its probes."""

from mlvicx_jax.evaluation import baselines
from mlvicx_jax.report.content import (
    INTERVAL,
    NOT_AVAILABLE,
    Block,
    NotRun,
    Section,
    Table,
    Text,
    count,
    estimate,
    number,
)
from mlvicx_jax.run.record import Run

_PROBES = {'probe': 'linear probe', 'knn': 'kNN'}


def probes(run: Run) -> Section | NotRun | None:
    """Tables of the linear probe and of kNN: trained against the baselines, and each finding."""
    results = run.results
    if results is None:
        return None
    if results.get('probe/auroc') is None:
        return NotRun('probes', 'the run evaluated nothing (config.eval_every_steps=0 or another unit)')
    split = f'{results["eval/split"]} split of {run.config["data"]["name"]}'
    there = {'trained': ''} | {
        name: ending for name, ending in baselines.ENDINGS.items() if f'probe/auroc{ending}' in results
    }
    mean = [
        (name, *(number(results.get(f'{key}/auroc{ending}')) for ending in there.values()))
        for key, name in _PROBES.items()
    ]
    prefix = 'probe/auroc/'
    classes = [
        (name.removeprefix(prefix), number(value)) for name, value in results.items() if name.startswith(prefix)
    ]
    available = sum(value != NOT_AVAILABLE for _, value in classes)
    blocks: list[Block] = [
        Text(
            f'Linear probe on the frozen encoder, {split}: mean AUROC {number(results["probe/auroc"])}'
            + _gain(results),
            'lead',
        ),
        Table(
            f'Mean AUROC on the {split}, over the {count(available, "finding")} that have one; features: '
            f'{results.get("eval/readout", "pooled")}. Initial: the encoder before training, with BatchNorm '
            'calibrated on training images and as it was initialised.',
            ('', *there),
            mean,
        ),
    ]
    if classes:
        blocks.append(Table(f'AUROC of the linear probe by finding, {split}.', ('finding', 'AUROC'), classes))
    return Section('What the encoder is worth', blocks)


def _gain(results: dict) -> str:
    """How far the probe is above the best baseline, in words."""
    line = results.get('line_to_beat')
    if line is None:
        return '. One run; no baseline was probed.'
    interval = results.get('probe/gain_low'), results.get('probe/gain_high')
    found = estimate(results.get('probe/gain'), None if None in interval else interval)
    value = number(results.get(f'probe/auroc{baselines.ENDINGS.get(line, "")}'))
    return f'; the line to beat, {line}: {value}; gain over it {found} ({INTERVAL}; one run).'
