"""Models of Hugging Face's transformers, in linen."""

import gaussq_jax as gq
from parameter_families.family import C, D, F, Family, V, dense, norm, under


def conv1d(inputs, outputs):
    """Hugging Face's FlaxConv1D: (out, in)."""
    return {'kernel': ((outputs, inputs), '?out in'), 'bias': ((outputs,), 'cast')}


BERT_LAYER = {
    **{f'attention/self/{one}/{name}': leaf for one in ('query', 'key', 'value') for name, leaf in dense(D, D).items()},
    **under('attention/output/dense', dense(D, D)),
    **under('attention/output/LayerNorm', norm()),
    **under('intermediate/dense', dense(D, F)),
    **under('output/dense', dense(F, D)),
    **under('output/LayerNorm', norm()),
}
GPT2_LAYER = {
    **under('ln_1', norm()),
    **under('ln_2', norm()),
    **under('attn/c_attn', conv1d(D, 3 * D)),
    **under('attn/c_proj', conv1d(D, D)),
    **under('mlp/c_fc', conv1d(D, F)),
    **under('mlp/c_proj', conv1d(F, D)),
}
HF_VIT_LAYER = {
    **{
        f'attention/attention/{one}/{name}': leaf
        for one in ('query', 'key', 'value')
        for name, leaf in dense(D, D).items()
    },
    **under('attention/output/dense', dense(D, D)),
    **under('intermediate/dense', dense(D, F)),
    **under('output/dense', dense(F, D)),
    **under('layernorm_before', norm()),
    **under('layernorm_after', norm()),
}

FAMILIES = {
    'Hugging Face BERT': Family(
        {
            'bert/embeddings/word_embeddings/embedding': ((V, D), 'cast'),
            **under('bert/embeddings/LayerNorm', norm()),
            **under('bert/encoder/layer/0', BERT_LAYER),
            **under('bert/pooler/dense', dense(D, D)),
            **under('cls/predictions/transform/dense', dense(D, D)),
            'cls/predictions/decoder/kernel': ((D, V), 'cast'),
            'cls/predictions/bias': ((V,), 'cast'),
            **under('cls/seq_relationship', dense(D, 2, what='cast')),
        }
    ),
    'Hugging Face GPT-2': Family(
        {
            'transformer/wte/embedding': ((V, D), 'cast'),
            'transformer/wpe/embedding': ((64, D), 'cast'),
            **under('transformer/h/0', GPT2_LAYER),
            **under('transformer/h/1', GPT2_LAYER),
            **under('transformer/ln_f', norm()),
        },
        rules=(gq.MatrixRule(r'.*/c_\w+/kernel', (), (1,), (0,)),),
    ),
    'Hugging Face ViT': Family(
        {
            'vit/embeddings/cls_token': ((1, 1, D), 'cast'),
            'vit/embeddings/position_embeddings': ((1, 10, D), 'cast'),
            'vit/embeddings/patch_embeddings/projection/kernel': ((4, 4, 3, D), 'in in in out'),
            'vit/embeddings/patch_embeddings/projection/bias': ((D,), 'cast'),
            **under('vit/encoder/layer/0', HF_VIT_LAYER),
            **under('vit/layernorm', norm()),
            **under('classifier', dense(D, C, what='cast')),
        }
    ),
}
