"""Bytes that a step moves between devices, read from the compiled program, and what they predict.

  python -m benchmarks.collectives [--config configs/mlvicx.py] [--devices 1 4 8 64 256]
      [--topology cpu] [--batch_per_device 64 | --batch 64] [--utilisation 0.4]
      [--out collectives.json]

Compiles the training step for that many devices and runs nothing. Virtual CPU devices need nothing
else; with libtpu installed, `--topology v5e` or `v5p` compiles for a slice of TPUs that is not
there. Prints Markdown tables; what they say, and where the machines' numbers come from, is in
docs/scaling.md.
"""

import argparse
import dataclasses
import importlib
import math
import os
import re
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'  # nothing runs; the TPU compiler is a library of its own
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # it shall not ask a cloud where it is
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mlvicx_jax import methods, optim
from mlvicx_jax import state as states
from mlvicx_jax.files import write_json
from mlvicx_jax.models.norm import AXIS
from mlvicx_jax.step import make_train_step

LABELS = 15  # of ChestX-ray14
PURPOSES = 'gradients', 'BatchNorm', 'loss', 'other'

_KINDS = 'all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute'
_OPERATION = re.compile(
    rf'^\s*(?:ROOT )?%?[\w.\-]+ = (?P<result>.+?) (?P<kind>{_KINDS})'
    r'(?P<start>-start)?\('
)
_ARRAY = re.compile(r'\b(pred|[suf]\d+|bf16|f8\w+)\[([\d,]*)\]')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
_CALL = re.compile(r'\b(?:body|calls)=%?([\w.\-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_FORWARD = re.compile(r'^(?!.*transpose\().*shard_map/.+/psum')  # from within a module
_GROUP = re.compile(r'replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a compiled program.

    Attributes:
      kind: 'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all' or 'collective-permute'.
      arrays: (bytes an element, shape) of each array of its result on one device.
      devices: that take part in one group of it.
      source: the operation's name in the traced program; '' where the compiler dropped it.
      times: that it runs in a step, more than 1 inside a loop.
    """

    kind: str
    arrays: tuple[tuple[int, tuple[int, ...]], ...]
    devices: int
    source: str
    times: int = 1

    @property
    def sizes(self) -> list[int]:
        """Bytes of each whole array: that is reduced, or that all of its parts make together."""
        parts = self.devices if self.kind == 'reduce-scatter' else 1
        return [parts * width * math.prod(shape) for width, shape in self.arrays]

    @property
    def sources(self) -> list[str]:
        """The name of each array; XLA calls what it put together 'common/(one:other)'."""
        common, _, parts = self.source.partition('/(')
        names = [f'{common}/{part}' for part in parts.removesuffix(')').split(':')]
        return names if len(names) == len(self.arrays) else [self.source] * len(self.arrays)

    @property
    def wire(self) -> float:
        """Bytes sent by one device for one byte of `sizes`, by ring algorithms.

        A reduction in a ring of N sends N - 1 of N parts, a gathering as much; an all-reduce is
        both (Patarasuk & Yuan, J. Parallel Distrib. Comput. 69, 2009).
        """
        share = (self.devices - 1) / self.devices
        return {'all-reduce': 2 * share, 'collective-permute': 1.0}.get(self.kind, share)


def parse(program: str, devices: int) -> list[Collective]:
    """The collectives of an HLO module's text (`Compiled.as_text()`), the asynchronous ones once.

    Args:
      program: one that was compiled for `devices` devices.
    """
    found, calls, computation = [], {}, None
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            computation = match[1]
        for called in _CALL.findall(line):
            trips = _TRIPS.search(line)
            calls[called] = computation, int(trips[1]) if trips else 1
        match = _OPERATION.match(line)
        if not match:
            continue
        arrays = [
            (_width(kind), tuple(int(n) for n in shape.split(',') if n))
            for kind, shape in _ARRAY.findall(match['result'])
        ]
        if match['start'] and match['kind'] in ('all-gather', 'collective-permute'):
            # Its result is (operands, results, the transfer's own scalars).
            arrays = [array for array in arrays if array[1]]
            arrays = arrays[len(arrays) // 2 :]
        group = _GROUP.search(line)
        size = devices if not group else int(group[2] or 1 + group[1].count(','))
        if size == 1:
            continue  # it moves nothing
        source = re.search(r'op_name="([^"]*)"', line)
        found.append((computation, Collective(match['kind'], tuple(arrays), size, source[1] if source else '')))

    def times(computation):
        caller, trips = calls.get(computation, (None, 1))
        return trips * (times(caller) if caller else 1)

    return [dataclasses.replace(collective, times=times(computation)) for computation, collective in found]


def _width(kind: str) -> int:
    """Bytes of an element of HLO's type `kind`."""
    return 1 if kind == 'pred' else max(1, int(re.search(r'\d+', kind)[0]) // 8)


def purposes(collective: Collective) -> list[str]:
    """What each array of a collective is for, one of PURPOSES.

    What is moved inside the mapped function belongs to the network, all else to the loss. What a
    module sums in the forward pass are BatchNorm's statistics. Gradients are matrices and kernels
    that are summed in the backward pass. Vectors there belong to BatchNorm: the gradients of its
    statistics, scales and shifts (and a linear layer's bias, if it has one).
    """

    def purpose(shape, source):
        dims = [n for n in shape if n > 1]
        if 'shard_map/' not in source:
            return 'loss'
        if not dims:
            return 'other'
        if _FORWARD.search(source):
            return 'BatchNorm'
        return 'BatchNorm' if len(dims) == 1 else 'gradients'

    return [purpose(shape, source) for (_, shape), source in zip(collective.arrays, collective.sources)]


def summarise(collectives: list[Collective]) -> dict:
    """{purpose: {'operations', 'bytes', 'wire'}} of a step, bytes and bytes sent, on one device.

    An operation that carries several things counts once, for BatchNorm if any of them is
    BatchNorm's: the next layer waits for it.
    """
    table = {purpose: {'operations': 0, 'bytes': 0, 'wire': 0.0} for purpose in PURPOSES}
    for collective in collectives:
        kinds = purposes(collective)
        counted = next(p for p in ('BatchNorm', 'loss', 'gradients', 'other') if p in kinds)
        table[counted]['operations'] += collective.times
        for purpose, size in zip(kinds, collective.sizes):
            table[purpose]['bytes'] += collective.times * size
            table[purpose]['wire'] += collective.times * size * collective.wire
    return table


def devices_of(topology: str, count: int) -> list:
    """`count` devices to compile for: 'cpu', or a generation of TPUs in `SLICES`."""
    if topology == 'cpu':
        return jax.devices()[:count]
    try:
        return topologies.get_topology_desc(
            f'{topology}:{"x".join(map(str, SLICES[topology][count]))}', 'tpu'
        ).devices
    except RuntimeError as error:
        sys.exit(f'error: --topology {topology}: {error}; install libtpu, or compile for cpu')


def lower(config, devices: list, batch: int):
    """The training step of `batch` images, lowered for `devices`."""
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    replicated, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    method = methods.create(config)
    optimizer = optim.create(config.optim, batch, 100, 1000)
    state = jax.eval_shape(lambda: states.create(method, optimizer, 0, replicated))
    size = config.data.stored_size
    arrays = {'image': (batch, size, size, 1), 'labels': (batch, LABELS)}
    train_step = make_train_step(method, optimizer, mesh, 0, 1000)
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated)
    return train_step.func.lower(
        *map(like, train_step.args),
        jax.tree.map(like, state),
        {name: jax.ShapeDtypeStruct(shape, np.uint8, sharding=rows) for name, shape in arrays.items()},
    )


def loss_flops(config, devices: int, batch: int) -> float:
    """Operations of one of `devices` CPU devices for the loss of `batch` images and its gradient.

    Counted in the compiled program, after the partitioner has divided it.
    """
    method = methods.create(config)
    mesh = jax.make_mesh((1,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])

    def outputs(key):
        variables, method_state = method.init(key)
        image = np.zeros((1, config.data.stored_size, config.data.stored_size, 1), np.uint8)
        labels = np.zeros((1, LABELS), np.uint8)

        def forward(variables, method_state, keys):
            views = method.views(keys, {'image': image, 'labels': labels})
            return jax.lax.pmean(method.forward(variables, method_state, views, key)[0], AXIS)

        run = jax.shard_map(forward, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
        return run(variables, method_state, jax.random.split(key, 1)), method_state

    out, method_state = jax.eval_shape(outputs, jax.random.key(0))
    out = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), out)
    mesh = jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    everywhere, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    gradient = jax.jit(
        jax.value_and_grad(method.loss, has_aux=True),
        in_shardings=(rows, everywhere),
        out_shardings=(everywhere, rows),
    )
    return gradient.lower(out, method_state).compile().cost_analysis()['flops']


@dataclasses.dataclass(frozen=True)
class Machine:
    """Published numbers of an accelerator; docs/scaling.md has their sources.

    Attributes:
      peak: dense bfloat16 operations a second of one device.
      peak_float32: of products at `Precision.HIGHEST`, in which covariances are computed.
      bandwidth: bytes a second that one device can send in a collective over so many devices.
      latency: seconds of the smallest all-reduce over so many devices.
    """

    name: str
    peak: float
    peak_float32: float
    bandwidth: dict[int, float]
    latency: dict[int, float]


# Chips on each axis. The axes of a v5e slice close to a ring at 16 chips, those of v5p at 4.
SLICES = {
    'v5e': {1: (1, 1), 4: (2, 2), 8: (2, 4), 64: (8, 8), 256: (16, 16)},
    'v5p': {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2), 64: (4, 4, 4), 256: (4, 8, 8)},
}
HOP = 1e-6  # seconds from a chip to its neighbour


def tpu(generation: str, name: str, peak: float, link: float, ring: int) -> Machine:
    """A Machine of TPUs; `link` bytes a second one way, axes of `ring` chips or more are rings.

    On a ring a device sends both ways and the farthest is half of it away; on a line one way, to its
    end. An all-reduce goes there and back. HIGHEST takes 6 passes of bfloat16 (jax.lax.Precision).
    """
    bandwidth, latency = {}, {}
    for count, axes in SLICES[generation].items():
        axes = [length for length in axes if length > 1]
        bandwidth[count] = sum(link * (2 if length >= ring else 1) for length in axes)
        latency[count] = 2 * HOP * sum(length // 2 if length >= ring else length - 1 for length in axes)
    return Machine(name, peak, peak / 6, bandwidth, latency)


MACHINES = (
    tpu('v5e', 'TPU v5e', 197e12, 4.5e10, 16),
    tpu('v5p', 'TPU v5p', 459e12, 9e10, 4),
    # In a box NCCL's own model of its ring of low latency: 6.6 us and 0.6 us for each of 2 (N - 1)
    # steps. Eight boxes: 50 GB/s of InfiniBand (NDR 400) a device, eight rings side by side; a tree
    # of low latency, 6.6 us, 0.6 us a step in the box, 5 us a step between boxes, there and back.
    Machine(
        'H100',
        989e12,
        67e12,
        {1: 0, 4: 4.5e11, 8: 4.5e11, 64: 4e11},
        {1: 0, 4: 6.6e-6 + 6 * 0.6e-6, 8: 6.6e-6 + 14 * 0.6e-6, 64: 6.6e-6 + 14 * 0.6e-6 + 6 * 5e-6},
    ),
)


def predict(
    machine: Machine, devices: int, table: dict, network: float, loss: float, utilisation: float
) -> dict:
    """Seconds of a step's parts and its efficiency, without any overlap and with gradients hidden.

    Efficiency is the share of the step in which a device computes: views, network, its part of the
    loss, gradient. `hidden` has the gradients' transfer behind the backward pass, two
    thirds of the network's time.

    Args:
      table: `summarise`'s.
      network, loss: operations of one device for its rows through the network, for its part of the loss.
      utilisation: share of the peak that products reach.
    """
    compute = network / (machine.peak * utilisation)
    own_loss = loss / (machine.peak_float32 * utilisation)
    work = compute + own_loss
    seconds = dict.fromkeys(PURPOSES, 0.0)
    if devices > 1:
        for purpose, row in table.items():
            seconds[purpose] = (
                row['wire'] / machine.bandwidth[devices] + row['operations'] * machine.latency[devices]
            )
    exposed = max(0.0, seconds['gradients'] - compute * 2 / 3)
    moved = sum(seconds.values())
    return {
        'compute': compute,
        **seconds,
        'loss': own_loss,
        'loss moved': seconds['loss'],
        'efficiency': work / (work + moved),
        'hidden': work / (work + moved - seconds['gradients'] + exposed),
    }


def load(path: str):
    """The config of configs/NAME.py[:ARGUMENT]."""
    path, _, argument = path.partition(':')
    recipe = importlib.import_module(path.removesuffix('.py').strip('./').replace('/', '.'))
    return recipe.get_config(*filter(None, [argument]))


def megabytes(count: float) -> str:
    return f'{count / 1e6:.3g}'


def tables(rows: list[dict], machines: list[Machine]) -> str:
    lines = [
        '| devices | batch | operations | MB: '
        + ', '.join(PURPOSES)
        + ' | MB sent by a device | TFLOP of a device: network, loss |',
        '|' + '---|' * 6,
    ]
    for row in rows:
        table = row['collectives']
        lines.append(
            f'| {row["devices"]} | {row["batch"]} | '
            + str(sum(table[p]['operations'] for p in PURPOSES))
            + ' | '
            + ', '.join(megabytes(table[p]['bytes']) for p in PURPOSES)
            + ' | '
            + megabytes(sum(table[p]['wire'] for p in PURPOSES))
            + f' | {row["network_flops"] / 1e12:.3f}, {row["loss_flops"] / 1e12:.3f} |'
        )
    lines += [
        '',
        '| machine | devices | ms: network | loss | gradients | BatchNorm | loss, moved | '
        'efficiency | gradients hidden |',
        '|' + '---|' * 9,
    ]
    for machine in machines:
        for row in rows:
            if said := row['predicted'].get(machine.name):
                lines.append(
                    f'| {machine.name} | {row["devices"]} | '
                    + ' | '.join(
                        f'{1e3 * said[part]:.3g}'
                        for part in ('compute', 'loss', 'gradients', 'BatchNorm', 'loss moved')
                    )
                    + f' | {said["efficiency"]:.1%} | {said["hidden"]:.1%} |'
                )
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='configs/mlvicx.py')
    parser.add_argument('--devices', type=int, nargs='+', default=[1, 4, 8, 64, 256])
    parser.add_argument('--topology', choices=['cpu', *SLICES], default='cpu')
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument('--batch_per_device', type=int, default=64)
    batch.add_argument('--batch', type=int, help='of all devices together')
    parser.add_argument('--utilisation', type=float, default=0.4, help='of the peak, by products')
    parser.add_argument('--out', default='collectives.json')
    arguments = parser.parse_args()
    jax.config.update('jax_num_cpu_devices', max(arguments.devices))
    config = load(arguments.config)
    if arguments.topology == 'cpu':
        machines = list(MACHINES)
    else:
        machines = [machine for machine in MACHINES if machine.name.endswith(arguments.topology)]
    rows, network = [], {}
    for count in arguments.devices:
        size = arguments.batch or count * arguments.batch_per_device
        if size % count:
            sys.exit(f'error: {count} devices do not divide --batch {size}')
        program = lower(config, devices_of(arguments.topology, count), size)
        collectives = parse(program.compile().as_text(), count)
        share = size // count
        if share not in network:  # on a device of its own: the same whatever the topology
            alone = lower(config, jax.devices()[:1], share)
            network[share] = alone.cost_analysis()['flops'] - loss_flops(config, 1, share)
        row = {
            'devices': count,
            'batch': size,
            'network_flops': network[share],
            'loss_flops': loss_flops(config, count, size),
            'collectives': summarise(collectives),
        }
        row['predicted'] = {
            machine.name: predict(
                machine, count, row['collectives'], network[share], row['loss_flops'], arguments.utilisation
            )
            for machine in machines
            if count in machine.bandwidth
        }
        rows.append(row)
        write_json(arguments.out, {'arguments': vars(arguments), 'rows': rows})
        print(f'{count} devices: {len(collectives)} collectives', flush=True)
    print(tables(rows, machines))


if __name__ == '__main__':
    main()
