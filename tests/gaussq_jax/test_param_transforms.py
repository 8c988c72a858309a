"""ParamTransform: one contract for every constructor, and the noise of a leaf from its path alone."""

import hashlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_weight_sampling as oracle
import pytest
from numpy_weight_sampling import assert_identical, random_weights
from parameter_trees import RULES, assert_identical_trees, flatten, leaf_key_data, nest

import gaussq_jax as gq

KEY = jax.random.key(3)

TRANSFORMS = {
    'gaussian': gq.gaussian_weight_sampling(rules=RULES),
    'gaussian 16x16 float32': gq.gaussian_weight_sampling(
        8, 2, rules=RULES, block_size=16, dtype=jnp.float32, implementation='xla'
    ),
    'uniform': gq.uniform_weight_sampling(rules=RULES),
    'gaussian e3m4': gq.gaussian_weight_sampling(rules=RULES, fmt='e3m4'),
    'quantization-aware': gq.quantization_aware(gq.Quantizer('e3m2', block_size='channel'), rules=RULES),
    'quantization-aware stochastic': gq.quantization_aware(gq.Quantizer('e4m3', rounding='stochastic'), rules=RULES),
    'cast': gq.cast_params(),
    'cast float32': gq.cast_params(jnp.float32),
}
every_transform = pytest.mark.parametrize('transform', TRANSFORMS.values(), ids=TRANSFORMS.keys())
every_name = pytest.mark.parametrize('name', TRANSFORMS)
# What happens to the weight matrices: noise that the key decides, and low-bit rounding, also without it.
DRAWS = {name for name in TRANSFORMS if name.startswith(('gaussian', 'uniform')) or 'stochastic' in name}
ROUNDS = {name for name in TRANSFORMS if name.startswith('quantization') or name == 'gaussian e3m4'}
both_noises = pytest.mark.parametrize(
    ('make', 'noise'),
    [(gq.gaussian_weight_sampling, 'rounded_normal'), (gq.uniform_weight_sampling, 'uniform')],
    ids=['gaussian', 'uniform'],
)

# The sampled leaves: path -> shape, and the matrix (batches, rows, columns) that its rule sees.
MATRICES = {
    'layers/mlp/kernel': ((3, 40, 50), lambda w: w),
    'layers/attention/query/kernel': ((3, 40, 2, 35), lambda w: w.reshape(3, 40, 70)),
    'layers/attention/out/kernel': ((3, 2, 35, 40), lambda w: w.reshape(3, 70, 40)),
    'first/attention/value/kernel': ((40, 2, 35), lambda w: w.reshape(40, 70)),
    'conv1/kernel': ((3, 3, 8, 33), lambda w: w.reshape(72, 33)),
    'up/kernel': ((33, 64), lambda w: w),
}
CAST_ONLY = {
    'layers/norm/scale': (3, 40),
    'layers/mlp/bias': (3, 50),
    'embed/embedding': (20, 40),
    'lm_head/kernel': (40, 20),
}


def make_params(*paths):
    """The leaves at `paths`, or all of them."""
    shapes = {path: shape for path, (shape, _) in MATRICES.items()} | CAST_ONLY
    leaves = {path: jnp.asarray(random_weights(shape, seed)) for seed, (path, shape) in enumerate(shapes.items())}
    return nest({path: leaves[path] for path in paths or leaves})


def contract_params():
    return make_params('layers/mlp/kernel', 'layers/norm/scale', 'embed/embedding', 'up/kernel')


def make_integers():
    return {'steps': jnp.asarray([7, 2**30 + 1], jnp.int32), 'mask': jnp.asarray([True, False])}


def spread_state(state):
    """Bitwidths that differ from block to block and lie off the grid, as training leaves them."""
    generator = np.random.default_rng(9)
    return {path: jnp.asarray(generator.uniform(0, 1.5, b_i.shape), jnp.float32) for path, b_i in state.items()}


