"""How far a long pass over images is, on the terminal."""

import sys
from collections.abc import Iterable, Iterator

import tqdm


def progress(items: Iterable, total: int, name: str, unit: str = 'images') -> Iterator:
    """Shows how far, how fast and for how long yet; a line in half a minute where no one watches."""
    watched = sys.stderr.isatty()
    return iter(
        tqdm.tqdm(
            items,
            desc=name,
            total=total,
            unit=f' {unit}',
            smoothing=0.05,
            mininterval=0.2 if watched else 30,
            ascii=not watched,
        )
    )
