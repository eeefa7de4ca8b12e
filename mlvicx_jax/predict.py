"""`python -m mlvicx_jax.predict`, the longer spelling of `mlvicx predict`."""

import sys

from mlvicx_jax.commands.predict import main

if __name__ == '__main__':
    sys.exit(main())
