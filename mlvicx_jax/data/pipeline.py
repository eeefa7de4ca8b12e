"""Batches of a split, on the host: random access, decode, batch. Views are made on the device."""

import atexit
import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Generator

import grain
import numpy as np
from absl import flags

from mlvicx_jax.data.source import Split
from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import radiograph

Batch = dict[str, np.ndarray]
Batches = Generator[Batch, None, None]  # close() stops its threads and workers


def train_batches(
    split: Split,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
    num_workers: int = 0,
    prefetch: int = 4,
    pictures: Callable[[np.ndarray], Batch] | None = None,
) -> Batches:
    """Yields this process's share of the global batches from `start_step` on, without end.

    Every epoch is its own permutation of the split; a batch may span two. Step s is a function of
    (split, batch_size, seed, s) alone: process h of P holds rows [h b : (h + 1) b], b = batch_size
    / P, of the same global batch whatever P and the numbers of threads and workers are, and a run
    resumes by its step alone.

    Args:
        batch_size: images of the global batch, over all processes.
        num_threads: threads that decode, in this process or in each worker.
        num_workers: processes that decode; 0 does it in this one.
        prefetch: batches made ahead, in this process or in each worker.
        pictures: what gives the images and targets of positions [b], as of `resident.hold`; None
            decodes the records.

    Yields:
        image uint8 [b, S, S, 1], labels uint8 [b, L], record int32 [b]: the image's position in
        the split's arrays; and target uint8 [b, S, S, k] of 0 and 1, where the split has k
        structures for one. Call the iterator's close() to stop its threads and workers.

    Raises:
        UserError: a batch that does not fit the split or the processes; a damaged record.
    """
    local = _local_size(batch_size, process_count)
    if batch_size > len(split):
        raise UserError(
            f'batch_size is {batch_size}, more than the {len(split)} images of {split.name}; lower it'
        )
    stream = grain.MapDataset.range(len(split)).seed(seed).shuffle().repeat()
    # An endless list has no remainder; without the flag, grain overflows where `local` is 1.
    stream = stream.batch(local, drop_remainder=True)[process_index::process_count][start_step:]
    return _start(stream.map(_Read(split, pictures)), num_threads, num_workers, prefetch)


def eval_batches(
    split: Split,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
    num_workers: int = 0,
    prefetch: int = 4,
) -> Batches:
    """Yields every image of the split exactly once, in order, as `train_batches` does.

    The last global batch is filled up with black images, so that every process sees the same
    number of full batches; `mask` bool [b] is False, and `record` -1, where an image is filling.
    """
    local = _local_size(batch_size, process_count)
    filled = -(-len(split) // batch_size) * batch_size
    stream = grain.MapDataset.range(filled).batch(local)[process_index::process_count]
    return _start(stream.map(_ReadOrFill(split)), num_threads, num_workers, prefetch)


def decode(split: Split, position: int) -> Batch:
    """Image uint8 [S, S, 1] and, where the split has one, target uint8 [S, S, k] of a position.

    Raises:
        UserError: its record is damaged.
    """
    where = f'record of image {split.image_ids[position]} ({split.name})'
    data = split.record(position)
    pictures = {'image': radiograph.decode_image(data['image'], where)[..., None]}
    if split.target:
        masks = {
            feature: radiograph.decode_image(data[feature], f'{feature} in the {where}')
            for feature in {feature for feature, _ in split.target}
        }
        pictures['target'] = np.stack(
            [(masks[feature] & bits > 0).astype(np.uint8) for feature, bits in split.target], -1
        )
    return pictures


@dataclasses.dataclass(frozen=True)
class _Read:
    """Positions [b] in the split -> the batch of their pictures and labels."""

    split: Split
    pictures: Callable[[np.ndarray], Batch] | None = None

    def __call__(self, positions: np.ndarray) -> Batch:
        pictures = (self.pictures or self._decoded)(positions)
        return pictures | {'labels': self.split.labels[positions], 'record': positions.astype(np.int32)}

    def _decoded(self, positions: np.ndarray) -> Batch:
        decoded = [decode(self.split, position) for position in positions]
        return {name: np.stack([pictures[name] for pictures in decoded]) for name in decoded[0]}


@dataclasses.dataclass(frozen=True)
class _ReadOrFill:
    """As `_Read`, and a black image for a position past the end."""

    split: Split

    def __call__(self, positions: np.ndarray) -> Batch:
        mask = positions < len(self.split)
        batch = _Read(self.split)(np.where(mask, positions, 0))
        for name, array in batch.items():
            array[~mask] = -1 if name == 'record' else 0
        return batch | {'mask': mask}


def _local_size(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f'batch_size is {batch_size}, expected a positive multiple of the {process_count} processes'
        )
    return batch_size // process_count


def _start(stream: grain.MapDataset, num_threads: int, num_workers: int, prefetch: int) -> Batches:
    # Batches are made before this point, so the numbers below count batches, and the stream does
    # not depend on them; grain's own defaults would hold 500 of them.
    dataset = stream.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch))
    if num_workers:
        if not flags.FLAGS.is_parsed():  # grain reads a flag of its own; outside app.run it raises
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch),
            radiograph.end_with_parent,
        )
    batches = _iterate(iter(dataset), copy=num_workers > 0)
    _open.add(batches)
    return batches


def _iterate(iterator: grain.DatasetIterator, copy: bool) -> Batches:
    """A generator, so that threads and workers end with close() or with the last reference."""
    try:
        for batch in iterator:
            # A worker's arrays lie in shared memory that goes with the worker; jax may alias them.
            yield {key: np.array(array) for key, array in batch.items()} if copy else batch
    finally:
        iterator.close()


_open: weakref.WeakSet[Batches] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Closes what a run that ends by an error leaves open: during the interpreter's own clearing
    grain's threads and shared memory would bury that error under tracebacks of theirs."""
    for batches in list(_open):
        with contextlib.suppress(ValueError):  # another thread is taking a batch from it
            batches.close()
