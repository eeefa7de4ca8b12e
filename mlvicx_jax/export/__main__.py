"""`python -m mlvicx_jax.export`, the longer spelling of `mlvicx export`."""

import sys

from mlvicx_jax.commands.export import main

if __name__ == '__main__':
    sys.exit(main())
