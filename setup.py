"""Which folders are packages: those of mlvicx_jax, and those of datasets/ as mlvicx_jax_datasets."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=['mlvicx_jax', 'mlvicx_jax.*']),
        'mlvicx_jax_datasets',
        *(f'mlvicx_jax_datasets.{name}' for name in find_packages('datasets')),
    ]
)
