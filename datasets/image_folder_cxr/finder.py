"""Which file a name in a table means."""

import collections
import os
import pathlib
import posixpath

from mlvicx_jax.errors import UserError

from .. import discovery


class Finder:
    """Files below `root` by the names that a table gives them; `elsewhere` counts those in other folders."""

    def __init__(self, root: pathlib.Path, films: discovery.Films):
        self._root, self._prefix = root, f'{root.as_posix()}/'
        self._films = {path.as_posix()[len(self._prefix) :]: path for path in films.paths}
        self._by_name: dict[str, list[str]] = collections.defaultdict(list)
        for relative, path in self._films.items():
            for name in {path.name, path.stem}:
                self._by_name[name].append(relative)
        self._used: set[str] = set()
        self.elsewhere = 0

    def find(self, name: str, where: str) -> pathlib.Path:
        """The file that a cell names, which need not exist.

        It lies below the folder as the cell says, or without the cell's first folders, as in CheXpert's
        tables, or, of a cell without folders, is the only film of this name, with or without its suffix.
        A film is found in one of these other ways once only: a second row that seems to mean it does not.

        Raises:
            UserError: the name leads out of the folder.
        """
        relative = self._inside(name, where)
        found = self._find(relative)
        if found != relative and found in self._used:
            found = relative
        self.elsewhere += found != relative
        self._used.add(found)
        return self._films.get(found) or self._root / found

    def idle(self) -> list[str]:
        """The films, relative to the folder, that were not asked for."""
        return [relative for relative in self._films if relative not in self._used]

    def _inside(self, name: str, where: str) -> str:
        name = name.replace('\\', '/').removeprefix(self._prefix)
        relative = posixpath.normpath(name) if name else '.'
        if relative.startswith(('/', '../')) or '..' in name.split('/'):
            raise UserError(f'{where}: {name[:200]!r} leads out of manual_dir; give a path relative to it')
        return relative

    def _find(self, relative: str) -> str:
        if relative in self._films or os.path.exists(self._prefix + relative):
            return relative
        parts = relative.split('/')
        for start in range(1, len(parts)):
            if (shorter := '/'.join(parts[start:])) in self._films:
                return shorter
        same = self._by_name.get(relative, ())
        return same[0] if len(same) == 1 else relative
