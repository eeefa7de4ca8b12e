"""Processes, the device mesh, and how arrays are laid out on it."""

import hashlib
import os

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mlvicx_jax.errors import UserError
from mlvicx_jax.models.norm import AXIS


def start(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes of this run, if there are any; must come before any use of jax.

    With a coordinator address the three arguments say it all. Without one, a cluster that jax
    knows (SLURM, Cloud TPU, Open MPI) is recognised by its environment and asked.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise UserError(
            '--coordinator, --num_processes and --process_id belong together; give all '
            'three, or none for a single process'
        )
    if coordinator:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    elif (
        int(os.environ.get('SLURM_NTASKS', 1)) > 1
        or int(os.environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1
        or ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '')
    ):
        jax.distributed.initialize()


def agree(**facts: str) -> None:
    """Makes sure that every process has the same `facts`; each must call it, in the same order.

    Raises:
        UserError: on every process, with the name of what differs and who has it differently.
    """
    if jax.process_count() == 1:
        return
    digests = np.stack(
        [np.frombuffer(hashlib.sha256(fact.encode()).digest()[:8], np.uint32) for fact in facts.values()]
    )
    everyones = multihost_utils.process_allgather(digests)  # [process, fact, 2]
    for name, column in zip(facts, np.moveaxis(everyones, 1, 0)):
        different = np.flatnonzero((column != column[0]).any(-1))
        if len(different):
            raise UserError(
                f'the processes of this run do not have the same {name.replace("_", " ")}: '
                f'{", ".join(f"process {p}" for p in different)} not as process 0. Give every host the '
                'same command, program and files, then start all of them again'
            )


def create_mesh(batch_size: int, eval_batch_size: int = 0, accumulation: int = 1) -> jax.sharding.Mesh:
    """A one-dimensional mesh over every device, which must divide global batches and their parts."""
    count = jax.device_count()
    for field, size in (('batch_size', batch_size), ('eval.batch_size', eval_batch_size)):
        if size % count:
            raise UserError(
                f'config.{field} is {size}, which {count} devices do not divide; take a multiple of {count}'
            )
    if batch_size % (count * accumulation):
        raise UserError(
            f'config.accumulation is {accumulation}: {count} devices can not divide a '
            f'batch of {batch_size} into as many parts; take a config.batch_size that '
            f'is a multiple of {count * accumulation}'
        )
    return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,))


def device_name() -> str:
    """How many of which device this run has, as a result is quoted with."""
    device = jax.devices()[0]
    cores = f' ({os.cpu_count()} cores)' if device.platform == 'cpu' else ''
    return f'{jax.device_count()} x {device.device_kind}{cores}'


def replicated(mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def to_global(batch: dict[str, np.ndarray], mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch, as arrays of the whole batch split over the mesh."""
    rows = NamedSharding(mesh, PartitionSpec(AXIS))
    return {name: jax.make_array_from_process_local_data(rows, array) for name, array in batch.items()}
