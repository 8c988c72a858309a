"""What was evaluated is what is in the file, bit for bit, whoever reads it; and its size is what was promised."""

import ctypes
import functools
import os
import pathlib
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import numpy_packed_reader
import parameter_trees
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from parameter_trees import assert_identical_trees, flatten, nest

import gaussq_jax as gq
from gaussq_jax.packed import bit_packing, header_bytes, read_packed

PAGE = pathlib.Path(__file__).parents[3] / 'docs/packed_format.md'
M, N = 40, 50  # of all matrices: what is compiled for one is for all
RULES = (gq.MatrixRule('layers/experts/kernel', (0, 2), (1,), (3,)), *parameter_trees.RULES)
SHAPES = {
    'up/kernel': (M, N),
    'layers/mlp/kernel': (2, M, N),
    'layers/attention/query/kernel': (2, M, 2, N // 2),
    'layers/attention/out/kernel': (2, 2, M // 2, N),
    'layers/experts/kernel': (2, M, 3, N),
}


def to_matrices(path, leaf):
    """(matrices, M, N), written out."""
    return (leaf.transpose(0, 2, 1, 3) if path == 'layers/experts/kernel' else leaf).reshape(-1, M, N)


def add_extremes(up):
    up[:, 41] *= np.float32(2.0**-126)  # subnormals, and numbers that are next to them
    up[:, 42] = np.float32(3.4028235e38)
    up[3:6, 42] = -3e38, 2.0**-126, 1
    up[:, 43] = np.ldexp(np.float32(1), np.arange(-126, -126 + M))


@functools.cache
def make_params(extremes=True):
    """Weights of very different magnitude, blocks of zeros, float32's extremes; and leaves that are no matrices."""
    leaves = {path: oracle.heavy_tailed(shape, seed=seed) for seed, (path, shape) in enumerate(SHAPES.items())}
    up = leaves['up/kernel']
    up[:32, :32] = 0
    up[:, 40] = -0.0
    if extremes:
        add_extremes(up)
    others = {
        'embed/embedding': oracle.heavy_tailed((5, 7)),
        'norm/scale': np.float32(1.001),
        'table': np.float16([1.0009766, 2]),
        'step': np.int32(7),
        'mask': np.array([[True], [False]]),
    }
    return nest({path: jnp.asarray(leaf) for path, leaf in {**leaves, **others}.items()})


def expected_matrix(matrix, layout, indices):
    """Each tile cast by itself in its own format, float64."""
    result = np.zeros(matrix.shape)
    of_weights = np.kron(indices, np.ones(layout.tile, int))[: matrix.shape[0], : matrix.shape[1]]
    for i, fmt in enumerate(layout.formats):
        numbers = fmt.exponent_bits, fmt.mantissa_bits, fmt.special_values
        quantized, _ = oracle.fake_quantize(matrix, numbers, block_size=layout.tile, scale='mx')
        result = np.where(of_weights == i, quantized, result)
    return result


def check_round_trip(path, params, layout, info=None):
    """Evaluated = loaded = what the oracle says = what NumPy alone reads; the size is as promised."""
    size = gq.save_packed(path, params, layout, info=info)
    assert size == gq.layout_size(params, layout)
    assert os.path.getsize(path) == size.total_bytes + header_bytes(path)
    quantized = gq.quantize_params(params, layout)
    loaded = gq.load_packed(path)
    assert {type(leaf) for leaf in jax.tree.leaves(loaded)} == {np.ndarray}
    assert_identical_trees(loaded, jax.tree.map(np.asarray, quantized))
    read, about = numpy_packed_reader.read(path)
    leaves, weights = flatten(loaded), flatten(params)
    assert sorted(read) == sorted(leaves) == sorted(weights)
    for name, leaf in leaves.items():
        wide = leaf.astype(np.float32) if leaf.dtype == jnp.bfloat16 else leaf
        oracle.assert_same_bits(read[name], wide) if wide.dtype == np.float32 else np.testing.assert_array_equal(
            read[name], wide, strict=True
        )
        if name in layout:
            of_leaf = layout[name]
            enough = all(fmt.mantissa_bits <= 7 for fmt in of_leaf.formats)
            assert leaf.dtype == (jnp.bfloat16 if enough else np.float32)
            assert about['leaves'][name]['dtype'] == leaf.dtype.name
            matrices = [to_matrices(name, np.asarray(array)) for array in (wide, weights[name].astype(jnp.float32))]
            for got, matrix, indices in zip(*matrices, of_leaf.indices.reshape(-1, *of_leaf.indices.shape[-2:])):
                if of_leaf.scale != 'mx':
                    break  # those are compared with what a Quantizer gives
                oracle.assert_same_bits(got, expected_matrix(matrix, of_leaf, indices).astype(np.float32))
        elif jnp.issubdtype(weights[name].dtype, jnp.floating):
            expected = np.asarray(weights[name]).astype(ml_dtypes.bfloat16)
            np.testing.assert_array_equal(leaf, expected, strict=True)
        else:
            np.testing.assert_array_equal(leaf, weights[name], strict=True)


# --- one format for all ---------------------------------------------------------------------------------


@pytest.mark.parametrize('fmt', ['float4_e2m1fn', 'float6_e3m2fn', 'float8_e5m2', 'e3m8'])
def test_a_uniform_format(fmt, tmp_path):
    """4, 6, 8 and 12 bits, in every kind of leaf: ragged, scanned, fused heads, transposed batch axes."""
    layout = gq.uniform_layout(make_params(), fmt, rules=RULES)
    assert sorted(layout) == sorted(SHAPES)
    check_round_trip(tmp_path / 'weights.safetensors', make_params(), layout)


@pytest.mark.slow
@pytest.mark.parametrize('numbers', [fmt for fmt in oracle.all_formats() if sum(fmt[:2]) < 16])
def test_every_format(numbers, tmp_path):
    fmt = gq.FloatFormat(*numbers)
    # What is 2^128 times smaller than the largest of its block is flushed: see `fake_quantize`.
    params = make_params(extremes=fmt.exponent_bits < 7)
    if fmt.name == 'bfloat16':  # as a block's own
        bitwidths = jax.tree.map(lambda b_i: 10 * b_i, gq.gaussian_weight_sampling(rules=RULES).init(params))
        layout = gq.learned_layout(params, bitwidths, rules=RULES)
    else:
        layout = gq.uniform_layout(params, fmt, rules=RULES)
    assert {leaf.formats for leaf in layout.values()} == {(fmt,)}
    check_round_trip(tmp_path / 'weights.safetensors', params, layout)


SCALED = {
    'mx': gq.Quantizer('float6_e3m2fn', scale='mx'),
    'mx by tile': gq.Quantizer('e2m3', block_size=(8, 16), scale='mx'),
    'mx by tensor': gq.Quantizer('e5m2', block_size='tensor', scale='mx'),
    'absmax by channel': gq.Quantizer('float8_e4m3fn', block_size='channel'),
    'absmax by tile': gq.Quantizer('float8_e4m3fn', block_size=(32, 16)),
    'absmax by tensor': gq.Quantizer('float8_e5m2', block_size='tensor'),
    'absmax by block': gq.Quantizer('e3m8', block_size=7),
    'nvfp4': gq.Quantizer('e2m1', block_size=16, scale='nvfp4'),
    'nvfp4 by tile': gq.Quantizer('float4_e2m1fn', block_size=(16, 16), scale='nvfp4'),
}


@pytest.mark.parametrize('quantizer', SCALED.values(), ids=SCALED.keys())
def test_a_uniform_format_has_the_weights_of_quantization_aware_training(quantizer, path):
    """What a model was trained with is what is stored, and in the dtype in which it was used."""
    enough = quantizer.fmt.mantissa_bits <= 7
    dtype = jnp.bfloat16 if enough else jnp.float32
    transform = gq.quantization_aware(quantizer, rules=RULES, dtype=dtype)
    leaves = flatten(make_params(extremes=quantizer.scale != 'nvfp4'))
    params = nest({path: leaves[path] for path in ('up/kernel', 'layers/experts/kernel')})
    trained_with = jax.jit(lambda params: transform.apply(None, params, {}))(params)
    layout = gq.uniform_layout(
        params, quantizer.fmt, block_size=quantizer.block_size, scale=quantizer.scale, rules=RULES
    )
    assert_identical_trees(gq.quantize_params(params, layout), trained_with)
    check_round_trip(path, params, layout)


def test_bfloat16_is_a_cast(path):
    leaves = flatten(make_params())
    params = nest({name: leaves[name] for name in ('up/kernel', 'table', 'step', 'mask')})
    layout = gq.uniform_layout(params, 'bfloat16')
    check_round_trip(path, params, layout)
    assert_identical_trees(gq.quantize_params(params, layout), gq.cast_params().apply(None, params, {}))


# --- a format for each block ----------------------------------------------------------------------------


@pytest.mark.parametrize('high', [6, pytest.param(11, marks=pytest.mark.slow)])
def test_learned_formats(high, tmp_path):
    """Several formats in most leaves, a single one in another, with scales of square blocks."""
    generator, params = np.random.default_rng(1), make_params(extremes=high < 10)
    learned = gq.gaussian_weight_sampling(rules=RULES).init(params)
    bitwidths = {path: generator.uniform(2, high, b_i.shape) for path, b_i in learned.items()}
    bitwidths['layers/experts/kernel'][...] = 4
    layout = gq.learned_layout(params, bitwidths, rules=RULES)
    assert [fmt.name for fmt in layout['layers/experts/kernel'].formats] == ['e3m2']
    assert {fmt for leaf in layout.values() for fmt in leaf.formats} == set(
        map(gq.format_for_bitwidth, range(3, high + 1))
    )
    check_round_trip(tmp_path / 'weights.safetensors', params, layout)
    size = gq.model_size(params, bitwidths, rules=RULES)
    assert size.total_bytes == gq.layout_size(params, layout).total_bytes


FORMATS = tuple(map(gq.parse_format, ('float4_e2m1fn', 'e3m2', 'e3m0', 'float8_e5m2')))
SMALL = (2, 7, 9)
WEIGHTS = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.floats(-8, 8, width=32)


ANY_WEIGHTS = given(
    hypothesis_numpy.arrays(np.float32, SMALL, elements=WEIGHTS, fill=WEIGHTS),
    hypothesis_numpy.arrays(np.uint8, (2, 2, 3), elements=st.integers(0, len(FORMATS) - 1)),
)


@settings(deadline=None, max_examples=10)
@ANY_WEIGHTS
def test_any_weights_in_any_blocks(tmp_path_factory, weights, indices):
    check_blocks(tmp_path_factory.getbasetemp() / 'any.safetensors', weights, indices)


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@ANY_WEIGHTS
def test_many_weights_in_many_blocks(tmp_path_factory, weights, indices):
    check_blocks(tmp_path_factory.getbasetemp() / 'any.safetensors', weights, indices)


def check_blocks(path, weights, indices):
    layout = gq.LeafLayout(gq.MatrixRule('.*', (0,), (1,), (2,)), (4, 4), FORMATS, indices)
    size = gq.save_packed(path, {'kernel': weights}, {'kernel': layout})
    assert path.stat().st_size == size.total_bytes + header_bytes(path)
    loaded = gq.load_packed(path)['kernel']
    np.testing.assert_array_equal(
        loaded, gq.quantize_params({'kernel': weights}, {'kernel': layout})['kernel'], strict=True
    )
    read, _ = numpy_packed_reader.read(path)
    oracle.assert_same_bits(loaded.astype(np.float32), read['kernel'])
    for got, matrix, of_tiles in zip(read['kernel'], weights, indices):
        oracle.assert_same_bits(got, expected_matrix(matrix, layout, of_tiles).astype(np.float32))


# --- trees and arrays -----------------------------------------------------------------------------------


def small_params(kernel=None):
    kernel = oracle.heavy_tailed(SMALL[1:]) if kernel is None else kernel
    return {'blocks': [{'kernel': jnp.asarray(kernel)}, {'kernel': jnp.asarray(-kernel), 'bias': jnp.arange(9.0)}]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'weights.safetensors'


@pytest.fixture
def saved(path):
    """Of `small_params`, what was to be written."""
    layout = gq.uniform_layout(small_params(), 'e2m1')
    gq.save_packed(path, small_params(), layout)
    return gq.quantize_params(small_params(), layout)


def test_a_tree_of_another_structure_is_given_by_like(path, saved):
    loaded = gq.load_packed(path, like=jax.eval_shape(small_params))
    assert_identical_trees(loaded, jax.tree.map(np.asarray, saved))
    nested = gq.load_packed(path)
    assert sorted(nested['blocks']) == ['0', '1']
    np.testing.assert_array_equal(nested['blocks']['1']['kernel'], saved['blocks'][1]['kernel'])


def test_variables_of_nnx(path):
    shapes = nnx.state(nnx.eval_shape(lambda: nnx.Linear(7, 9, rngs=nnx.Rngs(0))), nnx.Param)
    params = jax.tree.map(lambda leaf: jnp.asarray(oracle.heavy_tailed(leaf.shape)), shapes)
    layout = gq.uniform_layout(params, 'e2m1')
    gq.save_packed(path, params, layout)
    assert sorted(layout) == ['kernel'] and sorted(gq.load_packed(path)) == ['bias', 'kernel']
    loaded = gq.load_packed(path, like=params)
    assert_identical_trees(loaded, jax.tree.map(np.asarray, gq.quantize_params(params, layout)))


@pytest.mark.parametrize(
    ('like', 'message'),
    [
        ({'blocks': [{'kernel': np.zeros((7, 9))}]}, r'blocks/1/bias: \(9,\) in the file, not there in `like`'),
        ({'other': np.zeros(3)}, r'other: not there in the file, \(3,\) in `like`'),
        (small_params(np.zeros((9, 7))), r'blocks/0/kernel: \(7, 9\) in the file, \(9, 7\) in `like`'),
    ],
)
def test_a_like_of_other_leaves(path, saved, like, message):
    with pytest.raises(ValueError, match=f'^{re.escape(str(path))} holds other leaves than `like`: .*{message}'):
        gq.load_packed(path, like=like)


def test_paths_without_a_place_in_nested_dicts(path):
    """One leaf's path goes on where another one's ends: the caller says by `like` where they belong."""
    params = {'a': jnp.ones(2), 'a/b': jnp.zeros(3)}
    gq.save_packed(path, params, {})
    with pytest.raises(ValueError, match="its leaf 'a/b' has no place in nested dicts; give like="):
        gq.load_packed(path)
    assert sorted(gq.load_packed(path, like=params)) == ['a', 'a/b']


def test_all_that_a_file_holds_comes_back(path):
    layout = gq.uniform_layout(small_params(), 'e2m1', block_size=5)
    info = {'config': {'name': 'ünïcode', 'nested': [1, 2.5, None, True]}, 'digits': '0' * 64}
    size = gq.save_packed(path, small_params(), layout, info=info)
    packed = read_packed(path)
    assert packed.info == info and packed.size.total_bytes == size.total_bytes
    assert packed.size.leaves == size.leaves
    for name, leaf in layout.items():
        got = packed.layout[name]
        assert (got.tile, got.formats, got.rule.axes) == ((5, 1), leaf.formats, (0, 1))
        np.testing.assert_array_equal(got.indices, leaf.indices, strict=True)


@pytest.mark.parametrize('axis_type', [AxisType.Explicit, pytest.param(AxisType.Auto, marks=pytest.mark.slow)])
def test_weights_on_several_devices(path, axis_type):
    """Wherever their parts lie, a file is the same, byte for byte."""
    kernel = oracle.heavy_tailed((2, 8, 16))
    mesh = jax.make_mesh((2, 4), ('data', 'model'), axis_types=(axis_type,) * 2)
    sharded = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec('data', None, 'model')))
    layout = gq.learned_layout(
        {'layers': {'kernel': kernel}}, {'layers/kernel': np.resize([3, 4], (2, 2, 4))}, block_size=4, rules=RULES[1:]
    )
    files = []
    for leaf in (kernel, sharded):
        gq.save_packed(path, {'layers': {'kernel': leaf}}, layout)
        files.append(path.read_bytes())
    assert files[0] == files[1]
    quantized = gq.quantize_params({'layers': {'kernel': sharded}}, layout)['layers']['kernel']
    assert quantized.sharding == sharded.sharding
    np.testing.assert_array_equal(quantized, gq.load_packed(path)['layers']['kernel'])


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('function', [gq.quantize_params, functools.partial(gq.save_packed, 'never-written')])
def test_weights_without_a_code(function, value):
    kernel = oracle.heavy_tailed(SMALL[1:])
    layout = gq.uniform_layout(small_params(kernel), 'e2m1')
    kernel[3, 4] = value
    with pytest.raises(ValueError, match="'blocks/0/kernel' has infinite or NaN weights"):
        function(small_params(kernel), layout)
    assert not os.path.exists('never-written')


@pytest.mark.parametrize('info', [{'x': np.nan}, {'x': {1, 2}}, {'x': np.float32(1)}])
def test_info_that_json_does_not_keep(path, info):
    with pytest.raises(ValueError, match='info cannot be stored as JSON'):
        gq.save_packed(path, small_params(), {}, info=info)
    assert not path.exists()


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('up/kernel.scales', "'up/kernel.scales' would be the name of two tensors; rename a leaf"),
        ('__metadata__', "a tensor cannot be named '__metadata__'"),
    ],
)
def test_names_that_clash(path, name, message):
    params = {'up': {'kernel': jnp.ones(SMALL[1:])}}
    layout = gq.uniform_layout(params, 'e2m1')
    with pytest.raises(ValueError, match=message):
        gq.save_packed(path, {name: jnp.ones(2), **params}, layout)
    assert not path.exists()


