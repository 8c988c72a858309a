"""What MLX and mlx-lm read is what was written, bit for bit."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import pytest
from serving_models import (
    assert_same_weights,
    extremes,
    in_bfloat16,
    learned_params,
    llama,
    mixed_layout,
    of_rows,
    write_folder,
)

import gaussq_jax as gq

FORMATS = {'float4_e2m1fn': 4, 'float8_e4m3fn': 8}
MODES = {bits: {'group_size': 32, 'bits': bits, 'mode': f'mxfp{bits}'} for bits in (4, 8)}


def decoded(tensors, name, bits):
    """(out, in), bfloat16."""
    words, scales = tensors[f'{name}.weight'], tensors[f'{name}.scales']
    assert words.dtype == np.uint32 and scales.dtype == np.uint8
    codes = words[..., None] >> np.arange(0, 32, bits, dtype=np.uint32) & np.uint32(2**bits - 1)
    dtype = ml_dtypes.float4_e2m1fn if bits == 4 else ml_dtypes.float8_e4m3fn
    numbers = codes.astype(np.uint8).view(dtype).reshape(len(words), -1).astype(np.float64)
    return (numbers * np.ldexp(1.0, scales.astype(int) - 127).repeat(32, axis=1)).astype(ml_dtypes.bfloat16)


def test_bytes_by_hand():
    numbers = np.zeros((2, 32), np.float32)
    numbers[0, :16] = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    numbers[1, :4] = [24, -24, 0, 2]
    params, rules = of_rows(numbers)
    tensors, config = gq.to_mlx(params, gq.uniform_layout(params, 'float4_e2m1fn', rules=rules))
    np.testing.assert_array_equal(tensors['up.weight'], [[0x76543210, 0xFEDCBA98, 0, 0], [0x10F7, 0, 0, 0]])
    np.testing.assert_array_equal(tensors['up.scales'], [[127], [129]])
    assert config == MODES[4]


def test_bytes_of_mxfp8_by_hand():
    numbers = np.zeros((1, 32), np.float32)
    numbers[0, :5] = [448, -448, 2.0**-9, -(2.0**-9), 1]
    params, rules = of_rows(numbers)
    tensors, config = gq.to_mlx(params, gq.uniform_layout(params, 'float8_e4m3fn', rules=rules))
    np.testing.assert_array_equal(tensors['up.weight'], [[0x8101FE7E, 0x38, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(tensors['up.scales'], [[127]])
    assert config == MODES[8]


@pytest.mark.parametrize('fmt', [*FORMATS, 'e0m2', 'e3m2'])
def test_a_numpy_decoder_reads_the_quantized_weights(fmt):
    """Zeros of both signs, and the smallest and largest scales among them."""
    params, rules = of_rows(extremes())
    layout = gq.uniform_layout(params, fmt, rules=rules)
    tensors, config = gq.to_mlx(params, layout)
    weights = decoded(tensors, 'up', config['bits'])
    oracle.assert_same_bits(weights, in_bfloat16(params, layout)['up.weight'])
    scales = tensors['up.scales']
    assert scales.max() == 254 if fmt == 'e0m2' else scales.min() == 0


def test_learned_formats_share_the_narrowest_mode():
    for bitwidths, bits in (([3, 3], 4), ([3, 5], 8), ([5, 5], 8)):
        params, layout = learned_params(bitwidths)
        tensors, config = gq.to_mlx(params, layout)
        assert config == MODES[bits]
        weights = gq.quantize_params(params, layout)['up']['kernel']
        oracle.assert_same_bits(decoded(tensors, 'up', bits), np.asarray(weights).T)


def test_modules_of_another_mode_have_an_entry():
    params, _ = llama(tied=False)
    tensors, config = gq.to_mlx(params, mixed_layout(params, dict(fmt='float8_e4m3fn'), dict(fmt='float4_e2m1fn')))
    down = [f'model.layers.{i}.mlp.down_proj' for i in range(2)]
    assert config == MODES[4] | dict.fromkeys(down, MODES[8])
    assert tensors['lm_head.weight'].dtype == jnp.bfloat16 and 'lm_head.scales' not in tensors


@pytest.mark.parametrize(
    'layout, inputs, told',
    [
        (dict(fmt='e3m4'), 64, r'up .* as MXFP8, its format e3m4 has numbers that float8_e4m3fn doesn.t have'),
        (dict(fmt='e2m1'), 40, r'up .* as MXFP4, its 40 inputs are no multiple of 32'),
        (
            dict(fmt='e2m1', block_size=16, scale='nvfp4'),
            64,
            r'up .* as MXFP4, its scales are of the kind nvfp4, not mx; .*; it can be by compressed-tensors, tr.*$',
        ),
        (dict(fmt='e2m1', block_size=16), 64, r'up .* as MXFP4, 16 inputs share a scale, which is no multiple of 32'),
    ],
)
def test_what_mlx_does_not_hold(layout, inputs, told):
    params, rules = of_rows(oracle.heavy_tailed((8, inputs)))
    layout = gq.uniform_layout(params, **layout, rules=rules)
    with pytest.raises(ValueError, match=told):
        gq.to_mlx(params, layout)
    tensors, config = gq.to_mlx(params, layout, unheld='bfloat16')
    assert not config
    assert_same_weights(tensors, in_bfloat16(params, layout))


def test_learned_formats_of_more_bits():
    params, layout = learned_params([3, 8])
    with pytest.raises(ValueError, match=r"up can't be held exactly as MXFP8, its format e4m6 has numbers"):
        gq.to_mlx(params, layout)
    tensors, config = gq.to_mlx(params, layout, unheld='bfloat16')
    assert list(tensors) == ['up.weight'] and tensors['up.weight'].dtype == jnp.bfloat16 and not config


@pytest.mark.parametrize('fmt', FORMATS)
def test_mlx_dequantizes_every_code_at_every_scale(fmt):
    mx = pytest.importorskip('mlx.core', reason='extra serving')
    dtype = oracle.standard_dtype(fmt)
    codes = np.resize(np.arange(2 ** FORMATS[fmt], dtype=np.uint8), (1, 256))
    codes[np.isnan(codes.view(dtype).astype(np.float32))] = 0  # which no weight has
    stream = codes if FORMATS[fmt] == 8 else codes[:, ::2] | codes[:, 1::2] << 4
    words = np.ascontiguousarray(stream.repeat(255, axis=0)).view(np.uint32)
    scales = np.arange(255, dtype=np.uint8)[:, None].repeat(8, axis=1)
    with np.errstate(over='ignore'):
        expected = codes.view(dtype).astype(np.float64) * np.ldexp(1.0, scales[:, :1].astype(int) - 127)
        expected = expected.astype(ml_dtypes.bfloat16)
    found = mx.dequantize(mx.array(words), mx.array(scales), **MODES[FORMATS[fmt]])
    np.testing.assert_array_equal(np.array(found.view(mx.uint16)), expected.view(np.uint16))


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize(
    'down, other', [('float4_e2m1fn', 'float4_e2m1fn'), ('float8_e4m3fn', 'float8_e4m3fn'), ('float8_e4m3fn', 'e2m1')]
)
def test_mlx_lm_loads_a_llama(tmp_path, tied, down, other):
    """Its weights are the quantized ones, and its logits those of a model of these weights in bfloat16."""
    mx = pytest.importorskip('mlx.core', reason='extra serving')
    mlx_lm = pytest.importorskip('mlx_lm.utils', reason='extra serving')
    params, config = llama(tied)
    layout = mixed_layout(params, dict(fmt=down), dict(fmt=other))
    weights = in_bfloat16(params, layout)
    tensors, of_layers = gq.to_mlx(params, layout)
    low, _ = mlx_lm.load_model(write_folder(tmp_path / 'low', tensors, config | {'quantization': of_layers}))
    wide, _ = mlx_lm.load_model(write_folder(tmp_path / 'wide', weights, config))
    modules = dict(low.named_modules())
    for name in layout:
        module = modules[name.removesuffix('.weight')]
        mode = dict(group_size=module.group_size, bits=module.bits, mode=module.mode)
        found = mx.dequantize(module.weight, module.scales, **mode)
        oracle.assert_same_bits(np.array(found.view(mx.uint16)), weights[name].view(np.uint16))
    tokens = mx.array([[5, 90, 7, 0, 33]])
    low.set_dtype(mx.float32), wide.set_dtype(mx.float32)
    expected = np.array(wide(tokens))
    np.testing.assert_allclose(np.array(low(tokens)), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
