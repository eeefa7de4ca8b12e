"""Our training step, as a contestant of benchmarks.run; also built by benchmarks.parts.

  python -m benchmarks.step --recipe mlvicx:released [--batch 16] [--size 224] [--dtype float32]

A step is what train.py runs: the views of the images, network, loss, gradient, optimiser. Images are
random and already in memory: reading them is measured by benchmarks.parts.
"""

import dataclasses
import importlib
import sys
import time
from typing import Any

import jax
import numpy as np

from benchmarks import worker
from mlvicx_jax import methods, optim, parallel
from mlvicx_jax import state as states
from mlvicx_jax.errors import UserError
from mlvicx_jax.step import make_train_step

LABELS = 15  # of ChestX-ray14
STEPS = 1000  # of the schedule


@dataclasses.dataclass
class Step:
    """A recipe's step, its state and a batch [batch, stored, stored, 1]; calling it makes one step."""

    config: Any
    mesh: Any
    method: Any
    state: states.TrainState
    arrays: dict[str, jax.Array]
    compiled: Any
    out: Any = None  # what the last step's forward pass returned

    def __call__(self):
        """Makes one step to its end; returns its seconds."""
        start = time.perf_counter()
        self.state, metrics, self.out = self.compiled(self.state, self.arrays)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start


def recipe(name: str):
    """'mlvicx:released' -> the config that configs/mlvicx.py gives for 'released'."""
    module, *argument = name.split(':', 1)
    config = importlib.import_module(f'configs.{module}').get_config(*argument)
    if config.method.get('labels') == 0:  # as many as the data has
        config.method.labels = LABELS
    return config


def build(config, batch: int, size: int, stored: int, width: int, dtype: str) -> Step:
    """The step of `config` at these sizes."""
    config.update(batch_size=batch, dtype=dtype)
    config.data.update(image_size=size, stored_size=stored)
    config.model.width = width
    mesh = parallel.create_mesh(batch)
    method = methods.create(config)
    optimizer = optim.create(config.optim, batch, 100, STEPS)
    state = states.create(method, optimizer, 0, parallel.replicated(mesh))
    arrays = parallel.to_global(
        {
            'image': worker.images(batch, stored),
            'labels': np.random.default_rng(1).integers(0, 2, (batch, LABELS), np.uint8),
        },
        mesh,
    )
    compiled = make_train_step(method, optimizer, mesh, 0, STEPS)
    return Step(config, mesh, method, state, arrays, compiled)


def operations(step: Step) -> float:
    """Floating-point operations of one step by XLA's own count, before its optimisations.

    After them a library's convolution counts as nothing on some devices.
    """
    jitted, arguments = step.compiled.func, step.compiled.args
    return jitted.lower(*arguments, step.state, step.arrays).cost_analysis()['flops']


def memory() -> int | None:
    """Peak bytes of the first device, where it tells them."""
    statistics = jax.local_devices()[0].memory_stats()
    return statistics['peak_bytes_in_use'] if statistics else None


def parser(description: str):
    """The options of a contestant, and the recipe."""
    result = worker.parser(description)
    result.add_argument('--recipe', default='mlvicx:released', help='NAME or NAME:ARGUMENT of configs/')
    return result


def asked(arguments) -> Step:
    """The step that the options of `parser` ask for; a mistake in them ends the program."""
    try:
        return build(
            recipe(arguments.recipe),
            arguments.batch,
            arguments.size,
            arguments.stored,
            arguments.width,
            arguments.dtype,
        )
    except (UserError, ValueError, ModuleNotFoundError) as error:
        sys.exit(f'error: {error}')


def main():
    arguments = parser(__doc__).parse_args()
    started = time.perf_counter()
    step = asked(arguments)
    step()
    first = time.perf_counter() - started
    step()
    worker.serve(
        {
            'first_step_s': first,
            'device': parallel.device_name(),
            'versions': {'jax': jax.__version__},
            'operations': operations(step),
            'parameters': sum(leaf.size for leaf in jax.tree.leaves(step.state.params)),
        },
        lambda: {'seconds': step()},
        memory,
    )


if __name__ == '__main__':
    main()
