"""Audits prepared data sets: do their splits leak, and what do they hold?

    mlvicx audit nih_chestxray14 rsna_pneumonia --data_dir data --out audit

Finds films that are in two splits, or in the test split of one set and the training of another:
exact copies and recompressed, resized or cropped ones; patients in two splits; lists that are not
NIH's official ones. Prints tables, writes audit.json and audit.html, and exits with 1 where a
problem is found, 2 where a set can not be read.
"""

import argparse
import json
import pathlib
import sys

from mlvicx_jax.audit import page, sheets
from mlvicx_jax.audit import report as reports
from mlvicx_jax.data.source import open_folder
from mlvicx_jax.errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='mlvicx audit', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'sets', nargs='+', metavar='SET', help='the folder of a prepared set, or its name below --data_dir'
    )
    parser.add_argument(
        '--data_dir',
        type=pathlib.Path,
        default=pathlib.Path('data'),
        help='where prepared sets are kept (data)',
    )
    parser.add_argument(
        '--out',
        type=pathlib.Path,
        default=pathlib.Path('audit'),
        help='folder for audit.json and audit.html (audit)',
    )
    parser.add_argument(
        '--sheets',
        type=pathlib.Path,
        metavar='DIR',
        help='write sheets of samples per split and label to DIR, and stop',
    )
    parser.add_argument(
        '--own_lists', action='store_true', help="lists other than NIH's official ones are meant"
    )
    parser.add_argument(
        '--validation_fraction',
        type=float,
        default=0.1,
        help='of the patients of train_val, as config.data has it (0.1)',
    )
    parser.add_argument('--split_seed', type=int, default=0, help='as config.data has it (0)')
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    sets = [
        open_folder(reports.find_folder(text, args.data_dir), args.validation_fraction, args.split_seed)
        for text in args.sets
    ]
    if args.sheets:
        for data in sets:
            written = sheets.write_sheets(data, args.sheets)
            print(f'{len(written)} sheets of {data.name} in {args.sheets}')
        return 0
    report = reports.audit(sets, args.own_lists)
    print(reports.as_text(report))
    splits = {
        (told['name'], split.name): split
        for told, data in zip(report['sets'], sets)
        for split in data.splits.values()
    }
    rows = {key: dict(zip(split.image_ids.tolist(), range(len(split)))) for key, split in splits.items()}

    def read(member: dict[str, str]):
        key = member['set'], member['split']
        return reports.read_film(splits[key], rows[key][member['image_id']])

    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / 'audit.json').write_text(json.dumps(report, indent=1) + '\n')
        (args.out / 'audit.html').write_text(page.render(report, read), encoding='utf-8')
    except OSError as error:
        raise UserError(f'{args.out}: can not be written ({error.strerror}); give another --out') from error
    print(f'written: {args.out / "audit.json"}, {args.out / "audit.html"}')
    return 1 if report['problems'] else 0
