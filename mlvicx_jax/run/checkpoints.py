"""Checkpoints: written in the background and atomically, proved when read, never half taken for whole."""

import contextlib
import dataclasses
import hashlib
import json
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


def _without_echoes(found, show=sys.unraisablehook):
    """The hook for errors that nobody can catch, blind to two that say nothing.

    A save that failed closes its event loop; TensorStore's threads then still report to it. A read
    that failed leaves Orbax's reads of the other arrays behind, with the same error.
    """
    code = getattr(found.object, 'cr_code', None)
    if str(found.exc_value) != 'Event loop is closed' and not (code and 'orbax' in code.co_filename):
        show(found)


sys.unraisablehook = _without_echoes


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


@dataclasses.dataclass
class _Pinned(policies.PreservationPolicy):
    step: int | None = None

    def should_preserve(self, checkpoints, *, context):
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run, `directory/<step>/`.

    Each holds the state and, beside it, what is compared when it is read back: the fingerprints of
    the state and of its encoder, and the hashes of what it was trained on.

    Args:
      directory: where they lie; on a cluster, storage that every process sees.
      every_steps: interval of the scheduled saves.
      keep_last: how many of the newest are kept.
      keep_every: every checkpoint whose step is a multiple of this is kept too; 0 for none.
      data_hash: of the training split's image ids.
      records_hash: of the records that hold the images (`data/records.py`); '' is not compared.
    """

    def __init__(
        self,
        directory,
        every_steps: int,
        keep_last: int,
        keep_every: int,
        data_hash: str,
        records_hash: str = '',
    ):
        self.directory = pathlib.Path(directory).absolute()
        self.every_steps = every_steps
        self.data_hash = data_hash
        self.records_hash = records_hash
        self._pinned = _Pinned()
        keep = [policies.LatestN(keep_last), self._pinned]
        if keep_every:
            keep.append(policies.EveryNSteps(keep_every))
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep), cleanup_tmp_directories=True
            ),
        )

    def due(self, step: int) -> bool:
        return bool(self.every_steps) and step % self.every_steps == 0

    def newest(self) -> int | None:
        """Step of the newest checkpoint that is complete, or being written."""
        return self._manager.latest_step()

    def pin(self, step: int) -> None:
        """Keeps the checkpoint of this step, whatever its age, instead of the one pinned before."""
        self._pinned.step = step

    def save(self, state) -> None:
        """Starts to write the state and returns; every process calls it at the same step."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        about = {
            'fingerprint': int(fingerprint(state)),
            'data_hash': self.data_hash,
            'encoder': int(fingerprint(_encoder(vars(state)))),
            'records_hash': self.records_hash,
        }
        about['sha256'] = _digest(about)
        with self._explained(f'checkpoint of step {step}'):
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)),
                force=True,
            )

    def wait(self) -> None:
        """Returns when what was saved is complete on disk, or raises what went wrong."""
        with self._explained('the newest checkpoint'):
            self._manager.wait_until_finished()

    def restore(self, like, newest: int | None = None):
        """The newest whole state (of at most step `newest`), or None if nothing was ever saved.

        A damaged checkpoint is moved to `<directory>_damaged/`, said loudly, and the one before it
        is tried. If none is whole the run stops: it never starts from scratch silently.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        steps = sorted((step for step in self._manager.all_steps() if step <= (newest or step)), reverse=True)
        for step in steps:
            try:
                return self._read(step, abstract)
            except UserError:
                raise
            except Exception as error:  # Orbax and TensorStore raise many kinds on damaged files
                log.error(
                    'checkpoint %s is damaged (%s); trying the one before it',
                    self.directory / str(step),
                    first_line(error),
                )
                self._set_aside(step)
        if steps or self._damaged.exists():  # also when the same command is run once more
            raise UserError(
                f'none of the checkpoints {steps} in {self.directory} could be read; damaged ones are in '
                f'{self._damaged}. Restore a copy, or give a new --workdir to start afresh'
            )
        return None

    def only(self, step: int) -> None:
        """Deletes every checkpoint but that of `step`, which so becomes the newest."""
        for other in self._manager.all_steps():
            if other != step:
                self._manager.delete(other)

    def _read(self, step, abstract):
        read = _read_proved(self._manager, step, abstract)
        if read.about['data_hash'] != self.data_hash:
            raise UserError(
                f'checkpoint {self.directory / str(step)} was trained on images with hash '
                f'{read.about["data_hash"][:12]}, the data set now has {self.data_hash[:12]}; '
                'restore the old data set or give a new --workdir'
            )
        trained = read.about.get('records_hash', '')  # older programs noted none
        if trained and self.records_hash and trained != self.records_hash:
            raise UserError(
                f'checkpoint {self.directory / str(step)} was trained on images of the same ids but other '
                f'content (records {trained[:12]}, now {self.records_hash[:12]}): the prepared data set '
                'was changed or made anew; restore the old one or give a new --workdir'
            )
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
                f'{whole or "none"}'
            ) from error

    def close(self) -> None:
        self._manager.close()


def _encoder(state: dict) -> dict:
    """The encoder's variables {'params', 'batch_stats'} among those of a state."""
    return {kind: {'encoder': state[kind]['encoder']} for kind in ('params', 'batch_stats')}


def _digest(about: dict) -> str:
    """sha256 of `about`, but for this field itself."""
    content = {name: value for name, value in about.items() if name != 'sha256'}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _prove(about: dict, name: str, tree) -> None:
    """Raises if `about` was changed, or if `tree` has not the fingerprint that it gives under `name`."""
    if about.get('sha256', _digest(about)) != _digest(about):  # older programs wrote none
        raise ValueError('what is noted beside the state was changed')
    if (found := int(fingerprint(tree))) != about[name]:
        raise ValueError(f'fingerprint {found}, expected {about[name]}')


def _read_proved(manager: ocp.CheckpointManager, step: int, abstract):
    """`state` and `about` of a checkpoint; raises if the state is not the one that was saved."""
    read = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), about=ocp.args.JsonRestore())
    )
    _prove(read.about, 'fingerprint', read.state)
    return read


def restore_encoder(workdir, step: int | None = None) -> dict:
    """The encoder's variables {'params', 'batch_stats'} of a run's newest (or given) checkpoint, proved.

    Reads nothing but the encoder: no head, optimiser or method state.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    folder = _folder(workdir, step)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    reader = ocp.PyTreeCheckpointer()
    with _damage_told(folder):
        wanted = _encoder(reader.metadata(folder / 'state').item_metadata.tree)
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted)
        read = _encoder(
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
            _prove(about, 'encoder', read)
    return jax.device_get({kind: read[kind]['encoder'] for kind in read})


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
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
    with (
        _damage_told(folder),
        ocp.CheckpointManager(folder.parent, options=ocp.CheckpointManagerOptions(read_only=True)) as manager,
    ):
        read = _read_proved(manager, int(folder.name), abstract)
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
    steps = [int(p.name) for p in directory.glob('*') if p.name.isdigit()]
    if not steps or (step is not None and step not in steps):
        wanted = 'any step' if step is None else f'step {step}'
        raise UserError(
            f'{directory} has no checkpoint of {wanted}; found '
            f'{sorted(steps) or "none"}: is this the --workdir of a run?'
        )
    return directory / str(max(steps) if step is None else step)
