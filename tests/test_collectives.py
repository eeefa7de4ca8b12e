"""What a step moves between devices: the reading of compiled programs, and of the step's own."""

import collections

import jax
import pytest

import tiny
from benchmarks import collectives
from benchmarks.collectives import Collective
from mlvicx_jax import methods

# As XLA writes them: combined, in a loop, asynchronous, with a layout, over groups of two.
PROGRAM = """
HloModule jit_step, entry_computation_layout={()->f32[]}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %psum.1 = f32[2,8]{1,0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add, metadata={op_name="jit(step)/jvp()/shard_map/bn1/psum"}
}

ENTRY %main (a: f32[4,8]) -> f32[] {
  %loop = (s32[], f32[8]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %sum = (f32[3,3,4,8]{3,2,1,0}, /*index=1*/f32[8]{0:T(256)S(1)}, bf16[16]{0}) all-reduce(%b, %c, %d), replica_groups=[1,4]<=[4], to_apply=%add, metadata={op_name="jit(step)/transpose(jvp())/shard_map/conv1/psum"}
  %start = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%a), replica_groups={{0,1,2,3}}, dimensions={0}
  %done = f32[16,8]{1,0} all-gather-done(%start)
  %scatter = f32[4,8]{1,0} reduce-scatter(%done), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %to = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%e), source_target_pairs={{0,1},{1,0}}
  %pair = f32[6]{0} all-reduce(%e), replica_groups={{0,1},{2,3}}, to_apply=%add
  %alone = f32[6]{0} all-reduce(%e), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  %fused = f32[6]{0} fusion(%all-reduce.3), kind=kLoop, calls=%all-reduce_computation
}
"""


def test_collectives_are_read_from_a_program():
    looped, summed, gathered, scattered, permuted, pair = collectives.parse(PROGRAM, 4)
    assert looped == Collective('all-reduce', ((4, (2, 8)),), 4, 'jit(step)/jvp()/shard_map/bn1/psum', times=5)
    assert summed.arrays == ((4, (3, 3, 4, 8)), (4, (8,)), (2, (16,)))
    assert gathered == Collective('all-gather', ((4, (16, 8)),), 4, '')
    assert scattered.arrays == ((4, (4, 8)),) and scattered.sizes == gathered.sizes == [512]
    assert permuted.arrays == ((4, (6,)),)
    assert (pair.devices, pair.times) == (2, 1)


def test_bytes_of_each_purpose_and_what_a_ring_sends():
    table = collectives.summarise(collectives.parse(PROGRAM, 4))
    # In a ring of 4 an all-reduce sends 3 of 4 parts twice, a gathering or scattering once.
    assert table['gradients'] == {'operations': 0, 'bytes': 1152, 'wire': 1152 * 1.5}
    # What stands outside the mapped function is the loss's; the last of it is summed by a pair.
    assert table['loss'] == {'operations': 4, 'bytes': 512 + 512 + 24 + 24, 'wire': 2 * 512 * 0.75 + 24 + 24}
    # Five times the statistics, once two vectors with the kernel.
    assert table['BatchNorm'] == {'operations': 6, 'bytes': 5 * 64 + 32 + 32, 'wire': (5 * 64 + 32 + 32) * 1.5}
    assert table['other']['operations'] == 0


def test_what_the_compiler_put_together_is_told_apart():
    both = Collective(
        'all-reduce',
        ((4, (3, 3, 4, 8)), (4, (2, 8)), (4, (8,))),
        4,
        (
            'jit(step)/(transpose(jvp())/shard_map/conv1/psum:jvp()/shard_map/bn1/psum:'
            'transpose(jvp())/shard_map/psum)'
        ),
    )
    assert collectives.purposes(both) == ['gradients', 'BatchNorm', 'BatchNorm']


