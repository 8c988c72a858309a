"""Recipes on meshes of eight devices: the scales, signs and random bits of one device, wherever axes are cut.

Sums are not exact, and differ by far less than one value that is rounded otherwise would make. Where a mesh cuts
through the values that are transformed together, as 128 tokens on eight devices, XLA sums their parts: the last bit of
a transformed value may differ, and one in many thousands that lies at a tie is rounded otherwise.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy_quantized_dot_general import with_gradients

import gaussq_jax as gq
from gaussq_jax.recipes import RECIPES

KEY = jax.random.key(4)
DENSE = (((2,), (0,)), ((), ()))
LAYOUTS = {
    'data': (P(('a', 'b', 'c')), P(), P(('a', 'b', 'c'))),
    'data, sequence and weights': (P('a', 'b'), P('b', 'c'), P('a', 'b', 'c')),
}


@functools.cache
def alone(name):
    recipe = RECIPES[name]
    generator = np.random.default_rng(3)
    arrays = [
        jnp.asarray(generator.standard_normal(shape), jnp.float32) for shape in [(8, 16, 64), (64, 128), (8, 16, 128)]
    ]
    key = {'key': KEY} if recipe.needs_key else {}
    dot_general = gq.quantized_dot_general(**recipe.operands, backward_from=recipe.backward_from)
    function = functools.partial(with_gradients, dot_general, dimension_numbers=DENSE, **key)
    return arrays, function, jax.jit(function)(*arrays)


CASES = [(name, layout, AxisType.Auto) for name in ('nvfp4', 'quartet2') for layout in LAYOUTS]


@pytest.mark.parametrize(('name', 'layout', 'axis_type'), [*CASES, ('quartet', 'data', AxisType.Explicit)])
def test_a_mesh_rounds_as_one_device_does(name, layout, axis_type):
    """One value of quartet2's may differ, which is in one column of dW: 64 of 8,192."""
    arrays, function, expected = alone(name)
    mesh = jax.make_mesh((2, 2, 2), ('a', 'b', 'c'), axis_types=(axis_type,) * 3)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, LAYOUTS[layout])]
        got = jax.jit(function)(*placed)
    for one, other in zip(got, expected, strict=True):
        other = np.asarray(other)
        is_close = np.isclose(one, other, rtol=4e-6, atol=4e-6 * np.sqrt(np.mean(np.square(other))))
        assert np.sum(~is_close) <= (64 if name == 'quartet2' else 0)
        np.testing.assert_allclose(one, other, atol=0.02 * np.max(np.abs(other)))
