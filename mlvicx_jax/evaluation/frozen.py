"""What a frozen encoder's features are worth: linear probe and kNN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mlvicx_jax import parallel
from mlvicx_jax.data import NO_FINDING, augment, pipeline
from mlvicx_jax.evaluation.metrics import auroc, mean_auroc
from mlvicx_jax.evaluation.probe import knn, linear_probe
from mlvicx_jax.models import readout


@functools.partial(jax.jit, static_argnames=('network', 'image_size', 'mesh', 'outputs'))
def _outputs(network, variables, batch, image_size, mesh, outputs):
    images = augment.standardise(augment.resize(batch.pop('image'), image_size))
    found = network.apply(variables, images, train=False)
    return jax.lax.with_sharding_constraint(
        {name: readout.read(found, name) for name in outputs} | batch, parallel.replicated(mesh)
    )


def passes(network, variables, split, image_size: int, batch_size: int, mesh, outputs=('pooled',)):
    """Yields what `network` gives for a split's whole images, in order, each image once.

    BatchNorm is in evaluation mode, nothing is flipped and the last batch is padded, not dropped.

    Args:
        network: images [b, s, s, 3] to a dict of arrays [b, ...]; an encoder or more.
        variables: its own ({'params', 'batch_stats'}).
        image_size: s, pixels.
        batch_size: images of a batch, over all devices.
        outputs: names of what is wanted: read-outs, or arrays as they are.

    Yields:
        dict of NumPy arrays of the global batch: `outputs`, `record` (places in the split), `mask`
        (False where an image is filling) and `target`, where the split has one.
    """
    under_way = None
    for batch in pipeline.eval_batches(split, batch_size, jax.process_index(), jax.process_count()):
        batch.pop('labels')
        found = _outputs(network, variables, parallel.to_global(batch, mesh), image_size, mesh, outputs)
        if under_way is not None:  # fetched while the next batch is computed
            yield jax.device_get(under_way)
        under_way = found
    if under_way is not None:
        yield jax.device_get(under_way)


def extract(
    network, variables, split, image_size: int, batch_size: int, mesh, output: str = 'pooled'
) -> np.ndarray:
    """One output [n, ...] of a split's images, float32; otherwise as `passes`."""
    collected: np.ndarray | None = None
    for found in passes(network, variables, split, image_size, batch_size, mesh, (output,)):
        rows, mask = found[output], found['mask']
        if collected is None:
            collected = np.zeros((len(split), *rows.shape[1:]), np.float32)
        collected[found['record'][mask]] = rows[mask]
    assert collected is not None  # a split has an image
    return collected


def initial_readings(
    encoder, variables, split, image_size: int, batch_size: int, mesh, batches: int = 16
) -> dict[str, dict]:
    """An untrained encoder's variables, `calibrated` and `uncalibrated`.

    Calibrated running statistics are the mean over `batches` batches of un-augmented training images
    of what each layer sees in training mode; uncalibrated ones are the initial 0 and 1, with which
    BatchNorm passes everything through. Neither is always the better reading: the second is close
    to a linear map of the image, the first as non-linear as the trained encoder.
    """
    encoder = encoder.clone(axis_name=None, momentum=0.0)  # 0: keep the last batch's alone

    @jax.jit
    def statistics(params, images):
        images = augment.standardise(augment.resize(images, image_size))
        _, new = encoder.apply(variables | {'params': params}, images, train=True, mutable=['batch_stats'])
        return new['batch_stats']

    stream = pipeline.train_batches(
        split, batch_size, 0, process_index=jax.process_index(), process_count=jax.process_count()
    )
    total = None
    for _, batch in zip(range(batches), stream):
        images = parallel.to_global({'image': batch['image']}, mesh)['image']
        new = statistics(variables['params'], images)
        total = new if total is None else jax.tree.map(jnp.add, total, new)
    stream.close()
    calibrated = variables | {'batch_stats': jax.tree.map(lambda x: x / batches, total)}
    return {'calibrated': calibrated, 'uncalibrated': variables}


def subset(split, most: int):
    """At most `most` images of a split, the same at every call (all of them when most is 0)."""
    if not 0 < most < len(split):
        return split
    chosen = np.sort(np.random.default_rng(0).permutation(len(split))[:most])
    return split.take(chosen)


def evaluate(encoder, variables, data, config, mesh) -> dict[str, float]:
    """`numbers` of the `scores` of an encoder, by the read-out `config.eval.readout`."""
    name = config.eval.get('readout', 'pooled')  # runs of before read-outs had this one
    return numbers(scores(encoder, variables, data, config, mesh, config.data.image_size, name), data, config)


def scores(network, variables, data, config, mesh, image_size: int, output: str) -> dict[str, np.ndarray]:
    """Scores [m, labels] of the images of `config.eval.split`, by a linear probe and by kNN.

    Both are trained on (at most `config.eval.max_train_images` images of) the training split.

    Returns:
        {'probe', 'knn'}.
    """
    train = subset(data.splits['train'], config.eval.max_train_images)
    train_x, test_x = (
        extract(network, variables, split, image_size, config.eval.batch_size, mesh, output)
        for split in (train, data.splits[config.eval.split])
    )
    return {
        'probe': linear_probe(train_x, train.labels, train.patient_ids, test_x),
        'knn': knn(train_x, train.labels, test_x),
    }


def numbers(found: dict[str, np.ndarray], data, config) -> dict[str, float]:
    """Mean AUROC over findings of each probe's `scores`, and the linear one's of each finding.

    Returns `probe/auroc`, `knn/auroc` and `probe/auroc/<finding>`; a finding with one class in the
    test images has none and takes no part in the mean.
    """
    labels, places = data.splits[config.eval.split].labels, findings(data)
    per_class = {probe: auroc(labels[:, places], score[:, places]) for probe, score in found.items()}
    return {f'{probe}/auroc': mean_auroc(values)[0] for probe, values in per_class.items()} | {
        f'probe/auroc/{data.label_names[i]}': float(value) for i, value in zip(places, per_class['probe'])
    }


def findings(data) -> list[int]:
    """The places of the findings among a set's labels: all of them but `No Finding`."""
    return [i for i, name in enumerate(data.label_names) if name != NO_FINDING]
