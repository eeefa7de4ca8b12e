"""The folder of a run of tests/tiny.py that ended before it began."""

import contextlib
import json

import tiny
from mlvicx_jax import methods, optim, parallel
from mlvicx_jax import state as states
from mlvicx_jax.files import write_json
from mlvicx_jax.run.checkpoints import Checkpoints
from mlvicx_jax.run.folder import fixed


def make_workdir(folder, argument, data_dir, label_names=None, seed=2, split_seed=0):
    """A run of `argument` whose checkpoint has the initial weights; a classifier's with labels."""
    config = tiny.get_config(argument)
    config.data.data_dir, config.seed = str(data_dir), seed
    config.data.split_seed = split_seed
    mesh = parallel.create_mesh(config.batch_size)
    optimizer = optim.create(config.optim, config.batch_size, 1, 1)
    state = states.create(methods.create(config), optimizer, config.seed, parallel.replicated(mesh))
    write_json(folder / 'config.json', json.loads(config.to_json_best_effort()))
    with contextlib.closing(
        Checkpoints(folder / 'checkpoints', 1, 1, 0, 'hash', identity=fixed(config))
    ) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
    if label_names:
        write_json(folder / 'results.json', {'step': 0, 'label_names': list(label_names)})
    return folder
