"""What every method must hold: one device is four, a restart is exact, a teacher learns nothing."""

import jax
import numpy as np
import pytest

import tiny
from configs import base
from mlvicx_jax import methods

RIVALS = sorted(set(base.methods()) - {'mlvicx'})  # MLVICX itself: test_step.py and test_run.py
# One of each kind of state: none, a teacher, a teacher and a queue. The others are of these kinds.
FAST = 'simclr', 'byol', 'moco_v2'


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in RIVALS]
)
def test_one_device_is_four_and_a_restart_goes_on(name, data_dir, tmp_path):
    devices = jax.devices()
    with jax.enable_x64(True):
        _, one, metrics_1, out_1 = tiny.train_in_double(name, data_dir, devices[:1])
        first, four, metrics_4, out_4, resumed = tiny.train_in_double(
            name, data_dir, devices[:4], again=tmp_path / 'checkpoints'
        )
    tiny.assert_close(four, one, 1e-4)
    tiny.assert_close(resumed, four, 0)
    for found, expected in ((metrics_4, metrics_1), (out_4, out_1)):
        for key, value in expected.items():
            np.testing.assert_allclose(
                found[key], value, rtol=1e-4, err_msg=key, atol=1e-4 * np.abs(value).max()
            )
    # The comparison sees training, not a state that stands still.
    before, after = tiny.leaves(first), tiny.leaves(four)
    still = [path for path in after if np.array_equal(before[path], after[path])]
    assert not [path for path in still if 'bias' not in path and path != '.skipped'], still
    assert set(methods.create(tiny.get_config(name)).embeddings.values()) <= out_1.keys()
