"""Llama: RMSNorm, rotary positions, SwiGLU, grouped key and value heads; no biases, unless asked for."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from gaussq_jax.models import layers
from gaussq_jax.models.huggingface_config import flag
from gaussq_jax.models.llama_family import llama_family
from gaussq_jax.models.rope import RopeScaling

_initializer = nn.initializers.normal(0.02)


class Llama(nn.Module):
    """A Llama language model, of any generation to 3: tokens -> logits, as a pure function of its parameters.

        x = embed(tokens)
        x = x + attention(norm(x));  x = x + mlp(norm(x))      num_layers times, scanned
        logits = lm_head(norm(x))

        norm(x) = scale * x / sqrt(mean(x^2) + norm_epsilon),    mlp(x) = down(silu(gate(x)) * up(x))

    Parameters, float32 when created and of any floating dtype when applied; those of the layers are stacked
    along a first axis of num_layers: `embed/embedding` (vocab_size, hidden_size),
    `layers/attention_norm/scale`, `layers/attention/{query,key,value,out}/kernel` (num_layers, in, out),
    `layers/mlp_norm/scale`, `layers/mlp/{gate,up,down}/kernel`, `final_norm/scale`, and unless tied
    `lm_head/kernel` (hidden_size, vocab_size); where there are biases, `bias` (num_layers, out) beside the kernel.
    Matrices start as normal(0, 0.02), the `initializer_range` of Hugging Face's Llama (the papers give none), scales as
    ones, biases as zeros.

    `Mistral`, `Qwen2` and `Qwen3` are subclasses, which have the options that Hugging Face's have.

    Attributes:
      vocab_size, num_layers, hidden_size, num_heads: sizes.
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
      head_dim: numbers of a head, even; None means hidden_size / num_heads.
      rope_factor, rope_low_freq_factor, rope_high_freq_factor, rope_original_length: Llama 3's scaling of the rotary
        position embedding, see `RopeScaling`; a factor of 1 is none. The defaults of the others are Llama 3.1's, which
        has a factor of 8.
      attention_bias: whether queries, keys, values and the attention's output have biases.
      mlp_bias: whether the three linear layers of SwiGLU have them.

    Raises:
      ValueError: sizes that don't divide, an odd head size, factors of the scaling that can't be, an unknown
        remat_policy, a scan_unroll below 1, tokens that are not 2-D.

    Example:
      >>> import jax
      >>> model = Llama(vocab_size=256, num_layers=2, hidden_size=64, mlp_size=128, num_heads=4)
      >>> tokens = jnp.zeros((1, 8), jnp.int32)
      >>> params = model.init(jax.random.key(0), tokens)['params']
      >>> model.apply({'params': params}, tokens).shape
      (1, 8, 256)

    Source: Touvron et al., LLaMA (arXiv 2302.13971) and Llama 2 (arXiv 2307.09288), section 2.2 of both; Llama 3 (arXiv
    2407.21783), section 3.2.
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
    head_dim: int | None = None
    rope_factor: float = 1.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_length: int = 8192
    attention_bias: bool = False
    mlp_bias: bool = False

    norms_heads: ClassVar[bool] = False  # whether each head's queries and keys are normalized: Qwen3's

    def __post_init__(self):
        num_kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        layers.check_architecture(
            self.hidden_size, self.num_heads, num_kv_heads, self.remat_policy, self.scan_unroll, self.head_dim
        )
        if self.head_dim is None and self.hidden_size // self.num_heads % 2:
            raise ValueError(
                f'hidden_size={self.hidden_size} / num_heads={self.num_heads} must be even: '
                'the rotary position embedding rotates pairs'
            )
        if self.head_dim is not None and (self.head_dim < 2 or self.head_dim % 2):
            raise ValueError(
                f'head_dim={self.head_dim} must be even and positive: the rotary position embedding rotates pairs'
            )
        if not 0 < self.rope_low_freq_factor < self.rope_high_freq_factor:
            raise ValueError(
                f'rope_low_freq_factor={self.rope_low_freq_factor} must be positive and less than'
                f' rope_high_freq_factor={self.rope_high_freq_factor}'
            )
        if not (self.rope_factor > 0 and self.rope_original_length > 0):
            raise ValueError(
                f'rope_factor={self.rope_factor} and rope_original_length={self.rope_original_length} must be positive'
            )
        super().__post_init__()

    @property
    def out_bias(self) -> bool:
        """Whether the attention's output has a bias."""
        return self.attention_bias

    @property
    def rope_scaling(self) -> RopeScaling | None:
        """What the fields say of it, or None."""
        factors = self.rope_factor, self.rope_low_freq_factor, self.rope_high_freq_factor
        return None if self.rope_factor == 1 else RopeScaling(*factors, self.rope_original_length)

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
            head_dim=self.head_dim,
            rope_scaling=self.rope_scaling,
            norms_heads=self.norms_heads,
            attention_bias=self.attention_bias,
            out_bias=self.out_bias,
            mlp_bias=self.mlp_bias,
            name='layers',
        )
        x = layers.scan_layers(
            layer,
            self.constrain(layers.look_up(embed, tokens), layers.RESIDUAL),
            num_layers=self.num_layers,
            layer_transform=self.layer_transform,
            remat_policy=self.remat_policy,
            scan_unroll=self.scan_unroll,
            positions=positions,
            segment_ids=segment_ids,
        )
        final_norm = nn.RMSNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name='final_norm')
        x = layers.normalize(final_norm, layers.take_tokens(x, logits_at))
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
    head_dim: int | None
    rope_scaling: RopeScaling | None
    norms_heads: bool
    attention_bias: bool
    out_bias: bool
    mlp_bias: bool

    @nn.compact
    def __call__(self, x, positions=None, segment_ids=None):
        """x (batch, length, hidden_size) -> the same shape; positions, segment_ids: see `layers.Attention`."""
        attention = layers.Attention(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            rope_theta=self.rope_theta,
            use_bias=self.attention_bias,
            out_bias=self.out_bias,
            dtype=self.dtype,
            dot_general_cls=self.dot_general_cls,
            kernel_init=_initializer,
            out_init=_initializer,
            constrain=self.constrain,
            head_dim=self.head_dim,
            rope_scaling=self.rope_scaling,
            head_norm_epsilon=self.norm_epsilon if self.norms_heads else None,
            name='attention',
        )
        mlp = SwiGLU(
            mlp_size=self.mlp_size,
            use_bias=self.mlp_bias,
            dtype=self.dtype,
            dot_general_cls=self.dot_general_cls,
            constrain=self.constrain,
            name='mlp',
        )
        norm = functools.partial(nn.RMSNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        attended = attention(layers.normalize(norm(name='attention_norm'), x), positions, segment_ids)
        x = self.constrain(x + attended, layers.RESIDUAL)
        return self.constrain(x + mlp(layers.normalize(norm(name='mlp_norm'), x)), layers.RESIDUAL)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)). Source: Shazeer (arXiv 2002.05202), section 2."""

    mlp_size: int
    use_bias: bool
    dtype: Any
    dot_general_cls: Callable | None
    constrain: layers.Constrain

    @nn.compact
    def __call__(self, x):
        """x (batch, length, hidden_size) -> the same shape."""
        linear = functools.partial(
            nn.Dense,
            use_bias=self.use_bias,
            dtype=self.dtype,
            dot_general_cls=self.dot_general_cls,
            kernel_init=_initializer,
        )
        gate = self.constrain(linear(self.mlp_size, name='gate')(x), layers.MLP)
        up = self.constrain(linear(self.mlp_size, name='up')(x), layers.MLP)
        return linear(x.shape[-1], name='down')(nn.silu(gate) * up)


def _read(config):
    return {name: flag(config, name) for name in ('attention_bias', 'mlp_bias')}


def _written(model):
    if model.hidden_size % model.num_heads:
        raise ValueError(
            f'num_heads={model.num_heads} must divide hidden_size={model.hidden_size}: transformers has no other Llama'
        )
    return dict(attention_bias=model.attention_bias, mlp_bias=model.mlp_bias)


LLAMA = llama_family('llama', Llama, 'LlamaForCausalLM', read=_read, written=_written)
