"""The one exception that a user's mistake ends in."""


class UserError(Exception):
    """A mistake the user can mend: one line that names what was found, what was expected and the way out.

    `main.py` and the command-line modules print it without a stack trace and exit non-zero.
    """
