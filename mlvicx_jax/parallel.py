"""Processes, the device mesh, and how arrays are laid out on it."""

import contextlib
import ctypes
import hashlib
import multiprocessing
import os
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mlvicx_jax.errors import UserError
from mlvicx_jax.models.norm import AXIS

STALLED = 70  # exit code of a run that lost another of its processes (sysexits' EX_SOFTWARE)


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
    if jax.distributed.is_initialized():
        _end_with_stalled_where_jax_aborts()


def _end_with_stalled_where_jax_aborts() -> None:
    """Makes SIGABRT end this process with `STALLED`.

    jax aborts every process that can not reach process 0, which hosts its coordinator, or that the
    coordinator tells of a dead one. jaxlib's callback for that takes no Python function (0.10.1: it
    can not convert the status and aborts, too), and a handler of Python's own `signal` never runs
    in an abort: hence a handler of the C library's.
    """
    global _on_abort  # the C library keeps no reference to it
    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(_leave)
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, type(_on_abort)]
    library.signal.restype = ctypes.c_void_p
    library.signal(signal.SIGABRT, _on_abort)


_on_abort = None


def _leave(_signal: int) -> None:
    text = (
        'error: jax ended this process, as the lines above tell: process 0 or another one is gone. Run the '
        'same command again on all hosts: it goes on from the last checkpoint\n'
    )
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
    for child in multiprocessing.active_children():  # that decode images
        child.kill()
    os._exit(STALLED)


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
