"""What a task answers, with the answers that most of them share."""

import pathlib

import jax

from mlvicx_jax.errors import UserError
from mlvicx_jax.terminal import say


class BaseTask:
    """What a run is for: what it needs, what is evaluated on its way, what it ends with.

    The calls, in their order: `settle` before the data are opened and `settle_with` behind; `__init__`
    and `check`; `initial` with the state before training, `at` at each evaluation, `results` at the end.

    Attributes:
        name: `config.task`.
        protocols: the values of `config.protocol` that it is for; () where it has none.
        monitor: the number of `at` whose greatest value chooses the step that is kept; None keeps the last.
        uses_labels: whether the labelled part of the training split is all that it trains on.
        solves: whether `solve` takes the place of training step by step.
    """

    name: str
    protocols: tuple[str, ...] = ()
    monitor: str | None = None
    uses_labels = False
    solves = False

    def __init__(self, config, workdir, method, data, mesh):
        self._config, self._workdir, self._method = config, pathlib.Path(workdir), method
        self._data, self._mesh = data, mesh

    @classmethod
    def settle(cls, config):
        """A copy of the config with the fields that follow from its protocol.

        Raises:
            UserError: fields that contradict each other.
        """
        return _copy(config)

    @classmethod
    def settle_with(cls, config, data):
        """A copy of the config with the fields that follow from the data: `method.labels`, where it is 0."""
        config = _copy(config)
        if config.method.get('labels') == 0:
            config.method.labels = len(data.label_names)
        return config

    def batch_size(self) -> int:
        """Images of a step.

        Raises:
            UserError: the training split has fewer than `config.batch_size`.
        """
        size, images = self._config.batch_size, len(self._data.splits['train'])
        if size > images:
            raise UserError(f'config.batch_size is {size}, more than the {images} images of train; lower it')
        return size

    def check(self, evaluates: bool) -> None:
        """Raises a UserError where the data lack what the run needs.

        Args:
            evaluates: whether `at` will be called.
        """
        found, labels = len(self._data.label_names), getattr(self._method, 'labels', None)
        if labels is not None and labels != found:
            raise UserError(
                f'config.method.labels is {labels}, but {self._data.name} is asked for '
                f'{found} labels; give --config.method.labels={found}'
            )

    def initial(self, state) -> dict[str, float]:
        """Numbers of the state before training; {} where they mean nothing."""
        return {}

    def at(self, state, step: int) -> dict[str, float]:
        """The numbers of an evaluation."""
        raise NotImplementedError

    def solve(self, state, log):
        """The state that the task ends with, found in a way of its own, and its numbers.

        Args:
            state: initial, with the encoder of `config.init`.
            log: a `MetricLog`.
        """
        raise NotImplementedError

    def results(self, state, numbers, initial) -> dict:
        """What results.json says beside what every run says.

        Args:
            state: the last, or the best on validation.
            numbers: of `at` with that state; {} where nothing was evaluated.
            initial: of `initial`.
        """
        raise NotImplementedError


class Downstream(BaseTask):
    """A task that a pretrained encoder is judged by: `config.protocol` says whether the encoder trains."""

    uses_labels = True

    @classmethod
    def settle(cls, config):
        """A copy whose optimiser leaves a frozen encoder alone, if it is given the encoder at all."""
        config = super().settle(config)
        frozen = tuple(config.optim.frozen)
        if config.protocol == 'frozen' and not cls.solves:
            config.optim.frozen = tuple(dict.fromkeys(('encoder', *frozen)))
        elif config.protocol != 'frozen' and 'encoder' in frozen:
            raise UserError(
                f'config.optim.frozen names the encoder, but config.protocol is {config.protocol}; '
                'give --config.protocol=frozen'
            )
        return config

    def batch_size(self) -> int:
        """`config.batch_size`, or as many as the labelled images allow.

        Raises:
            UserError: there are fewer images than parts of a batch.
        """
        config, images = self._config, len(self._data.splits['train'])
        parts = jax.device_count() * config.accumulation
        if config.batch_size <= images:
            return config.batch_size
        if images < parts:
            raise UserError(
                f'config.data.labelled.share={config.data.labelled.share} leaves {images} '
                f'images for {parts} devices; take a larger share or fewer devices'
            )
        size = images // parts * parts
        say(f'config.batch_size is {config.batch_size}; the {images} labelled images make it {size}')
        return size


def _copy(config):
    config = config.copy_and_resolve_references()
    config.unlock()
    return config


def about(config, data, proof: dict | None) -> dict:
    """What results.json of a downstream run says it was made of.

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
