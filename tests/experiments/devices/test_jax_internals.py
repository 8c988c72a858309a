"""What is used of JAX's inside does what it is for, and nothing else of the programs uses any."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

import experiments
from experiments.devices import jax_internals

INTERNAL = r'jax\._src|jax\.interpreters|jax\.lib\b|^(from|import) jaxlib'
COMPARES_VERSIONS = r'__version_info__|__version__ *[<>=!]=?|[<>=!]=? *jax\.__version__|packaging'


@pytest.mark.parametrize('pattern', [INTERNAL, COMPARES_VERSIONS])
def test_it_is_the_only_module_that_knows_jaxs_inside(pattern):
    folder = pathlib.Path(experiments.__file__).parent
    found = {path for path in folder.rglob('*.py') if re.search(pattern, path.read_text(), re.MULTILINE)}
    assert found <= {pathlib.Path(jax_internals.__file__)}


def test_what_no_result_needs_is_left_out():
    jaxpr = jax.make_jaxpr(lambda x: (jnp.sin(x), jnp.cos(x))[0])(1.0).jaxpr
    assert [equation.primitive.name for equation in jaxpr.eqns] == ['sin', 'cos']
    assert [equation.primitive.name for equation in jax_internals.without_unused(jaxpr).eqns] == ['sin']


def test_programs_of_pallas_kernels_are_found_inside_of_what_is_called():
    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...]

    call = lambda x: pl.pallas_call(kernel, out_shape=x, grid=(2, 3), name='copies')(x)
    jaxpr = jax.make_jaxpr(jax.jit(lambda x: call(x) + 1))(jnp.zeros((8, 128))).jaxpr
    assert list(jax_internals.pallas_programs(jaxpr)) == [('copies', 6)]
