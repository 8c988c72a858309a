"""The parameter trees of models that are public, small: each leaf's path, shape, names of axes, and what it is.

Written by hand from the models' own code. What a leaf is: the roles of its axes, as `MatrixRule.roles` has them, or
'cast' or 'kept'. A family has `rules` where nothing in its tree tells how some leaves are read: without them these,
marked by a '?', are refused.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from parameter_trees import nest

import gaussq_jax as gq

V, D, F, H, K, E, L, C = (
    96,
    32,
    80,
    4,
    16,
    6,
    3,
    10,
)  # vocabulary, width, MLP, heads, head_dim, experts, layers, classes
N = 2  # heads of keys and values


@dataclasses.dataclass(frozen=True)
class Family:
    """A model's tree."""

    leaves: dict[str, tuple]  # path -> shape, what it is, names of axes if there are
    kind: str = 'arrays'  # or 'boxed', linen's LogicallyPartitioned; or 'nnx', a state of nnx.Param
    rules: tuple = ()
    others: Any = None  # more of an NNX state: path -> a variable

    def tree(self) -> Any:
        return nest({path: self._leaf(*leaf) for path, leaf in self.leaves.items()} | dict(self.others or {}))

    def _leaf(self, shape, what, names=None):
        array = jax.ShapeDtypeStruct(shape, jnp.float32)
        if self.kind == 'nnx':
            return nnx.Param(array, **({} if names is None else {'out_sharding': names, 'eager_sharding': False}))
        return array if names is None else nn.LogicallyPartitioned(array, names)

    def expected(self) -> dict[str, str]:
        return {path: leaf[1].removeprefix('?') for path, leaf in self.leaves.items()}

    def refused(self) -> set[str]:
        """The leaves that can't be read without rules."""
        return {path for path, leaf in self.leaves.items() if leaf[1].startswith('?')}


def under(prefix, leaves):
    return {f'{prefix}/{path}': leaf for path, leaf in leaves.items()}


def stacked(axis, leaves, name=None):
    """The leaves as nn.scan stacks them."""

    def one(shape, what, names=None):
        shape, at = list(shape), axis % (len(shape) + 1)
        shape.insert(at, L)
        if what not in ('cast', 'kept'):
            *_, roles = what.rpartition('?')
            roles = roles.split()
            roles.insert(at, 'layer')
            what = what[: what.startswith('?')] + ' '.join(roles)
        names = None if names is None else (*names[:at], name, *names[at:])
        return tuple(shape), what, *([] if names is None else [names])

    return {path: one(*leaf) for path, leaf in leaves.items()}


def dense(rows, cols, *names, bias=True, what='in out'):
    of = lambda *names: [names] if names else []
    leaves = {'kernel': ((rows, cols), what, *of(*names))}
    return leaves | ({'bias': ((cols,), 'cast', *of(*names[1:]))} if bias else {})


def norm(*names, bias=True, size=D):
    leaf = ((size,), 'cast', *([names] if names else []))
    return {'scale': leaf} | ({'bias': leaf} if bias else {})


def attention(bias=True, names=(), out='out'):
    """MultiHeadDotProductAttention of linen, and of NNX."""
    leaves = {}
    for one in ('query', 'key', 'value'):
        leaves[f'{one}/kernel'] = ((D, H, K), 'in head out', *names)
        if bias:
            leaves[f'{one}/bias'] = ((H, K), 'cast')
    leaves[f'{out}/kernel'] = ((H, K, D), 'head in out', *names)
    return leaves | ({f'{out}/bias': ((D,), 'cast')} if bias else {})


def mlp(first='Dense_0', second='Dense_1', **options):
    return under(first, dense(D, F, **options)) | under(second, dense(F, D, **options))


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
FSDP, TP = 'fsdp', 'tp'  # axes of a mesh say nothing of inputs and outputs
BERT_LAYER = {
    **{f'attention/self/{one}/{name}': leaf for one in ('query', 'key', 'value') for name, leaf in dense(D, D).items()},
    **under('attention/output/dense', dense(D, D)),
    **under('attention/output/LayerNorm', norm()),
    **under('intermediate/dense', dense(D, F)),
    **under('output/dense', dense(F, D)),
    **under('output/LayerNorm', norm()),
}


def conv1d(inputs, outputs):
    """Hugging Face's FlaxConv1D: (out, in)."""
    return {'kernel': ((outputs, inputs), '?out in'), 'bias': ((outputs,), 'cast')}


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
RESNET_BLOCK = {
    'Conv_0/kernel': ((3, 3, 64, 64), 'in in in out'),
    'Conv_1/kernel': ((3, 3, 64, 64), 'in in in out'),
    **under('BatchNorm_0', norm(size=64)),
    **under('BatchNorm_1', norm(size=64)),
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
SCANNED_EINSUMS = (
    gq.MatrixRule('.*/q_einsum/w', (0,), (2,), (1, 3), head_axes=(1,)),
    gq.MatrixRule('.*/kv_einsum/w', (0,), (3,), (1, 2, 4), head_axes=(2,)),
    gq.MatrixRule('.*/attn_vec_einsum/w', (0,), (1, 2), (3,), head_axes=(1,)),
    gq.MatrixRule('.*/gating_einsum', (0,), (2,), (1, 3)),
    gq.MatrixRule('.*/mlp/linear', (0,), (1,), (2,)),
)

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
