"""The page: which sections a run or a grid has, in which order."""

import pathlib

from mlvicx_jax import __version__
from mlvicx_jax.errors import UserError
from mlvicx_jax.log import write_text
from mlvicx_jax.report import about, classification, grid, pretraining, segmentation, sheets, template, training
from mlvicx_jax.report.content import NotRun
from mlvicx_jax.report.reading import Grid, Run, read

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


def write(folder: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the page of a run's or a grid's folder; a reader finds the old one or the new one.

    Raises:
        UserError: no run is there, one of its files is damaged, or `out` can not be written.
    """
    html = render(read(folder))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, html)
    except OSError as error:
        raise UserError(f'{out}: can not be written ({error.strerror}); give another --out') from error


def render(run: Run | Grid) -> str:
    """The HTML of a run or a grid; the same input gives the same bytes."""
    if isinstance(run, Grid):
        parts = [*grid.against_share(run), *grid.tables(run), sheets.heatmaps(run), grid.runs(run)]
    else:
        parts = [
            about.unfinished(run),
            *(of(run) for of in _RESULTS[run.task][:1]),
            about.what_was_run(run),
            *(of(run) for of in _RESULTS[run.task][1:]),
            about.time_spent(run),
            about.configuration(run),
        ]
    return template.render(
        __package__,
        title=about.title(run),
        folder=run.folder,
        version=__version__,
        sections=[part for part in parts if part and not isinstance(part, NotRun)],
        not_run=[part for part in parts if isinstance(part, NotRun)],
    )
