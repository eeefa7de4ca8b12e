"""Programs are kept where they belong, and found again."""

import os
import subprocess
import sys

import numpy as np
import pytest

from mlvicx_jax import compilation
from mlvicx_jax.errors import UserError

PROGRAM = """
from mlvicx_jax.compilation import keep_programs
keep_programs()
import jax, jax.numpy as jnp
missed = []
jax.monitoring.register_event_listener(
    lambda event, **_: event == '/jax/compilation_cache/cache_misses' and missed.append(1))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))).block_until_ready()
print('missed', len(missed))
"""


def start(home, **variables):
    """Runs the program of a user with this cache folder; what it missed there, and what is there."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(('JAX_COMPILATION', 'JAX_PERSISTENT'))
    }
    ended = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        check=True,
        timeout=120,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {'XDG_CACHE_HOME': str(home)} | variables,
    )
    return int(ended.stdout.split('missed')[1]), [str(path.relative_to(home)) for path in home.rglob('*-cache')]


def test_a_second_start_compiles_nothing(tmp_path):
    missed, kept = start(tmp_path)
    assert missed and any(name.startswith('mlvicx_jax/compiled/jit__lambda') for name in kept)
    assert start(tmp_path) == (0, kept)


def test_the_variable_of_jax_wins(tmp_path):
    assert not start(tmp_path, JAX_COMPILATION_CACHE_DIR='')[1]
    _, kept = start(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'other'))
    assert kept and all(name.startswith('other/') for name in kept)


def test_who_has_no_home_trains_all_the_same(monkeypatch):
    def no_home(self):
        raise RuntimeError('Could not determine home directory.')

    for name in ('JAX_COMPILATION_CACHE_DIR', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compilation.pathlib.Path, 'expanduser', no_home)
    compilation.keep_programs()


def test_right_sums_pass():
    compilation.check_sums()


def _shifted(matrix, rows):
    """As jaxlib 0.10.2 did: some rows get the sums of others, added up."""
    right = ((rows @ matrix.T) ** 2).sum(1)
    right[-7:] += right[:7000].reshape(7, -1).sum(1)
    return right


@pytest.mark.parametrize('wrong', [_shifted, lambda matrix, rows: np.full(len(rows), np.nan)])
def test_wrong_sums_are_refused_in_one_line_with_the_version_and_the_way_out(wrong):
    with pytest.raises(UserError, match=r'jaxlib \d+\.\d+\S* computes wrong sums .* pip install') as error:
        compilation.check_sums(wrong)
    assert '\n' not in str(error.value)


def test_the_programs_used_longest_ago_go_when_the_folder_is_full(tmp_path):
    for age, name in enumerate(('new', 'middle', 'old')):
        path = tmp_path / f'{name}-cache'
        path.write_bytes(b'x' * 100)
        os.utime(path, (1e9 - age, 1e9 - age))
    compilation._trim(tmp_path, 300)
    assert len(list(tmp_path.iterdir())) == 3
    compilation._trim(tmp_path, 299)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['middle-cache', 'new-cache']
    compilation._trim(tmp_path, 0)
    assert not list(tmp_path.iterdir())
    compilation._trim(tmp_path / 'absent', 0)
