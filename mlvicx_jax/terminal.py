"""Lines on the terminal, and how a length of time is written there."""

import jax


def say(line: str = '') -> None:
    """Prints a line on the terminal, from the first process only."""
    if jax.process_index() == 0:
        print(line, flush=True)


def duration(seconds: float) -> str:
    """Seconds as `1 h 02 min`, `3 min 05 s` or `7.2 s`."""
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f'{minutes} min {rest:02d} s'
    return f'{minutes // 60} h {minutes % 60:02d} min'
