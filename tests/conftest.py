"""What all tests share: four virtual CPU devices, one compilation cache, one small phantom."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # main.py and configs/ are no part of the package

# Before jax is imported; processes that a test starts inherit all of it.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # see mlvicx_jax/__init__.py
os.environ['JAX_NUM_CPU_DEVICES'] = '4'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.jax_cache'))  # outlives a session
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'
# Networks this small cost their compilation, not their steps: half of it is left out.
os.environ['XLA_FLAGS'] = ' '.join(
    (
        os.environ.get('XLA_FLAGS', ''),
        '--xla_backend_optimization_level=0',
        '--xla_llvm_disable_expensive_passes=true',
    )
)
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import pytest
from absl import flags

import tiny


def pytest_configure(config):
    flags.FLAGS.mark_as_parsed()  # grain reads a flag of its own, which raises outside app.run


ONE_BY_ONE = 'test_methods', 'test_step'  # files whose tests share nothing worth sharing


def pytest_itemcollected(item):
    """Two workers share the tests by files, so that what a file's tests share is made once."""
    if item.path.stem not in ONE_BY_ONE:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
    """The folder of the phantom of `tiny.get_config`, prepared."""
    from mlvicx_jax.data import prepare

    path = tmp_path_factory.mktemp('phantom')
    config = tiny.get_config()
    prepare.prepare(config.data.name, path, options={'size': config.data.stored_size, **config.data.options})
    return path