# --- the page -------------------------------------------------------------------------------------------


def test_the_c_code_of_the_page_gives_the_same_numbers(tmp_path):
    if not (compiler := shutil.which('cc')):
        pytest.skip('there is no C compiler')
    (source,) = re.findall('```c\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.DOTALL)
    (tmp_path / 'page.c').write_text(source)
    command = [compiler, '-Wall', '-Werror', '-shared', '-fPIC', '-o', tmp_path / 'page.so', tmp_path / 'page.c', '-lm']
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(tmp_path / 'page.so'))
    library.code.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int]
    library.weight.argtypes = [ctypes.c_uint32, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_uint8]
    library.weight.restype = ctypes.c_float
    for name in ('float4_e2m1fn', 'e3m2', 'e3m3', 'float8_e4m3fn', 'e0m4', 'e3m8'):
        fmt = gq.parse_format(name)
        codes = np.flatnonzero(~np.isnan(bit_packing.decoded(fmt))).astype(np.uint16)
        stream = bit_packing.pack(codes, fmt.bits).tobytes()
        assert [library.code(stream, k, fmt.bits) for k in range(len(codes))] == codes.tolist()
        for scale in (0, 120, 254 - 10):
            layout = fmt.exponent_bits, fmt.mantissa_bits, fmt.bias, scale
            weights = np.float32([library.weight(int(code), *layout) for code in codes])
            oracle.assert_same_bits(weights, np.ldexp(bit_packing.decoded(fmt)[codes], scale - 127))
