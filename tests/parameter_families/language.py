"""Language models in linen: those of flax's examples, T5X, nanodo and MaxText."""

from parameter_families.family import D, E, F, Family, H, K, N, V, attention, dense, norm, stacked, under

LM1B_BLOCK = {
    **under('LayerNorm_0', norm('embed')),
    **under('LayerNorm_1', norm('embed')),
    **under('MultiHeadDotProductAttention_0', attention(bias=False, names=(('embed', 'kv'),))),
    **under('MlpBlock_0/Dense_0', dense(D, F, 'embed', 'mlp')),
    **under('MlpBlock_0/Dense_1', dense(F, D, 'mlp', 'embed')),
}
T5_ATTENTION = {
    **{f'{one}/kernel': ((D, H, K), 'in head out') for one in ('query', 'key', 'value')},
    'out/kernel': ((H, K, D), 'head in out'),
}
T5_JOINED = {f'{one}/kernel': ((D, D), 'in out') for one in ('query', 'key', 'value', 'out')}
T5_MLP = {'wi_0/kernel': ((D, F), 'in out'), 'wi_1/kernel': ((D, F), 'in out'), 'wo/kernel': ((F, D), 'in out')}
T5_EMBEDDING = {'token_embedder/embedding': ((V, D), 'cast')}
T5_BLOCK = {
    'pre_attention_layer_norm/scale': ((D,), 'cast'),
    'pre_mlp_layer_norm/scale': ((D,), 'cast'),
    'relpos_bias/rel_embedding': ((H, 12), 'cast'),
    **under('attention', T5_ATTENTION),
    **under('mlp', T5_MLP),
}
T5_ENDS = {'decoder/decoder_norm/scale': ((D,), 'cast'), 'decoder/logits_dense/kernel': ((D, V), 'cast')}
NANODO_BLOCK = {
    'LayerNorm_0/scale': ((D,), 'cast'),
    'LayerNorm_1/scale': ((D,), 'cast'),
    **{
        f'CausalAttn_0/{one}/kernel': ((D, H, K), 'in head out', ('data', None, None))
        for one in ('query', 'key', 'value')
    },
    'CausalAttn_0/attn_out_proj/kernel': ((H, K, D), 'head in out', (None, None, 'data')),
    'Mlp_0/Dense_0/kernel': ((D, F), 'in out', ('data', None)),
    'Mlp_0/Dense_1/kernel': ((F, D), 'in out', ('data', None)),
}
MAXTEXT_ATTENTION = {
    'query/kernel': ((D, H, K), 'in head out', ('embed', 'q_heads', 'kv')),
    'key/kernel': ((D, N, K), 'in head out', ('embed', 'kv_heads', 'kv_head_dim')),
    'value/kernel': ((D, N, K), 'in head out', ('embed', 'kv_heads', 'kv_head_dim')),
    'out/kernel': ((H, K, D), 'head in out', ('heads', 'kv', 'embed')),
}
MAXTEXT_NORMS = {
    'pre_self_attention_layer_norm/scale': ((D,), 'cast', ('norm',)),
    'post_self_attention_layer_norm/scale': ((D,), 'cast', ('norm',)),
}
MAXTEXT_LLAMA = {
    **MAXTEXT_NORMS,
    **under('self_attention', MAXTEXT_ATTENTION),
    'mlp/wi_0/kernel': ((D, F), 'in out', ('embed', 'mlp')),
    'mlp/wi_1/kernel': ((D, F), 'in out', ('embed', 'mlp')),
    'mlp/wo/kernel': ((F, D), 'in out', ('mlp', 'embed')),
}
MAXTEXT_MIXTRAL = {
    **MAXTEXT_NORMS,
    **under('self_attention', MAXTEXT_ATTENTION),
    'MoeBlock_0/gate/kernel': ((D, E), 'kept', ('embed', None)),
    'MoeBlock_0/wi_0': ((E, D, F), 'expert in out', ('exp', 'embed_moe', 'mlp_moe')),
    'MoeBlock_0/wi_1': ((E, D, F), 'expert in out', ('exp', 'embed_moe', 'mlp_moe')),
    'MoeBlock_0/wo': ((E, F, D), 'expert in out', ('exp', 'mlp_moe', 'embed_moe')),
}
MAXTEXT_ENDS = {
    'token_embedder/embedding': ((V, D), 'cast', ('vocab', 'embed_vocab')),
    'decoder/decoder_norm/scale': ((D,), 'cast', ('norm',)),
    'decoder/logits_dense/kernel': ((D, V), 'cast', ('embed_vocab', 'vocab')),
}

FAMILIES = {
    'flax lm1b': Family(
        {
            'decoder/Embed_0/embedding': ((V, D), 'cast', ('vocab', 'embed')),
            **under('decoder/encoderdecoderblock_0', LM1B_BLOCK),
            **under('decoder/encoderdecoder_norm', norm('embed')),
            **under('decoder/logitdense', dense(D, V, 'embed', 'vocab', what='cast')),
        },
        'boxed',
    ),
    't5x t5': Family(
        {
            **T5_EMBEDDING,
            'encoder/relpos_bias/rel_embedding': ((H, 12), 'cast'),
            'encoder/layers_0/pre_attention_layer_norm/scale': ((D,), 'cast'),
            **under('encoder/layers_0/attention', T5_JOINED),
            **under('encoder/layers_0/mlp', T5_MLP),
            **T5_ENDS,
        }
    ),
    't5x scalable_t5, layers on axis 1': Family(
        {**T5_EMBEDDING, **under('encoder/encoder', stacked(1, T5_BLOCK)), **T5_ENDS}
    ),
    't5x scalable_t5, layers apart': Family({**T5_EMBEDDING, **under('encoder/layers_0', T5_BLOCK), **T5_ENDS}),
    'nanodo': Family(
        {
            'embed/embedding': ((V, D), 'cast', (None, 'data')),
            'pos_embed/embedding': ((64, D), 'cast', (None, 'data')),
            **under('blocks_0', NANODO_BLOCK),
            'out_ln/scale': ((D,), 'cast'),
        },
        'boxed',
    ),
    'MaxText Llama': Family({**MAXTEXT_ENDS, **under('decoder/layers', stacked(1, MAXTEXT_LLAMA, 'layers'))}, 'nnx'),
    'MaxText Llama, boxed': Family(
        {**MAXTEXT_ENDS, **under('decoder/layers', stacked(1, MAXTEXT_LLAMA, 'layers'))}, 'boxed'
    ),
    'MaxText Llama, without names': Family(
        {
            path: leaf[:2]
            for path, leaf in {**MAXTEXT_ENDS, **under('decoder/layers', stacked(1, MAXTEXT_LLAMA))}.items()
        }
    ),
    'MaxText Mixtral': Family(
        {**MAXTEXT_ENDS, **under('decoder/layers', stacked(1, MAXTEXT_MIXTRAL, 'layers'))}, 'nnx'
    ),
}
