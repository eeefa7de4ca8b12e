"""Checkpoints: written in the background and atomically, proved when read, never half taken for whole."""

import contextlib
import logging
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from mlvicx_jax.errors import UserError, first_line

log = logging.getLogger('mlvicx_jax')

# Orbax logs, trace by trace from its threads, what it then raises; `Checkpoints` says it in one line.
logging.getLogger('absl').addFilter(lambda record: 'orbax' not in record.pathname)
logging.getLogger('asyncio').disabled = True


def _without_closed_loops(found, show=sys.unraisablehook):
    """The hook for errors in foreign threads, blind to one that says nothing.

    A save that failed closes its event loop; TensorStore's threads then still report to it.
    """
    if str(found.exc_value) != 'Event loop is closed':
        show(found)


sys.unraisablehook = _without_closed_loops


@jax.jit
def fingerprint(tree) -> jax.Array:
    """A uint32 that changes with any flipped bit of any leaf.

    Each 32-bit word is multiplied by an odd number that depends on its place; a single flipped bit
    k then changes the sum by an odd multiple of 2^k, which is never 0 modulo 2^32.
    """
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()
        place = jnp.arange(words.size, dtype=jnp.uint32) + jnp.uint32(number * 0x9E3779B9 % 2**32)
        total += jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
    return total


class Checkpoints:
    """The checkpoints of one run, `directory/<step>/`.

    Each holds the state and, beside it, the state's fingerprint and the hash of the training split,
    which are compared when it is read back.

    Args:
      directory: where they lie; on a cluster, storage that every process sees.
      every_steps: interval of the scheduled saves.
      keep_last: how many of the newest are kept.
      keep_every: every checkpoint whose step is a multiple of this is kept too; 0 for none.
      data_hash: of the training split.
    """

    def __init__(self, directory, every_steps: int, keep_last: int, keep_every: int,
                 data_hash: str):
        self.directory = pathlib.Path(directory).absolute()
        self.every_steps = every_steps
        self.data_hash = data_hash
        keep = [policies.LatestN(keep_last)]
        if keep_every:
            keep.append(policies.EveryNSteps(keep_every))
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True))

    def due(self, step: int) -> bool:
        return bool(self.every_steps) and step % self.every_steps == 0

    def newest(self) -> int | None:
        """Step of the newest checkpoint that is complete, or being written."""
        return self._manager.latest_step()

    def save(self, state) -> None:
        """Starts to write the state and returns; every process calls it at the same step."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        about = {'fingerprint': int(fingerprint(state)), 'data_hash': self.data_hash}
        with self._explained(f'checkpoint of step {step}'):
            self._manager.save(step, args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)), force=True)

    def wait(self) -> None:
        """Returns when what was saved is complete on disk, or raises what went wrong."""
        with self._explained('the newest checkpoint'):
            self._manager.wait_until_finished()

    def restore(self, like):
        """The newest whole state, or None if nothing was ever saved.

        A damaged checkpoint is moved to `<directory>_damaged/`, said loudly, and the one before it
        is tried. If none is whole the run stops: it never starts from scratch silently.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._read(step, abstract)
            except UserError:
                raise
            except Exception as error:  # Orbax and TensorStore raise many kinds on damaged files
                log.error('checkpoint %s is damaged (%s); trying the one before it',
                          self.directory / str(step), first_line(error))
                self._set_aside(step)
        if steps or self._damaged.exists():  # also when the same command is run once more
            raise UserError(
                f'none of the checkpoints {steps} in {self.directory} could be read; damaged ones are in '
                f'{self._damaged}. Restore a copy, or give a new --workdir to start afresh')
        return None

    def _read(self, step, abstract):
        read = _read_proved(self._manager, step, abstract)
        if read.about['data_hash'] != self.data_hash:
            raise UserError(
                f'checkpoint {self.directory / str(step)} was trained on images with hash '
                f'{read.about["data_hash"][:12]}, the data set now has {self.data_hash[:12]}; '
                'restore the old data set or give a new --workdir')
        return read.state

    @property
    def _damaged(self) -> pathlib.Path:
        return self.directory.with_name(self.directory.name + '_damaged')

    def _set_aside(self, step):
        if jax.process_index() == 0:
            self._damaged.mkdir(exist_ok=True)
            target = self._damaged / str(step)
            number = 1
            while target.exists():
                target, number = self._damaged / f'{step}_{number}', number + 1
            os.rename(self.directory / str(step), target)
        multihost_utils.sync_global_devices('damaged checkpoint moved')
        self._manager.reload()

    @contextlib.contextmanager
    def _explained(self, what):
        """Turns whatever a save raises into one line that names the complete checkpoints."""
        try:
            yield
        except Exception as error:  # the kinds differ by storage: OSError, ValueError, XlaRuntimeError
            whole = sorted(int(p.name) for p in self.directory.glob('*') if p.name.isdigit())
            raise UserError(
                f'{what} could not be written to {self.directory}: {first_line(error)}. Free space '
                'or mend the permissions, then run the same command again; complete checkpoints: '
                f'{whole or "none"}') from error

    def close(self) -> None:
        self._manager.close()


