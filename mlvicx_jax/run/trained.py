"""A run read back: the network that it ended with, and what that needs to be used."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from mlvicx_jax import methods, optim
from mlvicx_jax import state as states
from mlvicx_jax.errors import UserError
from mlvicx_jax.run import checkpoints as checkpoint
from mlvicx_jax.run import folder as workdirs


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint of a run; the newest of a downstream run is the one chosen on validation.

    Attributes:
        config: of the run.
        method: which answers `network`; in float32 and without a mesh axis, for any one device.
        variables: {'params', 'batch_stats'} of the network, NumPy arrays.
        method_state: the method's own, NumPy arrays.
        label_names: of the logits, in order; () where the run is none of classification, or goes on.
        step: of the checkpoint.
        data_hash: of the images it was trained on.
    """

    config: ConfigDict
    method: Any
    variables: dict
    method_state: Any
    label_names: tuple[str, ...]
    step: int
    data_hash: str


def load(workdir, step: int | None = None) -> Trained:
    """Reads and proves one checkpoint of a run; the newest where `step` is None.

    Raises:
        UserError: the folder holds no run, or a checkpoint that is damaged.
    """
    workdir = pathlib.Path(workdir).expanduser().absolute()
    config = workdirs.read_config(workdir)
    method = methods.create(config)
    optimizer = optim.create(config.optim, config.batch_size, 1, 1)
    like = jax.eval_shape(functools.partial(states.create, method, optimizer, config.seed, None))
    state, data_hash = checkpoint.restore_state(workdir, like, step)
    state = jax.device_get(state)  # NumPy arrays, at home on one device and on a mesh
    encoder = method.encoder.clone(dtype=jax.numpy.float32, axis_name=None)
    names = read_results(workdir).get('label_names', ())
    return Trained(
        config,
        dataclasses.replace(method, encoder=encoder),
        {'params': state.params, 'batch_stats': state.batch_stats},
        state.method_state,
        tuple(names),
        int(state.step),
        data_hash,
    )


def read_results(workdir) -> dict:
    """results.json of a run; {} where it is not finished.

    Raises:
        UserError: it is damaged.
    """
    path = pathlib.Path(workdir) / 'results.json'
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f'{path}: is not JSON ({error}); restore or remove it') from error


def require_classifier(loaded: Trained, init) -> None:
    """Raises a UserError for a network that gives no probability of a finding."""
    if 'classifier' not in loaded.variables['params']:
        raise UserError(
            f'{init}: a run of {loaded.config.method.name} has an encoder but no classifier, so '
            'there is no probability of a finding; --embeddings of mlvicx_jax.predict needs none, '
            f'and python main.py --config=configs/classify.py --config.init={init} trains one'
        )
    if not loaded.label_names:
        raise UserError(
            f'{init}: the run is not finished: results.json, which names the labels of '
            'its classifier, is not there; start the same training once more'
        )
