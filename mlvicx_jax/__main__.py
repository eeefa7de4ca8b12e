"""`mlvicx COMMAND ...` or `python -m mlvicx_jax COMMAND ...`: for those who have films rather than recipes."""

import ast
import importlib
import pathlib
import sys

from mlvicx_jax import commands


def main(argv: list[str] | None = None) -> int:
    """Runs the command that the first word names; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    known = _commands()
    if not words or words[0] in ('-h', '--help', 'help'):
        print(_help(known))
        return 0
    if words[0] not in known:
        print(f'error: {words[0]!r} is no command; expected one of {", ".join(known)}', file=sys.stderr)
        return 2
    return importlib.import_module(f'{commands.__name__}.{words[0]}').main(words[1:]) or 0


def _commands() -> dict[str, str]:
    """{name: first line of its documentation}, read without importing what a command needs."""
    folder = pathlib.Path(commands.__file__).parent
    return {
        path.stem: ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))).splitlines()[0]
        for path in sorted(folder.glob('[!_]*.py'))
    }


def _help(known: dict[str, str]) -> str:
    lines = [f'  {name:<10} {line}' for name, line in known.items()]
    return '\n'.join(
        [
            'usage: mlvicx COMMAND ...',
            '',
            *lines,
            '',
            'mlvicx COMMAND --help tells the options of one.',
            'python main.py --config=configs/mlvicx.py trains what a recipe describes.',
        ]
    )


if __name__ == '__main__':
    sys.exit(main())
