"""What is asked of the images: some of a set's labels, or view and sex, of all images or a part."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mlvicx_jax.data import NO_FINDING
from mlvicx_jax.data.source import RadiographSet, Split
from mlvicx_jax.errors import UserError

ANY_FINDING = 'any finding'
# Of the columns beside the labels: who is meant by 1, and by 0. Others (unknown) are left out.
COLUMNS = {'AP view': ('view', 'AP', 'PA'), 'male': ('sex', 'M', 'F')}


def ask(data: RadiographSet, questions: Sequence[str], within: str = '') -> RadiographSet:
    """The set with `questions` as its labels.

    Args:
        questions: names of labels of the set, 'any finding' (not No Finding), 'AP view', 'male'; all
            labels where it is empty. An image without an answer to one of them is left out.
        within: only images that have this label, such as edema asked inside pneumonia.

    Raises:
        UserError: a name is none of these, or no image is left in a split.
    """
    if not questions and not within:
        return data
    names = data.label_names
    known = [*names, *COLUMNS] + ([ANY_FINDING] if NO_FINDING in names else [])
    for name in (*questions, *filter(None, [within])):
        if name not in (names if name == within else known):
            raise UserError(
                f'config.data.questions: {name!r} can not be asked of {data.name}; it has {", ".join(known)}'
            )
    asked = tuple(questions) or names

    def answers(split: Split) -> Split:
        use = np.ones(len(split), bool)
        if within:
            use &= split.labels[:, names.index(within)] == 1
        columns = []
        for question in asked:
            if question in names:
                columns.append(split.labels[:, names.index(question)])
            elif question == ANY_FINDING:
                columns.append(1 - split.labels[:, names.index(NO_FINDING)])
            else:
                column, yes, no = COLUMNS[question]
                found = getattr(split, column)
                columns.append(found == yes)
                use &= (found == yes) | (found == no)
        if not use.any():
            raise UserError(
                f'config.data.within={within!r}: no image of {split.name} is left to ask '
                f'{", ".join(asked)} of; take another question'
            )
        labels = np.stack(columns, 1).astype(np.uint8)
        return dataclasses.replace(split, labels=labels).take(use)

    return dataclasses.replace(
        data, label_names=asked, splits={name: answers(split) for name, split in data.splits.items()}
    )