# --- the contract of every transform ---------------------------------------------------------------


@every_transform
def test_contract_the_state_is_a_flat_dict_of_ones(transform):
    state = transform.init(contract_params())
    assert type(state) is dict
    for path, b_i in state.items():
        assert isinstance(path, str) and b_i.dtype == jnp.float32
        assert_identical(b_i, np.ones(b_i.shape))
    bitwidths = transform.bitwidths(state)
    assert bitwidths.keys() == state.keys()
    assert jax.tree.map(jnp.shape, bitwidths) == jax.tree.map(jnp.shape, state)


@every_name
@pytest.mark.parametrize('noise', [True, False])
def test_contract_apply_keeps_the_tree_and_casts_what_is_floating(name, noise):
    transform, changes_matrices = TRANSFORMS[name], name in ROUNDS or (noise and name in DRAWS)
    params = contract_params() | {'counters': make_integers()}
    state = transform.init(params)
    applied = jax.jit(transform.apply)(KEY if noise else None, params, state)
    assert jax.tree.structure(applied) == jax.tree.structure(params)
    dtype = applied['embed']['embedding'].dtype
    assert dtype in (jnp.bfloat16, jnp.float32)
    for path, leaf in flatten(applied).items():
        before = flatten(params)[path]
        assert leaf.shape == before.shape
        if not jnp.issubdtype(before.dtype, jnp.floating):
            assert leaf.dtype == before.dtype
            np.testing.assert_array_equal(leaf, before)
        elif path in MATRICES and changes_matrices:
            assert leaf.dtype == dtype and np.mean(np.asarray(leaf == before.astype(dtype))) < 0.9
        else:
            assert leaf.dtype == dtype
            assert_identical(leaf, before.astype(dtype))


@every_transform
@pytest.mark.parametrize('noise', [True, False])
def test_contract_gradients_pass_straight_through(transform, noise):
    """dW is dW_hat for every leaf; only the state gets a gradient of its own, and none without noise."""
    params = contract_params()
    state = transform.init(params)
    cotangent = jax.tree.map(lambda leaf: jnp.asarray(random_weights(leaf.shape, 50), jnp.bfloat16), params)

    @jax.jit
    def pull_back(key, params, state, cotangent):
        applied, pull = jax.vjp(lambda p, s: transform.apply(key, p, s), params, state)
        return pull(jax.tree.map(lambda c, leaf: c.astype(leaf.dtype), cotangent, applied))

    dparams, dstate = pull_back(KEY if noise else None, params, state, cotangent)
    assert {leaf.dtype for leaf in jax.tree.leaves(dparams)} == {jnp.dtype(jnp.float32)}
    assert_identical_trees(dparams, cotangent)
    for db in dstate.values():
        assert bool(jnp.any(db != 0)) == noise


@every_name
def test_contract_one_key_one_result(name):
    """The same on every call, traced once for all keys; another key differs where something is drawn."""
    transform, params = TRANSFORMS[name], contract_params()
    state = transform.init(params)
    traces = []

    @jax.jit
    def apply(key, params, state):
        traces.append(None)
        return transform.apply(key, params, state)

    first, again, other = (apply(key, params, state) for key in (KEY, KEY, jax.random.key(4)))
    assert_identical_trees(again, first)
    for path, leaf in flatten(other).items():
        assert bool(jnp.any(leaf != flatten(first)[path])) == (path in MATRICES and name in DRAWS)
    assert len(traces) == 1


@every_transform
@pytest.mark.parametrize('noise', [True, False])
def test_contract_a_consumer_in_the_same_program_sees_the_rounded_leaves(transform, noise):
    """A reduction, which XLA would fuse with the cast and then compute unrounded; a maximum is exact."""
    params = contract_params()
    state, key = transform.init(params), KEY if noise else None

    def consume(tree):
        return jax.tree.map(lambda leaf: jnp.max(leaf.astype(jnp.float32), axis=0), tree)

    alone = jax.jit(transform.apply)(key, params, state)
    fused = jax.jit(lambda params, state: consume(transform.apply(key, params, state)))(params, state)
    assert_identical_trees(fused, consume(alone))


