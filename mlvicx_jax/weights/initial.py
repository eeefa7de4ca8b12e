"""`config.init`: the encoder starts from a file or from another run, whole or not at all."""

import pathlib

import jax

from mlvicx_jax.errors import UserError
from mlvicx_jax.run.checkpoints import restore_encoder
from mlvicx_jax.state import TrainState
from mlvicx_jax.terminal import say
from mlvicx_jax.weights import tensors as weights


def initialise(state: TrainState, init: str, whole: bool = False) -> TrainState:
    """The state with its encoder's weights from `init`; unchanged where that is empty.

    Every copy of the encoder is filled, the student's and those that a method keeps (a teacher),
    known by lying under the name `encoder` in the state. Heads keep their initialisation.

    Args:
        init: `config.init`: the --workdir of a run, an exported folder, or a .safetensors or .pth
            file with torchvision's names, this project's or those of the authors' release.
        whole: whether context bottlenecks that `init` lacks are an error, too.

    Raises:
        UserError: see `weights.read_tensors` and `weights.fill`.
    """
    if not init:
        return state
    variables, said = weights.fill(state.encoder, read(init), f'config.init={init}', whole)
    arrays = {}
    for tree in variables.values():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[weights.path_names(path)] = leaf

    def replace(path, leaf):
        names = weights.path_names(path)
        if 'encoder' not in names:
            return leaf
        last = len(names) - 1 - names[::-1].index('encoder')
        new = arrays.get(names[last + 1 :])
        return leaf if new is None else jax.device_put(new, leaf.sharding)

    replaced = jax.tree_util.tree_map_with_path(replace, (state.params, state.batch_stats, state.method_state))
    say(f'initial encoder: {len(arrays)} tensors from {init}')
    for sentence in said:
        say(sentence)
    return state.replace(params=replaced[0], batch_stats=replaced[1], method_state=replaced[2])


def proof(state: TrainState, init: str) -> dict | None:
    """The number of the encoder's tensors and their sha256, by which a result names what it began with.

    None where it began with random ones. To be taken right after `initialise(..., whole=True)`.
    """
    if not init:
        return None
    return {'tensors': len(jax.tree.leaves(state.encoder)), 'sha256': weights.digest(state.encoder)}


def read(init: str) -> weights.Tensors:
    """The encoder's tensors, under whatever names they have there."""
    path = pathlib.Path(init).expanduser()
    if (path / 'checkpoints').is_dir():
        try:
            return weights.flat(restore_encoder(path))
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many kinds on damaged files
            raise UserError(
                f'config.init={init}: the newest checkpoint can not be read '
                f'({weights.reason(error)}); give another run or file'
            ) from error
    if path.is_dir():
        path = path / 'model.safetensors'
    return weights.read_tensors(path)
