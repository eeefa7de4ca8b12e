"""What a section is made of, as plain values, and how numbers are written in it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

INTERVAL = '95 % interval over patients'
NOT_AVAILABLE = 'n/a'


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; `role` is '', 'lead', 'warning' or 'dim'."""

    kind: ClassVar = 'text'
    text: str
    role: str = ''


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names and their values."""

    kind: ClassVar = 'facts'
    rows: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text.

    The first of a row names it; the last `totals` rows are set apart. Cells are set to the right,
    as numbers are, but for the columns `left` (from 0) and the first.
    """

    kind: ClassVar = 'table'
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    totals: int = 0
    left: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as a data URI; `alt` says what is to be seen to who does not see it."""

    kind: ClassVar = 'picture'
    source: str
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """A long text behind its summary."""

    kind: ClassVar = 'listing'
    summary: str
    text: str


Block = Text | Facts | Table | Picture | Listing


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading ('' for the page's beginning) and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class NotRun:
    """A part that this run could have and has not, and what would make it."""

    what: str
    why: str


def number(value: float | None, digits: int = 3) -> str:
    """0.812; n/a for what is not available (None or NaN)."""
    if value is None or math.isnan(value):
        return NOT_AVAILABLE
    return f'{value:.{digits}f}'


def estimate(value: float | None, interval: Sequence[float | None] | None) -> str:
    """0.812 [0.780, 0.840]; the interval is n/a by itself where only that is not available."""
    if value is None or math.isnan(value):
        return NOT_AVAILABLE
    if interval is None or any(end is None or math.isnan(end) for end in interval):
        return f'{number(value)} [{NOT_AVAILABLE}]'
    return f'{number(value)} [{number(interval[0])}, {number(interval[1])}]'


def share(value: float) -> str:
    """1 %, 0.5 %."""
    return f'{100 * value:g} %'


def count(size: int, what: str, several: str | None = None) -> str:
    """1 image, 25,596 images."""
    return f'{size:,} {what if size == 1 else several or f"{what}s"}'
