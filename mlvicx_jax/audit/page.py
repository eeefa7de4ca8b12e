"""The audit's page: one HTML file with the pictures in it."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np

from mlvicx_jax.audit.report import count_of, prevalence
from mlvicx_jax.report import template
from mlvicx_jax_datasets import radiograph

FILMS, MEMBERS = 40, 4  # shown of the films found more than once, and of one film's members


def render(
    report: dict[str, Any], read: Callable[[dict[str, str]], np.ndarray], patient_ids: bool = False
) -> str:
    """The HTML of a report.

    Args:
        read: gives the image of a film's member, uint8 [H, W].
        patient_ids: whether they stand beside the films.
    """
    films = [
        film | {'pictures': [(member, _png(read(member))) for member in _most_telling(film['members'])]}
        for film in report['films'][:FILMS]
    ]
    return template.render(
        __package__,
        report=report,
        films=films,
        prevalence=prevalence,
        count_of=count_of,
        patient_ids=patient_ids,
    )


def _most_telling(members: list[dict[str, str]]) -> list[dict[str, str]]:
    """One member of each split first."""
    seen: set[tuple[str, str]] = set()
    first: list[dict[str, str]] = []
    rest: list[dict[str, str]] = []
    for member in members:
        place = member['set'], member['split']
        (rest if place in seen else first).append(member)
        seen.add(place)
    return (first + rest)[:MEMBERS]


def _png(image: np.ndarray) -> str:
    return base64.b64encode(radiograph.encode_png(image)).decode()
