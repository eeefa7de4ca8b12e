"""`python -m mlvicx_jax.report`, the longer spelling of `mlvicx report`."""

import sys

from mlvicx_jax.commands.report import main

if __name__ == '__main__':
    sys.exit(main())
