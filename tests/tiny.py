"""configs/mlvicx.py shrunk to seconds: python main.py --config=tests/tiny.py[:released]"""

import jax
import numpy as np

from configs import mlvicx


def get_config(argument=''):
    """The recipe that `argument` names, on a few phantoms, with a narrow encoder and expander."""
    config = mlvicx.get_config(argument)
    # Not 0, the seed of the evaluation's own batches. ReLUs and maxima make the gradient jump where
    # two values nearly tie, and in a network this small one jump is a part of its leaf that counts.
    # Of the seeds 1 to 9 these are least touched by initial weights that differ by 1e-7.
    config.seed = 4 if 'released' in argument else 2
    config.batch_size = 16
    config.total_steps = 12
    config.data.name = 'phantom_cxr'
    config.data.options.patients = 25
    config.data.stored_size = 96
    config.data.image_size = 80  # the last map is 3 x 3; XLA is slow on 2 x 2
    config.data.num_threads = 1
    config.model.width = 4
    config.method.widths = (16, 16, 16)
    # Raw gradients move the vectors under LARS; a greater rate multiplies rounding errors by step.
    config.optim.update(learning_rate=1e-4, scale_with_batch=False)
    config.log_every_steps = 1
    config.eval_every_steps = 0
    config.eval.update(split='test', batch_size=8)
    config.checkpoint.update(every_steps=6, keep_last=3)
    return config


def leaves(state):
    """{path: NumPy array} of a state."""
    return {jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def assert_close(actual, expected, tolerance):
    """Every leaf, dtype included, within `tolerance`; 0 asks for the same bits.

    Of a leaf's greatest entry for matrices, which may be small all over; of 1 at least for vectors,
    among which are biases of no gradient but rounding errors.
    """
    actual, expected = leaves(actual), leaves(expected)
    assert actual.keys() == expected.keys() and len(actual) > 100
    for path, a in actual.items():
        b = expected[path]
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        if tolerance:
            error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-6 if b.ndim > 1 else 1)
            assert error <= tolerance, f'{path}: {error:.1e}'
        else:
            assert a.tobytes() == b.tobytes(), path
