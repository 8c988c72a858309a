"""What Quark reads of its MXFP6 is what was written, bit for bit."""

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

E3M2, E2M3 = 'float6_e3m2fn', 'float6_e2m3fn'


def decoded(tensors, name, fmt):
    """(out, in), bfloat16."""
    stream, scales = tensors[f'{name}.weight'], tensors[f'{name}.weight_scale']
    assert stream.dtype == scales.dtype == np.uint8
    bits = np.unpackbits(stream, axis=1, bitorder='little').reshape(len(stream), -1, 6)
    codes = (bits << np.arange(6, dtype=np.uint8)).sum(axis=2, dtype=np.uint8)
    numbers = codes.view(oracle.standard_dtype(fmt)).astype(np.float64)
    return (numbers * np.ldexp(1.0, scales.astype(int) - 127).repeat(32, axis=1)).astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    'fmt, numbers, stream',
    [
        (E3M2, [28, -28, 1, 2.0**-4, -0.0], [0xDF, 0xCF, 0x04, 0x20, 0, 0]),  # codes 1F, 3F, 0C, 01, 20
        (E2M3, [7.5, -7.5, 1, 2.0**-3, -0.0], [0xDF, 0x8F, 0x04, 0x20, 0, 0]),  # codes 1F, 3F, 08, 01, 20
    ],
)
def test_bytes_by_hand(fmt, numbers, stream):
    weights = np.zeros((2, 32), np.float32)
    weights[0, : len(numbers)] = numbers
    weights[1] = weights[0] / 4
    params, rules = of_rows(weights)
    tensors, _ = gq.to_quark_mxfp6(params, gq.uniform_layout(params, fmt, rules=rules))
    assert tensors['up.weight'].shape == (2, 24)
    np.testing.assert_array_equal(tensors['up.weight'], [stream + 18 * [0]] * 2)
    np.testing.assert_array_equal(tensors['up.weight_scale'], [[127], [125]])


@pytest.mark.parametrize('fmt, read', [(E3M2, E3M2), (E2M3, E2M3), ('e0m2', E3M2), ('e2m1', E3M2)])
def test_a_numpy_decoder_reads_the_quantized_weights(fmt, read):
    """Zeros of both signs, and the smallest and largest scales among them."""
    params, rules = of_rows(extremes())
    layout = gq.uniform_layout(params, fmt, rules=rules)
    tensors, _ = gq.to_quark_mxfp6(params, layout)
    oracle.assert_same_bits(decoded(tensors, 'up', read), in_bfloat16(params, layout)['up.weight'])
    scales = tensors['up.weight_scale']
    assert scales.max() == 254 if fmt == 'e0m2' else scales.min() == 0


def test_the_config_names_both_formats_and_what_is_not_quantized():
    params, _ = llama(tied=True)
    _, config = gq.to_quark_mxfp6(params, mixed_layout(params, dict(fmt=E2M3), dict(fmt=E3M2)))
    of_weights = config['global_quant_config']['weight']
    down = [f'model.layers.{i}.mlp.down_proj' for i in range(2)]
    assert config['quant_method'] == 'quark' and config['exclude'] == ['lm_head', 'model.embed_tokens']
    assert of_weights['dtype'] == 'fp6_e3m2' and of_weights['scale_format'] == 'e8m0'
    assert config['global_quant_config']['input_tensors'] is None
    assert list(config['layer_quant_config']) == down
    assert config['layer_quant_config'][down[0]]['weight'] == of_weights | {'dtype': 'fp6_e2m3'}


@pytest.mark.parametrize(
    'layout, inputs, told',
    [
        (
            dict(fmt='float8_e4m3fn'),
            64,
            r'its format float8_e4m3fn has .* float6_e2m3fn .*; it can be by .*mlx, tr.*$',
        ),
        (dict(fmt=E3M2), 40, 'its 40 inputs are no multiple of 32'),
        (dict(fmt=E3M2, block_size='channel', scale='absmax'), 64, 'its scales are of the kind absmax, not mx'),
        (dict(fmt=E3M2, block_size=8), 64, '8 inputs share a scale, which is no multiple of 32'),
    ],
)
def test_what_mxfp6_does_not_hold(layout, inputs, told):
    params, rules = of_rows(oracle.heavy_tailed((8, inputs)))
    layout = gq.uniform_layout(params, **layout, rules=rules)
    with pytest.raises(ValueError, match=rf"up can't be held exactly as MXFP6 \(E.M.\), {told}"):
        gq.to_quark_mxfp6(params, layout)
    tensors, config = gq.to_quark_mxfp6(params, layout, unheld='bfloat16')
    assert not config
    assert_same_weights(tensors, in_bfloat16(params, layout))


def test_learned_formats():
    params, layout = learned_params([3, 4])
    tensors, _ = gq.to_quark_mxfp6(params, layout)
    weights = gq.quantize_params(params, layout)['up']['kernel']
    oracle.assert_same_bits(decoded(tensors, 'up', E3M2), np.asarray(weights).T)
    with pytest.raises(ValueError, match=r'its format e4m6 has numbers that float6_e2m3fn'):
        gq.to_quark_mxfp6(*learned_params([3, 8]))


def test_compressed_tensors_reads_the_same_stream():
    torch = pytest.importorskip('torch', reason='extra serving')
    helpers = pytest.importorskip('compressed_tensors.compressors.mxfp6.helpers', reason='extra serving')
    params, rules = of_rows(oracle.heavy_tailed((8, 64)))
    layout = gq.uniform_layout(params, E2M3, rules=rules)
    tensors, _ = gq.to_quark_mxfp6(params, layout)
    numbers = helpers.unpack_fp6_from_uint8(torch.from_numpy(tensors['up.weight']), 8, 64, torch.float32).numpy()
    scales = np.ldexp(np.float32(1), tensors['up.weight_scale'].astype(int) - 127).repeat(32, axis=1)
    found = (numbers * scales).astype(ml_dtypes.bfloat16)
    oracle.assert_same_bits(found, in_bfloat16(params, layout)['up.weight'])


@pytest.mark.filterwarnings('ignore')  # of quark's own packages
@pytest.mark.parametrize('tied', [True, False])
def test_quark_loads_a_llama(tmp_path, tied):
    """With both formats, a matrix that isn't quantized, and all extremes in it; its weights are the quantized ones."""
    torch = pytest.importorskip('torch', reason='extra serving')
    transformers = pytest.importorskip('transformers', reason='extra serving')
    pytest.importorskip('quark.torch', reason='amd-quark')
    params, config = llama(tied)
    params['model.layers.0.mlp.up_proj.weight'][:8, :64] = extremes()
    layout = mixed_layout(params, dict(fmt=E2M3), dict(fmt=E3M2))
    del layout['model.layers.1.mlp.up_proj.weight']
    tensors, of_layers = gq.to_quark_mxfp6(params, layout)
    folder = write_folder(tmp_path / 'quark', tensors, config | {'quantization_config': of_layers, 'dtype': 'bfloat16'})
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype='bfloat16')
    weights = in_bfloat16(params, layout)
    for name, expected in weights.items():
        module = model.get_submodule(name.removesuffix('.weight'))
        found = module.weight_quantizer(module.weight) if name in layout else module.weight
        found = found.detach().to(torch.bfloat16).view(torch.uint16).numpy()
        oracle.assert_same_bits(found.view(ml_dtypes.bfloat16), expected)
