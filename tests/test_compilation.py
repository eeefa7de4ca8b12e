"""Programs are kept where they belong, and found again."""

import os
import subprocess
import sys

PROGRAM = '''
from mlvicx_jax.compilation import keep_programs
keep_programs()
import jax, jax.numpy as jnp
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))).block_until_ready()
'''


def start(home, **variables):
    """Runs the program of a user with this cache folder; returns the kept files' names and times."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(('JAX_COMPILATION', 'JAX_PERSISTENT'))}
    subprocess.run([sys.executable, '-c', PROGRAM], check=True, timeout=120,
                   env=environment | {'XDG_CACHE_HOME': str(home)} | variables)
    return {str(path.relative_to(home)): path.stat().st_mtime_ns for path in home.rglob('*-cache')}


def test_a_second_start_compiles_nothing(tmp_path):
    first = start(tmp_path)
    assert any(name.startswith('mlvicx_jax/compiled/jit__lambda') for name in first)
    assert start(tmp_path) == first


def test_the_variable_of_jax_wins(tmp_path):
    assert not start(tmp_path, JAX_COMPILATION_CACHE_DIR='')
    assert not [name for name in start(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'other'))
                if not name.startswith('other/')]
