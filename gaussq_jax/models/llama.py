"""Llama: RMSNorm, rotary positions, SwiGLU, grouped key and value heads; no biases."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from gaussq_jax.models import layers
from gaussq_jax.models.family import HEAD, HuggingFaceFormat, HuggingFaceTensor, ModelFamily
from gaussq_jax.models.huggingface_config import check_fields, positive, size, size_or_none

_initializer = nn.initializers.normal(0.02)


class Llama(nn.Module):
    """A Llama language model: tokens -> logits, as a pure function of its parameters.

        x = embed(tokens)
        x = x + attention(norm(x));  x = x + mlp(norm(x))      num_layers times, scanned
        logits = lm_head(norm(x))

        norm(x) = scale * x / sqrt(mean(x^2) + norm_epsilon),    mlp(x) = down(silu(gate(x)) * up(x))

    Parameters, float32 when created and of any floating dtype when applied; those of the layers are stacked
    along a first axis of num_layers: `embed/embedding` (vocab_size, hidden_size),
    `layers/attention_norm/scale`, `layers/attention/{query,key,value,out}/kernel` (num_layers, in, out),
    `layers/mlp_norm/scale`, `layers/mlp/{gate,up,down}/kernel`, `final_norm/scale`, and unless tied
    `lm_head/kernel` (hidden_size, vocab_size). Matrices start as normal(0, 0.02), the `initializer_range` of
    Hugging Face's Llama (the papers give none), scales as ones.

    Attributes:
      vocab_size, num_layers, hidden_size, num_heads: sizes; hidden_size / num_heads is an even integer.
      mlp_size: width of the SwiGLU layer.
      num_kv_heads: key and value heads, a divisor of num_heads; None means num_heads.
      rope_theta: base of the rotary position embedding.
      norm_epsilon: added to the mean square.
      tie_embeddings: whether the head is the embedding's transpose.
      dtype: computation dtype. Norm statistics, rotary angles, softmax and logits are float32 whatever it is.
      dot_general: matmul of the layers' linear layers (`jax.lax.dot_general` if None); neither the attention
        products nor the head go through it.
      dot_general_cls: in its place, a function without arguments that makes it, module by module, such as
        `functools.partial(QuantizedDotGeneral, P5=quantizer)`, which takes keys from an rng stream.
      layer_transform: a function (layer_params, layer_index) -> layer_params, applied inside the scanned and
        rematerialised layer, not at initialisation. layer_params is one layer's nested dict,
        {'attention': {...}, ...}, without the leading axis; layer_index is a traced int32 scalar. The
        function may close over traced arrays; gradients flow through it to them and to the parameters.
      remat_policy: None keeps all activations for the backward pass, 'full' only each layer's input; or the
        name of a policy in `jax.checkpoint_policies` that takes no argument.
      scan_unroll: how many layers a turn of the scan has, at most all. Where a scan copies what each layer keeps for
        the backward pass, as on CPUs, more are faster; the time to compile grows with them.
      constrain: a function (x, axes) -> x that says where activations lie on a mesh, such as one that calls
        `jax.lax.with_sharding_constraint`; axes are the names of x's axes, of 'batch', 'length', 'hidden', 'heads',
        'head', 'mlp' and 'vocab'. By default that is left to XLA.

    Raises:
      ValueError: sizes that don't divide, an odd head size, an unknown remat_policy, a scan_unroll below 1, tokens that
        are not 2-D.

    Example:
      >>> import jax
      >>> model = Llama(vocab_size=256, num_layers=2, hidden_size=64, mlp_size=128, num_heads=4)
      >>> tokens = jnp.zeros((1, 8), jnp.int32)
      >>> params = model.init(jax.random.key(0), tokens)['params']
      >>> model.apply({'params': params}, tokens).shape
      (1, 8, 256)

    Source: Touvron et al., LLaMA (arXiv 2302.13971) and Llama 2 (arXiv 2307.09288), section 2.2 of both.
    """

    vocab_size: int
    num_layers: int
    hidden_size: int
    mlp_size: int
    num_heads: int
    num_kv_heads: int | None = None
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = False
    dtype: Any = jnp.bfloat16
    dot_general: Callable | None = None
    dot_general_cls: Callable | None = None
    layer_transform: layers.LayerTransform | None = None
    remat_policy: str | None = None
    scan_unroll: int = 1
    constrain: layers.Constrain = layers.unconstrained

    def __post_init__(self):
        num_kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        layers.check_architecture(self.hidden_size, self.num_heads, num_kv_heads, self.remat_policy, self.scan_unroll)
        if self.hidden_size // self.num_heads % 2:
            raise ValueError(
                f'hidden_size={self.hidden_size} / num_heads={self.num_heads} must be even: '
                'the rotary position embedding rotates pairs'
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens):
        """tokens (batch, length), integers -> logits (batch, length, vocab_size), float32."""
        layers.check_tokens(tokens)
        embed = nn.Embed(self.vocab_size, self.hidden_size, dtype=self.dtype, embedding_init=_initializer, name='embed')
        layer = LlamaLayer(
            mlp_size=self.mlp_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads if self.num_kv_heads is None else self.num_kv_heads,
            rope_theta=self.rope_theta,
            norm_epsilon=self.norm_epsilon,
            dtype=self.dtype,
            dot_general_cls=layers.dot_general_cls(self),
            constrain=self.constrain,
            name='layers',
        )
        x = layers.scan_layers(
            layer,
            self.constrain(layers.look_up(embed, tokens), layers.RESIDUAL),
            num_layers=self.num_layers,
            layer_transform=self.layer_transform,
            remat_policy=self.remat_policy,
            scan_unroll=self.scan_unroll,
        )
        x = layers.normalize(nn.RMSNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name='final_norm'), x)
        if self.tie_embeddings:
            logits = layers.tied_logits(x, embed.embedding)
        else:
            logits = nn.Dense(
                self.vocab_size,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=_initializer,
                dot_general=layers.float32_dot_general,
                name='lm_head',
            )(x)
        return self.constrain(logits, layers.LOGITS)


class LlamaLayer(nn.Module):
    """One layer of `Llama`, x -> x."""

    mlp_size: int
    num_heads: int
    num_kv_heads: int
    rope_theta: float
    norm_epsilon: float
    dtype: Any
    dot_general_cls: Callable | None
    constrain: layers.Constrain

    @nn.compact
    def __call__(self, x):
        """x (batch, length, hidden_size) -> the same shape."""
        attention = layers.Attention(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            rope_theta=self.rope_theta,
            use_bias=False,
            dtype=self.dtype,
            dot_general_cls=self.dot_general_cls,
            kernel_init=_initializer,
            out_init=_initializer,
            constrain=self.constrain,
            name='attention',
        )
        mlp = SwiGLU(
            mlp_size=self.mlp_size,
            dtype=self.dtype,
            dot_general_cls=self.dot_general_cls,
            constrain=self.constrain,
            name='mlp',
        )
        norm = functools.partial(nn.RMSNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        x = self.constrain(x + attention(layers.normalize(norm(name='attention_norm'), x)), layers.RESIDUAL)
        return self.constrain(x + mlp(layers.normalize(norm(name='mlp_norm'), x)), layers.RESIDUAL)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases. Source: Shazeer (arXiv 2002.05202), section 2."""

    mlp_size: int
    dtype: Any
    dot_general_cls: Callable | None
    constrain: layers.Constrain

    @nn.compact
    def __call__(self, x):
        """x (batch, length, hidden_size) -> the same shape."""
        linear = functools.partial(
            nn.Dense,
            use_bias=False,
            dtype=self.dtype,
            dot_general_cls=self.dot_general_cls,
            kernel_init=_initializer,
        )
        gate = self.constrain(linear(self.mlp_size, name='gate')(x), layers.MLP)
        up = self.constrain(linear(self.mlp_size, name='up')(x), layers.MLP)
        return linear(x.shape[-1], name='down')(nn.silu(gate) * up)


