"""Where the time of a step goes, and what reading the images adds to it.

  python -m benchmarks.parts [--recipe mlvicx:released] [--batch 16] [--size 224] [--dtype float32]
      [--rounds 5] [--patients 200] [--out workdirs/parts.json]

Each part is compiled for itself and timed after the step, round by round, so that both meet the same
machine: the views; the loss and its gradient with respect to the embeddings; forward alone. Of a part
the fastest of four calls counts: a CPU may still be giving back the memory of the step during the first.
A part that is fused into the step may cost less in it.

Reading: the batches of a phantom, which is rendered first, as train.py has them made, in a row and with
no step between them, for each `config.data.resident`. What that takes of a step bounds the wait for
data. Frozen features: images/s of `frozen.extract`, reading included, over the encoder's own on a batch
that is there. Utilisation is that of one device.
"""

import contextlib
import functools
import itertools
import json
import pathlib
import statistics
import tempfile
import time

import jax

from benchmarks import ceilings
from benchmarks import step as steps
from benchmarks.ceilings import seconds
from mlvicx_jax import parallel
from mlvicx_jax.config import RESIDENT
from mlvicx_jax.data import augment, pipeline, resident
from mlvicx_jax.data.source import open_dataset
from mlvicx_jax.evaluation import frozen
from mlvicx_jax.files import write_json


def shares(step: steps.Step, rounds: int) -> dict[str, list[float]]:
    """{part: [part / step of each round]}, and 'step': its seconds."""
    step()
    method = step.method
    keys = jax.device_put(
        jax.random.split(jax.random.key(0), step.config.batch_size), step.arrays['image'].sharding
    )
    params = {'params': step.state.params, 'batch_stats': step.state.batch_stats}
    views = jax.jit(method.views)
    network = jax.shard_map(
        lambda params, views: method.forward(params, step.state.method_state, views, keys[0])[0],
        mesh=step.mesh,
        in_specs=(jax.P(), jax.P('data')),
        out_specs=jax.P('data'),
    )
    loss = jax.jit(jax.value_and_grad(lambda out: method.loss(out, step.state.method_state), has_aux=True))
    parts = {
        'views': functools.partial(views, keys, step.arrays),
        'forward': functools.partial(jax.jit(network), params, views(keys, step.arrays)),
        'loss and its gradient': functools.partial(loss, step.out),
    }
    for part in parts.values():
        seconds(part)
    found = {'step': []} | {name: [] for name in parts}
    for _ in range(rounds):
        taken = step()
        params['params'] = step.state.params  # the old ones were given away
        params['batch_stats'] = step.state.batch_stats
        found['step'].append(taken)
        for name, part in parts.items():
            found[name].append(min(seconds(part) for _ in range(4)) / taken)
    return found


def reading(step: steps.Step, split, where: str) -> float:
    """Seconds of a batch, until it is on the device, when nothing but reading is done."""
    data, count = step.config.data, 10 * step.config.data.prefetch
    pictures, with_pictures = resident.hold(split, where, step.mesh, data.num_threads)
    stream = pipeline.train_batches(
        split,
        step.config.batch_size,
        0,
        num_threads=data.num_threads,
        prefetch=data.prefetch,
        pictures=pictures,
    )
    with contextlib.closing(stream):
        for number, batch in enumerate(itertools.islice(stream, data.prefetch + count)):
            if number == data.prefetch:  # those that were made ahead are gone
                start = time.perf_counter()
            jax.block_until_ready(
                with_pictures(
                    parallel.to_global(
                        {name: array for name, array in batch.items() if name != 'record'}, step.mesh
                    )
                )
            )
        return (time.perf_counter() - start) / count


def features(step: steps.Step, split, rounds: int) -> list[float]:
    """Images/s of the frozen features of a split over those of the encoder alone, each round."""
    batch, size = step.config.batch_size, step.config.data.image_size
    encoder = step.method.encoder.clone(axis_name=None)
    variables = step.state.encoder
    extract = functools.partial(frozen.extract, encoder, variables, split, size, batch, step.mesh)
    forward = jax.jit(lambda variables, images: encoder.apply(variables, images, train=False)['pooled'])
    images = augment.standardise(augment.resize(step.arrays['image'], size))
    seconds(forward, variables, images), extract()
    alone = len(split) / batch * statistics.median(seconds(forward, variables, images) for _ in range(rounds))
    return [alone / seconds(extract) for _ in range(rounds)]


def main():
    parser = steps.parser(__doc__)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--patients', type=int, default=200, help='of the phantom that is read')
    parser.add_argument('--out', type=pathlib.Path, default='workdirs/parts.json')
    arguments = parser.parse_args()
    step = steps.asked(arguments)
    found = shares(step, arguments.rounds)
    median = statistics.median(found['step'])
    ceiling = ceilings.measure()
    operations = steps.operations(step)
    result = {
        'device': parallel.device_name(),
        'jax': jax.__version__,
        'options': vars(arguments),
        'ceilings': ceiling,
        'shares': found,
        'operations': operations,
        'utilisation': operations / median / ceiling[f'{arguments.dtype}_flops'],
    }
    print(
        f'step {median:.3g} s ({min(found["step"]):.3g} to {max(found["step"]):.3g}), '
        f"{operations:.3g} operations: {result['utilisation']:.0%} of a matrix product's rate, "
        f'{ceiling[f"{arguments.dtype}_flops"]:.3g} a second',
        flush=True,
    )
    for name, of_rounds in list(found.items())[1:]:
        print(
            f'{name}: {statistics.median(of_rounds):.2%} of the step ({min(of_rounds):.2%} to '
            f'{max(of_rounds):.2%})',
            flush=True,
        )
    with tempfile.TemporaryDirectory() as folder:
        options = {'patients': arguments.patients, 'size': arguments.stored}
        splits = open_dataset('phantom_cxr', folder, options=options).splits
        result['reading'] = {}
        for where in RESIDENT:
            taken = result['reading'][where] = reading(step, splits['train'], where)
            print(
                f'reading a batch, resident={where}: {taken * 1e3:.2g} ms, {taken / median:.2%} of the step',
                flush=True,
            )
        result['frozen'] = features(step, splits['train'], arguments.rounds)
    print(
        f"frozen features: {statistics.median(result['frozen']):.2f} of the encoder's own rate "
        f'({min(result["frozen"]):.2f} to {max(result["frozen"]):.2f})'
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, json.loads(json.dumps(result, default=str)))


if __name__ == '__main__':
    main()
