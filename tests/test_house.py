"""Which room may import which: one way only, from the doors down to the models."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'mlvicx_jax'

# From the ground up: a room imports only from rooms that stand before it.
ROOMS = (
    'errors', 'files', 'terminal', 'compilation', 'optim', 'config',
    'models', 'rows', 'parallel', 'data', 'methods', 'state', 'step', 'run', 'weights', 'evaluation', 'tasks',
    'train', 'preview', 'report', 'audit', 'export', 'grid', 'commands',
)  # fmt: skip
DOORS = '__main__', 'predict', 'heatmaps', 'prepare'  # they call a command and nothing else

JAX = {'jax', 'jaxlib', 'flax', 'optax', 'orbax'}
# (files, what they may not import)
FOREIGN = [
    ('mlvicx_jax/**/*.py', {'main', 'configs', 'tests', 'benchmarks'}),
    # Mathematics on a whole batch: a loss knows no device.
    ('mlvicx_jax/methods/shared/vicreg_loss.py', {'mlvicx_jax.rows', 'mlvicx_jax.parallel', 'flax'}),
    ('mlvicx_jax/data/[ps]*.py', {'jax', 'flax'}),
    ('datasets/**/*.py', JAX | {'grain'} | {f'mlvicx_jax.{room}' for room in ROOMS if room != 'errors'}),
    ('configs/*.py', JAX | {'mlvicx_jax', 'mlvicx_jax_datasets', 'numpy'}),
]


def imports(path):
    """Dotted names of all that a file imports, also inside its functions; names of a `from` too."""
    package = pathlib.Path(path).relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = '.'.join([*base, *filter(None, [node.module])])
            yield from (f'{base}.{alias.name}' for alias in node.names)


def test_every_room_has_its_place():
    found = {
        path.name.removesuffix('.py') for path in PACKAGE.iterdir() if path.suffix == '.py' or path.is_dir()
    }
    assert found - {'__init__', '__pycache__', 'py.typed', *DOORS} == set(ROOMS)


def room(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def test_no_arrow_runs_back_up():
    wrong = []
    for path in sorted(PACKAGE.rglob('*.py')):
        if path.name == '__main__.py' or room(path) in (*DOORS, '__init__'):
            continue
        allowed = ROOMS[: ROOMS.index(room(path)) + 1]
        for name in imports(path):
            parts = [*name.split('.'), '']
            if parts[0] == 'mlvicx_jax' and parts[1] in ROOMS and parts[1] not in allowed:
                wrong.append(f'{path.relative_to(ROOT)}: {name}')
    assert not wrong


@pytest.mark.parametrize('pattern,forbidden', FOREIGN, ids=[pattern for pattern, _ in FOREIGN])
def test_a_room_knows_nothing_of(pattern, forbidden):
    files = sorted(ROOT.glob(pattern))
    assert files
    found = [
        f'{path.relative_to(ROOT)}: {name}'
        for path in files
        for name in imports(path)
        if any(f'{name}.'.startswith(f'{other}.') for other in forbidden)
    ]
    assert not found


def test_only_step_rows_and_norm_know_collectives():
    knowing = {
        path.name
        for path in PACKAGE.rglob('*.py')
        if re.search(r'shard_map\(|all_gather\(|pmean\(|psum\(', path.read_text())
    }
    assert knowing == {'step.py', 'rows.py', 'norm.py'}