@every_transform
def test_contract_shapes_are_known_before_anything_is_allocated(transform):
    abstract = jax.eval_shape(contract_params)
    state = jax.eval_shape(transform.init, abstract)
    applied = jax.eval_shape(transform.apply, KEY, abstract, state)
    assert jax.tree.map(jnp.shape, applied) == jax.tree.map(jnp.shape, abstract)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, transform.init(contract_params()))


@every_transform
def test_contract_the_layers_path_serves_a_slice(transform):
    """One layer of the subtree 'layers', given alone with the whole state, has the bits it has in the whole."""
    params = contract_params()
    state = spread_state(transform.init(params))
    whole = jax.jit(transform.apply)(KEY, params, state)['layers']
    one = jax.jit(lambda layer, part: transform.apply(KEY, part, state, path=('layers',), layer=layer))
    for layer in range(3):
        part = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params['layers'])
        assert_identical_trees(one(layer, part), jax.tree.map(lambda leaf, layer=layer: leaf[layer], whole))
    assert one._cache_size() == 1


# --- the bits of a leaf ----------------------------------------------------------------------------


@both_noises
def test_each_leaf_and_its_gradients_equal_the_oracle_under_its_own_key(make, noise):
    """Scanned, fused-head and convolution leaves: sampled as the matrix of their rule, in their own shape."""
    params = make_params()
    transform = make(7.0, 3.0, rules=RULES)
    state = spread_state(transform.init(params))
    assert state.keys() == MATRICES.keys()
    cotangents = {
        path: jnp.asarray(random_weights(leaf.shape, 5), jnp.bfloat16) for path, leaf in flatten(params).items()
    }

    @jax.jit
    def run(state):
        applied, pull_back = jax.vjp(lambda state: transform.apply(KEY, params, state), state)
        return flatten(applied), pull_back(nest(cotangents))[0]

    applied, gradient = run(state)
    bitwidths = transform.bitwidths(state)
    for path, (shape, to_matrix) in MATRICES.items():
        assert_identical(bitwidths[path], gq.effective_bitwidths(state[path], 7.0, 3.0))
        words, matrix = leaf_key_data(KEY, path), to_matrix(np.asarray(flatten(params)[path]))
        expected = oracle.sample_weights(words, matrix, bitwidths[path], noise=noise)
        assert_identical(applied[path], expected.reshape(shape))
        cotangent = to_matrix(np.asarray(cotangents[path]))
        db, size = oracle.bitwidth_gradient(words, matrix, bitwidths[path], cotangent, noise=noise)
        assert np.all(np.abs(np.asarray(gradient[path], np.float64) - (7.0 - 3.0) * db) <= 4.0 * 2e-6 * size)


def test_rows_columns_and_batches_in_any_order_are_moved_and_moved_back():
    """A rule with a batch axis in the middle, rows and columns transposed (Equinox and PyTorch keep (out, in))."""
    rules = (gq.MatrixRule('experts', (1,), (2,), (0,)), gq.MatrixRule('linear', (), (1,), (0,)))
    params = {'experts': jnp.asarray(random_weights((70, 3, 40))), 'linear': jnp.asarray(random_weights((50, 33)))}
    transform = gq.gaussian_weight_sampling(rules=rules)
    state = spread_state(transform.init(params))
    assert state['experts'].shape == (3, 2, 3) and state['linear'].shape == (2, 2)
    applied, bitwidths = jax.jit(transform.apply)(KEY, params, state), transform.bitwidths(state)
    for path, order, back in [('experts', (1, 2, 0), (2, 0, 1)), ('linear', (1, 0), (1, 0))]:
        matrix = np.asarray(params[path]).transpose(order)
        expected = oracle.sample_weights(leaf_key_data(KEY, path), matrix, bitwidths[path])
        assert_identical(applied[path], expected.transpose(back))


