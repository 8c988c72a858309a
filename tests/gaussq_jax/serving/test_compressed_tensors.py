"""Checkpoints of compressed-tensors stand for the numbers of `quantize_params`, by NumPy and by the package itself."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import pytest
from serving_models import extremes, of_rows

import gaussq_jax as gq
from gaussq_jax.serving import to_compressed_tensors

KINDS = {
    'mxfp4-pack-quantized': dict(fmt='float4_e2m1fn'),
    'mxfp6-pack-quantized': dict(fmt='float6_e2m3fn'),
    'mxfp8-quantized': dict(fmt='float8_e4m3fn'),
    'mxfp8-quantized of e3m2': dict(fmt='e3m2'),
    'float-quantized by channel': dict(fmt='float8_e4m3fn', block_size='channel', scale='absmax'),
    'float-quantized by channel, powers of two': dict(fmt='float8_e4m3fn', block_size='channel'),
    'float-quantized by block': dict(fmt='float8_e4m3fn', block_size=(128, 128), scale='absmax'),
    'nvfp4-pack-quantized': dict(fmt='e2m1', block_size=16, scale='nvfp4'),
    'nvfp4-pack-quantized of tiles': dict(fmt='e2m1', block_size=(16, 16), scale='nvfp4'),
    'nvfp4-pack-quantized, powers of two': dict(fmt='e2m1', block_size=16),
}
cases = pytest.mark.parametrize(('kind', 'settings'), KINDS.items(), ids=KINDS)


def make_params(shape=(256, 128), *, extremes=True):
    """Heavy tails; blocks of zeros and of -0; numbers near float32's ends, where all scales go that far."""
    kernel = oracle.heavy_tailed(shape, seed=3)
    kernel[:32, :20], kernel[32:64, 5], kernel[:, 11] = 0, -0.0, 0
    if extremes:
        kernel[:, 7], kernel[:, 8] = 1e-30 * kernel[:, 7], 1e30 * kernel[:, 8]
    return {'up': {'kernel': kernel, 'bias': np.linspace(1, 2, shape[1], dtype=np.float32)}}


def params_of(settings):
    of_few_octaves = settings.get('block_size') == 16 and 'scale' not in settings
    return make_params(extremes=settings.get('scale') != 'nvfp4' and not of_few_octaves)


def bits_of(array):
    return np.asarray(array).astype(ml_dtypes.bfloat16).view(np.uint16)


def decode(tensors, fmt, side_of_tiles=None):
    """A module's weights by the layouts' definitions, float32 (out, in)."""
    if 'weight' in tensors:
        numbers = tensors['weight'].astype(np.float32)
    else:
        packed = tensors['weight_packed']
        bits = np.unpackbits(packed, axis=1, bitorder='little').reshape(len(packed), -1, fmt.bits)
        codes = bits.astype(int) @ (1 << np.arange(fmt.bits))
        magnitudes = fmt.values()[codes % 2 ** (fmt.bits - 1)].astype(np.float32)
        numbers = np.where(codes >> (fmt.bits - 1), -magnitudes, magnitudes)
    scales = tensors['weight_scale']
    if scales.dtype == np.uint8:
        scales = np.ldexp(np.float32(1), scales.astype(int) - 127)
    scales = scales.astype(np.float32)
    if 'weight_global_scale' in tensors:
        scales = scales / tensors['weight_global_scale']
    for axis, size in enumerate(numbers.shape):
        side = side_of_tiles or -(-size // scales.shape[axis])
        scales = scales.repeat(side, axis=axis).take(range(size), axis=axis)
    return numbers * scales


def tensors_of(tensors, module):
    return {
        name.removeprefix(f'{module}.'): tensor for name, tensor in tensors.items() if name.startswith(f'{module}.')
    }


@cases
def test_each_format_stands_for_the_same_numbers(kind, settings):
    params = params_of(settings)
    layout = gq.uniform_layout(params, **settings)
    tensors, config = to_compressed_tensors(params, layout)
    group = config['config_groups']['group_0']
    assert config['format'] == group['format'] == kind.partition(' ')[0].rstrip(',')
    assert group['targets'] == ['Linear'] and config['ignore'] == ['lm_head']
    np.testing.assert_array_equal(bits_of(tensors.pop('up.bias')), bits_of(params['up']['bias']))
    fmt = gq.parse_format(settings['fmt'])
    quantized = gq.quantize_params(params, layout)['up']['kernel'].T
    side = 128 if settings.get('block_size') == (128, 128) else None
    np.testing.assert_array_equal(bits_of(decode(tensors_of(tensors, 'up'), fmt, side)), bits_of(quantized))
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())


