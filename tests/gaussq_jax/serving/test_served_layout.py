"""Formats within a budget: the least squared error that any choice of them has, and one for what servers fuse."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_float_formats as oracle
import pytest

import gaussq_jax as gq
from gaussq_jax import models
from gaussq_jax.packed.layout import BFLOAT16
from gaussq_jax.serving.storages import FP8_CHANNEL, MXFP4, MXFP8, NVFP4

FORMATS = {MXFP4.fmt: 4.25, MXFP8.fmt: 8.25, BFLOAT16: 16.0}
RULES = (gq.MatrixRule('.*', (0,), (1,), (2,)),)
NAMES = ('query', 'key', 'up')
FUSED = 'layers/(query|key)/kernel'


@pytest.fixture(scope='module')
def params():
    """Two layers of three matrices whose sizes differ, and their errors by orders of magnitude."""
    columns = {'query': 33, 'key': 29, 'up': 51}
    kernels = {name: oracle.heavy_tailed((2, 64, columns[name]), seed=seed) for seed, name in enumerate(NAMES)}
    kernels['up'][1] *= 8
    kernels['key'][0] /= 64
    return {'layers': {name: {'kernel': kernel} for name, kernel in kernels.items()}}


def errors_of(params):
    """{(name, layer, format): the squared error}, by quantize_params."""
    found = {}
    for fmt in FORMATS:
        layout = gq.uniform_layout(params, fmt, rules=RULES)
        quantized = gq.quantize_params(params, layout) if layout else jax.tree.map(to_bfloat16, params)
        for name, layer in itertools.product(NAMES, range(2)):
            kernel, stored = (np.float64(tree['layers'][name]['kernel'][layer]) for tree in (params, quantized))
            found[name, layer, fmt] = np.sum((stored - kernel) ** 2)
    return found


def to_bfloat16(leaf):
    return jnp.asarray(leaf).astype(jnp.bfloat16)


def formats_of(layout, name, layer):
    of_leaf = layout.get(f'layers/{name}/kernel')
    if of_leaf is None:
        return {BFLOAT16}
    return {of_leaf.formats[i] for i in np.unique(of_leaf.indices[layer])}


@pytest.mark.parametrize('budget', [4.25, 5, 6, 7.3, 8.25, 10, 12.9, 16])
def test_no_other_choice_within_the_budget_has_less_error(params, budget):
    """Of all 3^4 choices."""
    layout = gq.served_layout(params, budget, rules=RULES, fused=[FUSED])
    errors, groups = errors_of(params), [[('query', i), ('key', i)] for i in (0, 1)] + [[('up', i)] for i in (0, 1)]
    chosen = []
    for group in groups:
        (formats,) = {frozenset(formats_of(layout, *place)) for place in group}
        chosen.append(*formats)

    def total(choice):
        places = [(place, fmt) for group, fmt in zip(groups, choice) for place in group]
        sizes = [params['layers'][name]['kernel'][layer].size for (name, layer), _ in places]
        bits = sum(FORMATS[fmt] * size for (_, fmt), size in zip(places, sizes)) / sum(sizes)
        return bits, sum(errors[*place, fmt] for place, fmt in places)

    bits, error = total(chosen)
    assert bits <= budget
    least = min(e for b, e in map(total, itertools.product(FORMATS, repeat=4)) if b <= budget)
    np.testing.assert_allclose(error, least, rtol=1e-12)


@pytest.mark.parametrize('exponent', [-80, 100])
def test_errors_beyond_float32(exponent):
    """Squares of such weights are infinite or zero there; the matrix of the larger ones has the more bits."""
    kernels = oracle.heavy_tailed((2, 64, 32)) * np.float32(2.0**exponent)
    params = {'large': {'kernel': kernels[0] * 8}, 'small': {'kernel': kernels[1]}}
    layout = gq.served_layout(params, 6.5)
    formats = {path: [fmt.name for fmt in of_leaf.formats] for path, of_leaf in layout.items()}
    assert formats == {'large/kernel': ['float8_e4m3fn'], 'small/kernel': ['float4_e2m1fn']}


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (dict(storages=()), 'storages are none: allowed are some with powers of two for 32 inputs'),
        (dict(storages=(MXFP4, NVFP4)), 'storages are MXFP4, NVFP4: allowed are'),
        (dict(storages=(FP8_CHANNEL,)), 'storages are FP8 by output channel: allowed are'),
        (dict(fused=FUSED), r"fused='layers/.*' must be a sequence of regexes"),
        (dict(fused=['layers/gate']), "fused='layers/gate' matches none of the leaves, layers/key/kernel, "),
        (dict(fused=['x(']), r"fused='x\(' is no regular expression: missing \), unterminated"),
        (dict(mean_bits='5'), "mean_bits='5' must be a number"),
    ],
)
def test_arguments_that_cannot_be(params, given, message):
    with pytest.raises(ValueError, match=message):
        gq.served_layout(**{'params': params, 'mean_bits': 5, 'rules': RULES, **given})


def test_a_budget_that_cannot_be_kept(params):
    with pytest.raises(ValueError, match=r'a budget of 4 bits a weight is below 4\.25, the least'):
        gq.served_layout(params, 4, rules=RULES)
    with pytest.raises(ValueError, match='a budget of nan bits'):
        gq.served_layout(params, np.nan, rules=RULES)


def test_infinite_weights(params):
    params = jax.tree.map(np.copy, params)
    params['layers']['up']['kernel'][1, 3, 4] = np.inf
    with pytest.raises(ValueError, match="'layers/up/kernel' has infinite or NaN weights"):
        gq.served_layout(params, 8, rules=RULES)


def test_a_ragged_matrix_is_served_in_bfloat16():
    params = {'up': {'kernel': oracle.heavy_tailed((40, 32))}, 'down': {'kernel': oracle.heavy_tailed((32, 40))}}
    layout = gq.served_layout(params, 10.2)
    assert sorted(layout) == ['down/kernel'] and layout['down/kernel'].formats == (MXFP4.fmt,)


def test_the_same_numbers_are_exported_in_the_bits_that_were_promised(params):
    """Of a whole Llama: modules are stored as the layout says, with nothing lost, and q, k and v alike."""
    model = models.Llama(vocab_size=64, num_layers=2, hidden_size=64, mlp_size=128, num_heads=4, num_kv_heads=2)
    weights = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    weights['layers']['mlp']['down']['kernel'] *= 16
    layout = gq.served_layout(weights, 6, rules=models.RULES, fused=models.fused_paths(model))
    tensors, config = models.to_huggingface(model, weights)
    layout = models.huggingface_layout(model, layout)
    stored, config = gq.to_compressed_tensors(tensors, layout, fused=models.fused_modules(model))
    low_bits = [name for name in stored if 'proj' in name]
    assert 5 < 8 * sum(stored[name].nbytes for name in low_bits) / (2 * 64 * 64 * 9) <= 6
    assert config['format'] == 'mixed-precision'
    module = lambda name: name.rpartition('.')[0]
    kind = {module(name): name.rpartition('.')[2] for name in low_bits if not name.endswith('scale')}
    for layer in range(2):
        attention = f'model.layers.{layer}.self_attn'
        assert len({kind[f'{attention}.{name}_proj'] for name in 'qkv'}) == 1
        assert len({kind[f'model.layers.{layer}.mlp.{name}_proj'] for name in ('gate', 'up')}) == 1