def _read_proved(manager: ocp.CheckpointManager, step: int, abstract):
    """`state` and `about` of a checkpoint; raises if the state is not the one that was saved."""
    read = manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract), about=ocp.args.JsonRestore()))
    if (found := int(fingerprint(read.state))) != read.about['fingerprint']:
        raise ValueError(f'fingerprint {found}, expected {read.about["fingerprint"]}')
    return read


def restore_encoder(workdir, step: int | None = None) -> dict:
    """The encoder's variables {'params', 'batch_stats'} of a run's newest (or given) checkpoint.

    Reads nothing but the encoder: no head, optimiser or method state.

    Raises:
        UserError: there is no such checkpoint.
    """
    path = _folder(workdir, step) / 'state'
    reader = ocp.PyTreeCheckpointer()
    tree = reader.metadata(path).item_metadata.tree
    wanted = {kind: {'encoder': tree[kind]['encoder']} for kind in ('params', 'batch_stats')}
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    read = reader.restore(path, args=ocp.args.PyTreeRestore(
        item=abstract, partial_restore=True, restore_args=jax.tree.map(
            lambda _: ocp.ArrayRestoreArgs(sharding=sharding), abstract)))
    return jax.device_get({kind: read[kind]['encoder'] for kind in wanted})


def restore_state(workdir, like, step: int | None = None) -> tuple:
    """The whole state of a run's newest (or given) checkpoint, proved, and its training split's hash.

    For readers of a run: unlike `Checkpoints` it changes nothing in the folder.

    Args:
      workdir: of the run.
      like: a state of `jax.ShapeDtypeStruct`s.
      step: of the checkpoint; the newest where None.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or another program's.
    """
    folder = _folder(workdir, step)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
    try:
        with ocp.CheckpointManager(
                folder.parent, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
            read = _read_proved(manager, int(folder.name), abstract)
        return read.state, read.about['data_hash']
    except Exception as error:  # Orbax and TensorStore raise many kinds on damaged files
        raise UserError(f'checkpoint {folder} is damaged, or not what config.json beside it '
                        f'describes ({first_line(error)}); restore a copy or give another --step'
                        ) from error


def _folder(workdir, step: int | None) -> pathlib.Path:
    """The folder of a run's newest (or given) complete checkpoint."""
    directory = pathlib.Path(workdir).absolute() / 'checkpoints'
    steps = [int(p.name) for p in directory.glob('*') if p.name.isdigit()]
    if not steps or (step is not None and step not in steps):
        wanted = 'any step' if step is None else f'step {step}'
        raise UserError(f'{directory} has no checkpoint of {wanted}; found '
                        f'{sorted(steps) or "none"}: is this the --workdir of a run?')
    return directory / str(max(steps) if step is None else step)
