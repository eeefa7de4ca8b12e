"""Prepares a data set once, as TFDS ArrayRecord files, and opens what is prepared.

    mlvicx prepare --dataset phantom_cxr --data_dir data --option size=128

An image that can not be read does not stop a run: it is left out and listed, with the reason, in
prepare_report.json. Such a set is kept aside and the run fails, unless --allow_bad covers the
number of these images; a second run that covers it takes the set over without decoding again. A
mistake in the release's text (a missing file or column, a damaged archive) ends the run at once.
"""

import argparse
import contextlib
import sys
from typing import Any

from mlvicx_jax.data.prepare import REPORT, prepare, read_report
from mlvicx_jax.errors import UserError


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='mlvicx prepare', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--dataset', required=True, help='a folder of datasets/')
    parser.add_argument('--data_dir', required=True, help='where prepared sets are kept')
    parser.add_argument('--manual_dir', help='the downloaded release')
    parser.add_argument(
        '--option',
        action='append',
        default=[],
        metavar='NAME=VALUE',
        help="a field of the set's Config, such as size=256; may be repeated",
    )
    parser.add_argument(
        '--allow_bad',
        type=int,
        default=0,
        metavar='N',
        help='accept a set that lacks up to N images that can not be read',
    )
    args = parser.parse_args(argv)
    try:
        options = dict(_parse_option(text) for text in args.option)
        builder = prepare(args.dataset, args.data_dir, args.manual_dir, options, args.allow_bad)
    except UserError as error:
        sys.exit(f'error: {error}')
    print(f'{builder.info.full_name} in {builder.data_path}')
    for split, info in builder.info.splits.items():
        print(f'{split}: {info.num_examples} images')
    for note in builder.info.metadata.get('notes', ()):
        print(f'note: {note}')
    bad = (read_report(builder.data_path) or {'bad': []})['bad']
    if bad:
        print(f'left out: {len(bad)} images that can not be used, listed in {builder.data_path / REPORT}')


def _parse_option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition('=')
    if not equals:
        raise UserError(f'--option {text!r}, expected NAME=VALUE such as size=256')
    for parse in (int, float, {'True': True, 'False': False}.__getitem__):
        with contextlib.suppress(ValueError, KeyError):
            return key, parse(value)
    return key, value
