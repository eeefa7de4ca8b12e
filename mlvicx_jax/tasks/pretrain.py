"""What a pretraining run is told on its way: probes of its frozen encoder against the initial one."""

from mlvicx_jax.evaluation import frozen
from mlvicx_jax.run import progress
from mlvicx_jax.run.metrics import read_metrics
from mlvicx_jax.terminal import say

PROBES = 'probe/auroc', 'knn/auroc'


class Evaluation:
    """Linear probe and kNN on `config.eval.split`, from (part of) the training split."""

    monitor = None  # nothing is chosen by them: the test split may be among what they are made on

    def __init__(self, config, workdir, method, data, mesh):
        self._config, self._workdir, self._encoder = config, workdir, method.encoder
        self._data, self._mesh, self._initial = data, mesh, {}

    def initial(self, state) -> dict[str, float]:
        """The lines to beat: the encoder before training, in both readings of its BatchNorm.

        `probe/auroc_init` and `knn/auroc_init` are those with BatchNorm calibrated on training
        images, `..._init_uncalibrated` those of the encoder exactly as it was initialised. Read back
        where the run already has them.
        """
        for line in read_metrics(self._workdir)[:1]:
            if 'probe/auroc_init' in line:
                self._initial = {name: value for name, value in line.items() if name != 'step'}
        if not self._initial:
            say('evaluating the initial encoder ...')
            readings = frozen.initial_readings(
                self._encoder,
                state.encoder,
                self._data.splits['train'],
                self._config.data.image_size,
                self._config.batch_size,
                self._mesh,
            )
            for reading, variables in readings.items():
                found = self._probe(variables)
                suffix = 'init' if reading == 'calibrated' else f'init_{reading}'
                self._initial |= {f'{probe}_{suffix}': found[probe] for probe in PROBES}
                say(
                    f'initial encoder, BatchNorm {reading}: probe {found["probe/auroc"]:.3f}, '
                    f'kNN {found["knn/auroc"]:.3f} (mean AUROC)'
                )
        return self._initial

    def at(self, state, step: int) -> dict[str, float]:
        """The probes of the encoder as it is."""
        probes = self._probe(state.encoder)
        say(progress.compare(step, probes, self._initial))
        return probes

    def results(self, state, numbers, initial) -> dict:
        """The last probes beside the initial ones."""
        keys = [f'{probe}{which}' for probe in PROBES for which in ('', '_init', '_init_uncalibrated')]
        split = self._config.eval.split
        return (
            {key: (numbers | initial).get(key) for key in keys}
            | numbers
            | {'eval/split': split, 'data/eval_hash': self._data.splits[split].hash}
        )

    def _probe(self, variables):
        return frozen.evaluate(self._encoder, variables, self._data, self._config, self._mesh)
