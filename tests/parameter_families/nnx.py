"""Models in NNX, those of bonsai, flax's examples and Tunix; and modules in Haiku."""

import jax
import jax.numpy as jnp
from flax import nnx

import gaussq_jax as gq
from parameter_families.family import C, D, F, Family, H, K, L, N, V, attention, dense, mlp, norm, under


def conv1d(inputs, outputs):
    """Hugging Face's FlaxConv1D: (out, in)."""
    return {'kernel': ((outputs, inputs), '?out in'), 'bias': ((outputs,), 'cast')}


FSDP, TP = 'fsdp', 'tp'  # axes of a mesh say nothing of inputs and outputs
QWEN3_LAYER = {  # of bonsai
    **{
        f'attn/{one}_proj/kernel': ((D, n, K), 'in head out', (TP, FSDP, None))
        for one, n in (('q', H), ('k', N), ('v', N))
    },
    'attn/o_proj/kernel': ((H, K, D), 'head in out', (TP, None, FSDP)),
    'attn/q_norm/scale': ((K,), 'cast', ()),
    'attn/k_norm/scale': ((K,), 'cast', ()),
    'input_layernorm/scale': ((D,), 'cast', (TP,)),
    'post_attention_layernorm/scale': ((D,), 'cast', (TP,)),
    'mlp/gate_proj/kernel': ((D, F), 'in out', (FSDP, TP)),
    'mlp/up_proj/kernel': ((D, F), 'in out', (FSDP, TP)),
    'mlp/down_proj/kernel': ((F, D), 'in out', (TP, FSDP)),
}
MAMBA2_LAYER = {  # of bonsai
    'norm/weight': ((D,), 'cast'),
    'mixer/norm/weight': ((2 * D,), 'cast'),
    'mixer/in_proj/kernel': ((D, 150), 'in out'),
    'mixer/conv1d/conv/kernel': ((4, 1, 90), 'cast'),
    'mixer/conv1d/conv/bias': ((90,), 'cast'),
    'mixer/A_log': ((H,), 'kept'),
    'mixer/D': ((H,), 'kept'),
    'mixer/dt_bias': ((H,), 'kept'),
    'mixer/out_proj/kernel': ((2 * D, D), 'in out'),
}
FLAX_GEMMA_LAYER = {  # einsums whose leaves are called kernel
    'attn/q_einsum/kernel': ((H, D, K), '?head in out', (TP, FSDP, None)),
    'attn/kv_einsum/kernel': ((2, N, D, K), '?out head in out', (None, TP, FSDP, None)),
    'attn/attn_vec_einsum/kernel': ((H, K, D), '?head in out', (TP, None, FSDP)),
    'mlp/gate_proj/kernel': ((D, F), 'in out', (FSDP, TP)),
    'mlp/up_proj/kernel': ((D, F), 'in out', (FSDP, TP)),
    'mlp/down_proj/kernel': ((F, D), 'in out', (TP, FSDP)),
    'pre_attention_norm/scale': ((D,), 'cast', (TP,)),
}
TUNIX_LLAMA_LAYER = {
    'attn/q_proj/w': ((D, H, K), '?in head out', (FSDP, TP, None)),
    'attn/k_proj/w': ((D, N, K), '?in head out', (FSDP, TP, None)),
    'attn/v_proj/w': ((D, N, K), '?in head out', (FSDP, TP, None)),
    'attn/o_proj/w': ((H, K, D), '?head in out', (TP, None, FSDP)),
    'mlp/gate_proj/kernel': ((D, F), 'in out', (FSDP, TP)),
    'mlp/down_proj/kernel': ((F, D), 'in out', (TP, FSDP)),
    'input_layernorm/w': ((D,), 'cast', (TP,)),
}
EINSUMS = (
    gq.MatrixRule('.*/q_einsum/(w|kernel)', (), (1,), (0, 2), head_axes=(0,), optional=True),
    gq.MatrixRule('.*/kv_einsum/(w|kernel)', (), (2,), (0, 1, 3), head_axes=(1,), optional=True),
    gq.MatrixRule('.*/attn_vec_einsum/(w|kernel)', (), (0, 1), (2,), head_axes=(0,), optional=True),
    gq.MatrixRule('.*/gating_einsum', (), (1,), (0, 2), optional=True),
    gq.MatrixRule('.*/mlp/linear', (), (0,), (1,), optional=True),
)

