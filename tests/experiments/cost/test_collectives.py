"""Collectives are seen with their dtype and size, and as often as they run, loops included."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments.cost import collectives

P = PartitionSpec


def mesh_of(**sizes):
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(jax.sharding.AxisType.Auto,) * len(sizes))


def on(mesh, *spec, shape, dtype='float32'):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))


def moved(function, *args, **jit):
    _, text = collectives.compile_partitioned(jax.jit(function, **jit).lower(*args))
    found = collectives.read(text)
    return [(one.kind, one.dtype, one.shape, one.group_size, one.count) for one in found]


def mapped(function, mesh, in_spec, out_spec):
    return jax.shard_map(function, mesh=mesh, in_specs=(in_spec,), out_specs=out_spec, check_vma=False)


def test_what_fully_sharded_training_gathers_and_scatters_is_bfloat16_each_layer():
    """Weights in float32 on their shards, cast before they are gathered: forward, and again backward."""
    mesh = mesh_of(fsdp=8)

    def loss(weights, x):
        def layer(x, w):
            x = jnp.tanh(x @ w.astype(jnp.bfloat16))
            return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P('fsdp'))), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0].astype(jnp.float32) ** 2)

    weights = on(mesh, None, 'fsdp', shape=(6, 64, 64))
    x = on(mesh, 'fsdp', shape=(16, 64), dtype='bfloat16')
    found = moved(jax.grad(loss), weights, x, out_shardings=weights.sharding)
    assert found.count(('all-gather', 'bf16', (64, 64), 8, 6)) == 2
    assert [one for one in found if one[0] == 'reduce-scatter'] == [('reduce-scatter', 'bf16', (64, 64), 8, 6)]
    assert {one[1] for one in found} == {'bf16'}


def test_a_second_look_sees_the_same_although_the_program_is_in_the_cache():
    x = on(mesh_of(data=8), 'data', shape=(64, 4))
    assert moved(jnp.sum, x) == moved(jnp.sum, x) == [('all-reduce', 'f32', (), 8, 1)]


def test_groups_are_of_the_axes_that_take_part():
    mesh = mesh_of(data=2, tensor=4)
    x = on(mesh, 'data', 'tensor', shape=(16, 64))
    assert moved(lambda x: jnp.sum(x, 1), x) == [('all-reduce', 'f32', (8,), 4, 1)]
    assert moved(lambda x: jnp.sum(x, 0), x) == [('all-reduce', 'f32', (16,), 2, 1)]
    assert moved(lambda x: x, x, out_shardings=NamedSharding(mesh, P('data'))) == [('all-gather', 'f32', (8, 64), 4, 1)]


@pytest.mark.parametrize(
    'function, out_spec, expected',
    [
        (lambda x: jax.lax.psum(x, 'data'), P(), ('all-reduce', 'f32', (2, 64), 8, 1)),
        (lambda x: jax.lax.psum_scatter(x.T, 'data', tiled=True), P('data'), ('reduce-scatter', 'f32', (64, 2), 8, 1)),
        (lambda x: jax.lax.all_gather(x, 'data', tiled=True), P(), ('all-gather', 'f32', (16, 64), 8, 1)),
        (lambda x: jax.lax.all_to_all(x, 'data', 1, 0, tiled=True), P('data'), ('all-to-all', 'f32', (2, 64), 8, 1)),
        (
            lambda x: jax.lax.ppermute(x, 'data', [(i, (i + 1) % 8) for i in range(8)]),
            P('data'),
            ('collective-permute', 'f32', (2, 64), 2, 1),
        ),
    ],
)
def test_every_kind_is_seen(function, out_spec, expected):
    mesh = mesh_of(data=8)
    [(kind, dtype, _, group_size, count)] = found = moved(
        mapped(function, mesh, P('data'), out_spec), on(mesh, 'data', shape=(16, 64))
    )
    assert (kind, dtype, group_size, count) == (*expected[:2], *expected[3:])
    assert jnp.prod(jnp.array(found[0][2])) == jnp.prod(jnp.array(expected[2]))  # tiles may be an axis of their own


def test_loops_in_loops_multiply():
    mesh = mesh_of(data=8)

    def repeat(times, body):
        return lambda x: jax.lax.fori_loop(2, 2 + times, lambda _, x: body(x), x)

    total = lambda x: jax.lax.psum(x, 'data') * 0.5
    function = mapped(repeat(3, lambda x: repeat(5, total)(total(x))), mesh, P('data'), P('data'))
    counts = [one[-1] for one in moved(function, on(mesh, 'data', shape=(8, 4)))]
    assert sorted(counts) == [3, 15]


def test_a_loop_of_unknown_length_is_an_error_if_anything_is_sent_in_it():
    mesh = mesh_of(data=8)
    until = lambda body: lambda x: jax.lax.while_loop(lambda x: jnp.sum(x) < 9, body, x)
    x = on(mesh, 'data', shape=(8, 4))
    with pytest.raises(ValueError, match='unknown how often a loop runs'):
        moved(mapped(until(lambda x: jax.lax.psum(x, 'data')), mesh, P('data'), P('data')), x)
    assert moved(mapped(until(lambda x: x + 1), mesh, P('data'), P('data')), x) == []


def test_an_all_reduce_of_which_all_is_used_stays_one():
    mesh = mesh_of(data=8)
    cut = NamedSharding(mesh, P('data'))

    def function(x, all_of_it):
        total = jnp.sum(x.reshape(8, 8, 8), 0)
        part = jax.lax.with_sharding_constraint(total, cut)
        return (part, jax.lax.with_sharding_constraint(total + 1, NamedSharding(mesh, P()))) if all_of_it else part

    x = on(mesh, 'data', shape=(64, 8))
    assert [one[0] for one in moved(functools.partial(function, all_of_it=False), x)] == ['reduce-scatter']
    assert [one[0] for one in moved(functools.partial(function, all_of_it=True), x)] in (
        ['all-reduce'],
        ['reduce-scatter', 'all-gather'],
        ['all-gather', 'reduce-scatter'],
    )


@pytest.mark.parametrize(
    'kind, sent',
    [('all-gather', 56), ('reduce-scatter', 56), ('all-reduce', 112), ('all-to-all', 56), ('collective-permute', 64)],
)
def test_what_a_ring_sends(kind, sent):
    """Of 64 bytes on 8 devices, each an eighth: seven of them, twice for an all-reduce."""
    one = collectives.Collective(kind, 'bf16', (4, 8), 8, 1)
    assert (one.bytes, one.sent_bytes) == (64, sent)


def test_the_summary_adds_up():
    gather = collectives.Collective('all-gather', 'bf16', (4, 8), 8, 3)
    reduce = collectives.Collective('all-reduce', 'f32', (), 8, 1)
    assert collectives.summary([reduce, gather, gather]) == [
        {'kind': 'all-gather', 'dtype': 'bf16', 'number': 6, 'bytes': 6 * 64, 'sent_bytes': 6 * 56},
        {'kind': 'all-reduce', 'dtype': 'f32', 'number': 1, 'bytes': 4, 'sent_bytes': 7},
    ]


GPU_PROGRAM = """
HloModule jit_f, is_scheduled=true, replica_count=1, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%async_computation (param: f32[8,16]) -> f32[2,16] {
  %param = f32[8,16]{1,0} parameter(0)
  ROOT %scattered = f32[2,16]{1,0} reduce-scatter(%param), channel_id=2, replica_groups={}, dimensions={0}, to_apply=%add
}

