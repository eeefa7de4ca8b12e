"""What all commands share: which there are, how a command line is read, and how a command ends."""

import argparse
import ast
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

from mlvicx_jax.errors import UserError

MISTAKE = 2  # exit code after a mistake of the user, as argparse's own
STOPPED = 130  # after Ctrl-C, as a shell's


def known() -> dict[str, str]:
    """{name of a command: first line of its documentation}; imports none of them."""
    folder = pathlib.Path(__file__).parent
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or path.stem).splitlines()[0]
        for path in sorted(folder.glob('[!_]*.py'))
    }


class Parser(argparse.ArgumentParser):
    """Options of `mlvicx NAME`, all spelled with hyphens; older spellings are understood.

    Args:
        name: of the command.
        text: its documentation.
        renamed: {older option: today's}; underscores for hyphens need no entry.
    """

    def __init__(self, name: str, text: str | None, renamed: Mapping[str, str] | None = None):
        sisters = ', '.join(other for other in known() if other != name)
        super().__init__(
            prog=f'mlvicx {name}',
            description=text,
            epilog=f'Other commands: {sisters}. mlvicx --help tells what each does.',
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._renamed = dict(renamed or {})

    def read(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parses the words, those of the process where `argv` is None."""
        return self.parse_args([self._today(word) for word in (sys.argv[1:] if argv is None else argv)])

    def _today(self, word: str) -> str:
        if not word.startswith('--'):
            return word
        option, equals, value = word.partition('=')
        option = option.replace('_', '-')
        return self._renamed.get(option, option) + equals + value


def end(work: Callable[[], int]) -> int:
    """The exit code of a command: what `work` returns, or `MISTAKE` or `STOPPED`, told in one line."""
    try:
        return work()
    except UserError as error:
        print('error: ' + ' '.join(str(error).split()), file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print('stopped by Ctrl-C', file=sys.stderr)
        return STOPPED