def test_adding_renaming_and_reordering_leaves_changes_no_other_leaf():
    params = make_params('first/attention/value/kernel', 'up/kernel', 'layers/mlp/kernel', 'layers/norm/scale')
    transform = gq.gaussian_weight_sampling(rules=RULES)
    before = flatten(jax.jit(transform.apply)(KEY, params, transform.init(params)))
    more = {'a_new_first': params['first'], 'zz': {'kernel': jnp.ones((64, 64))}}
    more |= {name: dict(reversed(params[name].items())) for name in reversed(params) if name != 'up'}
    after = flatten(jax.jit(transform.apply)(KEY, more, transform.init(more)))
    for path in before.keys() & after.keys():
        assert_identical(after[path], before[path])
    assert len(before.keys() & after.keys()) == len(before) - 1
    copy, original = 'a_new_first/attention/value/kernel', 'first/attention/value/kernel'
    assert bool(jnp.any(after[copy] != after[original]))


def test_noise_of_different_leaves_is_uncorrelated():
    names = ['a', 'b', 'layers_1', 'layers_2']
    params = {name: {'kernel': jnp.zeros((512, 512)).at[::32, ::32].set(1.0)} for name in names}
    transform = gq.gaussian_weight_sampling(4.0, 4.0, rules=RULES, dtype=jnp.float32)
    applied = jax.jit(transform.apply)(KEY, params, transform.init(params))
    noise = [np.asarray(applied[name]['kernel'] - params[name]['kernel']).ravel() for name in names]
    for a, b in itertools.combinations(noise, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) * np.sqrt(a.size) < 4.5


def test_legacy_and_typed_keys_give_one_result():
    params = {'a': {'kernel': jnp.asarray(random_weights((40, 50)))}}
    transform = gq.gaussian_weight_sampling(rules=RULES)
    state = transform.init(params)
    apply = jax.jit(transform.apply)
    assert_identical_trees(apply(jax.random.PRNGKey(8), params, state), apply(jax.random.key(8), params, state))
    assert apply(jax.random.key(8, impl='rbg'), params, state)['a']['kernel'].shape == (40, 50)


# --- one layer at a time ---------------------------------------------------------------------------


@pytest.mark.optimized
@pytest.mark.parametrize(
    ('make', 'noise'),
    [
        pytest.param(gq.gaussian_weight_sampling, 'rounded_normal', id='gaussian'),
        pytest.param(gq.uniform_weight_sampling, 'uniform', id='uniform', marks=pytest.mark.slow),
    ],
)
def test_inside_a_rematerialised_scan_the_loss_and_gradients_keep_their_bits(make, noise):
    """The layer index is traced, the slice comes from scan, the backward pass samples again."""
    transform = make(rules=RULES)
    params = {'model': {'layers': {'mlp': {'kernel': jnp.asarray(random_weights((4, 64, 64)) / 8)}}}}
    state = spread_state(transform.init(params))
    x = jnp.asarray(random_weights((8, 64)))

    def run_layer(x, layer_params):
        kernel = layer_params['mlp']['kernel'].astype(jnp.float32)
        return jnp.tanh(jnp.matmul(x, kernel, precision='highest'))

    def whole_tree(key, params, state):
        layers = transform.apply(key, params, state)['model']['layers']
        x_out, _ = jax.lax.scan(lambda x, part: (run_layer(x, part), None), x, layers)
        return jnp.sum(x_out)

    def layer_by_layer(key, params, state):
        @jax.checkpoint
        def layer(x, inputs):
            index, part = inputs
            part = transform.apply(key, part, state, path=('model', 'layers'), layer=index)
            return run_layer(x, part), None

        return jnp.sum(jax.lax.scan(layer, x, (jnp.arange(4), params['model']['layers']))[0])

    expected = jax.jit(jax.value_and_grad(whole_tree, (1, 2)))(KEY, params, state)
    got = jax.jit(jax.value_and_grad(layer_by_layer, (1, 2)))(KEY, params, state)
    assert float(got[0]) == float(expected[0])
    assert_identical_trees(got[1], expected[1])


