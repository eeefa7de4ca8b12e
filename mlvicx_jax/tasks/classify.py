"""Classification with few labels: a fine-tuned encoder, or a linear layer on a frozen one's features.

Validation chooses when to stop (and the thresholds of F1 and accuracy); test images are read once, at
the end, by `results`.
"""

import numpy as np
from scipy.special import expit

from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import frozen, metrics
from mlvicx_jax.evaluation.statistics import bootstrap, percentile_interval
from mlvicx_jax.files import write_arrays
from mlvicx_jax.terminal import say


class Evaluation:
    """Mean AUROC over the findings of the validation split; at the end everything of the test split."""

    monitor = 'validation/auroc'

    def __init__(self, config, workdir, method, data, mesh):
        check_labels(method, data)
        self._config, self._workdir, self._network = config, workdir, method.network
        self._data, self._mesh = data, mesh

    def initial(self, state) -> dict[str, float]:
        """Nothing: an untrained classifier has no worth."""
        return {}

    def at(self, state, step: int) -> dict[str, float]:
        """`validation/auroc`, and of each label."""
        scores = self._probabilities(state, 'validation')
        found = validation_numbers(self._data.splits['validation'].labels, scores, self._data.label_names)
        say(f'step {step}  validation AUROC {found[self.monitor]:.4f} (mean over the findings)')
        return found

    def results(self, state, numbers, initial) -> dict:
        """The test numbers, and `predictions.npz` beside them."""
        scores = {split: {'classifier': self._probabilities(state, split)} for split in ('validation', 'test')}
        return report(self._workdir, self._data, scores) | {
            'primary': 'classifier',
            self.monitor: numbers[self.monitor],
        }

    def _probabilities(self, state, split):
        scores = expit(
            frozen.extract(
                self._network,
                {'params': state.params, 'batch_stats': state.batch_stats},
                self._data.splits[split],
                self._config.data.image_size,
                self._config.eval.batch_size,
                self._mesh,
                'logits',
            )
        )
        return np.where(known_labels(self._data.splits['train'].labels), scores, np.nan)


def check_labels(method, data) -> None:
    """Raises a UserError where the classifier has another number of labels than the data."""
    found = len(data.label_names)
    if method.labels != found:
        raise UserError(
            f'config.method.labels is {method.labels}, but {data.name} is asked for '
            f'{found} labels; give --config.method.labels={found}'
        )


def known_labels(labels: np.ndarray) -> np.ndarray:
    """Bool [k]: which labels have both classes in training [n, k]; the others get no score."""
    return labels.min(0) != labels.max(0)


def validation_numbers(labels, scores, names) -> dict[str, float]:
    """`validation/auroc`, its mean over the findings, and `validation/auroc/<label>`."""
    per_class = metrics.auroc(labels, scores)
    findings = [i for i, name in enumerate(names) if name != metrics.NO_FINDING]
    return {'validation/auroc': metrics.mean_auroc(per_class[findings])[0]} | {
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
    return {'label_names': names, 'test': found}


def judge(names, validation_labels, validation_scores, labels, scores, patients) -> dict:
    """Every metric of test scores, with intervals over patients; thresholds are validation's.

    Returns:
        {'auroc', 'auprc', 'f1', 'accuracy', 'calibration_error': {label: value}, 'means': {...}},
        `<name>_interval` beside the first two and the means, and 'not_available'. NaN is not available.
    """
    by_name = lambda values: dict(zip(names, np.asarray(values).tolist()))
    found = {}
    for name, metric in (('auroc', metrics.auroc), ('auprc', metrics.auprc)):
        values = metric(labels, scores)
        resampled = bootstrap(metric, labels, scores, patients)
        found[name] = by_name(values)
        found[f'{name}_interval'] = by_name(np.stack(percentile_interval(resampled), -1))
        if name == 'auroc':
            found['not_available'] = metrics.not_available(values, names)
            found['means'] = {
                mean: float(value) for mean, value in metrics.finding_means(values, names).items()
            }
            found['means_interval'] = {
                mean: list(map(float, percentile_interval(draws)))
                for mean, draws in metrics.finding_means(resampled, names).items()
            }
    for name, metric, threshold in (
        ('f1', metrics.f1, metrics.f1_threshold),
        ('accuracy', metrics.accuracy, metrics.accuracy_threshold),
    ):
        found[name] = by_name(metric(labels, scores, threshold(validation_labels, validation_scores)))
    found['calibration_error'] = by_name(metrics.calibration_error(labels, scores))
    return found
