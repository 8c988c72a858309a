"""Recipes beside qwix: where its numerics are ours, the three products are; where they aren't, by how much."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaussq_jax import recipes

pytest.importorskip('qwix', reason='compares with qwix, which is not installed')
pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of flax, which qwix uses

DENSE = (((2,), (0,)), ((), ()))
TENSOR = {
    f'{of}_disable_channelwise_axes': True
    for of in ('lhs', 'rhs', 'dlhs_grad', 'drhs_grad', 'dlhs_residual', 'drhs_residual')
}
SAME = {  # what qwix calls them; its mxfp8 rounds scales up, as ours does
    'fp8_rowwise': {},
    'fp8_tensorwise': TENSOR,
    'mxfp8': dict.fromkeys(('tile_size', 'dlhs_tile_size', 'drhs_tile_size'), 32),
}


def settings(name):
    forward, gradients = ('mxfp8', 'mxfp8') if name == 'mxfp8' else (jnp.float8_e4m3fn, jnp.float8_e5m2)
    return dict(
        dict.fromkeys(('lhs_qtype', 'rhs_qtype', 'dlhs_residual_qtype', 'drhs_residual_qtype'), forward),
        **dict.fromkeys(('dlhs_grad_qtype', 'drhs_grad_qtype'), gradients),
        use_original_residuals=True,
        **SAME[name],
    )


def products(dot_general):
    """Y, dX and dW."""
    generator = np.random.default_rng(0)
    x, w, dy = (jnp.asarray(generator.standard_normal(s), jnp.float32) for s in [(2, 32, 64), (64, 96), (2, 32, 96)])
    y, pull_back = jax.vjp(dot_general, x, w)
    return [np.asarray(array, np.float64) for array in (y, *pull_back(dy))]


def of_qwix(**options):
    from qwix._src.core import dot_general_qt

    config = dot_general_qt.DotGeneralQtConfig(**options)
    return products(lambda x, w: dot_general_qt.dot_general_qt(x, w, DENSE, config))


def errors(ours, others):
    return [np.linalg.norm(one - other) / np.linalg.norm(other) for one, other in zip(ours, others, strict=True)]


@pytest.mark.parametrize('name', SAME)
def test_the_three_products_are_those_of_qwix(name):
    """But for rounding in float32: qwix divides by a scale that it has rounded, and scales the sums."""
    ours = products(lambda x, w: recipes.find(name).dot_general()(x, w, DENSE))
    assert max(errors(ours, of_qwix(**settings(name)))) < 1e-6
    plain = products(lambda x, w: jax.lax.dot_general(x, w, DENSE))
    assert min(errors(ours, plain)) > 0.02


def test_what_qwix_does_by_default_is_another_recipe():
    """It multiplies gradients by the forward pass's scales and residuals: Y is the same, dX and dW aren't."""
    ours = products(lambda x, w: recipes.FP8_ROWWISE.dot_general()(x, w, DENSE))
    forward, *backward = errors(ours, of_qwix(**settings('fp8_rowwise') | {'use_original_residuals': False}))
    assert forward < 1e-6 and min(backward) > 0.01