def test_a_layer_with_more_batch_axes():
    """Layers of experts: the slice keeps the expert axis, and its place among all experts of all layers."""
    rules = (gq.MatrixRule('layers/experts', (0, 2), (1,), (3,)),)
    params = {'layers': {'experts': jnp.asarray(random_weights((3, 40, 2, 50)))}}
    transform = gq.uniform_weight_sampling(rules=rules)
    state = spread_state(transform.init(params))
    assert state['layers/experts'].shape == (3, 2, 2, 2)
    whole = jax.jit(transform.apply)(KEY, params, state)['layers']['experts']
    for layer in range(3):
        part = {'experts': params['layers']['experts'][layer]}
        applied = jax.jit(lambda part, layer=layer: transform.apply(KEY, part, state, path=('layers',), layer=layer))(
            part
        )
        assert_identical(applied['experts'], whole[layer])


def test_a_subtree_without_a_layer_index():
    """Embedding and head lie outside of the layers; a model may transform its parts one by one."""
    params = make_params('first/attention/value/kernel', 'up/kernel')
    transform = gq.gaussian_weight_sampling(rules=RULES)
    state = spread_state(transform.init(params))
    whole = jax.jit(transform.apply)(KEY, params, state)
    part = jax.jit(lambda part: transform.apply(KEY, part, state, path=('first', 'attention')))(
        params['first']['attention']
    )
    assert_identical_trees(part, whole['first']['attention'])


# --- what is refused -------------------------------------------------------------------------------


@both_noises
@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(b_init=4.0, b_target=6.0), ['b_target', '6', '4']),
        (dict(b_init=6.0, b_target=0.5), ['b_target', '0.5', '1']),
        (dict(b_init=float('nan')), ['b_init', 'nan']),
        (dict(b_target=float('nan')), ['b_target', 'nan']),
        (dict(dtype=jnp.float16), ['dtype', 'float16', 'bfloat16', 'float32']),
        (dict(block_size=0), ['block_size', '0']),
        (dict(implementation='cuda'), ['implementation', 'cuda', 'xla']),
    ],
)
def test_a_bad_argument_is_an_error_at_construction(make, noise, arguments, words):
    with pytest.raises(ValueError) as error:
        make(**arguments)
    assert [word for word in words if word not in str(error.value)] == []


def test_two_leaves_whose_paths_share_a_hash_are_an_error():
    """They would share their noise. Found by a birthday search over 140 thousand names."""
    paths = ['block_46818/kernel', 'block_139927/kernel']
    assert len({hashlib.sha256(path.encode()).digest()[:4] for path in paths}) == 1
    with pytest.raises(ValueError) as error:
        gq.gaussian_weight_sampling().init(nest({path: jnp.ones((4, 4)) for path in paths}))
    assert all(path in str(error.value) for path in paths)


def test_the_state_of_another_model_is_an_error_that_names_the_leaf():
    transform = gq.gaussian_weight_sampling(rules=RULES)
    params = {'a': {'kernel': jnp.ones((40, 50))}, 'b': {'kernel': jnp.ones((40, 50))}}
    state = transform.init(params)
    with pytest.raises((KeyError, ValueError), match='b/kernel'):
        jax.eval_shape(transform.apply, KEY, params, {'a/kernel': state['a/kernel']})
    with pytest.raises(ValueError, match=r'\(1, 2\)'):
        jax.eval_shape(transform.apply, KEY, params, state | {'b/kernel': jnp.ones((1, 2))})
