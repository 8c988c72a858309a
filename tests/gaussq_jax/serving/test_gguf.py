"""Tensors of GGUF files: the bytes of MXFP4, and a Llama's weights by llama.cpp's names, in its order of rows."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from served_runs import llama, params_of
from small_checkpoints import GPT2, random_params

import gaussq_jax as gq
from gaussq_jax import models
from gaussq_jax.packed import Layout, learned_layout, quantize_params, uniform_layout
from gaussq_jax.serving import gguf as serving_gguf
from gaussq_jax.serving.gguf import describe_model, mxfp4_blocks, rotary_rows, to_gguf

E2M1 = 'float4_e2m1fn'
HUGGINGFACE = {  # within a layer
    'attn_norm': 'input_layernorm',
    'attn_q': 'self_attn.q_proj',
    'attn_k': 'self_attn.k_proj',
    'attn_v': 'self_attn.v_proj',
    'attn_output': 'self_attn.o_proj',
    'ffn_norm': 'post_attention_layernorm',
    'ffn_gate': 'mlp.gate_proj',
    'ffn_up': 'mlp.up_proj',
    'ffn_down': 'mlp.down_proj',
}


def decode(blocks):
    """MXFP4 by its definition, weight by weight: float64 (out, in)."""
    rows = []
    for row in blocks.reshape(len(blocks), -1, 17):
        weights = []
        for scale, *pairs in row.tolist():
            codes = [pair & 15 for pair in pairs] + [pair >> 4 for pair in pairs]
            magnitudes = [code % 8 if code % 8 < 2 else (2 + code % 2) * 2 ** (code % 8 // 2 - 1) for code in codes]
            weights += [(-1) ** (code // 8) * m / 2 * 2.0 ** (scale - 127) for code, m in zip(codes, magnitudes)]
        rows.append(weights)
    return np.array(rows)


def every_code():
    """Each scale with each code, in rows of two blocks: codes (255, 64) and scales (255, 2)."""
    scales = np.arange(255, dtype=np.uint8)
    codes = np.random.default_rng(0).permuted(np.tile(np.arange(16, dtype=np.uint8), (255, 4)), axis=1)
    return codes, np.stack([scales, scales[::-1]], axis=1)


def values_of(codes, scales):
    """By ml_dtypes, float64."""
    steps = scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    return codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64) * steps.repeat(32, axis=1)


def test_golden_bytes():
    """Weight 0 and weight 16 share the byte after the scale."""
    codes = np.zeros((2, 64), np.uint8)
    codes[0, [0, 1, 15, 16, 31, 32]] = 1, 2, 3, 15, 9, 5
    blocks = mxfp4_blocks(codes, np.uint8([[127, 3], [0, 254]]))
    assert blocks.dtype == np.uint8 and blocks.shape == (2, 34)
    assert blocks[0].tobytes().hex() == '7f' + 'f102' + 13 * '00' + '93' + '03' + '05' + 15 * '00'
    assert blocks[1].tobytes().hex() == 17 * '00' + 'fe' + 16 * '00'


def test_every_code_with_every_scale():
    codes, scales = every_code()
    np.testing.assert_array_equal(decode(mxfp4_blocks(codes, scales)), values_of(codes, scales))


def test_ggml_reads_every_code_with_every_scale():
    """Its table of numbers is doubled and its scale halved: the product is the same, and -0 becomes 0."""
    quants = pytest.importorskip('gguf.quants', reason='the package gguf of the extra serving')
    import gguf

    codes, scales = every_code()
    with np.errstate(over='ignore'):  # 2^127 times more than 1
        read = quants.dequantize(mxfp4_blocks(codes, scales), gguf.GGMLQuantizationType.MXFP4)
        np.testing.assert_array_equal(read, values_of(codes, scales).astype(np.float32))
    assert not np.signbit(read[codes == 8]).any() and np.signbit(read[codes > 8]).all()


@pytest.mark.parametrize(
    ('codes', 'scales', 'message'),
    [
        (np.zeros((2, 48), np.uint8), np.zeros((2, 1), np.uint8), r'codes is uint8 \(2, 48\), .* a multiple of 32'),
        (np.zeros((2, 32), np.int8), np.zeros((2, 1), np.uint8), 'codes is int8'),
        (np.full((2, 32), 16, np.uint8), np.zeros((2, 1), np.uint8), 'with 16 as its largest; .* each below 16'),
        (np.zeros((2, 32), np.uint8), np.zeros((1, 2), np.uint8), r'scales is uint8 \(1, 2\), .* uint8 \(2, 1\)'),
        (np.zeros((1, 32), np.uint8), np.full((1, 1), 255, np.uint8), 'scales .* with 255 as its largest'),
    ],
)
def test_other_codes_and_scales_are_refused(codes, scales, message):
    with pytest.raises(ValueError, match=message):
        mxfp4_blocks(codes, scales)


@pytest.mark.parametrize(('heads', 'size'), [(1, 2), (2, 4), (3, 8)])
def test_neighbours_rotate_as_halves_do(heads, size):
    """A rotation of llama.cpp's pairs (2 i, 2 i + 1) is the one of our pairs (i, i + size / 2)."""
    x = np.random.default_rng(0).normal(size=heads * size)
    turns = np.exp(1j * np.arange(1, size // 2 + 1))
    halves = x.reshape(heads, 2, -1)
    ours = (halves[:, 0] + 1j * halves[:, 1]) * turns
    theirs = x[rotary_rows(x.size, heads)].reshape(heads, -1, 2) @ [1, 1j] * turns
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(('fmt', 'tied'), [(E2M1, False), ('float8_e4m3fn', True), ('bfloat16', False)])
def test_all_weights_are_there(fmt, tied):
    """By name, each is a tensor of Hugging Face's, quantized; its rows in llama.cpp's order."""
    model = llama(tie_embeddings=tied)
    params = params_of(model)
    layout = uniform_layout(params, fmt)
    weights, _ = models.to_huggingface(model, quantize_params(params, layout))
    names = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head'}
    for layer in range(model.num_layers):
        names |= {f'blk.{layer}.{ours}': f'model.layers.{layer}.{theirs}' for ours, theirs in HUGGINGFACE.items()}
    if tied:
        del names['output']
    tensors = to_gguf(model, params, layout)
    assert tensors.keys() == {f'{name}.weight' for name in names}
    for name, theirs in names.items():
        kind, array = tensors[f'{name}.weight']
        expected = np.asarray(weights[f'{theirs}.weight'])
        quantized = 'MXFP4' if fmt == E2M1 else 'BF16'
        assert kind == ('F32' if 'norm' in name else quantized if 'blk' in name else 'BF16')
        heads = {'q': 4, 'k': 2}.get(name.rpartition('attn_')[2])
        if heads:
            expected = expected.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(-1, 64)
        assert array.flags.c_contiguous and array.shape[0] == expected.shape[0]
        assert array.dtype == {'MXFP4': np.uint8, 'BF16': jnp.bfloat16, 'F32': np.float32}[kind]
        np.testing.assert_array_equal(decode(array) if kind == 'MXFP4' else array, expected.astype(np.float64))


def only(layout, *names):
    """The layout of some leaves alone, since each shape has its programs."""
    return Layout({f'layers/mlp/{name}/kernel': layout[f'layers/mlp/{name}/kernel'] for name in names})


def test_inputs_that_no_block_divides():
    """They stay BF16, with the weights of the layout."""
    model = llama(mlp_size=48)
    params = params_of(model)
    layout = only(uniform_layout(params, E2M1), 'up', 'down')
    tensors = to_gguf(model, params, layout)
    assert tensors['blk.0.ffn_up.weight'][0] == 'MXFP4'
    kind, array = tensors['blk.1.ffn_down.weight']
    assert kind == 'BF16'
    np.testing.assert_array_equal(array, quantize_params(params, layout)['layers']['mlp']['down']['kernel'][1].T)


@pytest.mark.parametrize('block_size', [16, 64])
def test_blocks_of_other_sizes(block_size):
    """Larger ones are blocks of 32 with the same scale; smaller ones have no place."""
    model = llama(mlp_size=128)
    params = params_of(model)
    layout = only(uniform_layout(params, E2M1, block_size=block_size), 'down')
    kind, array = to_gguf(model, params, layout)['blk.1.ffn_down.weight']
    expected = np.asarray(quantize_params(params, layout)['layers']['mlp']['down']['kernel'][1].T)
    assert kind == ('MXFP4' if block_size == 64 else 'BF16')
    np.testing.assert_array_equal(decode(array) if kind == 'MXFP4' else array, expected.astype(np.float64))


def test_learned_bitwidths():
    """A layer all of whose blocks have 4 bits is MXFP4; one with a block of more is not."""
    model = llama()
    params = params_of(model)
    rules = [gq.MatrixRule('layers/mlp/up/kernel', (0,), (1,), (2,)), gq.CastOnly('.*')]
    bits = {'layers/mlp/up/kernel': np.full((2, 2, 3), 4.0)}
    bits['layers/mlp/up/kernel'][1, 0, 1] = 5
    layout = learned_layout(params, bits, formats=lambda b: gq.parse_format('e2m1' if b == 4 else 'e3m2'), rules=rules)
    tensors = to_gguf(model, params, layout)
    quantized = np.asarray(quantize_params(params, layout)['layers']['mlp']['up']['kernel'])
    assert [tensors[f'blk.{layer}.ffn_up.weight'][0] for layer in (0, 1)] == ['MXFP4', 'BF16']
    np.testing.assert_array_equal(decode(tensors['blk.0.ffn_up.weight'][1]), quantized[0].T.astype(np.float64))
    np.testing.assert_array_equal(tensors['blk.1.ffn_up.weight'][1], quantized[1].T)


def test_what_is_said_of_a_model():
    model = llama(norm_epsilon=1e-6)
    assert describe_model(model, 128) == {
        'general.architecture': 'llama',
        'llama.context_length': 128,
        'llama.vocab_size': 264,
        'llama.block_count': 2,
        'llama.embedding_length': 64,
        'llama.feed_forward_length': 96,
        'llama.attention.head_count': 4,
        'llama.attention.head_count_kv': 2,
        'llama.attention.key_length': 16,
        'llama.attention.value_length': 16,
        'llama.attention.layer_norm_rms_epsilon': 1e-6,
        'llama.rope.dimension_count': 16,
        'llama.rope.freq_base': 50.0,
    }
    assert describe_model(llama(num_kv_heads=None), 128)['llama.attention.head_count_kv'] == 4
    said = describe_model(llama(module=models.Qwen3, head_dim=24), 128)
    assert said['general.architecture'] == 'qwen3' and said['qwen3.attention.key_length'] == 24
    assert describe_model(llama(module=models.Mistral), 128)['general.architecture'] == 'llama'


def test_settings_that_are_not_carried_over(monkeypatch):
    """Those that llama.cpp doesn't have of a family; and a new one of ours, until it is carried over."""
    monkeypatch.setattr(serving_gguf, 'CARRIED', serving_gguf.CARRIED - {'rope_theta'})
    describe_model(llama(rope_theta=10000.0), 128)
    cases = {
        r'rope_theta=50.0: a GGUF file is written of a Llama with 10000.0 alone': llama(),
        r'rope_factor=8.0: .* of a Qwen2 with 1.0 alone': llama(module=models.Qwen2, rope_theta=1e4, rope_factor=8.0),
        r'attention_bias=True: .* Qwen3': llama(module=models.Qwen3, rope_theta=1e4, attention_bias=True),
    }
    for message, model in cases.items():
        for function in (lambda model: describe_model(model, 128), lambda model: to_gguf(model, {}, Layout())):
            with pytest.raises(ValueError, match=message):
                function(model)


def test_scaled_frequencies():
    """llama.cpp divides each frequency by a factor; ours are those of `rope_frequencies`."""
    scaled = dict(rope_factor=8.0, rope_low_freq_factor=1.0, rope_high_freq_factor=4.0, rope_original_length=64)
    model = llama(head_dim=24, **scaled)
    kind, factors = to_gguf(model, params_of(model), Layout())['rope_freqs.weight']
    frequencies = 50.0 ** (-np.arange(12) / 12)
    turns = 64 * frequencies / (2 * np.pi)
    share = np.clip((turns - 1) / 3, 0, 1)
    assert kind == 'F32' and factors.dtype == np.float32
    np.testing.assert_allclose(factors, 1 / (share + (1 - share) / 8), rtol=1e-6)
    assert 'rope_freqs.weight' not in to_gguf(llama(), params_of(llama()), Layout())


def test_other_models_are_refused():
    with pytest.raises(ValueError, match='model=GPT2: a GGUF file is written of Llama, Mistral, Qwen2, Qwen3'):
        to_gguf(GPT2, random_params(GPT2), {})
    params = jax.tree.map(np.copy, params_of(llama()))
    with pytest.raises(ValueError, match=r'layers.\w+.\w+.0 has weights in float16, which bfloat16 does not hold'):
        to_gguf(llama(), params, uniform_layout(params, 'float16'))
    params['layers']['mlp']['up']['bias'] = np.zeros((2, 96), np.float32)
    with pytest.raises(ValueError, match='params are of another model'):
        to_gguf(llama(), params, Layout())


def test_kept_leaves():
    """Nothing is rounded that the layout keeps."""
    model = llama()
    params = params_of(model)
    tensors = to_gguf(model, params, Layout(kept=['embed/embedding', 'final_norm/scale']))
    for name, leaf in {
        'token_embd': params['embed']['embedding'],
        'output_norm': params['final_norm']['scale'],
    }.items():
        assert tensors[f'{name}.weight'][0] == 'F32'
        np.testing.assert_array_equal(tensors[f'{name}.weight'][1], leaf)


def test_a_quantized_head():
    """A layout may have it, and not the embedding, of which it doesn't say which axis shares scales."""
    model = llama(vocab_size=96)
    params = params_of(model)
    rule = lambda leaf: gq.MatrixRule(leaf, batch_axes=(), row_axes=(0,), col_axes=(1,))
    layout = uniform_layout(params, E2M1, rules=[rule('lm_head/kernel'), gq.CastOnly('.*')])
    kind, blocks = to_gguf(model, params, layout)['output.weight']
    assert kind == 'MXFP4'
    expected = np.asarray(quantize_params(params, layout)['lm_head']['kernel']).T
    np.testing.assert_array_equal(decode(blocks), expected.astype(np.float64))
    with pytest.raises(ValueError, match="the layout has 'embed', which becomes BF16 alone"):
        to_gguf(model, params, uniform_layout(params, E2M1, rules=[rule('embed/embedding'), gq.CastOnly('.*')]))
