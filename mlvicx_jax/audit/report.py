"""The audit of prepared sets: a report of plain values, told as text, JSON or a page."""

import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlvicx_jax.audit.copies import find_copies, join
from mlvicx_jax.data.films import read_film
from mlvicx_jax.data.fractions import absent_labels
from mlvicx_jax.data.source import RadiographSet, Split
from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import identity


def find_folder(text: str, data_dir: pathlib.Path) -> pathlib.Path:
    """The prepared set that a path, or a name below `data_dir`, stands for."""
    for root in (pathlib.Path(text).expanduser(), data_dir / text):
        found = [
            path.parent
            for path in sorted(root.rglob('dataset_info.json'))
            if not any(part.startswith(('unchecked.', 'incomplete.')) for part in path.parts)
        ]
        if len(found) > 1:
            raise UserError(
                f'{root}: {len(found)} prepared sets are there; say which: {", ".join(map(str, found))}'
            )
        if found:
            return found[0]
    raise UserError(
        f'{text}: neither a prepared set nor the name of one below {data_dir}; give '
        'its folder, or prepare it by mlvicx prepare'
    )


def audit(sets: Sequence[RadiographSet], own_lists: bool = False) -> dict[str, Any]:
    """Looks for what makes a figure on these splits wrong, within the sets and between them.

    A leak is a film or a patient in two splits of one set, or in the test split of one set and the
    training or validation split of another. Patients are compared between sets only where both
    have NIH's ids.

    Args:
        own_lists: lists other than NIH's official ones are meant.

    Returns:
        sets: of each its name, folder, size, lists and splits (images, patients, sha256 of the
            ids, positives by label, labels absent).
        films: found more than once: members (set, split, image_id, patient_id), correlation of
            the pair that agrees least, exact, leak.
        overlaps: how many films each two splits share, and whether that is a leak.
        patients: the same of patients, with their ids.
        problems: a line for each reason not to use the splits; empty where they are clean.
    """
    names = _names(sets)
    parts = [(name, data, split) for name, data in zip(names, sets) for split in data.splits.values()]
    starts = np.cumsum([0, *(len(split) for _, _, split in parts)])

    def locate(i: int) -> tuple[int, int]:
        part = int(np.searchsorted(starts, i, 'right')) - 1
        return part, i - int(starts[part])

    def leaks(one: int, other: int) -> bool:
        (set_1, _, split_1), (set_2, _, split_2) = parts[one], parts[other]
        if set_1 == set_2:
            return one != other
        return (split_1.name == 'test') != (split_2.name == 'test')

    def read(i: int) -> np.ndarray:
        part, position = locate(i)
        return read_film(parts[part][2], position)

    copies = find_copies(int(starts[-1]), read)
    weakest: dict[int, float] = {}
    for copy in copies:
        for i in (copy.one, copy.other):
            weakest[i] = min(weakest.get(i, 1.0), copy.correlation)
    near = {i for copy in copies if not copy.exact for i in (copy.one, copy.other)}
    films: list[dict[str, Any]] = []
    shared: dict[tuple[int, int], int] = {}
    for group in join(int(starts[-1]), [(copy.one, copy.other) for copy in copies]):
        places = [locate(i) for i in group]
        ends = sorted({(min(a, b), max(a, b)) for (a, _), (b, _) in itertools.combinations(places, 2)})
        for pair in ends:
            shared[pair] = shared.get(pair, 0) + 1
        films.append(
            {
                'members': [
                    {
                        'set': parts[part][0],
                        'split': parts[part][2].name,
                        'image_id': str(parts[part][2].image_ids[position]),
                        'patient_id': str(parts[part][2].patient_ids[position]),
                    }
                    for part, position in places
                ],
                'correlation': round(min(weakest[i] for i in group), 4),
                'exact': not near.intersection(group),
                'leak': any(leaks(*pair) for pair in ends),
            }
        )
    films.sort(key=lambda film: not film['leak'])
    overlaps = [
        _between(parts, pair) | {'films': count, 'leak': leaks(*pair)} for pair, count in sorted(shared.items())
    ]
    patients = _shared_patients(parts, leaks)
    told = [_describe(name, data) for name, data in zip(names, sets)]
    return {
        'sets': told,
        'films': films,
        'overlaps': overlaps,
        'patients': patients,
        'problems': _problems(told, overlaps, patients, own_lists),
    }


def _shared_patients(parts, leaks: Callable[[int, int], bool]) -> list[dict[str, Any]]:
    """Of each two splits that have patients in common their ids, and whether that is a leak."""
    patients = []
    for one, other in itertools.combinations(range(len(parts)), 2):
        (name_1, set_1, split_1), (name_2, set_2, split_2) = parts[one], parts[other]
        if name_1 != name_2 and not ('lists' in set_1.metadata and 'lists' in set_2.metadata):
            continue
        ids = _common_patients(split_1, split_2)
        if ids:
            patients.append(_between(parts, (one, other)) | {'patients': ids, 'leak': leaks(one, other)})
    return patients


