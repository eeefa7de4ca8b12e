"""Writes what a run did as one HTML page, which opens from disk with no network and prints.

    mlvicx report workdirs/quickstart
    mlvicx report grids/phantom --out phantom.html

WORKDIR is the --workdir of a pretraining, a classification or a segmentation, or the folder of a
grid. What it does not hold is left out, and named at the end of the page.
"""

import argparse
import pathlib
import sys

from ml_collections import ConfigDict

from mlvicx_jax import preview
from mlvicx_jax.errors import UserError
from mlvicx_jax.grid import page as grid_page
from mlvicx_jax.report import page
from mlvicx_jax.run.reading import Grid, Run, read


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='mlvicx report', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('workdir', type=pathlib.Path, metavar='WORKDIR')
    parser.add_argument('--out', type=pathlib.Path, help='the page (WORKDIR/report.html)')
    parser.add_argument(
        '--views', action='store_true', help='draw WORKDIR/views.png first, which opens the data set'
    )
    args = parser.parse_args(argv)
    folder = args.workdir.expanduser()
    out = (args.out or folder / 'report.html').expanduser()
    try:
        if args.views:
            _draw_views(folder)
        found = read(folder)
        page.write(grid_page.render(found) if isinstance(found, Grid) else page.render(found), out)
    except UserError as error:
        sys.exit('error: ' + ' '.join(str(error).split()))
    print(f'{out}: {out.stat().st_size / 1e3:,.0f} kB')


def _draw_views(folder: pathlib.Path) -> None:
    run = read(folder)
    if not isinstance(run, Run) or run.task != 'pretrain':
        raise UserError(f'--views: {folder} is no pretraining run; leave it out')
    preview.preview(ConfigDict(run.config), folder / 'views.png')
