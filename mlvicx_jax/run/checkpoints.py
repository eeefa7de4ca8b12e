"""Checkpoints: written in the background and atomically, proved when read, never half taken for whole."""

import contextlib
import dataclasses
import logging
import os
import pathlib

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from mlvicx_jax.checkout import code_hash
from mlvicx_jax.errors import UserError, first_line
from mlvicx_jax.run import quiet  # noqa: F401  Orbax is silenced by the import
from mlvicx_jax.run.proof import digest, encoder_of, fingerprint, read_proved, refuse_other_run, steps_in
from mlvicx_jax.terminal import say

log = logging.getLogger('mlvicx_jax')


@dataclasses.dataclass
class _Pinned(policies.PreservationPolicy):
    step: int | None = None

    def should_preserve(self, checkpoints, *, context):
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run, `directory/<step>/`.

    Each holds the state and, beside it, what is compared when it is read back: the fingerprints of
    the state and of its encoder, the hashes of what it was trained on, and whose it is.

    Args:
        directory: where they lie; on a cluster, storage that every process sees.
        every_steps: interval of the scheduled saves.
        keep_last: how many of the newest are kept.
        keep_every: every checkpoint whose step is a multiple of this is kept too; 0 for none.
        data_hash: of the training split's image ids.
        records_hash: of the records that hold the images (`data/records.py`); '' is not compared.
        identity: what makes the run the run it is (`run.folder.fixed`); None is not compared.

    Attributes:
        code: {step: sha256 of the program that trained from there on}; of a resumed run, all of them.
    """

    def __init__(
        self,
        directory,
        every_steps: int,
        keep_last: int,
        keep_every: int,
        data_hash: str,
        records_hash: str = '',
        identity: dict | None = None,
    ):
        self.directory = pathlib.Path(directory).absolute()
        self.every_steps = every_steps
        self.data_hash = data_hash
        self.records_hash = records_hash
        self._identity = identity
        self.code: dict[str, str] = {}
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
        """Starts to write the state and returns; every process calls it at the same step.

        A checkpoint of this step that holds the same state is left as it is; another is replaced.
        """
        step, whole = int(state.step), int(fingerprint(state))
        if step in self._manager.all_steps():
            if self._noted(step) == whole:
                return
            self._manager.delete(step)
        self.code = self.code or {'0': code_hash()}
        about = {
            'fingerprint': whole,
            'data_hash': self.data_hash,
            'encoder': int(fingerprint(encoder_of(vars(state)))),
            'records_hash': self.records_hash,
            'identity': self._identity,
            'code': self.code,
        }
        about['sha256'] = digest(about)
        with self._explained(f'checkpoint of step {step}'):
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)),
                force=True,
            )

    def _noted(self, step: int) -> int | None:
        """The fingerprint beside a checkpoint; None where it can not be read."""
        try:
            return self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about[
                'fingerprint'
            ]
        except Exception:  # Orbax raises many kinds on damaged files
            return None

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
        read = read_proved(self._manager, step, abstract)
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
        refuse_other_run(self.directory / str(step), read.about, self._identity)
        self._compare_code(step, read.about)
        return read.state

    def _compare_code(self, step: int, about: dict) -> None:
        """Takes over which programs trained the run so far, and says where this one is another."""
        if self.code:
            return  # a later restore of the same start
        before, now = about.get('code') or {}, code_hash()
        *_, newest = before.values() or ['']
        if newest and newest != now:
            say(
                f'the program has changed since checkpoint {step} was trained: code {newest[:12]}, now '
                f'{now[:12]}; results.json will name both'
            )
        self.code = before if newest == now else before | {str(step): now}

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
            whole = steps_in(self.directory)
            raise UserError(
                f'{what} could not be written to {self.directory}: {first_line(error)}. Free space '
                'or mend the permissions, then run the same command again; complete checkpoints: '
                f'{whole or "none"}'
            ) from error

    def close(self) -> None:
        self._manager.close()
