"""Vision models in linen: those of big_vision, V-MoE and flax's examples."""

import gaussq_jax as gq
from parameter_families.family import C, D, E, F, Family, H, K, N, V, attention, dense, mlp, norm, stacked, under

VIT_BLOCK = {
    **under('LayerNorm_0', norm()),
    **under('LayerNorm_1', norm()),
    **under('MultiHeadDotProductAttention_0', attention()),
    **under('MlpBlock_0', mlp()),
}
VIT_ENDS = {
    'embedding/kernel': ((4, 4, 3, D), 'in in in out'),
    'embedding/bias': ((D,), 'cast'),
    'pos_embedding': ((1, 9, D), 'cast'),
    'Transformer/encoder_norm/scale': ((D,), 'cast'),
    'MAPHead_0/probe': ((1, 1, D), 'cast'),
    **under('MAPHead_0/MultiHeadDotProductAttention_0', attention()),
    **under('MAPHead_0/MlpBlock_0', mlp()),
    **under('head', dense(D, C, what='cast')),
}
GEMMA_BLOCK = {  # of big_vision; einsums, whose weights have axes in the order of their letters
    'pre_attention_norm/scale': ((D,), 'cast'),
    'pre_ffw_norm/scale': ((D,), 'cast'),
    'attn/q_einsum/w': ((H, D, K), '?head in out'),
    'attn/kv_einsum/w': ((2, N, D, K), '?out head in out'),
    'attn/attn_vec_einsum/w': ((H, K, D), '?head in out'),
    'mlp/gating_einsum': ((2, D, F), '?out in out'),
    'mlp/linear': ((F, D), '?in out'),
}
RESNET_BLOCK = {
    'Conv_0/kernel': ((3, 3, 64, 64), 'in in in out'),
    'Conv_1/kernel': ((3, 3, 64, 64), 'in in in out'),
    **under('BatchNorm_0', norm(size=64)),
    **under('BatchNorm_1', norm(size=64)),
}
SCANNED_EINSUMS = (
    gq.MatrixRule('.*/q_einsum/w', (0,), (2,), (1, 3), head_axes=(1,)),
    gq.MatrixRule('.*/kv_einsum/w', (0,), (3,), (1, 2, 4), head_axes=(2,)),
    gq.MatrixRule('.*/attn_vec_einsum/w', (0,), (1, 2), (3,), head_axes=(1,)),
    gq.MatrixRule('.*/gating_einsum', (0,), (2,), (1, 3)),
    gq.MatrixRule('.*/mlp/linear', (0,), (1,), (2,)),
)

FAMILIES = {
    'big_vision ViT': Family({**under('Transformer/encoderblock_0', VIT_BLOCK), **VIT_ENDS}),
    'big_vision ViT, scanned': Family({**under('Transformer/encoderblock', stacked(0, VIT_BLOCK)), **VIT_ENDS}),
    'big_vision Mixer': Family(
        {
            'stem/kernel': ((4, 4, 3, D), 'in in in out'),
            'stem/bias': ((D,), 'cast'),
            **under('MixerBlock_0/LayerNorm_0', norm()),
            **under('MixerBlock_0/token_mixing/Dense_0', dense(49, 64)),
            **under('MixerBlock_0/token_mixing/Dense_1', dense(64, 49)),
            **under('MixerBlock_0/channel_mixing', mlp()),
            **under('pre_head_layer_norm', norm()),
            **under('head', dense(D, C, what='cast')),
        }
    ),
    'big_vision PaliGemma': Family(
        {
            **under('img/Transformer/encoderblock', stacked(0, VIT_BLOCK)),
            **under('img', VIT_ENDS),
            'llm/embedder/input_embedding': ((V, D), 'cast'),
            **under('llm/layers', stacked(0, GEMMA_BLOCK)),
            'llm/final_norm/scale': ((D,), 'cast'),
        },
        rules=SCANNED_EINSUMS,
    ),
    'V-MoE': Family(
        {
            'embedding/kernel': ((4, 4, 3, D), 'in in in out'),
            'embedding/bias': ((D,), 'cast'),
            'Encoder/posembed_input/pos_embedding': ((1, 9, D), 'cast'),
            **under('Encoder/encoderblock_0/LayerNorm_0', norm()),
            **under('Encoder/encoderblock_0/SelfAttention', attention()),
            **under('Encoder/encoderblock_0/Mlp', mlp()),
            **under('Encoder/encoderblock_1/LayerNorm_0', norm()),
            **under('Encoder/encoderblock_1/SelfAttention', attention()),
            'Encoder/encoderblock_1/Moe/Router/dense/kernel': ((D, E), 'kept'),
            'Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel': ((E, D, F), 'expert in out'),
            'Encoder/encoderblock_1/Moe/Mlp/Dense_0/bias': ((E, F), 'cast'),
            'Encoder/encoderblock_1/Moe/Mlp/Dense_1/kernel': ((E, F, D), 'expert in out'),
            'Encoder/encoderblock_1/Moe/Mlp/Dense_1/bias': ((E, D), 'cast'),
            **under('Encoder/encoder_norm', norm()),
            **under('head', dense(D, C, what='cast')),
        }
    ),
    'flax ResNet': Family(
        {
            'params/conv_init/kernel': ((7, 7, 3, 64), 'in in in out'),
            **under('params/bn_init', norm(size=64)),
            **under('params/ResNetBlock_0', RESNET_BLOCK),
            'params/ResNetBlock_1/conv_proj/kernel': ((1, 1, 64, 128), 'in in in out'),
            **under('params/ResNetBlock_1/norm_proj', norm(size=128)),
            **under('params/Dense_0', dense(128, C, what='cast')),
            'batch_stats/bn_init/mean': ((64,), 'kept'),
            'batch_stats/bn_init/var': ((64,), 'kept'),
        }
    ),
}
