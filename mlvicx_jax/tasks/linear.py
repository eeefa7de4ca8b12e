"""Classification by frozen features: computed once and kept on disk, then a linear layer and two probes.

The encoder is in evaluation mode and nothing in it changes. The linear layer ends as the classifier
of `methods/supervised.py`, in a checkpoint like that of a fine-tuned run: prediction, heatmaps and
export read both.
"""

import contextlib
import hashlib
import json
import pathlib
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from mlvicx_jax import durations, lock
from mlvicx_jax.data import opening
from mlvicx_jax.data.records import records_hash
from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import frozen, linear_layer
from mlvicx_jax.evaluation.probe import knn, linear_probe
from mlvicx_jax.files import write_arrays
from mlvicx_jax.run.best import Best
from mlvicx_jax.tasks import classify
from mlvicx_jax.tasks.shared.base import Downstream
from mlvicx_jax.terminal import say
from mlvicx_jax.weights import tensors as weights


class Task(Downstream):
    """The linear layer as it was when its validation AUROC was best; at the end all heads on the test split.

    What a kill leaves is features, which the next start finds; the rest takes seconds.
    """

    name = 'classify'
    protocols = ('frozen',)
    monitor = classify.Task.monitor
    solves = True

    def check(self, evaluates):
        super().check(evaluates)
        if evaluates:
            classify.check_validation(self._data)

    def batch_size(self) -> int:
        """`config.batch_size`, or all training images; one device fits the layer."""
        return min(self._config.batch_size, len(self._data.splits['train']))

    def solve(self, state, log):
        """The state with the fitted classifier and the step it is of, and that step's validation numbers."""
        data = self._data
        full = opening.open_set(self._config)
        x = features(self._config, self._method, state.encoder, full, data.splits, self._mesh)
        layer, numbers, self._scores = heads(self._config, x, data.splits, data.label_names, log)
        classifier = {'kernel': jnp.asarray(layer.kernel), 'bias': jnp.asarray(layer.bias)}
        state = state.replace(step=jnp.int32(layer.step), params=state.params | {'classifier': classifier})
        return state, numbers

    def results(self, state, numbers, initial) -> dict:
        """The test numbers of every head, and `predictions.npz` beside them."""
        return classify.report(self._workdir, self._data, self._scores) | {
            'primary': 'linear',
            self.monitor: numbers[self.monitor],
        }


def features(config, method, variables, full, splits, mesh) -> dict[str, np.ndarray]:
    """{split: features [n, d]} of the splits' images, from `data_dir/features` where they are.

    They are computed for all images of the set's split, whatever part of it is asked for, so that
    the other fractions, seeds and questions find theirs. The file's name is the hash of what made
    them: weights, architecture, read-out, size of the images, the records that hold the images, and
    which of them.

    Args:
        method: has the encoder, and the read-out of the features.
        variables: of the encoder.
        full: the data set of whose splits `splits` are the parts of the same names.
    """
    made_of = {
        'weights': weights.digest(variables),
        'encoder': repr(method.encoder),
        'readout': method.readout,
        'records': records_hash(full),
        'size': config.data.image_size,
    }
    result = {}
    for name, split in splits.items():
        whole = full.splits[name]
        identity = json.dumps(made_of | {'images': whole.hash}, sort_keys=True)
        file = f'{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npz'
        path = pathlib.Path(config.data.data_dir) / 'features' / file
        path.parent.mkdir(parents=True, exist_ok=True)
        # Runs of a grid that start together need the same: one computes it, the others wait.
        with _lock(path):
            found = _read(path)
            if found is None:
                say(f'features of {name}: {len(whole)} images ...')
                found = frozen.extract(
                    method.encoder,
                    variables,
                    whole,
                    config.data.image_size,
                    config.eval.batch_size,
                    mesh,
                    method.readout,
                )
                write_arrays(path, {'features': found, 'sha256': hashlib.sha256(found.tobytes()).hexdigest()})
        place = {image: i for i, image in enumerate(whole.image_ids.tolist())}
        result[name] = found[[place[image] for image in split.image_ids.tolist()]]
    return result


def _lock(path: pathlib.Path) -> contextlib.AbstractContextManager:
    """Keeps other runs from a file of features; of processes that train together the first holds it for all."""
    return contextlib.nullcontext() if jax.process_index() else lock.take(path.with_suffix('.lock'), wait=None)


def _read(path: pathlib.Path) -> np.ndarray | None:
    """Features that are whole, or None."""
    try:
        with np.load(path) as file:
            found, digest = file['features'], str(file['sha256'])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None  # absent, or damaged: they are computed again
    return found if hashlib.sha256(found.tobytes()).hexdigest() == digest else None


def heads(config, x, splits, names, log):
    """Fits the linear layer, the L-BFGS probe and kNN on the training features.

    Args:
        x: {split: features [n, d]}.
        splits: {split: what has `labels` [n, k]; and `patient_ids` [n] in training}.
        log: see `fit`.

    Returns:
        What `fit` returns, and {'validation' | 'test': {head: probabilities [n, k]}}, NaN for a label of
        which training has one class alone.
    """
    y = {name: split.labels for name, split in splits.items()}
    layer, numbers = fit(config, x, y, names, log)
    judged = np.concatenate([x['validation'], x['test']])
    known = linear_layer.known_labels(y['train'])
    scores = {
        'linear': layer.probabilities(judged),
        'lbfgs': _lbfgs(x['train'], y['train'], splits['train'].patient_ids, judged),
        'knn': knn(x['train'], y['train'], judged),
    }
    scores = {head: np.where(known, found, np.nan) for head, found in scores.items()}
    of_split = lambda part: {head: array[part] for head, array in scores.items()}
    border = len(x['validation'])
    return layer, numbers, {'validation': of_split(slice(border)), 'test': of_split(slice(border, None))}


def fit(config, x, y, names, log) -> tuple[linear_layer.Fitted, dict[str, float]]:
    """The linear layer as it was when its validation AUROC was best, or the last without evaluations.

    By `config.optim` in batches of `config.batch_size`. Length, evaluations and early stopping are those
    of a training run. Test features are not read.

    Args:
        x, y: {split: features [n, d]}, {split: labels [n, k]}; of 'train' and 'validation'.
        log: takes the loss and the validation numbers of each evaluation.

    Returns:
        The layer, and its validation numbers.
    """
    images = len(x['train'])
    clock = durations.clock(config, min(config.batch_size, images), images)
    known = linear_layer.known_labels(y['train'])
    patience = durations.steps(config.early_stopping, 'early_stopping', 'patience', clock)
    best = Best(classify.Task.monitor, patience)
    for layer in linear_layer.train(config.optim, x['train'], y['train'], clock, config.seed):
        scores = np.where(known, layer.probabilities(x['validation']), np.nan)
        numbers = classify.validation_numbers(y['validation'], scores, names)
        log.write(layer.step, numbers | {'train/loss': layer.loss})
        if best.found(layer.step, numbers):
            chosen = layer
        elif best.waited_enough:
            break
    say(f'linear layer: best of {layer.step} steps on validation is {best.step}, {best}')
    return chosen, best.numbers


def _lbfgs(train_x, train_y, patients, x) -> np.ndarray:
    try:
        return expit(linear_probe(train_x, train_y, patients, x))
    except UserError as error:  # all labelled images of one patient
        say(f'no L-BFGS probe: {error}')
        return np.full((len(x), train_y.shape[1]), np.nan)