def _build(config):
    check_fields(
        config,
        hidden_act=('silu', 'swish'),
        attention_bias=(False,),
        mlp_bias=(False,),
        head_dim=(
            None,
            size(config, 'hidden_size') // size(config, 'num_attention_heads'),
        ),
    )
    rope = {'rope_theta': config.get('rope_theta', 10000.0)}
    for name in ('rope_scaling', 'rope_parameters'):  # before transformers 5, and since
        scaling = config.get(name) or {}
        is_known = isinstance(scaling, Mapping) and scaling.get('partial_rotary_factor', 1) == 1
        if not is_known or scaling.get('rope_type', scaling.get('type', 'default')) != 'default':
            raise ValueError(f'{name}={scaling!s:.80} must be the default: a full rotation by unscaled angles')
        rope |= scaling
    return Llama(
        vocab_size=size(config, 'vocab_size'),
        num_layers=size(config, 'num_hidden_layers'),
        hidden_size=size(config, 'hidden_size'),
        mlp_size=size(config, 'intermediate_size'),
        num_heads=size(config, 'num_attention_heads'),
        num_kv_heads=size_or_none(config, 'num_key_value_heads'),
        rope_theta=positive(rope, 'rope_theta'),
        norm_epsilon=positive(config, 'rms_norm_eps'),
        tie_embeddings=config.get('tie_word_embeddings', False),
    )


def _describe(model):
    return dict(
        architectures=['LlamaForCausalLM'],
        model_type='llama',
        vocab_size=model.vocab_size,
        num_hidden_layers=model.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.mlp_size,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_heads if model.num_kv_heads is None else model.num_kv_heads,
        head_dim=model.hidden_size // model.num_heads,
        hidden_act='silu',
        attention_bias=False,
        mlp_bias=False,
        rope_theta=model.rope_theta,  # before transformers 5, and since
        rope_parameters={'rope_type': 'default', 'rope_theta': model.rope_theta},
        rms_norm_eps=model.norm_epsilon,
        tie_word_embeddings=model.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
    )


def _transposed(name):
    return HuggingFaceTensor(name, is_transposed=True)


_TENSORS = {
    'embed/embedding': HuggingFaceTensor('embed_tokens.weight'),
    'layers/attention_norm/scale': HuggingFaceTensor('input_layernorm.weight'),
    'layers/attention/query/kernel': _transposed('self_attn.q_proj.weight'),
    'layers/attention/key/kernel': _transposed('self_attn.k_proj.weight'),
    'layers/attention/value/kernel': _transposed('self_attn.v_proj.weight'),
    'layers/attention/out/kernel': _transposed('self_attn.o_proj.weight'),
    'layers/mlp_norm/scale': HuggingFaceTensor('post_attention_layernorm.weight'),
    'layers/mlp/gate/kernel': _transposed('mlp.gate_proj.weight'),
    'layers/mlp/up/kernel': _transposed('mlp.up_proj.weight'),
    'layers/mlp/down/kernel': _transposed('mlp.down_proj.weight'),
    'final_norm/scale': HuggingFaceTensor('norm.weight'),
    'lm_head/kernel': _transposed(HEAD),
}

LLAMA = ModelFamily(
    name='llama',
    module=Llama,
    axes=layers.PARAMETER_AXES,
    huggingface=HuggingFaceFormat(
        prefix='model.',
        layers='layers',
        tensors=_TENSORS,
        build=_build,
        describe=_describe,
        longest='max_position_embeddings',
    ),
)
