"""The one limit on a picture's size, asked by every decoder before it allocates anything."""

import os

from mlvicx_jax.errors import UserError

VARIABLE = 'MLVICX_MAX_MEGAPIXELS'
DEFAULT = 100  # megapixels; the largest chest films are about 4,300 x 3,500, that is 15


def check_size(height: int, width: int) -> None:
    """Refuses a picture whose header promises no pixels, or more than the limit.

    The limit is 100 megapixels, or the number in the environment variable MLVICX_MAX_MEGAPIXELS.

    Raises:
        UserError: without the file's name, which the caller puts before it.
    """
    text = os.environ.get(VARIABLE, '') or str(DEFAULT)
    try:
        limit = float(text)
    except ValueError:
        raise UserError(f'the environment variable {VARIABLE} is {text!r}, expected a number') from None
    if height < 1 or width < 1:
        raise UserError(f'the header says {width} x {height} pixels; fetch or export this image again')
    if height * width > limit * 1e6:
        raise UserError(
            f'the header says {width} x {height} pixels, more than the limit of {limit:g} megapixels; '
            f'export it smaller, or set the environment variable {VARIABLE}'
        )
