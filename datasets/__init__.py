"""TFDS builders for chest radiographs, imported as `mlvicx_jax_datasets`.

The install maps that name onto this folder (see pyproject.toml): the Hugging Face package called
`datasets` is then neither shadowed by it nor able to shadow it.
"""
