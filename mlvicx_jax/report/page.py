"""The page of a run: which sections it has, in which order."""

import pathlib

from mlvicx_jax import __version__
from mlvicx_jax.errors import UserError
from mlvicx_jax.files import write_text
from mlvicx_jax.report import about, classification, pretraining, segmentation, sheets, template, training
from mlvicx_jax.report.content import NotRun, Section
from mlvicx_jax.run.reading import Run

_RESULTS = {
    'pretrain': (pretraining.probes, training.curves, sheets.views),
    'classify': (
        classification.results,
        classification.roc,
        classification.calibration,
        sheets.heatmaps,
        training.curves,
    ),
    'segment': (segmentation.results, segmentation.outlines, segmentation.distribution, training.curves),
}


def render(run: Run) -> str:
    """The HTML of a run; the same input gives the same bytes."""
    first, *others = _RESULTS[run.task]
    parts = [
        about.unfinished(run),
        first(run),
        about.what_was_run(run),
        *(section(run) for section in others),
        about.time_spent(run),
        about.configuration(run),
    ]
    return assemble(about.title(run), run.folder, parts)


def assemble(title: str, folder: pathlib.Path, parts: list[Section | NotRun | None]) -> str:
    """The HTML of sections; those that could not be made are named at its end."""
    return template.render(
        __package__,
        title=title,
        folder=folder,
        version=__version__,
        sections=[part for part in parts if part and not isinstance(part, NotRun)],
        not_run=[part for part in parts if isinstance(part, NotRun)],
    )


def write(html: str, out: pathlib.Path) -> None:
    """Writes a page; a reader finds the old one or the new one.

    Raises:
        UserError: `out` can not be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, html)
    except OSError as error:
        raise UserError(f'{out}: can not be written ({error.strerror}); give another --out') from error
