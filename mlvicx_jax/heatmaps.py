"""`python -m mlvicx_jax.heatmaps`, the longer spelling of `mlvicx heatmaps`."""

import sys

from mlvicx_jax.commands.heatmaps import main

if __name__ == '__main__':
    sys.exit(main())
