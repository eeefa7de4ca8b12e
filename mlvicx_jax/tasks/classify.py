"""Classification with few labels: a fine-tuned encoder, or a linear layer on a frozen one's features.

Validation chooses when to stop (and the thresholds of F1 and accuracy); test images are read once, at
the end, by `results`.
"""

from typing import Any

import numpy as np
from scipy.special import expit

from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import frozen, intervals, metrics
from mlvicx_jax.evaluation.linear_layer import known_labels
from mlvicx_jax.files import write_arrays
from mlvicx_jax.tasks.shared.base import Downstream
from mlvicx_jax.terminal import say


class Task(Downstream):
    """Mean AUROC over the findings of the validation split; at the end everything of the test split."""

    name = 'classify'
    protocols = ('finetune',)
    monitor = 'validation/auroc'

    def check(self, evaluates):
        """Refuses, beside what all tasks do, a validation split that can choose no step."""
        super().check(evaluates)
        if evaluates:
            check_validation(self._data)

    def at(self, state, step: int) -> dict[str, float]:
        """`validation/auroc`, and of each label."""
        scores = self._probabilities(state, 'validation')
        found = self._validation_numbers(scores)
        say(f'step {step}  validation AUROC {found[self.monitor]:.4f} (mean over the findings)')
        return found

    def results(self, state, numbers, initial) -> dict:
        """The test numbers, and `predictions.npz` beside them."""
        scores = {split: {'classifier': self._probabilities(state, split)} for split in ('validation', 'test')}
        numbers = numbers or self._validation_numbers(scores['validation']['classifier'])
        return report(self._workdir, self._data, scores) | {
            'primary': 'classifier',
            self.monitor: numbers[self.monitor],
        }

    def _validation_numbers(self, scores):
        return validation_numbers(self._data.splits['validation'].labels, scores, self._data.label_names)

    def _probabilities(self, state, split):
        scores = expit(
            frozen.extract(
                self._method.network,
                {'params': state.params, 'batch_stats': state.batch_stats},
                self._data.splits[split],
                self._config.data.image_size,
                self._config.eval.batch_size,
                self._mesh,
                'logits',
            )
        )
        return np.where(known_labels(self._data.splits['train'].labels), scores, np.nan)


def check_validation(data) -> None:
    """Raises a UserError where no finding has an AUROC on validation images, so that no step is the best."""
    both = known_labels(data.splits['train'].labels) & known_labels(data.splits['validation'].labels)
    if not any(both[i] for i in _findings(data.label_names)):
        raise UserError(
            f'{data.name}: no finding is both present and absent in training and in validation images, so '
            'there is no validation AUROC to choose a step by; give a larger validation_fraction or '
            'config.data.labelled.share, or --config.eval_every_steps=0'
        )


def _findings(names) -> list[int]:
    return [i for i, name in enumerate(names) if name != metrics.NO_FINDING]


def validation_numbers(labels, scores, names) -> dict[str, float]:
    """`validation/auroc`, its mean over the findings, and `validation/auroc/<label>`."""
    per_class = metrics.auroc(labels, scores)
    return {'validation/auroc': metrics.mean_auroc(per_class[_findings(names)])[0]} | {
        f'validation/auroc/{name}': float(value) for name, value in zip(names, per_class)
    }


def report(workdir, data, scores) -> dict:
    """What results.json says of probabilities, which are written beside it.

    Args:
        scores: {'validation' | 'test': {head: [n, k] probabilities, NaN for a label without}}.
    """
    names, splits = list(data.label_names), data.splits
    write_arrays(
        workdir / 'predictions.npz',
        {'label_names': np.array(names)}
        | {
            f'{split}_{name}': array
            for split in scores
            for name, array in {
                'image_ids': splits[split].image_ids,
                'patient_ids': splits[split].patient_ids,
                'labels': splits[split].labels,
                **scores[split],
            }.items()
        },
    )
    found = {}
    for head, test in scores['test'].items():
        found[head] = judge(
            names,
            splits['validation'].labels,
            scores['validation'][head],
            splits['test'].labels,
            test,
            splits['test'].patient_ids,
        )
        means = '  '.join(f'{name} {value:.3f}' for name, value in found[head]['means'].items())
        absent = found[head]['not_available']
        say(f'test AUROC, {head}: {means}' + (f'  (n/a: {", ".join(absent)})' if absent else ''))
        if few := ', '.join(f'{name} {told}' for name, told in found[head]['few'].items()):
            say(f'of few test patients: {few}')
    return {'label_names': names, 'test': found}


def judge(names, validation_labels, validation_scores, labels, scores, patients) -> dict:
    """Every metric of test scores, with intervals over patients; thresholds are validation's.

    Returns:
        {'auroc', 'auprc', 'f1', 'accuracy', 'calibration_error': {label: value}, 'means': {...}},
        `<name>_interval` beside the first two and the means; 'not_available', the labels without
        AUROC; 'few', {label: '4 positive patients'}; 'no_interval', {label or mean: why}. NaN is
        not available.
    """
    by_name = lambda values: dict(zip(names, np.asarray(values).tolist()))
    found: dict[str, Any] = {
        'few': intervals.few_patients(labels, patients, names),
        'no_interval': {},
        'means': {},
        'means_interval': {},
    }
    for name, interval in (('auroc', intervals.auroc_interval), ('auprc', intervals.auprc_interval)):
        values, low, high, why = interval(labels, scores, patients)
        found |= {name: by_name(values), f'{name}_interval': by_name(np.stack([low, high], -1))}
        found['no_interval'] |= {label: told for label, told in zip(names, why) if told}
    found['not_available'] = metrics.not_available(np.array(list(found['auroc'].values())), names)
    for mean, members in metrics.mean_members(names).items():
        value, low, high, why = intervals.mean_auroc_interval(labels[:, members], scores[:, members], patients)
        found['means'][mean], found['means_interval'][mean] = float(value[0]), [float(low[0]), float(high[0])]
        found['no_interval'] |= {mean: why[0]} if why[0] else {}
    for name, metric, threshold in (
        ('f1', metrics.f1, metrics.f1_threshold),
        ('accuracy', metrics.accuracy, metrics.accuracy_threshold),
    ):
        found[name] = by_name(metric(labels, scores, threshold(validation_labels, validation_scores)))
    found['calibration_error'] = by_name(metrics.calibration_error(labels, scores))
    return found
