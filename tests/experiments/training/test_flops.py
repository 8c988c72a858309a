"""Matrix products are counted as often as they happen, and a training step's agree with the closed form."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec
from small_experiments import VOCABULARY, make_experiment, small_config

from experiments.cost import step_costs
from experiments.training import flops
from experiments.training.flops import matmul_flops

X, W = jnp.zeros((4, 8)), jnp.zeros((8, 8))
ONCE = 2 * 4 * 8 * 8


def scanned(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]


@jax.custom_vjp
def product(x, w):
    return x @ w


product.defvjp(lambda x, w: (x @ w, (x, w)), lambda xw, d: (d @ xw[1].T, xw[0].T @ d))


@pytest.mark.parametrize(
    'function, count',
    [
        (jnp.matmul, 1),
        (jax.jit(jnp.matmul), 1),
        (jax.checkpoint(jnp.matmul), 1),
        (product, 1),
        (scanned, 5),
        (lambda x, w: jax.lax.scan(lambda x, _: (scanned(x, w) @ w, None), x, length=3)[0], 3 * (5 + 1)),
        (lambda x, w: jax.lax.cond(x[0, 0] > 0, scanned, jnp.matmul, x, w), 5),
        (lambda x, w: jax.vmap(jnp.matmul, (0, None))(jnp.stack([x, x]), w), 2),
        (jax.grad(lambda x, w: jnp.sum(product(x, w) ** 2), (0, 1)), 3),
        (jax.grad(lambda x, w: jnp.sum((x @ w) ** 2), (0, 1)), 3),
        (jax.grad(lambda x, w: jnp.sum(jnp.sin(scanned(x, w)))), 5 + 5),  # dW isn't asked for
        (lambda x, w: (x @ w, x)[1], 0),  # nothing uses it
        (lambda x, w: x * 2, 0),
    ],
)
def test_products_are_counted_as_often_as_they_happen(function, count):
    assert matmul_flops(function, X, W) == count * ONCE


def test_contracted_and_batch_axes_are_told_apart():
    x, y = jax.ShapeDtypeStruct((3, 5, 7, 2), 'bfloat16'), jax.ShapeDtypeStruct((5, 2, 11, 3), 'bfloat16')
    assert matmul_flops(functools.partial(jnp.einsum, 'abcd,bdea->abce'), x, y) == 2 * 3 * 5 * 7 * 2 * 11


def test_under_shard_map_all_devices_count():
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    x, w = jnp.zeros((32, 8)), jnp.zeros((8, 8))
    rows, whole = PartitionSpec('data'), PartitionSpec()
    mapped = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    assert matmul_flops(mapped, x, w) == 2 * 32 * 8 * 8


def test_what_cannot_be_counted_is_an_error():
    with pytest.raises(ValueError, match='while'):
        matmul_flops(lambda x, w: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w, x), X, W)
    with pytest.raises(ValueError, match='conv_general_dilated'):
        matmul_flops(lambda x: jax.lax.conv(x, x, (1, 1), 'SAME'), jnp.zeros((1, 1, 4, 4)))
    assert matmul_flops(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x + 1, x), X) == 0


@pytest.mark.parametrize(
    'method, remat_policy, microbatches',
    [('bf16', '', 1), ('gaussws', '', 2), ('fqt', '', 1), ('gaussws', 'full', 1), ('fqt', 'full', 2)],
)
def test_a_training_step_takes_what_the_closed_form_says(method, remat_policy, microbatches):
    """6 N D + 12 L h T D; with rematerialisation the layers' forward pass again, without what only makes the output."""
    config = small_config(f'smoke,method={method}', remat_policy=remat_policy, microbatches=microbatches)
    experiment = make_experiment(config)
    layers, hidden, mlp, length = config.model.num_layers, 80, 144, config.sequence_length
    tokens = config.batch_size * length
    in_layers = layers * (4 * hidden**2 + 3 * hidden * mlp)
    attention = 4 * layers * hidden * length * tokens
    closed_form = 6 * (in_layers + hidden * VOCABULARY) * tokens + 3 * attention
    assert flops.model_flops(experiment) == closed_form
    again = 2 * (in_layers - layers * hidden * mlp) * tokens + attention if remat_policy else 0
    assert flops.of_jaxpr(step_costs.trace(experiment).jaxpr.jaxpr) == closed_form + again
