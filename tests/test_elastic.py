"""A run saved on eight devices goes on, on four, on one, on two processes of two, as if nothing had been."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
import several

import tiny
from mlvicx_jax.data import pipeline

pytestmark = pytest.mark.slow  # every case starts from a run of eight devices, a process of its own

PROGRAM = """
import faulthandler, os, sys, traceback
faulthandler.dump_traceback_later(280, exit=True)  # before the test gives up
import jax
import numpy as np
from mlvicx_jax import parallel
import test_elastic

address, count, process, data_dir, checkpoints, path = sys.argv[1:]
try:
    if int(count) > 1:
        parallel.start(address, int(count), int(process))
    straight, resumed, ids = test_elastic.train(data_dir, jax.devices(), checkpoints)
    np.savez(path, ids=ids, **{f'straight{name}': leaf for name, leaf in straight.items()},
             **{f'resumed{name}': leaf for name, leaf in resumed.items()})
except Exception:
    traceback.print_exc()
    os._exit(1)  # jax would wait for the other process
"""


def train(data_dir, devices, checkpoints):
    """Leaves after six steps, leaves after steps 4 to 6 from the checkpoint, ids of all nine batches.

    A checkpoint of step 3 that is there already is not written again, and is what the last three go
    on from: that of another number of devices.
    """
    ids, original = [], pipeline.train_batches

    def recorded(split, *arguments):
        stream = original(split, *arguments)
        try:
            for batch in stream:
                ids.append(split.image_ids[batch['record']])
                yield batch
        finally:
            stream.close()

    pipeline.train_batches = recorded
    try:
        _, straight, _, _, resumed = tiny.train_in_double('', data_dir, devices, again=checkpoints)
    finally:
        pipeline.train_batches = original
    return tiny.leaves(straight), tiny.leaves(resumed), np.stack(ids)


def start(folder, data_dir, devices, paths):
    """Exit codes and output of one process for each of `paths`, all of them ended."""
    address = several.free_address()
    return several.run(
        PROGRAM,
        [(address, len(paths), i, data_dir, folder / 'checkpoints', path) for i, path in enumerate(paths)],
        devices,
        JAX_ENABLE_X64='1',
    )


def run(folder, data_dir, processes, devices):
    """What each of `processes` wrote, of `devices` each, that went on from folder/checkpoints."""
    paths = [folder / f'process{i}.npz' for i in range(processes)]
    codes, said = start(folder, data_dir, devices, paths)
    if 'Gloo context initialization failed' in ''.join(said):
        # Each compiles for itself, and gloo waits 30 s for the other: too short on a machine with
        # much else to do. What was compiled is in the cache by now.
        codes, said = start(folder, data_dir, devices, paths)
    assert codes == [0] * processes, '\n'.join(text[-3000:] for text in said)
    found = []
    for path in paths:
        with np.load(path) as arrays:
            part = lambda word: {
                name.removeprefix(word): arrays[name] for name in arrays if name.startswith(word)
            }
            found.append((part('straight'), part('resumed'), arrays['ids']))
    return found


@pytest.fixture(scope='module')
def eight(tmp_path_factory, data_dir):
    """Six steps on eight devices: the folder with the checkpoint of step 3, leaves and ids."""
    folder = tmp_path_factory.mktemp('eight')
    ((straight, resumed, ids),) = run(folder, data_dir, 1, 8)
    tiny.assert_close(resumed, straight, 0)
    assert ids.shape == (9, 16)
    np.testing.assert_array_equal(ids[3:6], ids[6:])
    return folder / 'checkpoints', straight, ids


@pytest.fixture
def copy(eight, tmp_path):
    shutil.copytree(eight[0], tmp_path / 'checkpoints')
    return tmp_path / 'checkpoints'


def content(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).rglob('*') if path.is_file()}


def assert_goes_on(found, ids, checkpoints, eight):
    original, straight, expected = eight
    assert content(checkpoints) == content(original)  # those of the eight were read
    np.testing.assert_array_equal(ids[6:], expected[6:])
    assert found['.step'] == 6
    tiny.assert_close(found, straight, 1e-4)


@pytest.mark.parametrize('count', [4, 1])
def test_on_fewer_devices(count, eight, copy, data_dir):
    with jax.enable_x64(True):
        own, resumed, ids = train(data_dir, jax.devices()[:count], copy)
    assert_goes_on(resumed, ids, copy, eight)
    # It is not its own first half that it went on from: that differs in the last digits.
    assert any(own[name].tobytes() != resumed[name].tobytes() for name in own)


def test_on_two_processes_of_two(eight, copy, data_dir):
    parts = run(copy.parent, data_dir, 2, 2)
    assert [ids.shape for _, _, ids in parts] == [(9, 8), (9, 8)]
    ids = np.concatenate([ids for _, _, ids in parts], axis=1)
    for _, resumed, _ in parts:
        assert_goes_on(resumed, ids, copy, eight)
