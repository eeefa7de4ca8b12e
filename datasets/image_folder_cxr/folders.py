"""Records of a folder without a table: its folders say the split and the class of a film."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable

from mlvicx_jax.errors import UserError

from .. import discovery, identity, words
from ..columns import SPLITS
from ..copies import equal_files
from ..names import printable
from ..records import Record, some

MANY_CLASSES = 50
_MASKS = {'mask', 'masks', 'segmentation', 'segmentations'}
# Folders that hold films rather than a class: dates, numbers, ids, and what exports are sorted into.
_CONTAINER = re.compile(
    r'(?:dicom|dcm|study|studies|series|img|image|images|png|jpg|jpeg|film|films|xray|xrays|data|dataset|export|'
    r'pacs|patient|patients|subject|case|scan|scans|exam)[\d._ -]*|(?:ser|st|se|s|im|cd|pat|p)?[\d._ -]+|'
    r'[0-9a-f-]{16,}',
    re.IGNORECASE,
)
_NUMBERED = re.compile(r'\d{1,2}')  # a class, where it is the outermost folder


def read_folders(root: pathlib.Path, films: discovery.Films, note: Callable) -> list[tuple[Record, str]]:
    """The records of <split>/<class>/film, <class>/film, <split>/film or films alone, with their splits.

    Raises:
        UserError: no film is there, or the folders hold a second split, as a copy of the set inside it does.
    """
    is_mask = {
        path: not _MASKS.isdisjoint(map(words.plain, path.relative_to(root).parts[:-1])) for path in films.paths
    }
    paths, masks = ([path for path in films.paths if is_mask[path] == kind] for kind in (False, True))
    if not paths:
        raise UserError(
            f'{root}: no image is there (looked for {discovery.FORMATS} in all its folders; '
            f'{films.describe() or "it is empty"}); unpack what is an archive, or give another folder'
        )
    note('read from folders')
    if masks:
        note(f'{len(masks)} files in folders of masks are not taken for films; a table gives masks to films')
    base = _base(root, paths)
    entries, containers = [], set()
    for path in paths:
        name = printable(path.relative_to(root).as_posix())
        split, *folders = [*pathlib.PurePosixPath(name).parts[len(base) : -1]] or ['']
        if words.plain(split) not in SPLITS:
            split, folders = '', [split, *folders]
        classes = [
            folder
            for depth, folder in enumerate(folders)
            if not _CONTAINER.fullmatch(folder) or (depth == 0 and _NUMBERED.fullmatch(folder))
        ]
        containers.update({*folders} - {*classes, ''})
        label = next(filter(None, classes), '')
        patient = identity.of_header(path) or identity.of_folders(name)
        entries.append((Record(name, patient or name, path, (label,) if label else ()), split))
    if containers:
        note(f'{len(containers)} folders are not taken for classes', containers)
    if unknown := sum(record.patient_id == record.image_id for record, _ in entries):
        note(f'of {unknown} films no patient is given: each of them counts as a patient')
    if unknown < len(entries):
        note(f'patients of {len(entries) - unknown} films are those of their DICOM headers or folders')
    reason = _no_classes([record for record, _ in entries])
    if reason:
        note(f'folders are not taken for classes: {reason}')
        entries = [(dataclasses.replace(record, labels=()), split) for record, split in entries]
    return entries


def _base(root: pathlib.Path, paths: list[pathlib.Path]) -> tuple[str, ...]:
    """The folders above train/ and test/, where all lie in one; refuses a second such tree."""
    trees = collections.defaultdict(dict)  # folders above the split -> films in it
    for path in paths:
        parts = path.relative_to(root).parts
        at = next((i for i, part in enumerate(parts[:-1]) if words.plain(part) in SPLITS), None)
        if at is not None:
            trees[parts[:at]][parts[at:]] = path
    if len(trees) < 2:
        return next(iter(trees), ())
    first, second = sorted(trees, key=lambda parts: (len(parts), parts))[:2]
    above = {*trees[first].values()}
    groups = equal_files([*above, *trees[second].values()])
    equal = [
        printable(path.relative_to(root))
        for group in groups
        if above.intersection(group)
        for path in group
        if path not in above
    ]
    where = [printable(root.joinpath(*parts)) for parts in (first, second)]
    raise UserError(
        f'{where[0]} and {where[1]} both hold a split (train, test), and {len(equal)} of the '
        f'{len(trees[second])} films of the second are equal files to films of the first'
        f'{f" ({some(equal)})" if equal else ""}; move {where[1]} out of the folder, or give one of the two as '
        'manual_dir'
    )


def _no_classes(records: list[Record]) -> str:
    """Why the folders can be no classes; empty where they can."""
    patients = collections.defaultdict(set)
    films = collections.Counter(label for record in records for label in record.labels)
    for record in records:
        for label in record.labels:
            patients[label].add(record.patient if record.patient_id != record.image_id else None)
    if len(films) > max(MANY_CLASSES, len(records) / 2):
        return f'there are {len(films)} of them for {len(records)} films'
    if 0 < sum(films.values()) < len(records) / 2:
        return f'only {sum(films.values())} of {len(records)} films lie in one ({some(films)})'
    if len(films) > 1 and all(len(ids) == 1 and None not in ids for ids in patients.values()):
        return 'each holds the films of one patient'
    return ''