def test_a_torus_is_twice_as_fast_as_a_line_and_half_as_far():
    v5e, v5p, _ = collectives.MACHINES
    assert v5e.bandwidth[64] == 9e10 and v5e.bandwidth[256] == 1.8e11  # 8 x 8 is no torus
    assert v5e.latency[64] == pytest.approx(28e-6) and v5e.latency[256] == pytest.approx(32e-6)
    assert v5p.bandwidth[64] == v5p.bandwidth[256] == 5.4e11
    assert v5p.latency[64] == pytest.approx(12e-6)


def test_a_prediction_adds_up():
    row = lambda operations, wire: {'operations': operations, 'bytes': 0, 'wire': wire}
    table = {'gradients': row(2, 3e6), 'BatchNorm': row(50, 0), 'loss': row(0, 1e6), 'other': row(0, 0)}
    machine = collectives.Machine('', 1e12, 1e11, {4: 1e9}, {4: 1e-4})
    said = collectives.predict(machine, 4, table, network=3e9, loss=1e9, utilisation=0.5)
    assert said['compute'] == pytest.approx(6e-3) and said['loss'] == pytest.approx(20e-3)
    assert said['gradients'] == pytest.approx(3.2e-3) and said['BatchNorm'] == pytest.approx(5e-3)
    assert said['loss moved'] == pytest.approx(1e-3)
    assert said['efficiency'] == pytest.approx(26 / (26 + 3.2 + 5 + 1))
    assert said['hidden'] == pytest.approx(26 / (26 + 5 + 1))  # 3.2 ms fit behind 4


@pytest.fixture(scope='module')
def step():
    """Collectives of the tiny step of 24 images on four devices; no width is 24."""
    config = tiny.get_config()
    config.batch_size = 24
    lowered = collectives.lower(config, jax.devices()[:4], config.batch_size)
    return collectives.parse(lowered.compile().as_text(), 4)


def test_every_gradient_is_summed_over_the_devices_once(step):
    variables, _ = jax.eval_shape(methods.create(tiny.get_config()).init, jax.random.key(0))
    shapes = lambda tree: [tuple(n for n in leaf.shape if n > 1) for leaf in jax.tree.leaves(tree)]
    matrices = collections.Counter(dims for dims in shapes(variables['params']) if len(dims) > 1)
    summed = collections.Counter(
        tuple(n for n in shape if n > 1)
        for collective in step
        for (_, shape), purpose in zip(collective.arrays, collectives.purposes(collective))
        if purpose == 'gradients'
        for _ in range(collective.times)
    )
    assert summed == matrices and matrices.total() > 30
    moved = collectives.summarise(step)['gradients']['bytes']
    vectors = sum(4 * dims[0] for dims in shapes(variables['params']) if len(dims) == 1)
    assert moved + vectors == sum(4 * leaf.size for leaf in jax.tree.leaves(variables['params']))


def test_the_loss_moves_its_products_and_no_embeddings(step):
    """With 24 rows and 16 features: four matrices of 16 x 16, two heads of two views, and vectors."""
    moved = [
        (collective.kind, shape)
        for collective in step
        for (_, shape), purpose in zip(collective.arrays, collectives.purposes(collective))
        if purpose == 'loss'
    ]
    assert {kind for kind, _ in moved} == {'all-reduce'}
    assert [shape for _, shape in moved if len(shape) > 1] == [(16, 16)] * 4
    assert not [shape for collective in step for _, shape in collective.arrays if 24 in shape]


@pytest.mark.parametrize('batch', [96, 8], ids=['R x R', 'B x B'])
def test_the_loss_is_divided_over_the_devices(batch):
    config = tiny.get_config()
    config.method.widths = (16, 16, 64)
    alone, divided = (collectives.loss_flops(config, devices, batch) for devices in (1, 4))
    # A product of r x b and b x r (or b x r and r x b) for each head and view, and one for its gradient.
    product = 2 * batch * 64 * min(batch, 64) * 2 * 2
    assert 2 * product < alone < 4.5 * product
    assert divided < 0.35 * alone
