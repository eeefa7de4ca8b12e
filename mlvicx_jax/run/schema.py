"""Whether what a JSON file says is of the expected types, in words that a user can act on."""

import math
import re
import types
import typing
from typing import Any


def mismatch(value, kind, name: str = '') -> str | None:
    """How a JSON value differs from a type, in words: "test.linear is 3, expected an object"; or None.

    Args:
        kind: a TypedDict, or a type made of dict, list, tuple, |, str, int, float, bool, None and Any.
        name: of the value, where it lies in others.
    """
    if typing.is_typeddict(kind):
        if not isinstance(value, dict):
            return _expected(name, value, 'an object')
        fields = typing.get_type_hints(kind)
        missing = sorted(field for field in kind.__required_keys__ if field not in value)
        if missing:
            return ', '.join(_join(name, field) for field in missing) + ' is missing'
        return _first(
            mismatch(value[field], fields[field], _join(name, field)) for field in fields.keys() & value
        )
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        if not isinstance(value, dict):
            return _expected(name, value, 'an object')
        return _first(mismatch(item, parts[1], _join(name, key)) for key, item in value.items())
    if origin is list:
        if not isinstance(value, list):
            return _expected(name, value, 'a list')
        return _first(mismatch(item, parts[0], _join(name, place)) for place, item in enumerate(value))
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            return _expected(name, value, f'a list of {len(parts)} numbers')
        return _first(map(mismatch, value, parts, (_join(name, place) for place in range(len(parts)))))
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in parts:
            return None
        (kind,) = (part for part in parts if part is not type(None))
        found = mismatch(value, kind, name)
        return found and (f'{found} or null' if found.startswith(f'{name} is ') else found)
    return None if kind is Any or _is(value, kind) else _expected(name, value, _WORDS[kind])


_WORDS = {float: 'a number', int: 'a whole number', str: 'text', bool: 'true or false'}


def _is(value, kind) -> bool:
    if kind is float:
        return is_number(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def is_number(value) -> bool:
    """Whether a JSON value is a number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _first(found) -> str | None:
    return next(filter(None, found), None)


def _join(name: str, field) -> str:
    return f'{name}.{field}' if name else str(field)


def _expected(name: str, value, expected: str) -> str:
    return f'{name} is {shown(value)}, expected {expected}'


def shown(value) -> str:
    """A value as it stands in a message, at most 60 characters."""
    text = re.sub(r'\s+', ' ', repr(value))
    return text if len(text) <= 60 else f'{text[:57]}...'
