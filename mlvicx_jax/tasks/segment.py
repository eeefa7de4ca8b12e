"""What a segmentation is worth: Dice and IoU of whole images, at the resolution they are stored in.

The network sees an image at `config.data.image_size`; its probabilities are resized, bilinearly,
to the stored mask's size and cut at a half there. Truth is never resized, so figures of networks
with views of different sizes compare.
"""

import functools
import hashlib

import jax
import numpy as np

from mlvicx_jax.data import pipeline
from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import frozen, intervals
from mlvicx_jax.evaluation.masks import dice, iou, mask_means
from mlvicx_jax.files import write_arrays
from mlvicx_jax.tasks.shared.base import Downstream
from mlvicx_jax.terminal import say

THRESHOLD = 0.5
SAMPLES = 8  # images whose masks are kept, to be looked at
METRICS = {'dice': dice, 'iou': iou}


@functools.partial(jax.jit, static_argnames='size')
def masks(logits, size: int):
    """Logits [b, n, n, k] to masks, bool [b, size, size, k]."""
    shape = (logits.shape[0], size, size, logits.shape[-1])
    return jax.image.resize(jax.nn.sigmoid(logits), shape, 'linear') >= THRESHOLD


class Task(Downstream):
    """Dice of the validation split; at the end Dice and IoU of the test split.

    The number that is watched, `validation/dice`, is the mean over structures of Dice over the
    images that show the structure. Over all images an untrained network that answers nothing has
    the fraction of empty masks, half and more of a pneumothorax set: training would have to fall below
    it before it could rise, and would be stopped for that.
    """

    name = 'segment'
    protocols = 'finetune', 'frozen'
    monitor = 'validation/dice'

    def __init__(self, config, workdir, method, data, mesh):
        super().__init__(config, workdir, method, data, mesh)
        self._names = tuple(config.data.target)
        self._network = method.network  # one object: what is compiled for it is found again

    @classmethod
    def settle(cls, config):
        """A copy that has as many structures as masks are asked for, and the encoder of its protocol."""
        config = super().settle(config)
        if not config.data.target:
            raise UserError(
                'config.data.target is empty; name the structures to segment, such as '
                '--config.data.target="(\'heart\',)"'
            )
        config.method.structures = len(config.data.target)
        config.method.frozen_encoder = config.protocol == 'frozen'
        return config

    def check(self, evaluates):
        """Refuses, beside what all tasks do, validation images of which none shows a structure."""
        super().check(evaluates)
        split = self._data.splits['validation']
        shown = (pipeline.decode(split, position)['target'].any() for position in range(len(split)))
        if evaluates and not any(shown):
            raise UserError(
                f'none of the {len(split)} validation images shows '
                f'{" or ".join(self._names)}: there is no Dice to watch; give a larger '
                'config.data.validation_fraction or another split_seed'
            )

    def at(self, state, step: int) -> dict[str, float]:
        """Validation Dice of each structure, over the images that show it and over all."""
        split = self._data.splits['validation']
        values, has = self.judge(state, split)
        positives, everyone = mask_means(values['dice'], has)
        numbers = {'validation/dice': np.nanmean(positives), 'validation/dice_all': everyone.mean()}
        for name, shown, every in zip(self._names, positives, everyone):
            numbers |= {f'validation/dice/{name}': shown, f'validation/dice_all/{name}': every}
        each = ', '.join(f'{name} {_text(value)}' for name, value in zip(self._names, positives))
        say(
            f'step {step}  validation Dice over images that show it: {each}; over all images '
            f'{numbers["validation/dice_all"]:.3f}'
        )
        return {name: float(value) for name, value in numbers.items()}

    def results(self, state, numbers, initial) -> dict:
        """Test figures with their intervals; writes predictions.npz.

        `test` holds {structure: {dice_positives, dice_all, iou_positives, iou_all, the interval of
        each, positives: number of images that show it, patients: whose those are}}; None is not
        available.
        """
        numbers = numbers or self.at(state, int(state.step))
        split = self._data.splits['test']
        values, has = self.judge(state, split)
        found = {}
        for c, name in enumerate(self._names):
            shown = has[:, c]
            patients = split.patient_ids[shown]
            found[name] = {'positives': int(shown.sum()), 'patients': len(np.unique(patients))}
            for metric, value in values.items():
                found[name] |= _estimate(f'{metric}_positives', value[shown, c], patients)
                found[name] |= _estimate(f'{metric}_all', value[:, c], split.patient_ids)
        samples = self._samples(state, split, has)
        write_arrays(
            self._workdir / 'predictions.npz',
            {
                'structures': np.array(self._names),
                'test_image_ids': split.image_ids,
                'test_patient_ids': split.patient_ids,
                'test_dice': values['dice'],
                'test_iou': values['iou'],
                'test_has': has,
                **samples,
            },
        )
        for name, of_test in found.items():
            say(
                f'test, {name}: Dice {_show(of_test, "dice_positives")} over the '
                f'{of_test["positives"]} images of {of_test["patients"]} patients that show it, '
                f'{_show(of_test, "dice_all")} over all {len(split)}'
            )
        return {self.monitor: numbers[self.monitor], 'test': found}

    def judge(self, state, split) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Dice and IoU {name: float64 [n, k]} of a split's images, and whether each shows them.

        Both are 1 where truth and prediction are empty. Images pass in batches: no more than one
        batch of masks is in memory.
        """
        values = {name: np.full((len(split), len(self._names)), np.nan) for name in METRICS}
        has = np.zeros((len(split), len(self._names)), bool)
        for record, truth, predicted in self._predict(state, split):
            has[record] = truth.any((1, 2))
            for name, metric in METRICS.items():
                values[name][record] = metric(truth, predicted)
        return values, has

    def _predict(self, state, split):
        """Yields (places in the split [m], truth, prediction bool [m, S, S, k]), without filling."""
        variables = {'params': state.params, 'batch_stats': state.batch_stats}
        for found in frozen.passes(
            self._network,
            variables,
            split,
            self._config.data.image_size,
            self._config.eval.batch_size,
            self._mesh,
            ('logits',),
        ):
            real, truth = found['mask'], found['target'] > 0
            predicted = jax.device_get(masks(found['logits'], truth.shape[1]))
            yield found['record'][real], truth[real], predicted[real]

    def _samples(self, state, split, has) -> dict[str, np.ndarray]:
        """A few images with their masks, those that show a structure first.

        Which depends on the truth and the ids alone, so the networks of a table show the same.
        """

        def rank(i):
            text = f'sample/{split.image_ids[i]}'
            return not has[i].any(), hashlib.sha256(text.encode()).digest()

        part = split.take(np.array(sorted(range(len(split)), key=rank)[:SAMPLES]))
        batches = list(self._predict(state, part))
        truth, predicted = (np.concatenate([batch[i] for batch in batches]) for i in (1, 2))
        images = [batch['image'][batch['mask'], ..., 0] for batch in pipeline.eval_batches(part, len(part))]
        return {
            'sample_image_ids': part.image_ids,
            'sample_images': np.concatenate(images),
            'sample_truth': truth,
            'sample_predicted': predicted,
        }


def _estimate(name: str, values: np.ndarray, patients: np.ndarray) -> dict:
    """A mean over images under its name, and its interval; None is not available."""
    if not len(values):
        return {name: None, f'{name}_interval': None}
    found = intervals.mean_interval(values[:, None], patients)
    ends = None if found.why[0] else [float(found.low[0]), float(found.high[0])]
    return {name: float(found.value[0]), f'{name}_interval': ends}


def _text(value) -> str:
    return 'n/a' if value is None or np.isnan(value) else f'{value:.3f}'


def _show(numbers, name) -> str:
    value, interval = numbers[name], numbers[f'{name}_interval']
    return _text(value) + (f' ({interval[0]:.3f} to {interval[1]:.3f})' if interval else '')
