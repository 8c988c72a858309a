"""GPT-2: LayerNorm, learned positions, GELU, biases, and a head tied to the embedding."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from gaussq_jax.models import layers
from gaussq_jax.models.family import HuggingFaceFormat, HuggingFaceTensor, ModelFamily
from gaussq_jax.models.huggingface_config import check_fields, positive, size, size_or_none

_initializer = nn.initializers.normal(0.02)


class GPT2(nn.Module):
    """A GPT-2 language model: tokens -> logits, as a pure function of its parameters.

        x = embed(tokens) + position_embed(0, 1, 2, ...)
        x = x + attention(norm(x));  x = x + mlp(norm(x))      num_layers times, scanned
        logits = norm(x) @ embedding^T

        norm: LayerNorm with scale and bias,    mlp(x) = down(gelu(up(x))), GELU by its tanh approximation

    Parameters, float32 when created and of any floating dtype when applied; those of the layers are stacked
    along a first axis of num_layers: `embed/embedding` (vocab_size, hidden_size), `position_embed/embedding`
    (max_length, hidden_size), `layers/attention_norm/{scale,bias}`,
    `layers/attention/{query,key,value,out}/{kernel,bias}` (num_layers, in, out) and (num_layers, out),
    `layers/mlp_norm/{scale,bias}`, `layers/mlp/{up,down}/{kernel,bias}`, `final_norm/{scale,bias}`.
    Matrices start as normal(0, 0.02), the projections onto the residual stream (attention out, mlp down) as
    normal(0, 0.02 / sqrt(2 num_layers)); biases as zeros, scales as ones. There is no dropout.

    Attributes:
      vocab_size, num_layers, hidden_size, num_heads: sizes; num_heads divides hidden_size.
      max_length: positions there are; a longer sequence is an error.
      mlp_size: width of the MLP; None means 4 hidden_size.
      norm_epsilon: added to the variance.
      dtype, dot_general, dot_general_cls, layer_transform, remat_policy, scan_unroll, constrain: see `Llama`.

    Raises:
      ValueError: sizes that don't divide, an unknown remat_policy, a scan_unroll below 1, tokens that are not 2-D or
        are longer than max_length.

    Example:
      >>> import jax
      >>> model = GPT2(vocab_size=256, max_length=16, num_layers=2, hidden_size=64, num_heads=4)
      >>> tokens = jnp.zeros((1, 8), jnp.int32)
      >>> params = model.init(jax.random.key(0), tokens)['params']
      >>> model.apply({'params': params}, tokens).shape
      (1, 8, 256)

    Source: Radford et al., Language Models are Unsupervised Multitask Learners (2019), section 2.3.
    """

    vocab_size: int
    max_length: int
    num_layers: int
    hidden_size: int
    num_heads: int
    mlp_size: int | None = None
    norm_epsilon: float = 1e-5
    dtype: Any = jnp.bfloat16
    dot_general: Callable | None = None
    dot_general_cls: Callable | None = None
    layer_transform: layers.LayerTransform | None = None
    remat_policy: str | None = None
    scan_unroll: int = 1
    constrain: layers.Constrain = layers.unconstrained

    def __post_init__(self):
        layers.check_architecture(self.hidden_size, self.num_heads, self.num_heads, self.remat_policy, self.scan_unroll)
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens, positions=None, logits_at=None, segment_ids=None):
        """tokens (batch, length), integers -> logits (batch, length, vocab_size), float32.

        With a cache (see `key_value_cache.read_next`), positions (batch, length) are where the tokens stand.
        With logits_at (batch, number), indices along the length, the logits (batch, number, vocab_size) are of those
        tokens alone.
        With segment_ids (batch, length), integers, a row holds several documents, the tokens of each side by side with
        a number of their own: each has the logits of the document alone. A cache holds no segments.
        """
        layers.check_tokens(tokens)
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f'tokens of length {length} exceed max_length={self.max_length}')
        embedding = functools.partial(
            nn.Embed, features=self.hidden_size, dtype=self.dtype, embedding_init=_initializer
        )
        embed = embedding(self.vocab_size, name='embed')
        position_embed = embedding(self.max_length, name='position_embed')
        x = layers.look_up(embed, tokens)
        if segment_ids is not None:
            x = x + layers.look_up(position_embed, layers.positions_in_segments(segment_ids))
        elif positions is None:
            x = x + layers.look_up(position_embed, jnp.arange(length, dtype=jnp.int32))[None]
        else:
            x = x + layers.look_up(position_embed, positions)
        layer = GPT2Layer(
            mlp_size=4 * self.hidden_size if self.mlp_size is None else self.mlp_size,
            num_heads=self.num_heads,
            norm_epsilon=self.norm_epsilon,
            dtype=self.dtype,
            dot_general_cls=layers.dot_general_cls(self),
            residual_init=nn.initializers.normal(0.02 / math.sqrt(2 * self.num_layers)),
            constrain=self.constrain,
            name='layers',
        )
        x = layers.scan_layers(
            layer,
            self.constrain(x, layers.RESIDUAL),
            num_layers=self.num_layers,
            layer_transform=self.layer_transform,
            remat_policy=self.remat_policy,
            scan_unroll=self.scan_unroll,
            positions=positions,
            segment_ids=segment_ids,
        )
        x = layers.normalize(_layer_norm(self, 'final_norm'), layers.take_tokens(x, logits_at))
        return self.constrain(layers.tied_logits(x, embed.embedding), layers.LOGITS)


class GPT2Layer(nn.Module):
    """One layer of `GPT2`, x -> x."""

    mlp_size: int
    num_heads: int
    norm_epsilon: float
    dtype: Any
    dot_general_cls: Callable | None
    residual_init: Callable
    constrain: layers.Constrain

    @nn.compact
    def __call__(self, x, positions=None, segment_ids=None):
        """x (batch, length, hidden_size) -> the same shape; positions, segment_ids: see `layers.Attention`."""
        attention = layers.Attention(
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            rope_theta=None,
            use_bias=True,
            out_bias=True,
            dtype=self.dtype,
            dot_general_cls=self.dot_general_cls,
            kernel_init=_initializer,
            out_init=self.residual_init,
            constrain=self.constrain,
            name='attention',
        )
        mlp = GeluMLP(
            mlp_size=self.mlp_size,
            dtype=self.dtype,
            dot_general_cls=self.dot_general_cls,
            residual_init=self.residual_init,
            constrain=self.constrain,
            name='mlp',
        )
        attended = attention(layers.normalize(_layer_norm(self, 'attention_norm'), x), positions, segment_ids)
        x = self.constrain(x + attended, layers.RESIDUAL)
        return self.constrain(x + mlp(layers.normalize(_layer_norm(self, 'mlp_norm'), x)), layers.RESIDUAL)


class GeluMLP(nn.Module):
    """down(gelu(up(x))), with biases. Source: Hendrycks and Gimpel (arXiv 1606.08415), section 2."""

    mlp_size: int
    dtype: Any
    dot_general_cls: Callable | None
    residual_init: Callable
    constrain: layers.Constrain

    @nn.compact
    def __call__(self, x):
        """x (batch, length, hidden_size) -> the same shape."""
        linear = functools.partial(nn.Dense, dtype=self.dtype, dot_general_cls=self.dot_general_cls)
        up = self.constrain(linear(self.mlp_size, kernel_init=_initializer, name='up')(x), layers.MLP)
        return linear(x.shape[-1], kernel_init=self.residual_init, name='down')(nn.gelu(up, approximate=True))


def _layer_norm(module, name):
    # The fast variance, E[x^2] - E[x]^2, cancels where the mean is large, as it is in trained GPT-2 weights.
    return nn.LayerNorm(epsilon=module.norm_epsilon, dtype=module.dtype, use_fast_variance=False, name=name)


def _build(config):
    check_fields(
        config,
        activation_function=('gelu_new', 'gelu_pytorch_tanh'),
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
        tie_word_embeddings=(True,),
    )
    return GPT2(
        vocab_size=size(config, 'vocab_size'),
        max_length=size(config, 'n_positions'),
        num_layers=size(config, 'n_layer'),
        hidden_size=size(config, 'n_embd'),
        num_heads=size(config, 'n_head'),
        mlp_size=size_or_none(config, 'n_inner'),
        norm_epsilon=positive(config, 'layer_norm_epsilon'),
    )


def _describe(model):
    return dict(
        architectures=['GPT2LMHeadModel'],
        model_type='gpt2',
        vocab_size=model.vocab_size,
        n_positions=model.max_length,
        n_layer=model.num_layers,
        n_embd=model.hidden_size,
        n_inner=4 * model.hidden_size if model.mlp_size is None else model.mlp_size,
        n_head=model.num_heads,
        activation_function='gelu_new',
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
        layer_norm_epsilon=model.norm_epsilon,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )


def _third(name, part):
    return HuggingFaceTensor(name, part=part, parts=3)


_TENSORS = {
    'embed/embedding': HuggingFaceTensor('wte.weight'),
    'position_embed/embedding': HuggingFaceTensor('wpe.weight'),
    'layers/attention_norm/scale': HuggingFaceTensor('ln_1.weight'),
    'layers/attention_norm/bias': HuggingFaceTensor('ln_1.bias'),
    'layers/attention/query/kernel': _third('attn.c_attn.weight', 0),
    'layers/attention/query/bias': _third('attn.c_attn.bias', 0),
    'layers/attention/key/kernel': _third('attn.c_attn.weight', 1),
    'layers/attention/key/bias': _third('attn.c_attn.bias', 1),
    'layers/attention/value/kernel': _third('attn.c_attn.weight', 2),
    'layers/attention/value/bias': _third('attn.c_attn.bias', 2),
    'layers/attention/out/kernel': HuggingFaceTensor('attn.c_proj.weight'),
    'layers/attention/out/bias': HuggingFaceTensor('attn.c_proj.bias'),
    'layers/mlp_norm/scale': HuggingFaceTensor('ln_2.weight'),
    'layers/mlp_norm/bias': HuggingFaceTensor('ln_2.bias'),
    'layers/mlp/up/kernel': HuggingFaceTensor('mlp.c_fc.weight'),
    'layers/mlp/up/bias': HuggingFaceTensor('mlp.c_fc.bias'),
    'layers/mlp/down/kernel': HuggingFaceTensor('mlp.c_proj.weight'),
    'layers/mlp/down/bias': HuggingFaceTensor('mlp.c_proj.bias'),
    'final_norm/scale': HuggingFaceTensor('ln_f.weight'),
    'final_norm/bias': HuggingFaceTensor('ln_f.bias'),
}

GPT_2 = ModelFamily(
    name='gpt2',
    module=GPT2,
    axes=layers.PARAMETER_AXES,
    huggingface=HuggingFaceFormat(
        prefix='transformer.',
        layers='h',
        tensors=_TENSORS,
        build=_build,
        describe=_describe,
        reads_sentencepiece=False,
    ),
)
