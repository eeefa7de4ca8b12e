"""The frozen protocol: features once, kept on disk, then a linear layer; beside it two probes.

The encoder is in evaluation mode and nothing in it changes. The linear layer ends as the classifier
of `methods/supervised.py`, in a checkpoint like that of a fine-tuned run: prediction, heatmaps and
export read both.
"""

import contextlib
import hashlib
import itertools
import json
import pathlib
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import expit

from mlvicx_jax import __version__, methods, optim, parallel
from mlvicx_jax import state as states
from mlvicx_jax.data import opening
from mlvicx_jax.errors import UserError
from mlvicx_jax.evaluation import frozen
from mlvicx_jax.evaluation.probe import knn, linear_probe
from mlvicx_jax.files import write_arrays, write_json
from mlvicx_jax.run import best as downstream
from mlvicx_jax.run import folder as workdirs
from mlvicx_jax.run.checkpoints import Checkpoints
from mlvicx_jax.run.metrics import MetricLog
from mlvicx_jax.tasks import classify as classification
from mlvicx_jax.terminal import say
from mlvicx_jax.weights import tensors as weights
from mlvicx_jax.weights.initial import initialise, proof


def run(config, workdir) -> int:
    """Runs the frozen protocol of `config` in `workdir`; returns the exit code 0.

    What a kill leaves is features, which the next start finds; the rest takes seconds.
    """
    workdir = pathlib.Path(workdir)
    results = workdir / 'results.json'
    mesh = parallel.create_mesh(config.eval.batch_size)
    method = methods.create(config)
    parallel.agree(config=workdirs.identity(config), code=workdirs.code_hash())
    workdirs.claim(workdir, config)
    if results.exists():
        say(f'finished; results in {results}')
        return 0
    full = opening.open_set(config)
    data = opening.asked(config, full)
    classification.check_labels(method, data)
    splits = data.splits
    optimizer = optim.create(config.optim, config.batch_size, 1, 1)
    state = states.create(method, optimizer, config.seed, parallel.replicated(mesh))
    state = initialise(state, config.init, whole=True)
    proved = proof(state, config.init)

    x = features(config, method, state.encoder, full, splits, mesh)
    log = MetricLog(workdir, 0)
    with contextlib.closing(log):
        layer, step, validation, scores = heads(config, x, splits, data.label_names, log)
    found = classification.report(workdir, data, scores)
    state = state.replace(
        step=jnp.int32(step), params=state.params | {'classifier': jax.tree.map(jnp.asarray, layer)}
    )
    with contextlib.closing(Checkpoints(workdir / 'checkpoints', 0, 1, 0, splits['train'].hash)) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
    if jax.process_index() == 0:
        write_json(
            results,
            downstream.about(config, data, proved)
            | found
            | {
                'task': config.task,
                'step': step,
                'primary': 'linear',
                'validation/auroc': validation,
                'device': parallel.device_name(),
                'version': __version__,
            },
        )
    say(f'finished at step {step}; results in {results}')
    return 0


