"""NIH's two official lists, which NIH's own set and sets made from its images are split by."""

import collections
import pathlib

from mlvicx_jax.errors import UserError

from . import release, tables, words
from .records import list_hash, some

LISTS = {'train_val': 'train_val_list.txt', 'test': 'test_list.txt'}
# SHA-256 of the sorted names joined by newlines, of the lists as the NIH Clinical Center
# publishes them: 86,524 and 25,596 names.
OFFICIAL = {
    'train_val': '61fbe896321c1c1c8b75f3e4f3a08e4fef6486d95ef8a667c31d4d60dca6cb81',
    'test': '38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc',
}


def read_list(path: pathlib.Path) -> list[str]:
    """The image names of a list, one in a line; the flags of labels behind a name are passed over.

    Raises:
        UserError: the list is missing or empty, holds a name twice, or more than names and flags.
    """
    names = []
    for line, text in enumerate(tables.read_text(path).split('\n'), 1):
        name, *more = text.replace(',', ' ').replace(';', ' ').split() or ['']
        if any(words.flag(field) is None for field in more):
            raise UserError(
                f'{path}, line {line}: {text.strip()[:80]!r} holds more than a name, '
                'expected one image name per line'
            )
        if name:
            names.append(pathlib.PurePosixPath(name).name)
    if not names:
        raise UserError(f'{path}: the list is empty, expected one image name per line')
    twice = [i for i, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise UserError(f'{path}: {some(twice)} listed twice; remove the repeated line')
    return names


def read_lists(root: pathlib.Path) -> dict[str, list[str]]:
    return {split: read_list(root / name) for split, name in LISTS.items()}


def is_official(lists: dict[str, list[str]]) -> bool:
    return all(list_hash(names) == OFFICIAL[split] for split, names in lists.items())


def describe(lists: dict[str, list[str]], builder: release.ReleaseBuilder) -> None:
    """Records in the builder's metadata, by split, each list's hash and whether it is NIH's."""
    builder.info.metadata['lists'] = {}
    for split, names in lists.items():
        found = list_hash(names)
        official = found == OFFICIAL[split]
        builder.info.metadata['lists'][split] = {'sha256': found, 'official': official}
        what = "NIH's official list" if official else "NOT NIH's official list"
        builder.note(f'{LISTS[split]} is {what} ({len(names)} names, SHA-256 {found[:12]})')
