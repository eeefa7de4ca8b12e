"""A run read back: the network that it ended with, and what that needs to be used."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from mlvicx_jax import checkpoint, methods, optim, state as states, workdir as workdirs


@dataclasses.dataclass(frozen=True)
class Trained:
    """The newest checkpoint of a run; of a downstream run that is the one chosen on validation.

    Attributes:
        config: of the run.
        method: which answers `network`; in float32 and without a mesh axis, for any one device.
        variables: {'params', 'batch_stats'} of the network, NumPy arrays.
        label_names: of the logits, in order; () where the run is none of classification.
        step: of the checkpoint.
    """
    config: ConfigDict
    method: Any
    variables: dict
    label_names: tuple[str, ...]
    step: int


def load(workdir) -> Trained:
    """Reads and proves a run's newest checkpoint.

    Raises:
        UserError: the folder holds no run, or a checkpoint that is damaged.
    """
    workdir = pathlib.Path(workdir).expanduser().absolute()
    config = workdirs.read_config(workdir)
    method = methods.create(config)
    optimizer = optim.create(config.optim, config.batch_size, 1, 1)
    like = jax.eval_shape(functools.partial(states.create, method, optimizer, config.seed, None))
    state, _ = checkpoint.restore_state(workdir, like)
    state = jax.device_get(state)
    encoder = method.encoder.clone(dtype=jax.numpy.float32, axis_name=None)
    results = workdir / 'results.json'
    names = json.loads(results.read_text()).get('label_names', ()) if results.exists() else ()
    return Trained(config, dataclasses.replace(method, encoder=encoder),
                   {'params': state.params, 'batch_stats': state.batch_stats}, tuple(names),
                   int(state.step))
