"""`python -m mlvicx_jax.audit`, the longer spelling of `mlvicx audit`."""

import sys

from mlvicx_jax.commands.audit import main

if __name__ == '__main__':
    sys.exit(main())
