"""quantization_aware: every weight matrix fake-quantized by itself, along its rows, and nothing learned."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import parameter_trees
import pytest
from flax import nnx
from numpy_weight_sampling import assert_identical, random_weights
from parameter_trees import assert_identical_trees, flatten, nest

import gaussq_jax as gq

KEY = jax.random.key(3)
RULES = (
    gq.MatrixRule('layers/experts/kernel', batch_axes=(0, 2), row_axes=(1,), col_axes=(3,)),
    gq.MatrixRule('linear/weight', batch_axes=(), row_axes=(1,), col_axes=(0,)),  # (out, in)
    *parameter_trees.RULES,
)
# Path -> shape, and the stack of matrices (count, rows, columns) and back.
MATRICES = {
    'up/kernel': ((40, 50), lambda w: w[None], lambda w: w[0]),
    'linear/weight': ((50, 40), lambda w: w.T[None], lambda w: w[0].T),
    'layers/mlp/kernel': ((3, 40, 50), lambda w: w, lambda w: w),
    'layers/attention/query/kernel': (
        *((3, 40, 2, 35), lambda w: w.reshape(3, 40, 70), lambda w: w.reshape(3, 40, 2, 35)),
    ),
    'layers/attention/out/kernel': (
        *((3, 2, 35, 40), lambda w: w.reshape(3, 70, 40), lambda w: w.reshape(3, 2, 35, 40)),
    ),
    'layers/experts/kernel': (
        (3, 40, 2, 50),
        lambda w: w.transpose(0, 2, 1, 3).reshape(6, 40, 50),
        lambda w: w.reshape(3, 2, 40, 50).transpose(0, 2, 1, 3),
    ),
}


@functools.cache
def make_params(*paths):
    """The leaves at `paths`, or all of them."""
    shapes = {path: shape for path, (shape, *_) in MATRICES.items()} | {
        'embed/embedding': (20, 40),
        'layers/norm/scale': (3, 40),
    }
    leaves = {path: jnp.asarray(random_weights(shape, seed)) for seed, (path, shape) in enumerate(shapes.items())}
    return nest({path: leaves[path] for path in paths or leaves})


def make(*arguments, dtype=jnp.bfloat16, **options):
    return gq.quantization_aware(gq.Quantizer(*arguments, **options), rules=RULES, dtype=dtype)


@pytest.mark.parametrize(
    ('fmt', 'block_size', 'scale', 'rounding'),
    [
        ('e2m1', 32, 'absmax', 'nearest_even'),
        ('e4m3', 'channel', 'absmax', 'nearest_away'),
        ('e3m2', 'tensor', 'absmax', 'toward_zero'),
        ('e2m3', (16, 8), 'absmax', 'nearest_even'),
        ('float8_e5m2', 32, 'mx', 'nearest_even'),
        ('e2m1', 16, 'nvfp4', 'nearest_even'),
    ],
)
def test_each_matrix_equals_the_oracle_along_its_rows(fmt, block_size, scale, rounding):
    """One by one in float64, then to bfloat16: a scale of 'tensor', or NVFP4's second one, is each matrix's own."""
    transform = make(fmt, block_size=block_size, scale=scale, rounding=rounding)
    params = make_params()
    assert transform.init(params) == {}
    applied = flatten(jax.jit(transform.apply)(KEY, params, {}))
    parsed = gq.parse_format(fmt)
    numbers = parsed.exponent_bits, parsed.mantissa_bits, parsed.special_values
    settings = dict(block_size=block_size, scale=scale, rounding=rounding, axis=-2)
    for path, (_, to_matrices, _) in MATRICES.items():
        assert applied[path].dtype == jnp.bfloat16
        matrices, got = (to_matrices(np.asarray(leaf)) for leaf in (flatten(params)[path], applied[path]))
        for matrix, quantized in zip(matrices, got):
            expected, unsure = oracle.fake_quantize(matrix, numbers, **settings)
            assert np.mean(unsure) < 0.02
            np.testing.assert_allclose(quantized[~unsure].astype(np.float64), expected[~unsure], rtol=2**-8 * 1.001)
            # The float32 computation is off by a few ulp at most, which seldom changes the rounding to bfloat16.
            rounded = expected.astype(np.float32).astype(ml_dtypes.bfloat16)
            assert np.mean(quantized[~unsure] == rounded[~unsure]) > 0.999
    for path in ('embed/embedding', 'layers/norm/scale'):
        assert_identical(applied[path], flatten(params)[path].astype(jnp.bfloat16))


@pytest.mark.parametrize('rounding', ['nearest_even', 'stochastic'])
def test_gradients_go_straight_through(rounding):
    params = make_params()
    transform = make('e2m1', rounding=rounding)
    cotangent = jax.tree.map(lambda leaf: jnp.asarray(random_weights(leaf.shape, 5), jnp.bfloat16), params)
    (got,) = jax.jit(lambda params: jax.vjp(lambda p: transform.apply(KEY, p, {}), params)[1](cotangent))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
    assert_identical_trees(got, cotangent)


# --- stochastic rounding ------------------------------------------------------------------------------


@functools.cache
def stochastic(block_size='channel'):
    """The transform, and the same rounding to nearest, both in float32 and compiled."""
    settings = dict(block_size=block_size, dtype=jnp.float32)
    transforms = (make('e2m1', rounding=rounding, **settings) for rounding in ('stochastic', 'nearest_even'))
    return tuple(transform._replace(apply=jax.jit(transform.apply, static_argnames='path')) for transform in transforms)


def test_without_a_key_it_rounds_to_nearest():
    random, nearest = stochastic()
    params = make_params()
    expected = nearest.apply(None, params, {})
    assert_identical_trees(random.apply(None, params, {}), expected)
    assert_identical_trees(nearest.apply(KEY, params, {}), expected)


def test_one_key_gives_one_result_and_values_next_to_the_weight():
    """Every value is the number below or above; another key chooses others, and different matrices differ."""
    random, _ = stochastic()
    params = make_params()
    first, again, other = (flatten(random.apply(key, params, {})) for key in (KEY, KEY, jax.random.key(4)))
    for path, w in flatten(params).items():
        assert_identical(first[path], again[path])
        if path not in MATRICES:
            assert_identical(first[path], w)
            continue
        assert 0.05 < np.mean(np.asarray(first[path] != other[path])) < 0.9
        to_matrices = MATRICES[path][1]
        matrices = (to_matrices(np.asarray(leaf, np.float64)) for leaf in (w, first[path]))
        for matrix, got in zip(*matrices):
            scale = 6 / np.abs(matrix).max(axis=0)
            values = oracle.code_values(2, 1, 'finite')[0]
            below = values[np.searchsorted(values, np.abs(matrix * scale) * (1 - 1e-6), side='right') - 1]
            above = values[np.clip(np.searchsorted(values, np.abs(matrix * scale) * (1 + 1e-6)), 0, 7)]
            is_below, is_above = (np.isclose(np.abs(got * scale), number, atol=1e-5) for number in (below, above))
            assert (is_below | is_above).all()
            assert 0.2 < np.mean(is_above[below != above]) < 0.8


def test_equal_matrices_draw_different_bits():
    """In one leaf, along every batch axis, and in leaves of different paths."""
    matrix = random_weights((40, 50))
    layers = jnp.asarray(np.broadcast_to(matrix[:, None], (3, 40, 2, 50)))
    params = {'layers': {'experts': {'kernel': layers}}, 'up': {'kernel': matrix}, 'down': {'kernel': matrix}}
    params['linear'] = {'weight': matrix.T}
    applied = stochastic()[0].apply(KEY, params, {})
    experts = np.asarray(applied['layers']['experts']['kernel']).transpose(0, 2, 1, 3).reshape(6, 40, 50)
    results = [*experts, applied['up']['kernel'], applied['down']['kernel'], applied['linear']['weight'].T]
    for i, one in enumerate(results):
        for other in results[:i]:
            assert 0.1 < np.mean(np.asarray(one != other)) < 0.9


def test_a_layer_alone_is_that_layer_of_the_whole():
    """Under a scan, the layer index traced; stochastic, so that the place in the leaf matters."""
    random, _ = stochastic('tensor')
    params = make_params('layers/experts/kernel', 'layers/mlp/kernel', 'layers/norm/scale')
    whole = random.apply(KEY, params, {})['layers']

    def layer(carry, inputs):
        index, part = inputs
        return carry, random.apply(KEY, part, {}, path=('layers',), layer=index)

    scanned = jax.jit(lambda layers: jax.lax.scan(layer, None, (jnp.arange(3), layers))[1])(params['layers'])
    assert_identical_trees(scanned, whole)


def test_a_mesh_changes_no_bit():
    params = make_params('up/kernel', 'layers/mlp/kernel', 'linear/weight')
    random, _ = stochastic()
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()).reshape(2, 4), ('fsdp', 'tensor'))
    axes = {'up/kernel': ('tensor', 'fsdp'), 'layers/mlp/kernel': (None, 'fsdp'), 'linear/weight': ('fsdp',)}
    sharding = lambda path: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes[path]))
    place = lambda path, leaf: jax.device_put(leaf, sharding(path))
    sharded = nest({path: place(path, leaf) for path, leaf in flatten(params).items()})
    got = jax.tree.map(np.asarray, random.apply(KEY, sharded, {}))
    assert_identical_trees(got, jax.tree.map(np.asarray, random.apply(KEY, params, {})))


# --- trees, and what is refused -----------------------------------------------------------------------


def test_an_nnx_model_runs_with_quantized_weights():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(40, 70, rngs=rngs)
            self.lm_head = nnx.Linear(70, 33, rngs=rngs)

        def __call__(self, x):
            return self.lm_head(nnx.relu(self.up(x)))

    model = Model(nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    quantizer = gq.Quantizer('e2m1', block_size=16)
    transform = gq.quantization_aware(quantizer)
    applied = jax.jit(transform.apply)(KEY, params, transform.init(params))
    leaves = flatten(applied)
    expected = jax.jit(lambda w: gq.fake_quantize(w, quantizer, axis=0).astype(jnp.bfloat16))(model.up.kernel[...])
    assert_identical(leaves['up/kernel'], expected)
    assert_identical(leaves['lm_head/kernel'], model.lm_head.kernel[...].astype(jnp.bfloat16))
    assert nnx.merge(graph, applied)(jnp.ones((2, 40), jnp.bfloat16)).shape == (2, 33)


@pytest.mark.parametrize('quantizer', ['e4m3', gq.parse_format('e4m3'), None])
def test_what_is_no_quantizer_is_refused(quantizer):
    with pytest.raises(ValueError, match=r'quantizer=.*must be a Quantizer'):
        gq.quantization_aware(quantizer)


def test_another_dtype_and_a_state_of_another_transform_are_refused():
    with pytest.raises(ValueError, match='dtype=float16: allowed are bfloat16 and float32'):
        make('e4m3', dtype=jnp.float16)
    params = {'up': {'kernel': jnp.ones((32, 32))}}
    with pytest.raises(ValueError, match='up/kernel'):
        make('e4m3').apply(None, params, {'up/kernel': jnp.ones((1, 1))})
    with pytest.raises(ValueError, match='matches no leaf'):
        make('e4m3').init(params)
