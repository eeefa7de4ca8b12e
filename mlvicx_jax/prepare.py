"""`python -m mlvicx_jax.prepare`, the longer spelling of `mlvicx prepare`."""

import sys

from mlvicx_jax.commands.prepare import main

if __name__ == '__main__':
    sys.exit(main())
