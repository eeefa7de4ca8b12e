"""Orbax says in traces what the readers and writers of checkpoints say in one line; these are dropped."""

import logging
import sys

# Orbax logs what it then raises, trace by trace, from its threads.
logging.getLogger('absl').addFilter(lambda record: 'orbax' not in record.pathname)
logging.getLogger('asyncio').disabled = True


def _without_echoes(found, show=sys.unraisablehook):
    """An unraisable hook that drops two harmless messages and shows all others.

    A failed save closes its event loop, and TensorStore's threads still report to it. A failed read
    leaves Orbax's reads of the other arrays behind, each with the same error.
    """
    code = getattr(found.object, 'cr_code', None)
    if str(found.exc_value) != 'Event loop is closed' and not (code and 'orbax' in code.co_filename):
        show(found)


sys.unraisablehook = _without_echoes