def _common_patients(one: Split, other: Split) -> list[str]:
    """The patients that both splits have, as `one` spells them; ids that differ in form only are one."""
    spellings, forms = (
        {
            image if patient == image else identity.normal(patient): patient
            for image, patient in zip(split.image_ids.tolist(), split.patient_ids.tolist())
        }
        for split in (one, other)
    )
    return sorted(spellings[form] for form in spellings.keys() & forms.keys())


def _names(sets: Sequence[RadiographSet]) -> list[str]:
    """A name for each set: its builder's, with its options where that is not enough."""
    names = [data.name for data in sets]
    if len(set(names)) < len(names):
        names = [f'{data.name}/{data.folder.parent.name}' for data in sets]
    if len(set(names)) < len(names):
        folders = [data.folder.resolve() for data in sets]
        if len(set(folders)) < len(folders):
            raise UserError(f'{folders[0]}: given twice; name each set once')
        names = [f'{name} ({number})' for number, name in enumerate(names, 1)]
    return names


def _describe(name: str, data: RadiographSet) -> dict[str, Any]:
    return {
        'name': name,
        'folder': str(data.folder),
        'size': data.size,
        'lists': dict(data.metadata.get('lists', {})),
        'labels': list(data.label_names),
        'splits': {
            split.name: {
                'images': len(split),
                'patients': len(set(split.patient_ids.tolist())),
                'sha256': split.hash,
                'positives': dict(zip(data.label_names, split.labels.sum(0, dtype=int).tolist())),
                'absent': absent_labels(split, data.label_names),
            }
            for split in data.splits.values()
        },
    }


def _between(parts, pair: tuple[int, int]) -> dict[str, str]:
    one, other = (f'{parts[i][0]} {parts[i][2].name}' for i in pair)
    return {'one': one, 'other': other}


def _problems(sets: list[dict], overlaps: list[dict], patients: list[dict], own_lists: bool) -> list[str]:
    problems = [
        f'{count_of(o["films"], "film")} in both {o["one"]} and {o["other"]}' for o in overlaps if o['leak']
    ]
    problems += [
        f'{count_of(len(p["patients"]), "patient")} in both {p["one"]} and {p["other"]}'
        for p in patients
        if p['leak']
    ]
    for data in sets:
        for split, found in data['lists'].items():
            if not (found['official'] or own_lists):
                problems.append(
                    f"{data['name']}: the list of {split} is not NIH's official one "
                    f'(SHA-256 {found["sha256"][:12]}); its figures compare with no '
                    'published ones'
                )
    return problems


def count_of(count: int, what: str) -> str:
    return f'{count} {what}' + ('s' if count != 1 else '')


def _some(ids: Sequence[str]) -> str:
    return ', '.join(ids[:3]) + (f' and {len(ids) - 3} more' if len(ids) > 3 else '')


def as_text(report: dict[str, Any]) -> str:
    """The report as tables for a terminal."""
    lines = []
    for data in report['sets']:
        splits = data['splits']
        lines += ['', f'{data["name"]}  ({data["folder"]}, {data["size"]} px)']
        rows = [
            ['', *splits],
            ['images', *(str(s['images']) for s in splits.values())],
            ['patients', *(str(s['patients']) for s in splits.values())],
            ['sha256', *(s['sha256'][:12] for s in splits.values())],
        ]
        for label in data['labels']:
            rows.append([label, *(prevalence(s, label) for s in splits.values())])
        lines += _table(rows)
        lines += [
            f'no positive in {name}: {", ".join(split["absent"])}'
            for name, split in splits.items()
            if split['absent']
        ]
        lines += [
            f"the list of {name} is {'' if found['official'] else 'not '}NIH's official one"
            for name, found in data['lists'].items()
        ]
    if report['overlaps']:
        lines += ['', 'films found more than once']
        lines += _table(
            [
                ['films', 'in', 'and', ''],
                *(
                    [str(o['films']), o['one'], o['other'], 'LEAK' if o['leak'] else '']
                    for o in report['overlaps']
                ),
            ]
        )
    lines += ['', *(f'PROBLEM: {problem}' for problem in report['problems'])]
    lines += [
        f'  patients in both {row["one"]} and {row["other"]}: {_some(row["patients"])}'
        for row in report['patients']
        if row['leak']
    ]
    return '\n'.join(lines if report['problems'] else [*lines, 'no leak found'])


def prevalence(split: dict[str, Any], label: str) -> str:
    count = split['positives'][label]
    return f'{count} ({100 * count / max(split["images"], 1):.1f} %)'


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ['  ' + '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
