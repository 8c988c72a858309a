"""No NaN and no infinity of quantized_dot_general's making: zeros, denormals, constants, numbers near the largest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_quantized_dot_general import CONTRACTIONS, TARGETS, assert_all_identical, with_gradients

import gaussq_jax as gq

DENSE = CONTRACTIONS['dense'][-1]
QUANTIZERS = {
    'absmax e4m3': gq.Quantizer('e4m3', block_size=16),
    'absmax e2m1, channel': gq.Quantizer('e2m1', block_size='channel'),
    'absmax e5m2, tensor': gq.Quantizer('e5m2', block_size='tensor'),
    'absmax e1m1, tiles': gq.Quantizer('e1m1', block_size=(8, 8)),
    'mx e4m3': gq.Quantizer('float8_e4m3fn', scale='mx'),
    'mx e2m1': gq.Quantizer('float4_e2m1fn', scale='mx'),
    'nvfp4': gq.Quantizer('e2m1', block_size=16, scale='nvfp4'),
}
VALUES = {
    'zero': lambda x: 0 * x,
    'denormal': lambda x: 1e-40 * x,
    'smallest normal': lambda x: 1.2e-38 * np.sign(x),
    'constant': lambda x: 0 * x + 2.0**-10,
    'huge': lambda x: 3e38 * np.sign(x),
    'largest and smallest': lambda x: np.where(x > 0, 3.4028234e38, 1e-40),
}
SHAPES = (6, 20), (20, 9), (6, 9)


@pytest.fixture(scope='module')
def gradients():
    """One compiled program per quantizer."""

    def compiled(quantizer):
        dot_general = gq.quantized_dot_general(**dict.fromkeys(TARGETS, quantizer))
        return jax.jit(lambda *arrays: with_gradients(dot_general, *arrays, DENSE))

    return {name: compiled(quantizer) for name, quantizer in QUANTIZERS.items()}


@pytest.mark.parametrize('which', ['lhs', 'rhs', 'cotangent'])
@pytest.mark.parametrize('values', VALUES)
@pytest.mark.parametrize('quantizer', QUANTIZERS)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_finite_where_the_products_are(gradients, dtype, quantizer, values, which):
    """The other two arrays are 2^-10, so that no exact sum of products leaves float32."""
    signs = np.where(np.random.default_rng(0).random((20, 20)) < 0.5, -1.0, 1.0)
    arrays = []
    for name, shape in zip(['lhs', 'rhs', 'cotangent'], SHAPES):
        x = VALUES[values if name == which else 'constant'](signs[: shape[0], : shape[1]])
        arrays.append(jnp.asarray(np.clip(x, -3.3895e38, 3.3895e38) if dtype == jnp.bfloat16 else x, dtype))
    results = gradients[quantizer](*arrays)
    exact = with_gradients(jax.lax.dot_general, *(np.asarray(x, np.float32) for x in arrays), DENSE)
    for result, true in zip(results, exact, strict=True):
        assert np.isfinite(true).all()
        assert np.isfinite(np.asarray(result, np.float32)).all()
        if values == 'zero' and not np.any(true):
            assert_all_identical([result], [np.zeros_like(true)])


@pytest.mark.parametrize('quantizer', QUANTIZERS)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_all_zero_arrays_give_zeros(gradients, dtype, quantizer):
    results = gradients[quantizer](*(jnp.zeros(shape, dtype) for shape in SHAPES))
    assert_all_identical(results, [np.zeros(shape) for shape in (SHAPES[2], SHAPES[0], SHAPES[1])])


def test_empty_arrays():
    """A step without tokens: empty outputs, and a gradient of zeros for the weight."""
    dot_general = gq.quantized_dot_general(**dict.fromkeys(TARGETS, gq.Quantizer('e4m3')))
    compiled = jax.jit(lambda *arrays: with_gradients(dot_general, *arrays, DENSE))
    y, dlhs, drhs = compiled(jnp.ones((0, 20)), jnp.ones((20, 9)), jnp.ones((0, 9)))
    assert y.shape == (0, 9) and dlhs.shape == (0, 20)
    np.testing.assert_array_equal(drhs, np.zeros((20, 9)))
