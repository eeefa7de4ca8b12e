"""A linear layer on frozen features, trained by the optimiser and in the batches of a run."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import expit

from mlvicx_jax import optim
from mlvicx_jax.durations import Clock, Schedule


class Fitted(NamedTuple):
    """The layer as it is after `step` steps.

    Attributes:
        kernel: float32 [d, k], for features as they are.
        bias: float32 [k].
        loss: mean over the steps since the last one that was yielded.
    """

    step: int
    kernel: np.ndarray
    bias: np.ndarray
    loss: float

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """[n, k] of features [n, d]."""
        return expit(x @ self.kernel + self.bias)


def known_labels(labels: np.ndarray) -> np.ndarray:
    """Bool [k]: which labels have both classes among [n, k]; a network trained on them knows no other."""
    return labels.min(0) != labels.max(0)


def train(config, x: np.ndarray, y: np.ndarray, clock: Clock, seed: int) -> Iterator[Fitted]:
    """Yields the layer at each evaluation of `clock`, and at the end.

    From zeros; a sigmoid and a binary cross-entropy for each label, meaned, on features standardised by
    `x`: the same family of layers, better conditioned. The scaling is folded into what is yielded.

    Args:
        config: of the optimiser, `config.optim` of a run.
        x: [n, d] features.
        y: [n, k] of 0 and 1.
        clock: batch size, length and evaluations.
        seed: of the order of the rows.
    """
    optimizer = optim.create(config, clock.batch_size, clock.steps_per_epoch, clock.total_steps)
    mean, std = x.mean(0), x.std(0)
    scale = np.where(std > 1e-6 * np.abs(mean), 1 / np.maximum(std, 1e-12), 0).astype(np.float32)
    inputs, labels = jnp.asarray((x - mean) * scale), jnp.asarray(y, jnp.float32)

    def loss(params, rows):
        layer = params['classifier']
        logits = inputs[rows] @ layer['kernel'] + layer['bias']
        return optax.sigmoid_binary_cross_entropy(logits, labels[rows]).mean()

    @jax.jit
    def train_steps(params, opt_state, rows):
        def step(carried, rows):
            params, opt_state = carried
            value, gradient = jax.value_and_grad(loss)(params, rows)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        (params, opt_state), values = jax.lax.scan(step, (params, opt_state), rows)
        return params, opt_state, values.mean()

    layer = {'kernel': jnp.zeros((inputs.shape[1], labels.shape[1])), 'bias': jnp.zeros(labels.shape[1])}
    params = {'classifier': layer}
    opt_state = optimizer.init(params)
    stream = batches(len(inputs), clock.batch_size, seed)
    schedule = Schedule(clock.steps_per_evaluation or clock.total_steps, clock.total_steps)
    done = 0
    for step in filter(schedule.due, range(1, clock.total_steps + 1)):
        rows = np.stack(list(itertools.islice(stream, step - done)))
        params, opt_state, value = train_steps(params, opt_state, rows)
        done = step
        layer = jax.device_get(params['classifier'])
        kernel = layer['kernel'] * scale[:, None]
        yield Fitted(step, kernel, layer['bias'] - mean @ kernel, float(value))


def batches(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yields rows [size], without end: every epoch a permutation of its own, its remainder dropped."""
    for epoch in itertools.count():
        order = np.random.default_rng([seed, epoch]).permutation(count)
        yield from order[: count // size * size].reshape(-1, size)
