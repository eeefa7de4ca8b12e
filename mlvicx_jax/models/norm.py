"""Batch normalisation with PyTorch's constants and statistics over the whole mesh."""

import functools

from flax import linen as nn

AXIS = 'data'  # the one mesh axis; BatchNorm averages its statistics over it


def batch_norm(train: bool, dtype, axis_name: str | None, momentum: float = 0.9):
    """A constructor of BatchNorm layers: epsilon 1e-5, torch momentum 0.1 (= 0.9 here).

    In training the statistics are those of the batch over every device of `axis_name`; with
    `axis_name=None` they are those of the array itself. Running variances are the biased ones.
    """
    return functools.partial(nn.BatchNorm, use_running_average=not train, momentum=momentum,
                             epsilon=1e-5, dtype=dtype, axis_name=axis_name)
