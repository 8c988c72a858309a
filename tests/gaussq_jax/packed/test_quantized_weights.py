"""The weights of a layout are the products of the numbers and the scales that are stored."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import numpy_packed_reader
import pytest
from parameter_trees import assert_identical_trees

import gaussq_jax as gq
from gaussq_jax.packed import quantized_matrices, read_packed
from gaussq_jax.packed.layout import value_per_weight

KINDS = {
    'mx': dict(fmt='e3m2', scale='mx'),
    'absmax': dict(fmt='float8_e4m3fn', block_size='channel', scale='absmax'),
    'absmax by tile': dict(fmt='float8_e5m2', block_size=(8, 16), scale='absmax'),
    'nvfp4': dict(fmt='e2m1', block_size=16, scale='nvfp4'),
    'mx rceil': dict(fmt='float8_e4m3fn', scale='mx', scale_rounding='rceil'),
    'mx rms': dict(fmt='float4_e2m1fn', scale='mx', scale_rounding='nearest', fit='rms'),
    'nvfp4 by tile': dict(fmt='e2m1', block_size=(16, 16), scale='nvfp4'),
    'nvfp4 four over six': dict(fmt='e2m1', block_size=16, scale='nvfp4', fit='four_over_six'),
}


def make_params(kernel=None):
    kernel = oracle.heavy_tailed((7, 9)) if kernel is None else kernel
    return {'blocks': [{'kernel': jnp.asarray(kernel)}, {'kernel': jnp.asarray(-kernel), 'bias': jnp.arange(9.0)}]}


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_numbers_times_scales_are_the_weights(kind):
    """Also where blocks are zeros, or so small that float32 products are subnormal."""
    kernel = oracle.heavy_tailed((48, 40))
    kernel[:16, 3], kernel[:, 4], kernel[:, 5] = 0, -0.0, kernel[:, 5] * np.float32(2.0**-126)
    params = {'up': {'kernel': kernel}}
    layout = gq.uniform_layout(params, **kind)
    of_leaf, weights = layout['up/kernel'], gq.quantize_params(params, layout)['up']['kernel']
    (matrix,) = quantized_matrices('up/kernel', kernel, of_leaf)
    assert set(np.abs(matrix.numbers).ravel()) <= set(of_leaf.formats[0].values())
    factors = matrix.scales if matrix.divisor is None else matrix.scales.astype(np.float32) / matrix.divisor
    products = (matrix.numbers * value_per_weight(factors, of_leaf.tile, kernel.shape)).astype(np.float32)
    np.testing.assert_array_equal(products.astype(jnp.bfloat16).view(np.uint16), np.asarray(weights).view(np.uint16))


@pytest.mark.parametrize(
    'scale, fmt, block_size', [('absolute', 'e2m1', 32), ('nvfp4', 'e2m1', 32), ('nvfp4', 'e3m2', 16)]
)
def test_scales_that_there_are_not(scale, fmt, block_size):
    with pytest.raises(ValueError, match=f"scale='{scale}'"):
        gq.uniform_layout(make_params(), fmt, scale=scale, block_size=block_size)


def test_bfloat16_master_weights_are_as_good_as_float32_of_their_values():
    kernel = oracle.heavy_tailed((7, 9), dtype=ml_dtypes.bfloat16)
    layout = gq.uniform_layout(make_params(kernel), 'e2m1')
    of_bfloat16 = gq.quantize_params(make_params(kernel), layout)
    of_float32 = gq.quantize_params(make_params(kernel.astype(np.float32)), layout)
    assert_identical_trees(of_bfloat16, of_float32)


def test_what_was_quantized_is_quantized_already():
    """A second time nothing changes: so weights read from a file are weights to evaluate as they are."""
    layout = gq.uniform_layout(make_params(), 'e3m2')
    once = gq.quantize_params(make_params(), layout)
    assert_identical_trees(gq.quantize_params(once, layout), once)


def test_it_may_be_compiled():
    layout = gq.uniform_layout(make_params(), 'e2m1')
    compiled = jax.jit(lambda params: gq.quantize_params(params, layout))(make_params())
    assert_identical_trees(compiled, gq.quantize_params(make_params(), layout))


def test_layouts_joined_in_place_keep_what_both_keep():
    params = {'up': {'kernel': oracle.heavy_tailed((64, 32))}, 'norm': {'scale': np.ones(32, np.float32)}}
    layout = gq.uniform_layout(params, 'e2m1', rules=[gq.Keep('norm/.*'), *gq.DEFAULT_RULES])
    joined = type(layout)()
    joined |= layout
    assert joined == layout == type(layout)() | layout and joined.kept == layout.kept == {'norm/scale'}


def test_kept_leaves_are_read_as_they_are(tmp_path):
    """Also by a reader of the page alone."""
    scale = np.float32([1.0009765625, 2]).repeat(16)
    params = {'up': {'kernel': oracle.heavy_tailed((64, 32))}, 'norm': {'scale': scale}}
    layout = gq.uniform_layout(params, 'e2m1', rules=[gq.Keep('norm/.*'), *gq.DEFAULT_RULES])
    gq.save_packed(tmp_path / 'file', params, layout)
    read, about = numpy_packed_reader.read(tmp_path / 'file')
    assert about['kept_leaves'] == ['norm/scale'] and about['version'] == 2
    np.testing.assert_array_equal(read['norm/scale'], scale, strict=True)
    np.testing.assert_array_equal(gq.load_packed(tmp_path / 'file')['norm']['scale'], scale, strict=True)


@pytest.mark.parametrize(
    ('kind', 'dtype'),
    [
        ('mx rceil', 'float32'),
        ('absmax by tile', 'bfloat16'),
        ('absmax', 'float32'),
        ('nvfp4 by tile', 'bfloat16'),
        ('nvfp4 four over six', 'float32'),
    ],
)
def test_kept_layers_are_in_bfloat16_under_any_scales(tmp_path, kind, dtype):
    """The others are as `quantization_aware` has them, also read again, and by a reader of the page alone."""
    kind = KINDS[kind]
    params, rules = {'up': {'kernel': oracle.heavy_tailed((3, 48, 40))}}, [gq.MatrixRule('.*', (0,), (1,), (2,))]
    kept = dict(full_precision=gq.recipes.parse_kept_layers('up@first=1'), rules=rules)
    aware = gq.quantization_aware(gq.Quantizer(**kind), dtype=dtype, **kept)
    expected = np.array(aware.apply(None, params, {})['up']['kernel'], np.float32)
    expected[0] = params['up']['kernel'][0].astype(jnp.bfloat16)
    layout = gq.uniform_layout(params, **kind, products=dtype, **kept)
    weights = gq.quantize_params(params, layout)['up']['kernel']
    is_wide = dtype == 'float32' and layout['up/kernel'].scale != 'mx'
    np.testing.assert_array_equal(
        np.asarray(weights), expected.astype('float32' if is_wide else jnp.bfloat16), strict=True
    )
    size = gq.save_packed(tmp_path / 'file', params, layout)
    packed = read_packed(tmp_path / 'file')
    assert_identical_trees(packed.params, {'up': {'kernel': weights}})
    assert packed.size == size and packed.layout['up/kernel'].quantizers == layout['up/kernel'].quantizers
    np.testing.assert_array_equal(numpy_packed_reader.read(tmp_path / 'file')[0]['up/kernel'], expected)


def test_layers_that_are_all_kept():
    """Of one leaf, it isn't quantized; of all, that is an error."""
    params = {'up': {'kernel': np.ones((64, 32), np.float32)}, 'down': {'kernel': np.ones((32, 64), np.float32)}}
    kept = lambda path: gq.recipes.parse_kept_layers(path)
    assert set(gq.uniform_layout(params, 'e2m1', full_precision=kept('up'))) == {'down/kernel'}
    with pytest.raises(ValueError, match="full_precision='up; down' leaves nothing to quantize"):
        gq.uniform_layout(params, 'e2m1', full_precision=kept('up; down'))
