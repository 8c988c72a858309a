"""With 64-bit numbers, and where JAX promotes neither ranks nor dtypes, nothing raises, and all has the same bits."""

import functools

import jax
import jax.numpy as jnp
import jax_modes
import numpy as np
import pytest
from jax_modes import assert_same_bits
from parameter_trees import nest

import gaussq_jax as gq
from gaussq_jax import models
from gaussq_jax.block_scaling import largest_magnitudes, quantize
from gaussq_jax.weight_sampling import shape_in_blocks
from kernels_pallas import implementations

SEED = 2**32 - 1  # the largest; as a signed number of 32 bits it is -1
TOKENS = np.random.default_rng(0).integers(0, 17, (2, 6)).astype(np.int32)
SIZES = dict(vocab_size=17, num_layers=2, hidden_size=16, num_heads=4, remat_policy='full')
LLAMA = models.Llama(**SIZES, mlp_size=20, num_kv_heads=2)
GPT2 = models.GPT2(**SIZES, max_length=8)
QWEN3 = models.Qwen3(**SIZES, mlp_size=20, head_dim=6, attention_bias=True, rope_factor=8.0, rope_original_length=4)
SHAPES = {'layers/up/kernel': (2, 33, 40), 'layers/up/bias': (2, 40), 'norm/scale': (40,)}
RULES = (gq.MatrixRule('layers/up/kernel', (0,), (1,), (2,)), gq.CastOnly('.*'))
NVFP4 = gq.Quantizer('e2m1', block_size=16, scale='nvfp4')
STOCHASTIC = gq.Quantizer('e4m3', block_size='channel', rounding='stochastic')
TILES = gq.Quantizer('e3m2', block_size=(4, 16), scale='mx')
CASES, SLOW = {}, set()


def case(*named, slow=False):
    """The function is a case: with each of these arguments, (name, value), if there are any."""

    def add(function):
        cases = {f'{function.__name__}: {name}': functools.partial(function, value) for name, value in named}
        cases = cases or {function.__name__: function}
        CASES.update(cases)
        SLOW.update(cases if slow else ())
        return function

    return add


@functools.cache
def normal(*shape, dtype='float32'):
    return np.random.default_rng(1).normal(size=shape).astype(jnp.dtype(dtype))


def params():
    return nest({path: jnp.asarray(normal(*shape)) for path, shape in SHAPES.items()})


@functools.cache
def weights_of(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)['params']
    return jax.tree.map(lambda leaf: 0.2 * normal(*leaf.shape), shapes)


def with_gradients(function, *arguments):
    """What a function returns, and the gradients of the sum of its squares."""

    def loss(*arguments):
        returned = function(*arguments)
        leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(returned)]
        return sum(jnp.sum(jnp.square(leaf)) for leaf in leaves), returned

    every = tuple(range(len(arguments)))
    return jax.jit(jax.grad(loss, every, has_aux=True))(*map(functools.partial(jax.tree.map, jnp.asarray), arguments))


# --- matrices -----------------------------------------------------------------------------------------


@case()
def noise():
    return gq.rounded_normal(jax.random.key(SEED), (2, 33, 40), origin=(1, 33, 2**31))


@case(
    ('rounded_normal', dict(noise='rounded_normal', dtype=jnp.float32)),
    ('uniform, e3m2', dict(noise='uniform', fmt='e3m2', block_size=8)),
)
def sample_weights(options):
    w = normal(2, 33, 40)
    bitwidths = np.full(shape_in_blocks(w.shape, options.get('block_size', 32)), 4.3, np.float32)
    return with_gradients(functools.partial(gq.sample_weights, jax.random.key(SEED), **options), w, bitwidths)


@case(('triton', 'triton_interpret'), ('mosaic', 'mosaic_interpret'), slow=True)
def kernels(implementation):
    if reason := implementations.why_not(implementation):
        pytest.skip(reason)
    sample = functools.partial(gq.sample_weights, fmt='e3m2', noise='uniform', implementation=implementation)
    round_ = functools.partial(gq.round_to_format, fmt='e3m2', implementation=implementation)
    w, bitwidths = normal(1, 32, 32), np.full((1, 1, 1), 4.3, np.float32)
    return with_gradients(lambda w, b: [sample(jax.random.key(SEED), w, b), round_(w)], w, bitwidths)


@case(('float32', 'float32'), ('float16', 'float16'))
def rounding(dtype):
    key = jax.random.key(SEED)
    return with_gradients(
        lambda x: [
            gq.round_to_format(x, 'e0m7'),
            gq.round_to_format(x, 'float8_e5m2', rounding='stochastic', key=key),
            gq.round_to_format(x, 'float8_e4m3fn', rounding='nearest_away', saturate=False),
            gq.fake_quantize(x, NVFP4),
            gq.fake_quantize(x, TILES, axis=-2),
            gq.fake_quantize(x, STOCHASTIC, axis=(0, 1), key=key),
            largest_magnitudes(x, TILES),
            quantize(x, TILES).scales,
        ],
        normal(5, 40, dtype=dtype),
    )


