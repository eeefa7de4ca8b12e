"""`mlvicx COMMAND ...` or `python -m mlvicx_jax COMMAND ...`: for those who have films rather than recipes."""

import importlib
import sys

from mlvicx_jax.commands import _line


def main(argv: list[str] | None = None) -> int:
    """Runs the command that the first word names; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    known = _line.known()
    if not words or words[0] in ('-h', '--help', 'help'):
        print(_help(known))
        return 0
    if words[0] not in known:
        print(f'error: {words[0]!r} is no command; expected one of {", ".join(known)}', file=sys.stderr)
        return _line.MISTAKE
    return importlib.import_module(f'mlvicx_jax.commands.{words[0]}').main(words[1:])


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
