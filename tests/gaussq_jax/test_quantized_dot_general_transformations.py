"""quantized_dot_general under jit, vmap, scan and remat, and on meshes of eight devices: the bits of the plain call.

With power-of-two scales and few-bit formats every product and sum is exact, whatever its order.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy_quantized_dot_general import (
    CONTRACTIONS,
    TARGETS,
    assert_all_identical,
    assert_identical,
    operands,
    power_of_two_quantizers,
    small_numbers,
    with_gradients,
)
from numpy_quantized_dot_general import quantized_dot_general as oracle

import gaussq_jax as gq

DENSE = CONTRACTIONS['dense'][-1]
LEADING = CONTRACTIONS['dense with leading axes'][-1]


def test_jit_changes_no_bit_and_compiles_once():
    quantizers = power_of_two_quantizers()
    dot_general = gq.quantized_dot_general(**quantizers)
    compiled = jax.jit(functools.partial(with_gradients, dot_general, dimension_numbers=DENSE))
    for seed in range(3):
        *arrays, _ = operands('dense', seed)
        arrays = [jnp.asarray(x) for x in arrays]
        assert_all_identical(compiled(*arrays), oracle(*arrays, DENSE, **quantizers))
    assert_all_identical(with_gradients(dot_general, *arrays, DENSE), compiled(*arrays))
    assert compiled._cache_size() == 1


@pytest.mark.parametrize('axes', [(0, None), (None, 0), (0, 0), (2, 1)])
def test_vmap_quantizes_each_example_by_itself(axes):
    """A scale for the whole tensor is one for each example."""
    quantizers = power_of_two_quantizers() | {'P1': gq.Quantizer('e2m1', block_size='tensor', scale='mx')}
    lhs, rhs, cotangent = small_numbers((3, 24, 40)), small_numbers((3, 40, 36), 1), small_numbers((3, 24, 36), 2)
    lhs *= np.float32([1, 4, 16])[:, None, None]
    lhs, rhs = (x if axis is not None else x[0] for x, axis in zip((lhs, rhs), axes))

    def move(x, axis):
        return x if axis is None else np.moveaxis(x, 0, axis)

    dot_general = gq.quantized_dot_general(**quantizers)
    each = jax.jit(jax.vmap(lambda *arrays: with_gradients(dot_general, *arrays, DENSE), (*axes, 0)))
    got = each(move(lhs, axes[0]), move(rhs, axes[1]), cotangent)
    for i in range(3):
        example = (x if axis is None else x[i] for x, axis in zip((lhs, rhs), axes))
        assert_all_identical([x[i] for x in got], oracle(*example, cotangent[i], DENSE, **quantizers))


def test_the_gradient_through_vmap_sums_over_the_examples():
    quantizers = power_of_two_quantizers()
    lhs, rhs, cotangent = small_numbers((3, 24, 40)), small_numbers((40, 36), 1), small_numbers((3, 24, 36), 2)
    dot_general = gq.quantized_dot_general(**quantizers)

    @jax.jit
    def gradient(lhs, rhs, cotangent):
        _, pull_back = jax.vjp(lambda rhs: jax.vmap(lambda lhs: dot_general(lhs, rhs, DENSE))(lhs), rhs)
        return pull_back(cotangent)[0]

    expected = sum(oracle(lhs[i], rhs, cotangent[i], DENSE, **quantizers)[2] for i in range(3))
    assert_identical(gradient(lhs, rhs, cotangent), expected)


@pytest.mark.parametrize('policy', [None, 'dots_saveable', 'nothing_saveable'])
def test_scanned_and_rematerialised_layers(policy):
    """Three layers, forward and all gradients, against float64 matrices layer by layer."""
    quantizers = power_of_two_quantizers()
    dot_general = gq.quantized_dot_general(**quantizers)
    x, kernels, cotangent = small_numbers((2, 12, 32)), small_numbers((3, 32, 32), 1), small_numbers((2, 12, 32), 2)

    def layer(x, kernel):
        return dot_general(x, kernel, LEADING) / 8, None

    if policy is not None:
        layer = jax.checkpoint(layer, policy=getattr(jax.checkpoint_policies, policy))

    @jax.jit
    def stack(x, kernels, cotangent):
        y, pull_back = jax.vjp(lambda x, kernels: jax.lax.scan(layer, x, kernels)[0], x, kernels)
        return y, *pull_back(cotangent)

    inputs = [x]
    for kernel in kernels:
        y, _, _ = oracle(inputs[-1], kernel, cotangent, LEADING, **quantizers)
        inputs.append(y / 8)
    dx, dkernels = cotangent, []
    for layer_input, kernel in reversed(list(zip(inputs[:-1], kernels))):
        _, dx, dkernel = oracle(layer_input, kernel, dx / 8, LEADING, **quantizers)
        dkernels.append(dkernel)
    assert_all_identical(stack(x, kernels, cotangent), (inputs[-1], dx, dkernels[::-1]))


# --- meshes ---------------------------------------------------------------------------------------

LAYOUTS = {
    'data parallel': (P(('data', 'tensor')), P(), P(('data', 'tensor'))),
    'columns of the weight': (P('data'), P(None, 'tensor'), P('data', None, 'tensor')),
    'rows of the weight': (P('data', None, 'tensor'), P('tensor'), P('data')),
    'fully sharded weight': (P(('data', 'tensor')), P('data', 'tensor'), P(('data', 'tensor'))),
    'sequence parallel': (P(None, 'data'), P(None, 'tensor'), P(None, 'data', 'tensor')),
    'sequence and rows': (P(None, 'data', 'tensor'), P('tensor', 'data'), P('data', None, 'tensor')),
}


def batch_of_rows(width=36):
    return small_numbers((8, 12, 40)), small_numbers((40, width), 1), small_numbers((8, 12, width), 2)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_mesh_changes_no_bit(layout):
    """Blocks lie in the whole array, also where a shard ends inside a block."""
    quantizers = power_of_two_quantizers()
    arrays = batch_of_rows()
    mesh = jax.sharding.Mesh(np.reshape(jax.devices()[:8], (4, 2)), ('data', 'tensor'))
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, LAYOUTS[layout])]
    dot_general = gq.quantized_dot_general(**quantizers)
    got = jax.jit(functools.partial(with_gradients, dot_general, dimension_numbers=LEADING))(*placed)
    assert len(got[0].sharding.device_set) == 8
    assert_all_identical(got, oracle(*arrays, LEADING, **quantizers))


@pytest.mark.parametrize(
    'layout', ['data parallel', 'columns of the weight', 'rows of the weight', 'sequence parallel']
)
@pytest.mark.parametrize('targets', [(), TARGETS])
def test_a_mesh_of_explicit_axes(layout, targets):
    """Shardings are part of the types; where the sum runs over a sharded axis, out_sharding says how Y lies."""
    quantizers = {target: power_of_two_quantizers()[target] for target in targets}
    arrays = batch_of_rows()
    mesh = jax.make_mesh((4, 2), ('data', 'tensor'), axis_types=(AxisType.Explicit, AxisType.Explicit))
    lhs_spec, rhs_spec, out_spec = LAYOUTS[layout]
    dot_general = gq.quantized_dot_general(**quantizers)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, LAYOUTS[layout])]
        gradients = functools.partial(
            with_gradients, dot_general, dimension_numbers=LEADING, out_sharding=NamedSharding(mesh, out_spec)
        )
        y, dlhs, drhs = jax.jit(gradients)(*placed)
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, out_spec), 3)
    assert dlhs.sharding.is_equivalent_to(NamedSharding(mesh, lhs_spec), 3)
    assert drhs.sharding.is_equivalent_to(NamedSharding(mesh, rhs_spec), 2)
    assert_all_identical((y, dlhs, drhs), oracle(*arrays, LEADING, **quantizers))


@pytest.mark.parametrize('settings', [{'weight_gradient_dtype': jnp.float32}, {'P2': gq.Quantizer('e2m1', scale='mx')}])
def test_inside_shard_map_the_gradient_of_shared_weights_is_summed(settings):
    """Rows are split over devices; each has its part of dW, as JAX's own matmul does it."""
    x, w = jnp.asarray(small_numbers((16, 32))), jnp.asarray(small_numbers((32, 8), 1))
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))

    def gradient(dot_general):
        def of_shard(x, w):
            return jax.grad(lambda w: jnp.sum(dot_general(x, w, DENSE) ** 2))(w)

        return jax.jit(jax.shard_map(of_shard, mesh=mesh, in_specs=(P('data'), P()), out_specs=P()))(x, w)

    dot_general = gq.quantized_dot_general(**settings)
    expected = jax.grad(lambda w: jnp.sum(dot_general(x, w, DENSE) ** 2))(w)
    assert_identical(gradient(dot_general), expected)
    if 'P2' not in settings:
        assert_identical(gradient(jax.lax.dot_general), expected)
