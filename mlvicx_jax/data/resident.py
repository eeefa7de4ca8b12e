"""The pictures of a training split decoded once, in the memory of the host or of the devices."""

import functools
import hashlib
import pathlib
import socket
from collections.abc import Callable

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from mlvicx_jax.data import pipeline
from mlvicx_jax.data.pipeline import Batch
from mlvicx_jax.data.source import Split
from mlvicx_jax.errors import UserError
from mlvicx_jax_datasets import radiograph, release

# Of what is free before. The rest is for batches under way, evaluations and other programs; on a
# device for the step.
HOST_SHARE, DEVICE_SHARE = 0.5, 0.6


def hold(split: Split, where: str, mesh, num_threads: int) -> tuple[Callable | None, Callable]:
    """Decodes the split, if `where` is not none, and says how its batches come to their pictures.

    Every process holds the whole split, as any of its images may be among the rows of any process.

    Args:
        where: none (each batch decodes its own), host or device: every device of `mesh` then has
            all pictures, and nothing but positions and labels goes to it at a step.
        num_threads: that decode.

    Returns:
        pictures: as `pipeline.train_batches` takes it.
        with_pictures: turns a batch of that stream, as arrays split over `mesh`, into what it would
            be with none, bit for bit.

    Raises:
        UserError: memory does not suffice, told before all is decoded; a damaged record.
    """
    if where == 'none':
        return None, lambda arrays: arrays
    shapes = {name: array.shape for name, array in pipeline.decode(split, 0).items()}
    _check_size(len(split), sum(map(np.prod, shapes.values())), where, mesh.local_devices)
    held = _decode(split, shapes, max(1, num_threads))
    if where == 'host':
        return functools.partial(_gather, held), lambda arrays: arrays
    return _position, _gather_on_devices(held, mesh)


def _decode(split: Split, shapes: dict[str, tuple[int, ...]], num_threads: int) -> Batch:
    held = {name: np.empty((len(split), *shape), np.uint8) for name, shape in shapes.items()}
    decoded = radiograph.parallel_map(
        lambda position: pipeline.decode(split, position), range(len(split)), num_threads
    )
    if not jax.process_index():
        decoded = release.progress(decoded, len(split), f'{split.name} into memory')
    for position, pictures in enumerate(decoded):
        for name, array in pictures.items():
            held[name][position] = array
    return held


def _gather(held: Batch, positions: np.ndarray) -> Batch:
    return {name: array[positions] for name, array in held.items()}


def _position(positions: np.ndarray) -> Batch:
    return {'position': positions.astype(np.int32)}


def _gather_on_devices(held: Batch, mesh) -> Callable:
    everywhere = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    shapes = {name: array.shape[1:] for name, array in held.items()}
    # A row for each picture: in a TPU's tiles a last axis of 1 may take the room of 128.
    on_devices = {
        name: jax.make_array_from_process_local_data(everywhere, flat, flat.shape)
        for name, array in held.items()
        for flat in [array.reshape(len(array), -1)]
    }

    @functools.partial(jax.jit, out_shardings=rows)
    def with_pictures(on_devices, arrays):
        arrays = dict(arrays)
        positions = arrays.pop('position')
        return arrays | {name: flat[positions].reshape(-1, *shapes[name]) for name, flat in on_devices.items()}

    # An argument, not a constant of the program, which would hold the pictures once more.
    return functools.partial(with_pictures, on_devices)


def _check_size(count: int, picture_bytes: int, where: str, devices) -> None:
    """Raises a UserError where what is free does not suffice for `count` pictures."""
    needed = count * int(picture_bytes)
    # Every process of the host decodes all into its memory first, which that of a CPU device is, too.
    copies = 1 + (where == 'device') * sum(device.platform == 'cpu' for device in devices)
    sharing = _processes_of_this_host()
    memory = "this host's memory" + (f', which {sharing} processes share' if sharing > 1 else '')
    places = [(memory, sharing * copies * needed, _free_on_host(), HOST_SHARE, "'none'")]
    if where == 'device':
        for device in devices:
            stats = device.memory_stats() or {}
            if 'bytes_limit' in stats:
                places.append(
                    (
                        f'the memory of {device}',
                        needed,
                        stats['bytes_limit'] - stats['bytes_in_use'],
                        DEVICE_SHARE,
                        "'host' or 'none'",
                    )
                )
    for place, takes, free, share, way_out in places:
        if takes > share * free:
            raise UserError(
                f'config.data.resident is {where!r}: the {count} training images take '
                f'{takes / 1e9:.3g} GB decoded, more than {share:.0%} of the {free / 1e9:.3g} GB '
                f'that are free in {place}; make it {way_out}'
            )


def _processes_of_this_host() -> int:
    """How many processes of this run share this host; each of them must ask."""
    if jax.process_count() == 1:
        return 1
    name = np.frombuffer(hashlib.sha256(socket.gethostname().encode()).digest()[:8], np.uint32)
    return int((multihost_utils.process_allgather(name) == name).all(-1).sum())


def _free_on_host() -> int:
    """Bytes that are free on this machine, or in the containers (cgroup v2) around this process.

    What takes more than the limit of its container, or of its SLURM job, is killed without a word.
    The cache of files counts as free: it gives way.
    """
    free = [psutil.virtual_memory().available]
    for folder in _cgroups():
        try:
            limit = int((folder / 'memory.max').read_text())
            used = int((folder / 'memory.current').read_text())
            stat = dict(line.split() for line in (folder / 'memory.stat').read_text().splitlines())
        except (OSError, ValueError):  # no limit here, or 'max'
            continue
        free.append(limit - used + int(stat['inactive_file']) + int(stat['active_file']))
    return min(free)


def _cgroups() -> list[pathlib.Path]:
    """The folder of this process's cgroup, and those around it."""
    root = pathlib.Path('/sys/fs/cgroup')
    try:
        own = pathlib.Path('/proc/self/cgroup').read_text().rpartition('0::/')[2].strip()
    except OSError:
        own = ''
    return [root / own, *(folder for folder in (root / own).parents if folder.is_relative_to(root))]
