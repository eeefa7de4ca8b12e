"""What a table says beside its numbers: how they were made, and what they are of."""

from collections.abc import Mapping

from mlvicx_jax.grid.cell import Cell
from mlvicx_jax.grid.frames import percent
from mlvicx_jax.grid.paper import NIH, PAPER, comparable
from mlvicx_jax.grid.reading import Finished
from mlvicx_jax.report.about import without_paths


def of_table(
    name: str, reference: str, runs: Mapping[Cell, Finished], tests: int, paper: bool, marked: bool
) -> list[str]:
    """The notes above a table.

    Args:
        name: 'table1' to 'table4'.
        reference: the method that others are tested against.
        runs: that its numbers are of.
        tests: how many tests it makes.
        paper: whether a number of the paper stands in it.
        marked: whether a mean over fewer labels stands in it.
    """
    notes = [
        "Mean ± standard deviation over seeds, [95 % interval of the mean over seeds, Student's "
        "t]. Intervals over patients are in each run's results.json.",
        f'p: paired t-test over seeds against {reference}; this table makes {tests} tests, '
        '"Holm" is p adjusted for that.',
    ]
    shared = {cell.encoder_seed for cell in runs}
    if len(shared) == 1 < len({cell.seed for cell in runs}):
        notes.append(
            f'All seeds of a method start from one encoder (pretraining seed {min(shared)}): deviations, '
            'intervals and tests hold the spread of the downstream runs, not that of pretraining.'
        )
    few = {f'{cell.set}, {label}: {told}' for cell, run in runs.items() for label, told in run.few.items()}
    if few:
        notes.append(f'Of few test patients: {"; ".join(sorted(few))}.')
    if paper:
        notes += _of_paper(name)
    other = sorted({cell.set for cell, run in runs.items() if not comparable(run)})
    if other:
        notes.append(
            f'{", ".join(other)}: not the labels or not the official test images of '
            f'{NIH}, so no number of the paper stands beside ours.'
        )
    made_by = {
        f'mlvicx_jax {run.results.get("version")} on {run.results.get("device")}' for run in runs.values()
    }
    notes.append(f'Run with {"; ".join(sorted(made_by))}.')
    if marked:
        notes.append(
            '†: in some seed a mean over fewer labels, named below the block. It is '
            'tested only against means of the same labels.'
        )
    return notes


def _of_paper(name: str) -> list[str]:
    doubt = (
        'It does not state its rule for empty masks, so it stands beside both kinds of Dice.'
        if name == 'table3'
        else 'Its Mean behaves like a mean of 15 labels with No Finding.'
    )
    notes = [f'"paper": {PAPER["source"]}. {doubt}']
    significance = PAPER['significance']
    if name == 'table1':
        each = (f'p {p:.3g} at {percent(float(share))}' for share, p in significance['p'].items())
        notes.append(f"The paper's test, {significance['test']}: {', '.join(each)}.")
    if name == 'table4':
        notes.append(f"The paper's rows: {PAPER['table4']['note']}")
    return notes


def provenance(runs: Mapping[Cell, Finished]) -> tuple[list[dict], list[dict], list[dict]]:
    """What the numbers are of: test sets, encoders with the proof that they were loaded, labels."""
    sets: dict[str, dict] = {}
    encoders: dict[tuple, dict] = {}
    parts: dict[tuple, dict] = {}
    for cell, run in runs.items():
        results = run.results
        sets.setdefault(
            cell.set,
            {
                'set': cell.set,
                'data set': results['dataset'],
                'task': cell.task,
                'labels': ', '.join(run.labels),
                'split': 'test',
                'test images': results['data/test_hash'][:16],
                'validation images': results['data/validation_hash'][:16],
                'truth': run.judged[:16],
            },
        )
        proof = results['init_proof']
        encoders.setdefault(
            (cell.method, cell.encoder_seed),
            {
                'method': cell.method,
                'seed': str(cell.encoder_seed),
                'init': without_paths(results['init']) or 'random',
                'context bottlenecks': 'yes' if results['context'] else 'no',
                'tensors loaded': str(proof['tensors']) if proof else '–',
                'sha256': proof['sha256'][:16] if proof else '–',
            },
        )
        parts.setdefault(
            (cell.set, cell.share, cell.seed),
            {
                'set': cell.set,
                'share': percent(cell.share),
                'seed': str(cell.seed),
                'labelled images': str(results['labelled_images']),
                'sha256 of their ids': results['labelled_hash'][:16],
            },
        )
    return (
        [sets[key] for key in sorted(sets)],
        [encoders[key] for key in sorted(encoders)],
        [parts[key] for key in sorted(parts)],
    )
