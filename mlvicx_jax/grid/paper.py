"""The numbers that the paper prints, where its test images and labels are those of a run."""

import importlib.resources
import json
from collections.abc import Sequence
from typing import Any, Literal

from mlvicx_jax.evaluation.metrics import NO_FINDING
from mlvicx_jax.grid.reading import Finished
from mlvicx_jax_datasets import nih_lists

PAPER = json.loads(importlib.resources.files(__package__).joinpath('paper_tables.json').read_text())
NIH = 'nih_chestxray14'


def paper_number(
    run: Finished, table: str, path: Sequence | Literal[False]
) -> tuple[float, float | None] | None:
    """The paper's number and its standard deviation (None where it gives none).

    None where the paper has no such number, or one of other test images or labels.

    Args:
        table: 'table1' to 'table4' of paper_tables.json.
        path: keys into the table's values; False where the caller knows that there is no number.
    """
    facts = PAPER[table]
    dataset = run.results['dataset']
    if not path or dataset != facts.get('dataset', dataset) or not comparable(run):
        return None
    value: Any = facts['values']
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError):
            return None
    return tuple(value) if isinstance(value, list) else (value, None)


def comparable(run: Finished) -> bool:
    """Whether the paper's numbers may stand beside a run's.

    For ChestX-ray14, whose split is official: all 14 findings and No Finding, on the official test
    images. The paper does not say how it split its other sets, so there the name alone decides.
    """
    if run.results['dataset'] != NIH:
        return True
    findings = set(PAPER['table1']['values']['1.0']['mlvicx']) - {'Mean'}
    return (
        set(run.labels) == findings | {NO_FINDING}
        and run.results['data/test_hash'] == nih_lists.OFFICIAL['test']
    )
