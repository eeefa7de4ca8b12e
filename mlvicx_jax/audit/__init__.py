"""What a prepared set holds, and whether its splits leak; `python -m mlvicx_jax.audit`."""