@cases
def test_the_package_reads_the_same_numbers(kind, settings):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    pytest.importorskip('compressed_tensors', reason='the package compressed-tensors of the extra serving')
    params = params_of(settings)
    params = {'up.weight': np.ascontiguousarray(params['up']['kernel'].T)}
    layout = gq.uniform_layout(params, **settings, rules=(gq.MatrixRule('.*', (), (1,), (0,)),))
    assert_read_by_the_package(torch, params, layout)


def assert_read_by_the_package(torch, params, layout):
    """The one matrix up.weight (out, in), as uint16."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    tensors, config = to_compressed_tensors(params, layout)
    state = {name: to_torch(torch, tensor) for name, tensor in tensors_of(tensors, 'up').items()}
    scheme = QuantizationConfig.model_validate(config).config_groups['group_0']
    compressor = BaseCompressor.get_value_from_registry(config['format'])
    weight = compressor.decompress(state, scheme)['weight']
    read = weight.to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(read, bits_of(gq.quantize_params(params, layout)['up.weight']))


def to_torch(torch, tensor):
    names = {'bfloat16': 'bfloat16', 'float8_e4m3fn': 'float8_e4m3fn'}
    if tensor.dtype.name not in names:
        return torch.from_numpy(tensor)
    return torch.from_numpy(tensor.view(f'i{tensor.itemsize}')).view(getattr(torch, tensor.dtype.name))


def test_golden_bytes():
    """The lower half of a byte is the even input; a scale of 2^1 is 128."""
    kernel = np.zeros((32, 2), np.float32)
    kernel[:5, 0] = 12, -1, 2, 3, -0.0
    tensors, _ = to_compressed_tensors({'up': kernel}, gq.uniform_layout({'up': kernel}, 'e2m1', rules=RULES))
    assert tensors['up.weight_packed'].dtype == np.uint8 and tensors['up.weight_packed'].shape == (2, 16)
    assert tensors['up.weight_packed'][0].tobytes().hex() == '97' + '32' + '08' + 13 * '00'
    assert tensors['up.weight_scale'].tolist()[0] == [128]


RULES = (gq.MatrixRule('.*', (), (0,), (1,)),)


def test_scales_by_channel_are_bfloat16_where_that_is_exact():
    params = make_params(extremes=False)
    of = lambda scale: gq.uniform_layout(params, 'float8_e4m3fn', block_size='channel', scale=scale)
    dtypes = [to_compressed_tensors(params, of(scale))[0]['up.weight_scale'].dtype for scale in ('mx', 'absmax')]
    assert dtypes == [jnp.bfloat16, np.float32]


def learned(bitwidths):
    """Two layers of queries and keys, of so many bits each."""
    kernels = oracle.heavy_tailed((2, 64, 64))
    params = {'layers': {name: {'kernel': kernels * sign} for name, sign in (('query', 1), ('key', -1))}}
    rules = (gq.MatrixRule('.*', (0,), (1,), (2,)),)
    b_t = {f'layers/{name}/kernel': np.reshape(bits, (2, 2, 2)) for name, bits in bitwidths.items()}
    return params, gq.learned_layout(params, b_t, rules=rules)


MIXED = {'query': [3, 3, 3, 3, 3, 4, 5, 3], 'key': [3, 3, 3, 3, 6, 3, 3, 3]}


def test_learned_blocks_are_in_the_narrowest_format_that_holds_their_matrix():
    params, layout = learned(MIXED)
    tensors, config = to_compressed_tensors(params, layout, unheld='bfloat16')
    groups = {group['format']: group['targets'] for group in config['config_groups'].values()}
    assert config['format'] == 'mixed-precision'
    assert groups == {
        'mxfp4-pack-quantized': ['layers.key.0', 'layers.query.0'],
        'mxfp8-quantized': ['layers.query.1'],
    }
    assert config['ignore'] == ['layers.key.1', 'lm_head'] and tensors['layers.key.1.weight'].dtype == jnp.bfloat16
    quantized = gq.quantize_params(params, layout)['layers']
    for name in ('query', 'key'):
        for layer in range(2):
            module = tensors_of(tensors, f'layers.{name}.{layer}')
            weights = decode(module, gq.parse_format('e2m1')) if 'weight_scale' in module else module['weight']
            np.testing.assert_array_equal(bits_of(weights), bits_of(quantized[name]['kernel'][layer].T))


def test_modules_that_servers_fuse_have_one_format():
    params, layout = learned(MIXED)
    fused = {f'layers.{name}.{layer}': f'{layer}.qk' for name in ('query', 'key') for layer in range(2)}
    _, config = to_compressed_tensors(params, layout, fused=fused, unheld='bfloat16')
    assert [group['targets'] for group in config['config_groups'].values()] == [['Linear']]
    assert config['ignore'] == ['layers.key.1', 'layers.query.1', 'lm_head']


def test_what_no_format_holds():
    with pytest.raises(
        ValueError, match=r"layers\.key\.1 can't be held exactly as .*, its format e3m4 has numbers that"
    ):
        to_compressed_tensors(*learned(MIXED))
    params = make_params()
    with pytest.raises(ValueError, match='up has weights in e3m8, which bfloat16 does not hold exactly'):
        to_compressed_tensors(params, gq.uniform_layout(params, 'e3m8'), unheld='bfloat16')


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(fmt='e5m2'), "its format e5m2 has numbers that float8_e4m3fn doesn't have"),
        (dict(fmt='e2m1', block_size=8), '8 inputs share a scale, which is no multiple of 32'),
        (dict(fmt='e2m1', scale='absmax'), 'its scales are of the kind absmax, not mx'),
    ],
)
def test_layouts_without_a_format(settings, message):
    params = make_params()
    with pytest.raises(ValueError, match=f"^up can't be held exactly .*{message}"):
        to_compressed_tensors(params, gq.uniform_layout(params, **settings))


def test_scales_too_far_apart_for_nvfp4():
    params = make_params()
    with pytest.raises(ValueError, match=r'^up has scales of 2\^-\d+ to 2\^\d+: NVFP4 holds .* at most 17 octaves'):
        to_compressed_tensors(params, gq.uniform_layout(params, 'e2m1', block_size=16))


def test_a_scale_that_float32_does_not_hold():
    params = make_params(extremes=False)
    params['up']['kernel'][:, 3] = 2.0**-125
    with pytest.raises(ValueError, match=r'^up has a scale of .* which float32 does not hold exactly'):
        to_compressed_tensors(params, gq.uniform_layout(params, 'float8_e4m3fn', block_size='channel', scale='absmax'))


FUSED = {'up': 'gate_up', 'gate': 'gate_up'}


def test_fused_modules_have_one_global_scale():
    """Of powers of two, one that is right for all of them: servers have no other."""
    params = make_params(extremes=False)
    params['gate'] = {'kernel': params['up']['kernel'] / 8}
    layout = gq.uniform_layout(params, 'e2m1', block_size=16)
    scales = [
        to_compressed_tensors(params, layout, **given)[0][f'{name}.weight_global_scale'].item()
        for given in ({}, dict(fused=FUSED))
        for name in FUSED
    ]
    assert scales[1] == 8 * scales[0] and scales[2] == scales[3] == scales[0]
    tensors, _ = to_compressed_tensors(params, layout, fused=FUSED)
    quantized = gq.quantize_params(params, layout)
    for name in FUSED:
        weights = decode(tensors_of(tensors, name), gq.parse_format('e2m1'))
        np.testing.assert_array_equal(bits_of(weights), bits_of(quantized[name]['kernel'].T))


@pytest.mark.parametrize('settings', [dict(fmt='e2m1', block_size=16), KINDS['float-quantized by channel']])
def test_scales_that_are_not_held_leave_bfloat16(settings):
    """A layout alone doesn't tell: the scales of these weights do."""
    params = make_params(extremes=False)
    params['up']['kernel'][:, 3], params['up']['kernel'][0, 3] = 2.0**-125, 2.0**-124
    layout = gq.uniform_layout(params, **settings)
    with pytest.raises(ValueError, match=r'^up has '):
        to_compressed_tensors(params, layout)
    tensors, config = to_compressed_tensors(params, layout, unheld='bfloat16')
    assert config == {}
    expected = gq.quantize_params(params, layout)['up']['kernel'].T
    np.testing.assert_array_equal(bits_of(tensors['up.weight']), bits_of(expected))


