"""Writes what a run did as one HTML page, which opens from disk with no network and prints.

    mlvicx report workdirs/quickstart
    mlvicx report grids/phantom --out phantom.html

WORKDIR is the --workdir of a pretraining, a classification or a segmentation, or the folder of a
grid. What it does not hold is left out, and named at the end of the page.
"""

import argparse
import functools
import pathlib

from ml_collections import ConfigDict

from mlvicx_jax import preview
from mlvicx_jax.commands._line import Parser, end
from mlvicx_jax.errors import UserError
from mlvicx_jax.grid import page as grid_page
from mlvicx_jax.grid.folder import Grid, read
from mlvicx_jax.report import page


def main(argv: list[str] | None = None) -> int:
    parser = Parser('report', __doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument('where', nargs='?', type=pathlib.Path, metavar='WORKDIR')
    where.add_argument('--workdir', type=pathlib.Path, help='the same')
    parser.add_argument('--out', type=pathlib.Path, help='the page (WORKDIR/report.html)')
    parser.add_argument(
        '--views', action='store_true', help='draw WORKDIR/views.png first, which opens the data set'
    )
    return end(functools.partial(_run, parser.read(argv)))


def _run(args: argparse.Namespace) -> int:
    folder = (args.where or args.workdir).expanduser()
    out = (args.out or folder / 'report.html').expanduser()
    if args.views:
        _draw_views(folder)
    found = read(folder)
    page.write(grid_page.render(found) if isinstance(found, Grid) else page.render(found), out)
    print(f'{out}: {out.stat().st_size / 1e3:,.0f} kB')
    return 0


def _draw_views(folder: pathlib.Path) -> None:
    run = read(folder)
    if isinstance(run, Grid) or run.task != 'pretrain':
        raise UserError(f'--views: {folder} is no pretraining run; leave it out')
    preview.preview(ConfigDict(run.config), folder / 'views.png')
