"""What a pretraining run is told on its way: probes of its frozen encoder against the baselines."""

from mlvicx_jax.evaluation import baselines, frozen
from mlvicx_jax.run import progress
from mlvicx_jax.tasks.shared.base import BaseTask
from mlvicx_jax.terminal import say


class Task(BaseTask):
    """Linear probe and kNN on `config.eval.split`, from (part of) the training split."""

    name = 'pretrain'
    monitor = None  # nothing is chosen by the probes: they may be made on the test split

    def __init__(self, config, workdir, method, data, mesh):
        super().__init__(config, workdir, method, data, mesh)
        self._encoder = method.encoder
        self._baselines, self._initial, self._best, self._scores = {}, {}, '', {}

    def initial(self, state) -> dict[str, float]:
        """The baselines' numbers, `baselines.numbers`; `state` is that before training."""
        self._baselines = baselines.scores(
            self._encoder, state.encoder, self._data, self._config, self._mesh, self._workdir
        )
        self._initial = baselines.numbers(self._baselines, self._data, self._config)
        for name, ending in baselines.ENDINGS.items():
            say(f'{name}: {progress.probes(self._initial, ending)} (mean AUROC)')
        self._best = baselines.line_to_beat(self._initial)
        say(f'line to beat: {self._best}')
        return self._initial

    def at(self, state, step: int) -> dict[str, float]:
        """The probes of the encoder as it is."""
        self._scores = frozen.scores(
            self._encoder,
            state.encoder,
            self._data,
            self._config,
            self._mesh,
            self._config.data.image_size,
            self._config.eval.readout,
        )
        numbers = frozen.numbers(self._scores, self._data, self._config)
        ending = baselines.ENDINGS[self._best]
        say(
            f'step {step}  mean AUROC of the frozen encoder: {progress.probes(numbers)}; '
            f'{self._best}: {progress.probes(self._initial, ending)}'
        )
        return numbers

    def results(self, state, numbers, initial) -> dict:
        """The last probes beside the baselines', and how far they are above the best of those."""
        split = self._data.splits[self._config.eval.split]
        about = {
            'eval/split': split.name,
            'eval/readout': self._config.eval.readout,
            'data/eval_hash': split.hash,
        }
        if not initial:
            return numbers | about
        gain = baselines.gain(
            self._scores['probe'], self._baselines[self._best]['probe'], self._data, self._config
        )
        patients = len(set(split.patient_ids.tolist()))
        say(
            f'pretrained minus {self._best}, the line to beat: {gain.value:+.3f} '
            f'[{gain.low:+.3f}, {gain.high:+.3f}], mean AUROC of the probe; 95 % interval over '
            f'{patients} held-out patients'
        )
        return (
            numbers
            | initial
            | about
            | {'line_to_beat': self._best}
            | {f'probe/gain{end}': float(x) for end, x in zip(('', '_low', '_high'), gain)}
        )
