"""Exports a run's encoder to PyTorch, ONNX or other JAX programs.

  python -m mlvicx_jax.export --workdir workdirs/mlvicx --format mlvicx --out encoder

The folder holds the weights, config.json with the preprocessing, and a model card; it is written
only if the exported encoder gives the original's features. See docs/export.md.
"""

import argparse
import sys

from absl import logging

from mlvicx_jax.errors import UserError
from mlvicx_jax.export.folder import WHAT, export
from mlvicx_jax.export.formats import FORMATS


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='mlvicx export', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--workdir', required=True, help='of the run')
    parser.add_argument('--format', required=True, help=', '.join(FORMATS))
    parser.add_argument('--out', required=True, help='the new folder')
    parser.add_argument(
        '--what', default='encoder', help=f'{" or ".join(WHAT)}: all puts heads and teachers beside the encoder'
    )
    parser.add_argument('--step', type=int, help='of the checkpoint; the newest by default')
    parser.add_argument(
        '--data',
        nargs='?',
        const='',
        metavar='DIR',
        help="measure on the run's data set (prepared in DIR, or where the run "
        "had it) what torchvision's format loses without context bottlenecks",
    )
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax tells every file it touches
    try:
        out = export(args.workdir, args.format, args.out, args.what, args.step, args.data)
    except UserError as error:
        sys.exit('error: ' + ' '.join(str(error).split()))
    print(f'{out}: proved and written; its README.md says what it is')
