"""Names of files in messages and tables."""

import os


def printable(name: str | os.PathLike) -> str:
    """A file's name for messages and tables: bytes that are not UTF-8, and control signs, are escaped."""
    return ''.join(
        sign if sign.isprintable() else sign.encode('unicode_escape').decode() for sign in os.fspath(name)
    )
