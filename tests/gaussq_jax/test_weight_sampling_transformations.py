"""sample_weights in slices, in JAX's transformations and inside fusions; its residuals, its compilations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_weight_sampling as oracle
import pytest
from numpy_weight_sampling import assert_identical, random_bitwidths, random_weights

import gaussq_jax as gq

KEY = jax.random.key(2024)
sample_weights = jax.jit(gq.sample_weights, static_argnames=('noise', 'dtype'))


@pytest.mark.parametrize('noise', ['rounded_normal', 'uniform'])
def test_a_slice_with_its_origin_equals_that_part_of_the_whole(noise):
    """The origin is traced: one compilation serves every slice of a shape."""
    w, bitwidths = random_weights((3, 128, 150)), random_bitwidths((3, 128, 150))
    whole = sample_weights(KEY, w, bitwidths, noise=noise)
    sample = jax.jit(lambda w, b, origin: gq.sample_weights(KEY, w, b, origin=origin, noise=noise))
    for leading, row, column in [(0, 0, 0), (0, 32, 64), (1, 64, 64), (2, 96, 32)]:
        index = np.s_[leading, row : row + 32, column : column + 64]
        block_index = np.s_[leading, row // 32 : row // 32 + 1, column // 32 : column // 32 + 2]
        assert_identical(sample(w[index], bitwidths[block_index], (leading, row, column)), whole[index])
    assert sample._cache_size() == 1
    assert_identical(sample_weights(KEY, w[1:], bitwidths[1:], origin=(1, 0, 0), noise=noise), whole[1:])


def test_leading_axes_count_in_row_major_order():
    w, bitwidths = random_weights((2, 3, 40, 40)), random_bitwidths((2, 3, 40, 40))
    folded = sample_weights(KEY, w.reshape(6, 40, 40), bitwidths.reshape(6, 2, 2))
    assert_identical(sample_weights(KEY, w, bitwidths), folded.reshape(w.shape))


def test_vmap_over_keys_gives_each_matrix_its_own_noise():
    keys = jax.random.split(KEY, 3)
    w, bitwidths = random_weights((3, 40, 50)), random_bitwidths((3, 40, 50))
    sampled = jax.jit(jax.vmap(gq.sample_weights))(keys, w, bitwidths)
    for i in range(3):
        assert_identical(sampled[i], sample_weights(keys[i], w[i], bitwidths[i]))
    noise = jax.jit(jax.vmap(lambda key: gq.rounded_normal(key, (40, 50))))(keys)
    np.testing.assert_array_equal(noise[2], oracle.rounded_normal(jax.random.key_data(keys[2]), (40, 50)))


def weighted_sum(key, w, bitwidths, origin=(0, 0, 0)):
    w_hat = gq.sample_weights(key, w, bitwidths, origin=origin).astype(jnp.float32)
    return jnp.sum(w_hat * jnp.cos(jnp.arange(w.size, dtype=jnp.float32)).reshape(w.shape))


gradients = jax.jit(jax.grad(weighted_sum, argnums=(1, 2)))


def test_vmap_and_scan_over_origin_give_each_matrix_its_place_in_one_leaf():
    """W_hat and both gradients, as one call on the whole leaf gives them."""
    w, bitwidths = random_weights((3, 40, 50)), random_bitwidths((3, 40, 50))
    whole = sample_weights(KEY, w, bitwidths)

    def one(w, b, i):
        return gq.sample_weights(KEY, w, b, origin=(i, 0, 0))

    layers = jnp.arange(3)
    assert_identical(jax.jit(jax.vmap(one))(w, bitwidths, layers), whole)
    _, scanned = jax.lax.scan(lambda _, layer: (None, one(*layer)), None, (w, bitwidths, layers))
    assert_identical(scanned, whole)
    dw, db = jax.vmap(gradients, (None, 0, 0, 0))(KEY, w, bitwidths, (layers, 0 * layers, 0 * layers))
    for i in range(3):
        dw_i, db_i = gradients(KEY, w[i], bitwidths[i], (i, 0, 0))
        assert_identical(dw[i], dw_i)
        assert_identical(db[i], db_i)


def test_checkpoint_and_scanned_keys_change_no_bit_of_the_gradients():
    w, bitwidths = random_weights((64, 70)), random_bitwidths((64, 70))
    plain = gradients(KEY, w, bitwidths)
    rematerialised = jax.jit(jax.grad(jax.checkpoint(weighted_sum), argnums=(1, 2)))
    jax.tree.map(assert_identical, rematerialised(KEY, w, bitwidths), plain)
    _, scanned = jax.lax.scan(lambda _, key: (None, gradients(key, w, bitwidths)), None, KEY[None])
    jax.tree.map(assert_identical, scanned, jax.tree.map(lambda x: x[None], plain))


def test_one_gradient_asked_alone_equals_that_of_both():
    w, bitwidths = random_weights((40, 40)), random_bitwidths((40, 40))
    both = gradients(KEY, w, bitwidths)
    assert_identical(jax.jit(jax.grad(weighted_sum, argnums=1))(KEY, w, bitwidths), both[0])
    assert_identical(jax.jit(jax.grad(weighted_sum, argnums=2))(KEY, w, bitwidths), both[1])


# --- memory, rounding inside a fusion, compilation ------------------------------------------------


def residual_elements(function, *arguments):
    """Numbers that live from the forward to the backward pass: the leaves that the pull-back holds."""
    residuals = jax.eval_shape(lambda *arguments: jax.tree.leaves(jax.vjp(function, *arguments)[1]), *arguments)
    return sum(residual.size for residual in residuals)


@pytest.mark.parametrize('noise', ['rounded_normal', 'uniform'])
@pytest.mark.parametrize('wrap', [lambda function: function, jax.jit])
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_the_backward_pass_keeps_at_most_one_number_per_block(noise, wrap, dtype):
    w, bitwidths = random_weights((256, 320)), random_bitwidths((256, 320))

    @wrap
    def sample(w, bitwidths):
        return gq.sample_weights(KEY, w, bitwidths, noise=noise, dtype=dtype)

    key_and_origin = 2 + 3
    assert residual_elements(sample, w, bitwidths) <= bitwidths.size + key_and_origin


def test_the_count_of_residuals_sees_stored_noise():
    """The check above can fail: the same sum differentiated by JAX keeps R, one number a weight."""
    w, bitwidths = random_weights((256, 320)), random_bitwidths((256, 320))

    def sample(w, bitwidths):
        step = jnp.exp2(1.0 - bitwidths).repeat(32, 0).repeat(32, 1)
        return (w + gq.rounded_normal(KEY, w.shape).astype(jnp.float32) * step).astype(jnp.bfloat16)

    assert residual_elements(sample, w, bitwidths) >= w.size


def matmul(w_hat):
    """As a layer uses W_hat; each output is one product with a power of two, hence exact."""
    reversed_rows = jnp.eye(w_hat.shape[-2], dtype=jnp.float32)[::-1] * 4.0
    return jnp.matmul(reversed_rows, w_hat.astype(jnp.float32), precision='highest')


def reduction(w_hat):
    """Where XLA:CPU does elide the rounding, if nothing keeps it; exact in any order."""
    return jnp.max(2.0 * w_hat.astype(jnp.float32), axis=0)


def check_that_consumer_sees(w_hat, consume, sample, w, bitwidths):
    """In one layer, in a rematerialised scan over layers, and in the forward pass that its gradient repeats."""

    def stack(scale):
        @jax.checkpoint
        def layer(carry, inputs):
            w, bitwidths, index = inputs
            return carry, scale * consume(sample(w, bitwidths, (index, 0, 0)))

        return jax.lax.scan(layer, None, (w, bitwidths, jnp.arange(w.shape[0])))[1]

    expected = jax.vmap(consume)(w_hat)
    scale, last = jnp.ones_like(expected[0]), (w.shape[0] - 1, 0, 0)
    assert_identical(jax.jit(lambda w, b: consume(sample(w, b, last)))(w[-1], bitwidths[-1]), expected[-1])
    assert_identical(jax.jit(stack)(scale), expected)
    assert_identical(jax.jit(jax.grad(lambda scale: jnp.sum(stack(scale)[-1])))(scale), expected[-1])


@pytest.mark.optimized
@pytest.mark.parametrize(
    ('consume', 'noise'),
    [
        (matmul, 'rounded_normal'),
        (reduction, 'uniform'),
        pytest.param(matmul, 'uniform', marks=pytest.mark.slow),
        pytest.param(reduction, 'rounded_normal', marks=pytest.mark.slow),
    ],
)
def test_a_consumer_in_the_same_program_sees_rounded_weights(consume, noise):
    """XLA may drop a float32 -> bfloat16 -> float32 pair inside a fusion."""
    w, bitwidths = random_weights((3, 64, 96)), random_bitwidths((3, 64, 96))
    w_hat = oracle.sample_weights(jax.random.key_data(KEY), w, bitwidths, noise=noise).astype(np.float32)

    def sample(w, bitwidths, origin, dtype=jnp.bfloat16):
        return gq.sample_weights(KEY, w, bitwidths, origin=origin, noise=noise, dtype=dtype)

    check_that_consumer_sees(w_hat, consume, sample, w, bitwidths)
    unrounded = functools.partial(sample, dtype=jnp.float32)
    with pytest.raises(AssertionError):  # what an elided rounding would give
        check_that_consumer_sees(w_hat, consume, unrounded, w, bitwidths)


def test_one_compilation_serves_every_key_bitwidth_and_origin():
    traces = []

    @jax.jit
    def step(key, w, bitwidths, origin):
        traces.append(None)
        return jax.grad(weighted_sum, argnums=(1, 2))(key, w, bitwidths, origin)

    for i in range(4):
        w, bitwidths = random_weights((40, 50), seed=i), random_bitwidths((40, 50), seed=i)
        step(jax.random.fold_in(KEY, i), w, bitwidths, (i, 32 * i, 64 * i))
    assert len(traces) == 1