%body (state: (s32[], bf16[8,16], f32[8,16])) -> (s32[], bf16[8,16], f32[8,16]) {
  %state = (s32[], bf16[8,16]{1,0}, /*index=2*/f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %shard = bf16[8,16]{1,0} get-tuple-element(%state), index=1
  %whole = f32[8,16]{1,0} get-tuple-element(%state), index=2
  %gather-start = (bf16[8,16]{1,0}, bf16[16,16]{1,0}) all-gather-start(%shard), channel_id=1, replica_groups={{0,1},{2,3}}, dimensions={0}, use_global_device_ids=true
  %gather-done = bf16[16,16]{1,0} all-gather-done(%gather-start)
  %scatter-start = ((f32[8,16]{1,0}), f32[2,16]{1,0}) async-start(%whole), calls=%async_computation
  %scatter-done = f32[2,16]{1,0} async-done(%scatter-start)
  %sums = (f32[8,16]{1,0}, f32[8,16]{1,0}) all-reduce(%whole, %whole), channel_id=3, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %next = (s32[], bf16[8,16]{1,0}, f32[8,16]{1,0}) tuple(%i, %shard, %whole)
}

%condition (state: (s32[], bf16[8,16], f32[8,16])) -> pred[] {
  %state.1 = (s32[], bf16[8,16]{1,0}, f32[8,16]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (start: (s32[], bf16[8,16], f32[8,16])) -> (s32[], bf16[8,16], f32[8,16]) {
  %start = (s32[], bf16[8,16]{1,0}, f32[8,16]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[8,16]{1,0}, f32[8,16]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""  # noqa: E501


def test_an_optimised_program_is_read_too():
    found = [(one.kind, one.dtype, one.shape, one.group_size, one.count) for one in collectives.read(GPU_PROGRAM)]
    assert found == [
        ('all-gather', 'bf16', (16, 16), 2, 5),
        ('reduce-scatter', 'f32', (8, 16), 4, 5),
        ('all-reduce', 'f32', (8, 16), 4, 5),
        ('all-reduce', 'f32', (8, 16), 4, 5),
    ]


def test_a_program_for_one_device_has_none():
    """It isn't partitioned at all."""
    on_one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    x = jax.ShapeDtypeStruct((8, 8), 'float32', sharding=on_one)
    assert moved(lambda x: x.sum(0), x) == []