FAMILIES = {
    'bonsai Qwen3': Family(
        {
            'embedder/embedding': ((V, D), 'cast', (TP, FSDP)),
            **under('layers/0', QWEN3_LAYER),
            'final_norm/scale': ((D,), 'cast', (TP,)),
            'lm_head/kernel': ((D, V), 'cast', (FSDP, TP)),
        },
        'nnx',
    ),
    'bonsai ViT': Family(
        {
            'pos_embeddings/cls_token': ((1, 1, D), 'cast'),
            'pos_embeddings/pos_embeddings': ((1, 10, D), 'cast'),
            'pos_embeddings/projection/kernel': ((4, 4, 3, D), 'in in in out'),
            'pos_embeddings/projection/bias': ((D,), 'cast'),
            **under('layers/0/attention', attention()),
            **under('layers/0', mlp('linear1', 'linear2')),
            **under('layers/0/layernorm_before', norm()),
            **under('classifier', dense(D, C, what='cast')),
        },
        'nnx',
    ),
    'bonsai Mamba-2': Family(
        {
            'backbone/embedder/embedding': ((V, D), 'cast'),
            **under('backbone/layers/0', MAMBA2_LAYER),
            'backbone/final_norm/weight': ((D,), 'cast'),
        },
        'nnx',
    ),
    'bonsai ResNet': Family(
        {
            'stem/conv/kernel': ((7, 7, 3, 64), 'in in in out'),
            **under('stem/bn', norm(size=64)),
            'layer0/blocks/0/conv0/kernel': ((1, 1, 64, 64), 'in in in out'),
            'layer0/blocks/0/conv1/kernel': ((3, 3, 64, 64), 'in in in out'),
            **under('layer0/blocks/0/bn0', norm(size=64)),
            'layer0/blocks/0/downsample/conv/kernel': ((1, 1, 64, 256), 'in in in out'),
            **under('layer0/blocks/0/downsample/bn', norm(size=256)),
            **under('fc', dense(64, C, what='cast')),
        },
        'nnx',
        others={
            'stem/bn/mean': nnx.BatchStat(jax.ShapeDtypeStruct((64,), jnp.float32)),
            'stem/bn/var': nnx.BatchStat(jax.ShapeDtypeStruct((64,), jnp.float32)),
        },
    ),
    'flax Gemma': Family(
        {
            'embedder/embedding': ((V, D), 'cast', (TP, FSDP)),
            **under('layers/0', FLAX_GEMMA_LAYER),
            'final_norm/scale': ((D,), 'cast', (TP,)),
        },
        'nnx',
        rules=EINSUMS,
    ),
    'Tunix Llama 3': Family(
        {
            'embedder/input_embedding': ((V, D), 'cast', (TP, FSDP)),
            **under('layers/0', TUNIX_LLAMA_LAYER),
            'final_norm/w': ((D,), 'cast', (TP,)),
            'lm_head/w': ((D, V), 'cast', (FSDP, TP)),
        },
        'nnx',
        rules=(
            gq.MatrixRule(r'.*/[qkv]_proj/w', (), (0,), (1, 2), head_axes=(1,)),
            gq.MatrixRule('.*/o_proj/w', (), (0, 1), (2,), head_axes=(0,)),
        ),
    ),
    'LoRA': Family(
        {
            'up/kernel': ((D, F), 'in out'),
            'up/bias': ((F,), 'cast'),
            'up/lora/lora_a': ((D, 8), 'cast'),
            'up/lora/lora_b': ((8, F), 'cast'),
            'down/kernel': ((F, D), 'in out'),
            'down/kernel_lora_a': ((F, 8), 'cast'),
            'down/kernel_lora_b': ((8, D), 'cast'),
        },
        'nnx',
    ),
    'Haiku': Family(  # its trees are {module path: {name: array}}: see the test
        {
            'language_model/embed|embeddings': ((V, D), 'cast'),
            'language_model|positional_embeddings': ((64, D), 'cast'),
            'transformer/multi_head_attention/query|w': ((D, D), 'in out'),
            'transformer/multi_head_attention/query|b': ((D,), 'cast'),
            'transformer/__layer_stack_no_per_layer/linear|w': ((L, D, D), 'layer in out'),
            'transformer/__layer_stack_no_per_layer/linear|b': ((L, D), 'cast'),
            'transformer/__layer_stack_no_per_layer/layer_norm|scale': ((L, D), 'cast'),
            'net/conv2_d|w': ((3, 3, 8, D), 'in in in out'),
            'net/conv2_d_transpose|w': ((3, 3, D, 8), 'in in out in'),
            'net/depthwise_conv2_d|w': ((3, 3, 1, D), 'cast'),
            'net/batch_norm|scale': ((1, 1, 1, D), 'cast'),
        }
    ),
}