def test_another_format_is_tried_where_scales_are_not_held():
    """E2M1 by channel, of 48 inputs: NVFP4 has no scales that far apart, FP8 by channel has."""
    params = {'up': {'kernel': oracle.heavy_tailed((48, 32))}}
    params['up']['kernel'][:, 3] *= np.float32(2.0**-30)
    layout = gq.uniform_layout(params, 'e2m1', block_size='channel')
    tensors, config = to_compressed_tensors(params, layout)
    assert config['format'] == 'float-quantized'
    weights = decode(tensors_of(tensors, 'up'), gq.parse_format('e2m1'))
    np.testing.assert_array_equal(bits_of(weights), bits_of(gq.quantize_params(params, layout)['up']['kernel'].T))


def test_a_fused_module_outside_of_the_layout():
    params = {f'{name}.weight': oracle.heavy_tailed((32, 64), seed=1) for name in FUSED}
    rules = [gq.MatrixRule('up.weight', (), (1,), (0,)), gq.CastOnly('.*')]
    layout = gq.uniform_layout(params, 'e2m1', rules=rules)
    with pytest.raises(ValueError, match=r'^gate is not in the layout, and servers make one matrix of it and up'):
        to_compressed_tensors(params, layout, fused=FUSED)
    tensors, config = to_compressed_tensors(params, layout, fused=FUSED, unheld='bfloat16')
    assert not config and tensors['up.weight'].dtype == jnp.bfloat16