def features(config, method, variables, full, splits, mesh) -> dict[str, np.ndarray]:
    """{split: features [n, d]} of the splits' images, from `data_dir/features` where they are.

    They are computed for all images of the set's split, whatever part of it is asked for, so that
    the other fractions, seeds and questions find theirs. The file's name is the hash of what made
    them: weights, architecture, read-out, size of the images, and which images.

    Args:
        method: has the encoder, and the read-out of the features.
        variables: of the encoder.
        full: the data set of whose splits `splits` are the parts of the same names.
    """
    made_of = {
        'weights': weights.digest(variables),
        'encoder': repr(method.encoder),
        'readout': method.readout,
        'set': str(full.folder.resolve()),
        'size': config.data.image_size,
    }
    result = {}
    for name, split in splits.items():
        whole = full.splits[name]
        identity = json.dumps(made_of | {'images': whole.hash}, sort_keys=True)
        file = f'{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npz'
        path = pathlib.Path(config.data.data_dir) / 'features' / file
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
            path.parent.mkdir(parents=True, exist_ok=True)
            write_arrays(path, {'features': found, 'sha256': hashlib.sha256(found.tobytes()).hexdigest()})
        place = {image: i for i, image in enumerate(whole.image_ids.tolist())}
        result[name] = found[[place[image] for image in split.image_ids.tolist()]]
    return result


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
        What `fit` returns, and {'validation' | 'test': {head: probabilities [n, k]}}.
    """
    y = {name: split.labels for name, split in splits.items()}
    layer, step, validation = fit(config, x, y, names, log)
    judged = np.concatenate([x['validation'], x['test']])
    scores = {
        'linear': expit(judged @ layer['kernel'] + layer['bias']),
        'lbfgs': _lbfgs(x['train'], y['train'], splits['train'].patient_ids, judged),
        'knn': knn(x['train'], y['train'], judged),
    }
    of_split = lambda part: {head: array[part] for head, array in scores.items()}
    border = len(x['validation'])
    return (
        layer,
        step,
        validation,
        {'validation': of_split(slice(border)), 'test': of_split(slice(border, None))},
    )


def fit(config, x, y, names, log) -> tuple[dict[str, np.ndarray], int, float]:
    """The linear layer, from zeros, as it was when its validation AUROC was best.

    A sigmoid and a binary cross-entropy for each label, by `config.optim` in batches of
    `config.batch_size`, on features standardised by the training part (the same family of layers,
    better conditioned; the scaling is folded into the weights). Length, evaluations and early
    stopping are those of a training run. Test features are not read.

    Args:
        x, y: {split: features [n, d]}, {split: labels [n, k]}; of 'train' and 'validation'.
        log: takes the loss and the validation numbers of each evaluation.

    Returns:
        {'kernel' [d, k], 'bias' [k]} for features as they are, float32, the step it is of, and its
        validation AUROC.
    """
    batch = min(config.batch_size, len(x['train']))
    steps_per_epoch = len(x['train']) // batch
    total_steps = config.total_steps or config.total_epochs * steps_per_epoch
    every = config.eval_every_steps or config.eval_every_epochs * steps_per_epoch
    optimizer = optim.create(config.optim, batch, steps_per_epoch, total_steps)
    mean, std = x['train'].mean(0), x['train'].std(0)
    scale = np.where(std > 1e-6 * np.abs(mean), 1 / np.maximum(std, 1e-12), 0).astype(np.float32)
    inputs, labels = jnp.asarray((x['train'] - mean) * scale), jnp.asarray(y['train'], jnp.float32)

    def loss(params, rows):
        layer = params['classifier']
        logits = inputs[rows] @ layer['kernel'] + layer['bias']
        return optax.sigmoid_binary_cross_entropy(logits, labels[rows]).mean()

    @jax.jit
    def train_steps(params, opt_state, rows):
        def step(carried, rows):
            params, opt_state = carried
            value, gradient = jax.value_and_grad(loss)(params, rows)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        (params, opt_state), values = jax.lax.scan(step, (params, opt_state), rows)
        return params, opt_state, values.mean()

    params = {
        'classifier': {
            'kernel': jnp.zeros((inputs.shape[1], labels.shape[1])),
            'bias': jnp.zeros(labels.shape[1]),
        }
    }
    opt_state = optimizer.init(params)
    known = classification.known_labels(y['train'])
    stream = batches(len(inputs), batch, config.seed)
    best = downstream.Best(classification.Evaluation.monitor, config.early_stopping.patience)
    for step in range(every, total_steps + 1, every):
        params, opt_state, value = train_steps(
            params, opt_state, np.stack(list(itertools.islice(stream, every)))
        )
        layer = jax.device_get(params['classifier'])
        kernel = layer['kernel'] * scale[:, None]
        layer = {'kernel': kernel, 'bias': layer['bias'] - mean @ kernel}
        scores = np.where(known, expit(x['validation'] @ layer['kernel'] + layer['bias']), np.nan)
        numbers = classification.validation_numbers(y['validation'], scores, names)
        log.write(step, numbers | {'train/loss': float(value)})
        if best.found(step, numbers):
            chosen = layer
        elif best.waited_enough:
            break
    say(f'linear layer: best of {step} steps on validation is {best.step}, {best}')
    return chosen, best.step, best.numbers[classification.Evaluation.monitor]


def batches(count: int, size: int, seed: int):
    """Yields rows [size], without end: every epoch a permutation of its own, its remainder dropped."""
    for epoch in itertools.count():
        order = np.random.default_rng([seed, epoch]).permutation(count)
        yield from order[: count // size * size].reshape(-1, size)


def _lbfgs(train_x, train_y, patients, x) -> np.ndarray:
    try:
        return expit(linear_probe(train_x, train_y, patients, x))
    except UserError as error:  # all labelled images of one patient
        say(f'no L-BFGS probe: {error}')
        return np.full((len(x), train_y.shape[1]), np.nan)
