"""A run says which source it runs from, and never mixes two."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

import mlvicx_jax
import mlvicx_jax_datasets
from mlvicx_jax import checkout
from mlvicx_jax.errors import UserError


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A second checkout, which the program believes to run from."""
    for name in ('mlvicx_jax', 'datasets', 'configs'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    monkeypatch.setattr(mlvicx_jax, '__file__', str(tmp_path / 'mlvicx_jax/__init__.py'))
    monkeypatch.setattr(mlvicx_jax_datasets, '__file__', str(tmp_path / 'datasets/__init__.py'))
    monkeypatch.delitem(sys.modules, 'configs.base', raising=False)
    return tmp_path


@pytest.mark.parametrize(
    'file', ['mlvicx_jax/step.py', 'datasets/schema.py', 'configs/base.py', 'configs/own.py']
)
def test_a_change_of_any_source_changes_the_hash(file, clone):
    before = checkout.code_hash()
    assert before == checkout.code_hash() and len(before) == 64
    with (clone / file).open('a') as source:
        source.write('\n')
    assert checkout.code_hash() != before


def test_data_sets_or_recipes_of_another_checkout_are_refused(clone, monkeypatch):
    monkeypatch.setattr(mlvicx_jax_datasets, '__file__', str(ROOT / 'datasets/__init__.py'))
    with pytest.raises(UserError, match='mlvicx_jax_datasets from .*two checkouts can not mix') as told:
        checkout.code_hash()
    assert str(clone) in str(told.value) and str(ROOT) in str(told.value)
    monkeypatch.setattr(mlvicx_jax_datasets, '__file__', str(clone / 'datasets/__init__.py'))
    recipe = type(sys)('configs.base')
    recipe.__file__ = str(ROOT / 'configs/base.py')
    monkeypatch.setitem(sys.modules, 'configs.base', recipe)
    with pytest.raises(UserError, match='configs from'):
        checkout.refuse_mixture()


def test_an_installed_program_is_no_mixture(tmp_path, monkeypatch):
    for name in ('mlvicx_jax', 'mlvicx_jax_datasets'):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(sys.modules[name], '__file__', str(tmp_path / name / '__init__.py'))
    monkeypatch.delitem(sys.modules, 'configs.base', raising=False)
    assert len(checkout.code_hash()) == 64


def test_a_second_clone_does_not_run_the_data_sets_of_the_first(tmp_path):
    """The editable install finds its own datasets/, whatever folder one stands in."""
    shutil.copytree(ROOT / 'mlvicx_jax', tmp_path / 'mlvicx_jax', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(ROOT / 'datasets', tmp_path / 'datasets', ignore=shutil.ignore_patterns('__pycache__'))
    program = (
        'from mlvicx_jax.checkout import code_hash\n'
        'from mlvicx_jax.errors import UserError\n'
        'try:\n    code_hash()\nexcept UserError as error:\n    print(error)\n'
    )
    environment = os.environ | {'PYTHONPATH': str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, '-c', program],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    installed = pathlib.Path(mlvicx_jax_datasets.__file__).parent.parent
    assert f'mlvicx_jax comes from {tmp_path}, mlvicx_jax_datasets from {installed}' in ended.stdout
