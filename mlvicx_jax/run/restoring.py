"""Checkpoints for readers of a run: proved, and nothing in the folder is changed."""

import contextlib
import pathlib

import jax
import orbax.checkpoint as ocp

from mlvicx_jax.errors import UserError, first_line
from mlvicx_jax.run import quiet  # noqa: F401  Orbax is silenced by the import
from mlvicx_jax.run.proof import encoder_of, prove, read_proved, refuse_other_run, steps_in


def restore_encoder(workdir, step: int | None = None, identity: dict | None = None) -> dict:
    """The encoder's variables {'params', 'batch_stats'} of a run's newest (or given) checkpoint, proved.

    Reads nothing but the encoder: no head, optimiser or method state.

    Args:
        identity: of the run, as `Checkpoints` takes it.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or another run's.
    """
    folder = _folder(workdir, step)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    reader = ocp.PyTreeCheckpointer()
    with _damage_told(folder):
        wanted = encoder_of(reader.metadata(folder / 'state').item_metadata.tree)
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted)
        read = encoder_of(
            reader.restore(
                folder / 'state',
                args=ocp.args.PyTreeRestore(
                    item=abstract,
                    partial_restore=True,
                    restore_args=jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=sharding), abstract),
                ),
            )
        )
        about = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / 'about')
        if 'encoder' in about:  # older programs did not note it
            prove(about, 'encoder', read)
    refuse_other_run(folder, about, identity)
    return jax.device_get({kind: read[kind]['encoder'] for kind in read})


def restore_state(workdir, like, step: int | None = None, identity: dict | None = None) -> tuple:
    """The whole state of a run's newest (or given) checkpoint, proved, and its training split's hash.

    For readers of a run: unlike `Checkpoints` it changes nothing in the folder.

    Args:
        workdir: of the run.
        like: a state of `jax.ShapeDtypeStruct`s.
        step: of the checkpoint; the newest where None.
        identity: of the run, as `Checkpoints` takes it.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or another program's or run's.
    """
    folder = _folder(workdir, step)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
    with (
        _damage_told(folder),
        ocp.CheckpointManager(folder.parent, options=ocp.CheckpointManagerOptions(read_only=True)) as manager,
    ):
        read = read_proved(manager, int(folder.name), abstract)
    refuse_other_run(folder, read.about, identity)
    return read.state, read.about['data_hash']


@contextlib.contextmanager
def _damage_told(folder: pathlib.Path):
    """Turns whatever reading a checkpoint raises into one line."""
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise many kinds on damaged files
        raise UserError(
            f'checkpoint {folder} is damaged, or not what config.json beside it '
            f'describes ({first_line(error)}); restore a copy or give another --step'
        ) from error


def _folder(workdir, step: int | None) -> pathlib.Path:
    """The folder of a run's newest (or given) complete checkpoint."""
    directory = pathlib.Path(workdir).absolute() / 'checkpoints'
    steps = steps_in(directory)
    if not steps or (step is not None and step not in steps):
        wanted = 'any step' if step is None else f'step {step}'
        raise UserError(
            f'{directory} has no checkpoint of {wanted}; found '
            f'{steps or "none"}: is this the --workdir of a run?'
        )
    return directory / str(max(steps) if step is None else step)
