"""`Run.open`: the only reader of a run."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mlvicx_jax import methods, optim
from mlvicx_jax import state as states
from mlvicx_jax.errors import UserError, first_line
from mlvicx_jax.run import folder, goodput, predictions, restoring, results
from mlvicx_jax.run.goodput import Counts
from mlvicx_jax.run.metrics import read_metrics
from mlvicx_jax.run.schema import shown


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What one run left. A file is read, and checked, when it is first asked for.

    Attributes:
        folder: its workdir.
    """

    folder: pathlib.Path

    @classmethod
    def open(cls, workdir) -> 'Run':
        """The run of a folder.

        Raises:
            UserError: no run is there.
        """
        path = pathlib.Path(workdir).expanduser()
        if not (path / 'config.json').exists() and not (path / 'checkpoints').is_dir():
            raise UserError(f'{workdir}: no run is there (no config.json); give the --workdir of a run')
        return cls(path)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json, with the fields that older runs had not."""
        config, found = folder.read_config(self.folder), None
        if config['task'] not in results.TASKS:
            found = f'task is {shown(config["task"])}, expected one of {", ".join(results.TASKS)}'
        elif config['task'] != 'pretrain' and 'protocol' not in config:
            found = 'protocol is missing'
        if found:
            raise UserError(f'{self.folder / "config.json"}: {found}; restore it, or run its command again')
        return config

    @property
    def task(self) -> str:
        """'pretrain', 'classify' or 'segment'."""
        return self.config['task']

    @property
    def is_linear(self) -> bool:
        """Whether no network was trained, but a linear layer on frozen features."""
        return self.task == 'classify' and self.config['protocol'] == 'frozen'

    @functools.cached_property
    def lines(self) -> list[dict]:
        """The whole lines of metrics.jsonl, each with its `step`."""
        return read_metrics(self.folder)

    @functools.cached_property
    def results(self) -> dict[str, Any] | None:
        """results.json, as `results.TASKS` says of the task; None where the run has not ended."""
        return results.read(self.folder, self.config)

    @property
    def ended(self) -> dict[str, Any]:
        """results.json of a run that has ended.

        Raises:
            UserError: it has not.
        """
        if self.results is None:
            raise UserError(
                f'{self.folder}: the run is not finished: there is no results.json; start the same '
                'training once more'
            )
        return self.results

    @functools.cached_property
    def goodput(self) -> Counts | None:
        """goodput.json; None where there is none, or where it is damaged, which is said."""
        return goodput.read(self.folder)

    @functools.cached_property
    def predictions(self) -> dict[str, np.ndarray] | None:
        """The arrays of predictions.npz; None where there are none."""
        if self.task not in predictions.TASKS:
            return None
        return predictions.read(self.folder, self.task, self.results)

    @property
    def labels_without_score(self) -> list[str]:
        """Labels of the classifier of which its training images had one class alone."""
        return list((self.results or {}).get('labels_without_score', ()))

    @property
    def label_names(self) -> tuple[str, ...]:
        """Of a classifier's logits, in order; () while the run goes on."""
        return tuple((self.results or {}).get('label_names', ()))

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a logged number, where it is one."""
        points = [(line['step'], line[name]) for line in self.lines if line.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def curves(self, prefix: str) -> dict[str, tuple[list[int], list[float]]]:
        """{what follows `prefix`: curve}, of all numbers that were logged under it."""
        names = dict.fromkeys(name for line in self.lines for name in line)
        found = {name.removeprefix(prefix): self.curve(name) for name in names if name.startswith(prefix)}
        return {name: curve for name, curve in found.items() if curve[0]}

    def encoder(self, step: int | None = None) -> dict:
        """The encoder's variables {'params', 'batch_stats'} of the newest (or given) checkpoint, proved.

        Raises:
            UserError: there is no such checkpoint, or it is damaged.
        """
        known = (self.folder / 'config.json').exists()
        identity = folder.fixed(ConfigDict(self.config)) if known else None
        return restoring.restore_encoder(self.folder, step, identity)

    def network(self, step: int | None = None) -> 'Trained':
        """The network of the newest (or given) checkpoint, proved.

        Of a downstream run that has ended it is the one chosen on validation.

        Raises:
            UserError: there is no such checkpoint, it is damaged, or config.json describes another.
        """
        config = ConfigDict(self.config)
        if step is None and self.task != 'pretrain' and self.results:
            step = self.results['step']
        try:
            method = methods.create(config)
            optimizer = optim.create(config.optim, config.batch_size, 1, 1)
            like = jax.eval_shape(functools.partial(states.create, method, optimizer, config.seed, None))
        except UserError:
            raise
        except Exception as error:  # whatever a constructor makes of a damaged value
            raise UserError(
                f'{self.folder / "config.json"}: describes no network ({first_line(error)}); restore it, or '
                'run its command again'
            ) from error
        state, data_hash = restoring.restore_state(self.folder, like, step, folder.fixed(config))
        state = jax.device_get(state)  # NumPy arrays, at home on one device and on a mesh
        encoder = method.encoder.clone(dtype=jax.numpy.float32, axis_name=None)
        return Trained(
            self,
            config,
            dataclasses.replace(method, encoder=encoder),
            {'params': state.params, 'batch_stats': state.batch_stats},
            state.method_state,
            int(state.step),
            data_hash,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """The network of a checkpoint.

    Attributes:
        run: whose it is.
        config: of the run.
        method: which answers `network`; in float32 and without a mesh axis, for any one device.
        variables: {'params', 'batch_stats'} of the network, NumPy arrays.
        method_state: the method's own, NumPy arrays.
        step: of the checkpoint.
        data_hash: of the images it was trained on.
    """

    run: Run
    config: ConfigDict
    method: Any
    variables: dict
    method_state: Any
    step: int
    data_hash: str

    @property
    def encoder(self):
        """The encoder's module."""
        return self.method.encoder

    @property
    def encoder_variables(self) -> dict:
        """Of the encoder, {'params', 'batch_stats'}."""
        return {kind: tree['encoder'] for kind, tree in self.variables.items()}

    @property
    def heads(self) -> dict:
        """All weights but the encoder's, teachers among them: {'params', 'batch_stats', 'method_state'}."""
        rest = {
            kind: {name: part for name, part in tree.items() if name != 'encoder'}
            for kind, tree in self.variables.items()
        }
        return rest | {'method_state': self.method_state}

    def require_classifier(self) -> None:
        """Raises a UserError for a network that gives no probability of a finding."""
        where = self.run.folder
        classifier = self.variables['params'].get('classifier')
        if classifier is None:
            raise UserError(
                f'{where}: a run of {self.config.method.name} has an encoder but no classifier, so '
                'there is no probability of a finding; --embeddings of mlvicx predict needs none, '
                f'and python main.py --config=configs/classify.py --config.init={where} trains one'
            )
        names = self.run.ended.get('label_names', [])
        if len(names) != len(classifier['bias']):
            raise UserError(
                f'{where / results.FILE}: label_names has {len(names)} names, the classifier of step '
                f'{self.step} has {len(classifier["bias"])} outputs; restore the file, or delete it and run '
                'its command again'
            )
