"""What downstream runs share: what every number of them carries, and which step is the best."""

import math

from mlvicx_jax.run.metrics import read_metrics


def about(config, data, proof: dict | None) -> dict:
    """The first lines of its results.json.

    Args:
        proof: which encoder it began with, `weights.initial.proof`; None for a random one.
    """
    train = data.splits['train']
    return {
        'protocol': config.protocol,
        'dataset': data.name,
        'share': config.data.labelled.share,
        'labelled_images': len(train),
        'labelled_hash': train.hash,
        'seed': config.seed,
        'init': config.init,
        'init_proof': proof,
        'context': config.model.context,
        **{f'data/{name}_hash': split.hash for name, split in data.splits.items()},
    }


class Best:
    """The step with the greatest `monitor` so far, and how many evaluations were since.

    Attributes:
        step: 0 before the first, and where there is no monitor.
        numbers: of that step's evaluation.
    """

    def __init__(self, monitor: str | None, patience: int):
        self._monitor, self._patience = monitor, patience
        self._greatest, self._since = -math.inf, 0
        self.step, self.numbers = 0, {}

    def resume(self, workdir, start_step: int) -> None:
        """Takes in the evaluations up to `start_step` that a run's metrics.jsonl tells of."""
        for line in read_metrics(workdir) if self._monitor else ():
            if self._monitor in line and 0 < line['step'] <= start_step:
                self.found(line.pop('step'), line)

    def found(self, step: int, numbers) -> bool:
        """Whether the numbers of this step are the best so far; a NaN never is, but for the first."""
        if not self._monitor:
            return False
        value = numbers[self._monitor]
        value = -math.inf if value is None or math.isnan(value) else value
        if self.step and value <= self._greatest:
            self._since += 1
            return False
        self.step, self.numbers, self._greatest, self._since = step, numbers, value, 0
        return True

    def __str__(self):
        return f'{self._monitor} {self._greatest:.4f}'

    @property
    def waited_enough(self) -> bool:
        return bool(self._patience) and self._since >= self._patience