@pytest.mark.parametrize('fmt', ['float4_e2m1fn', 'float6_e2m3fn', 'float8_e4m3fn'])
def test_the_package_reads_extremes(fmt):
    """Rows of zeros of both signs, of the smallest and the largest weights."""
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    pytest.importorskip('compressed_tensors', reason='the package compressed-tensors of the extra serving')
    params, rules = of_rows(extremes())
    assert_read_by_the_package(torch, params, gq.uniform_layout(params, fmt, rules=rules))


@pytest.mark.parametrize('shape', [(192, 128), (300, 128), (192, 192)])
def test_the_package_reads_blocks_at_the_edges(shape):
    """Which are smaller than 128 x 128."""
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    pytest.importorskip('compressed_tensors', reason='the package compressed-tensors of the extra serving')
    params = {'up.weight': oracle.heavy_tailed(shape)}
    rules = (gq.MatrixRule('.*', (), (1,), (0,)),)
    assert_read_by_the_package(
        torch, params, gq.uniform_layout(params, **KINDS['float-quantized by block'], rules=rules)
    )


def test_a_ragged_matrix_has_no_blocks_of_32():
    params = {'up': {'kernel': oracle.heavy_tailed((40, 32))}}
    with pytest.raises(ValueError, match=r"^up can't be held exactly .*its 40 inputs are no multiple of 32"):
        to_compressed_tensors(params, gq.uniform_layout(params, 'e2m1'))
