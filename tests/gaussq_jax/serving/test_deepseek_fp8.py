"""What transformers reads of DeepSeek's FP8 is what was written, bit for bit."""

import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import pytest
from serving_models import (
    RULES,
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

BLOCKS = dict(fmt='float8_e4m3fn', block_size=(128, 128), scale='absmax')


def decoded(tensors, name):
    """(out, in), bfloat16."""
    numbers, scales = tensors[f'{name}.weight'], tensors[f'{name}.weight_scale_inv']
    assert numbers.dtype == ml_dtypes.float8_e4m3fn and scales.dtype == np.float32
    factors = scales.repeat(128, axis=0)[: numbers.shape[0]].repeat(128, axis=1)[:, : numbers.shape[1]]
    return (numbers.astype(np.float32) * factors).astype(ml_dtypes.bfloat16)


def test_bytes_by_hand():
    weights = np.zeros((128, 256), np.float32)
    weights[1, :3] = [448, -1, 2.0**-9]
    weights[2, 128:130] = [-896, 2]
    params, rules = of_rows(weights)
    tensors, config = gq.to_deepseek_fp8(params, gq.uniform_layout(params, **BLOCKS, rules=rules))
    assert tensors.keys() == {'up.weight', 'up.weight_scale_inv'}
    codes = tensors['up.weight'].view(np.uint8)
    np.testing.assert_array_equal(codes[1, :4], [0x7E, 0xB8, 0x01, 0x00])
    np.testing.assert_array_equal(codes[2, 128:131], [0xFE, 0x38, 0x00])
    np.testing.assert_array_equal(tensors['up.weight_scale_inv'], [[1, 2]])
    assert config == {
        'quant_method': 'fp8',
        'fmt': 'e4m3',
        'activation_scheme': 'dynamic',
        'weight_block_size': [128, 128],
        'modules_to_not_convert': ['lm_head'],
    }


@pytest.mark.parametrize('shape', [(290, 128), (64, 256), (576, 40)])
@pytest.mark.parametrize('kind, exponent', [('absmax', -115), ('mx', -126)])
def test_a_numpy_decoder_reads_the_quantized_weights(shape, kind, exponent):
    """Also where blocks are smaller at the edges, all zeros, or of the smallest and largest weights."""
    weights = oracle.heavy_tailed(shape)
    weights[:128] *= np.ldexp(1 / np.abs(weights[:128]).max(), exponent)
    weights[128:256] = -0.0
    weights[-8:, :40] = extremes(8, 40)
    params, rules = of_rows(weights)
    layout = gq.uniform_layout(params, **BLOCKS | {'scale': kind}, rules=rules)
    tensors, _ = gq.to_deepseek_fp8(params, layout)
    assert tensors['up.weight_scale_inv'].shape == (-(-shape[0] // 128), -(-shape[1] // 128))
    oracle.assert_same_bits(decoded(tensors, 'up'), in_bfloat16(params, layout)['up.weight'])


def test_scales_that_float32_does_not_hold():
    params, rules = of_rows(np.full((8, 32), 2.0**-122, np.float32))
    with pytest.raises(ValueError, match=r'up has a scale of 4.2e-40, which float32 does not hold exactly'):
        gq.to_deepseek_fp8(params, gq.uniform_layout(params, **BLOCKS, rules=rules))


def test_learned_formats_in_blocks_of_128_are_held():
    params = {'up': {'kernel': oracle.heavy_tailed((256, 128))}}
    layout = gq.learned_layout(params, {'up/kernel': np.float32([[3], [5]])}, block_size=128)
    tensors, _ = gq.to_deepseek_fp8(params, layout)
    weights = gq.quantize_params(params, layout)['up']['kernel']
    oracle.assert_same_bits(decoded(tensors, 'up'), np.asarray(weights).T)


@pytest.mark.parametrize(
    'layout, shape, told',
    [
        (BLOCKS | dict(fmt='float8_e5m2'), (128, 128), 'its format float8_e5m2 has numbers'),
        (
            dict(fmt='float8_e4m3fn'),
            (128, 128),
            '32 inputs share a scale, .* 128; it can be by .*, mlx, tr.*$',
        ),
        (
            BLOCKS | dict(block_size='channel'),
            (160, 128),
            r'1 outputs share a scale, which is no multiple of 128; .*transformers in bf.*$',
        ),
        (BLOCKS, (192, 128), 'transformers cuts its 192 outputs in 2 blocks of 96, not of 128'),
        (BLOCKS, (128, 192), 'transformers cuts its 192 inputs in 2 blocks of 96, not of 128'),
    ],
)
def test_what_the_blocks_do_not_hold(layout, shape, told):
    params, rules = of_rows(oracle.heavy_tailed(shape))
    layout = gq.uniform_layout(params, **layout, rules=rules)
    with pytest.raises(ValueError, match=rf"up can't be held exactly as FP8 in blocks of 128 x 128, {told}"):
        gq.to_deepseek_fp8(params, layout)
    tensors, config = gq.to_deepseek_fp8(params, layout, unheld='bfloat16')
    assert not config
    assert_same_weights(tensors, in_bfloat16(params, layout))


def test_learned_formats_of_more_bits():
    params, layout = learned_params([3, 8])
    with pytest.raises(ValueError, match=r'its format e4m6 has numbers that float8_e4m3fn'):
        gq.to_deepseek_fp8(params, layout)


def test_modules_that_are_not_converted_are_named():
    params, _ = llama(tied=True)
    layout = mixed_layout(params, dict(fmt='e3m4'), BLOCKS)
    _, config = gq.to_deepseek_fp8(params, layout, unheld='bfloat16')
    down = [f'model.layers.{i}.mlp.down_proj' for i in range(2)]
    assert config['modules_to_not_convert'] == ['lm_head', 'model.embed_tokens', *down]
    rules = [gq.MatrixRule('lm_head.weight', (), (1,), (0,)), *RULES]
    params, _ = llama(tied=False)
    _, config = gq.to_deepseek_fp8(params, gq.uniform_layout(params, **BLOCKS, rules=rules))
    assert config['modules_to_not_convert'] == ['model.embed_tokens']


@pytest.mark.parametrize('tied', [True, False])
def test_transformers_loads_a_llama(tmp_path, tied):
    """With matrices that are not converted among its own; its weights are the quantized ones."""
    pytest.importorskip('accelerate', reason='accelerate, of the extra serving')
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    transformers = pytest.importorskip('transformers', reason='extra serving')
    quantizers = pytest.importorskip('transformers.quantizers.quantizers_utils', reason='extra serving')
    params, config = llama(tied)
    up, gate = (params[f'model.layers.0.mlp.{name}_proj.weight'] for name in ('up', 'gate'))
    up[:128] *= np.float32(1e-30)
    up[128:] *= np.float32(1e30)
    gate[:128] = 0
    layout = mixed_layout(params, dict(fmt='e3m4'), BLOCKS)
    tensors, of_layers = gq.to_deepseek_fp8(params, layout, unheld='bfloat16')
    assert tensors['model.layers.1.mlp.up_proj.weight_scale_inv'].shape == (2, 1)
    folder = write_folder(tmp_path / 'fp8', tensors, config | {'quantization_config': of_layers, 'dtype': 'bfloat16'})
    of_loading = transformers.FineGrainedFP8Config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=of_loading)
    found = {name: tensor.view(torch.uint16).numpy() for name, tensor in model.state_dict().items()}
    weights = in_bfloat16(params, layout)
    assert found.keys() == weights.keys() | {'lm_head.weight'}
    assert_same_weights({name: found[name].view(ml_dtypes.bfloat16) for name in weights}, weights)
    not_converted = of_layers['modules_to_not_convert']
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            is_quantized = f'{name}.weight_scale_inv' in tensors
            assert quantizers.should_convert_module(name, not_converted) == is_quantized
