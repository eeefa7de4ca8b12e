"""The one exception that a user's mistake ends in, and how another's is quoted in it."""


class UserError(Exception):
    """A mistake the user can mend: one line that names what was found, what was expected and the way out.

    `main.py` and the command-line modules print it without a stack trace and exit non-zero.
    """


def first_line(error: Exception) -> str:
    """Kind and first line of an error of somebody else's, for a line of one's own."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0][:300]}' if lines else type(error).__name__