@case(('nvfp4', NVFP4), ('stochastic', STOCHASTIC), ('tiles', TILES))
def quantized_products(quantizer):
    targets, key = ('P1', 'P2', 'P3', 'P4', 'P5', 'P6'), jax.random.key(SEED)
    key = key if quantizer.rounding == 'stochastic' else None
    dot_general = gq.quantized_dot_general(**dict.fromkeys(targets, quantizer), weight_gradient_dtype=jnp.float32)

    def multiply(x, w):
        narrow = (x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
        einsum = gq.quantized_einsum('btd,df->btf', *narrow, P1=quantizer, P5=quantizer, key=key)
        return dot_general(*narrow, (((2,), (0,)), ((), ())), key=key), einsum

    return with_gradients(multiply, normal(2, 6, 20), normal(20, 24))


@case(*((name, gq.recipes.find(name)) for name in ('quartet', 'quartet2')))
def products_of_transformed_operands(recipe):
    dot_general = gq.quantized_dot_general(**recipe.operands, backward_from=recipe.backward_from)
    multiply = lambda x, w: dot_general(x, w, (((1,), (0,)), ((), ())), key=jax.random.key(SEED))
    return with_gradients(multiply, normal(128, 128), normal(128, 128))


# --- trees and models ---------------------------------------------------------------------------------


@case(
    ('gaussian', gq.gaussian_weight_sampling(rules=RULES)),
    ('gaussian, e3m2', gq.gaussian_weight_sampling(4, 4, fmt='e3m2', dtype=jnp.float32, rules=RULES)),
    ('uniform', gq.uniform_weight_sampling(rules=RULES)),
    ('quantization-aware', gq.quantization_aware(NVFP4, rules=RULES)),
    ('quantization-aware, stochastic', gq.quantization_aware(STOCHASTIC, rules=RULES)),
    ('cast', gq.cast_params(rules=RULES)),
)
def transform(transform):
    state, key = transform.init(params()), jax.random.key(SEED)
    without_noise = jax.jit(functools.partial(transform.apply, None))(params(), state)
    index = jnp.asarray(1)  # of 64 bits, if these are enabled
    layer = jax.tree.map(lambda leaf: leaf[1], params()['layers'])
    layer = jax.jit(lambda index: transform.apply(key, layer, state, path=('layers',), layer=index))(index)
    sampled = with_gradients(functools.partial(transform.apply, key), params(), state)
    return state, without_noise, layer, sampled, transform.bitwidths(state)


@case(('llama', LLAMA), ('gpt2', GPT2), ('qwen3', QWEN3))
def model(model):
    init = jax.jit(model.init)(jax.random.key(SEED), jnp.asarray(TOKENS))
    return init, with_gradients(
        lambda weights: model.apply({'params': weights}, jnp.asarray(TOKENS)), weights_of(model)
    )


@case(('float32', 'float32'), ('bfloat16', 'bfloat16'), slow=True)
def layerwise(dtype):
    """A whole training's worth: weights sampled in the scan, matmuls with all operands quantized stochastically."""
    pqt, weights = gq.gaussian_weight_sampling(), jax.tree.map(jnp.asarray, weights_of(LLAMA))
    weights, layer_transform = gq.layerwise(pqt, jax.random.key(SEED), weights, pqt.init(weights))
    dot_general_cls = functools.partial(models.QuantizedDotGeneral, P1=STOCHASTIC, P4=STOCHASTIC, P5=STOCHASTIC)
    model = LLAMA.clone(layer_transform=layer_transform, dot_general_cls=dot_general_cls, dtype=jnp.dtype(dtype))
    rngs = {'quantization': jax.random.key(SEED)}
    return with_gradients(lambda w: model.apply({'params': w}, jnp.asarray(TOKENS), rngs=rngs), weights)


@case()
def penalty():
    pqt = gq.gaussian_weight_sampling(rules=RULES)
    return with_gradients(lambda state: gq.bitwidth_penalty(pqt.bitwidths(state)), pqt.init(params()))


def compute(name):
    return jax.tree.map(np.asarray, CASES[name]())


expected = functools.cache(compute)


def marks(name, mode):
    """Where all modes together change nothing, one of them seldom does."""
    is_quick = name not in SLOW and (mode == 'all' or name in ('noise', 'transform: gaussian', 'model: llama'))
    return () if is_quick else pytest.mark.slow


@pytest.mark.parametrize(
    ('name', 'mode'),
    [pytest.param(name, mode, marks=marks(name, mode)) for name in CASES for mode in jax_modes.NAMES],
)
def test_no_bit_is_another(name, mode):
    without = expected(name)
    with jax_modes.in_mode(mode):
        assert_same_bits(compute(name), without)


@pytest.mark.parametrize(
    'mode', [pytest.param(mode, marks=() if mode == 'all' else pytest.mark.slow) for mode in jax_modes.NAMES]
)
def test_files_and_tables(tmp_path, mode):
    """A packed file, byte for byte, and what is read from it; sizes, and formats within a budget."""
    pqt = gq.gaussian_weight_sampling(rules=RULES)

    def write(path):
        weights, state = params(), pqt.init(params())
        formats = pqt.formats_within_budget(weights, state, 5.5)
        sizes = [pqt.model_size(weights, state), pqt.save_packed(path, weights, state, formats=formats)]
        quantized = gq.quantize_params(weights, pqt.learned_layout(weights, state, formats=formats))
        arrays = jax.tree.map(np.asarray, [quantized, gq.load_packed(path)])
        return [str(sizes), gq.describe(weights, pqt), path.read_bytes()], arrays

    texts, arrays = write(tmp_path / 'without')
    with jax_modes.in_mode(mode):
        texts_in_mode, arrays_in_mode = write(tmp_path / 'with')
    assert texts_in_mode == texts
    assert_same_bits(arrays_in_mode, arrays)
