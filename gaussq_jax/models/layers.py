"""What the transformers here share: causal attention with RoPE, the scan over layers, the output logits."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gaussq_jax.models import key_value_cache
from gaussq_jax.models.quantized_dot_general import telling_layer
from gaussq_jax.models.rope import RopeScaling, rope_frequencies
from gaussq_jax.quantized_dot_general import quantized_dot_general

# layer_transform(layer_params, layer_index) -> layer_params
LayerTransform = Callable[[dict[str, Any], jax.Array], dict[str, Any]]
# constrain(activations, names of their axes) -> activations
Constrain = Callable[[jax.Array, tuple[str, ...]], jax.Array]
RESIDUAL = ('batch', 'length', 'hidden')
HEADS = ('batch', 'length', 'heads', 'head')
MLP = ('batch', 'length', 'mlp')
LOGITS = ('batch', 'length', 'vocab')
# Of the parameters that are split over a mesh, by their paths: see `ModelFamily`.
PARAMETER_AXES = (
    ('embed/embedding', ('vocab', 'hidden')),
    ('layers/attention/(query|key)/kernel', ('layer', 'hidden', 'heads')),
    ('layers/attention/value/kernel', ('layer', 'hidden', 'values')),
    ('layers/attention/out/kernel', ('layer', 'values', 'hidden')),
    ('layers/mlp/(gate|up)/kernel', ('layer', 'hidden', 'mlp')),
    ('layers/mlp/down/kernel', ('layer', 'mlp', 'hidden')),
    ('lm_head/kernel', ('hidden', 'vocab')),
)

# 'full' keeps nothing; the others are the policies of jax.checkpoint_policies that take no argument.
REMAT_POLICIES = {'full': jax.checkpoint_policies.nothing_saveable} | {
    name: getattr(jax.checkpoint_policies, name)
    for name in (
        'everything_saveable',
        'nothing_saveable',
        'dots_saveable',
        'checkpoint_dots',
        'dots_with_no_batch_dims_saveable',
        'checkpoint_dots_with_no_batch_dims',
    )
}


class Attention(nn.Module):
    """Causal self-attention of `num_heads` query heads over `num_kv_heads` key and value heads.

        softmax(Q K^T / sqrt(head_dim) + causal mask) V

    The kernels `query`, `key`, `value` and `out` are plain matrices (in, out); the softmax is in float32.

    Attributes:
      num_heads, num_kv_heads: each key and value head serves num_heads / num_kv_heads query heads.
      rope_theta: base of the rotary position embedding of queries and keys; None for none.
      use_bias, out_bias: whether query, key and value have a bias, and whether out has.
      dtype: computation dtype; parameters are created in float32.
      dot_general_cls: makes the matmul of the four linear layers; the attention products never go through it.
      kernel_init, out_init: initialisers of query, key, value and of out.
      constrain: see `Llama`.
      head_dim: numbers of a head; None means hidden_size / num_heads.
      rope_scaling: of the frequencies of the rotary position embedding.
      head_norm_epsilon: of an RMSNorm of each head's queries and keys, before they are rotated: `query_norm` and
        `key_norm`, each with a scale (head_dim,) for all heads. None for none.
    """

    num_heads: int
    num_kv_heads: int
    rope_theta: float | None
    use_bias: bool
    out_bias: bool
    dtype: Any
    dot_general_cls: Callable | None
    kernel_init: Callable
    out_init: Callable
    constrain: Constrain
    head_dim: int | None = None
    rope_scaling: RopeScaling | None = None
    head_norm_epsilon: float | None = None

    @nn.compact
    def __call__(self, x, positions=None, segment_ids=None):
        """x (batch, length, hidden_size) -> the same shape; positions (batch, length) with a cache, which x follows.

        With segment_ids (batch, length) a token attends to those of its own segment.
        """
        batch, length, hidden_size = x.shape
        head_dim = self.head_dim or hidden_size // self.num_heads

        linear = functools.partial(nn.Dense, dtype=self.dtype, dot_general_cls=self.dot_general_cls)

        def project(name, num_heads):
            y = linear(num_heads * head_dim, use_bias=self.use_bias, kernel_init=self.kernel_init, name=name)(x)
            return self.constrain(y.reshape(batch, length, num_heads, head_dim), HEADS)

        query = project('query', self.num_heads)
        key = project('key', self.num_kv_heads)
        value = project('value', self.num_kv_heads)
        if self.head_norm_epsilon is not None:
            head_norm = functools.partial(nn.RMSNorm, epsilon=self.head_norm_epsilon, dtype=self.dtype)
            query = normalize(head_norm(name='query_norm'), query)
            key = normalize(head_norm(name='key_norm'), key)
        if self.rope_theta is not None:
            query = rotary_position_embedding(query, self.rope_theta, self.rope_scaling, positions)
            key = rotary_position_embedding(key, self.rope_theta, self.rope_scaling, positions)
        key, value = key_value_cache.seen(self, key, value, positions)
        attended = self.constrain(causal_attention(query, key, value, positions, segment_ids), HEADS)
        out = linear(hidden_size, use_bias=self.out_bias, kernel_init=self.out_init, name='out')
        return out(attended.reshape(batch, length, -1))


def causal_attention(query, key, value, positions=None, segment_ids=None):
    """softmax(Q K^T / sqrt(head_dim) + causal mask) V, the softmax in float32.

    The bits are those of `jax.nn.dot_product_attention(query, key, value, is_causal=True)`, whose gradient can't be
    compiled where JAX promotes no dtypes: it multiplies a float32 array with narrower queries and keys.

    Args:
      query: (batch, length, heads, head_dim).
      key, value: (batch, length, kv_heads, head_dim), of query's dtype; kv_heads divides heads.
      positions: (batch, length) of the queries among the keys, of which there may then be more: a query sees those up
        to its position. None for 0, 1, 2, ...
      segment_ids: (batch, length) integers, of queries and keys: a query sees those of its own segment. None: all are
        of one.

    Returns:
      An array of query's shape and dtype.

    Raises:
      ValueError: both positions and segment_ids.

    Source: Vaswani et al., Attention Is All You Need (arXiv 1706.03762), section 3.2.1.

    Example:
      >>> x = jnp.ones((1, 2, 4, 8))
      >>> causal_attention(x, x[:, :, :2], x[:, :, :2]).shape
      (1, 2, 4, 8)
    """
    if positions is not None and segment_ids is not None:
        raise ValueError('positions and segment_ids are both given: what a cache holds has no segments')
    batch, length, _, head_dim = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, head_dim)
    scores = _scores(grouped, key)
    scores = scores * jnp.asarray(head_dim**-0.5, scores.dtype)
    return jax.vmap(_attend, (3, None, None, None), 3)(scores, value, positions, segment_ids).reshape(query.shape)


@jax.custom_vjp
def _scores(query, key):
    """Q K^T (batch, kv_heads, length, group, keys) of queries (batch, length, kv_heads, group, head_dim)."""
    return _multiply_accurately(query, key, query.dtype)


def _multiply_accurately(query, key, dtype):
    """In float32, by the hardware's products of this dtype."""
    algorithm = {'bfloat16': 'BF16_BF16_F32', 'float16': 'F16_F16_F32'}.get(jnp.dtype(dtype).name)
    return jax.lax.dot_general(
        query,
        key,
        (((4,), (3,)), ((0, 2), (0, 2))),
        precision=algorithm and jax.lax.DotAlgorithmPreset[algorithm],
        preferred_element_type=np.promote_types(query.dtype, np.float32),
    )


def _scores_forward(query, key):
    return _multiply_accurately(query, key, query.dtype), (query, key)  # not `_scores`, see `quantized_dot_general`


def _scores_backward(residuals, d_scores):
    query, key = residuals
    wide_query, wide_key = (x.astype(d_scores.dtype) for x in residuals)
    (d_query,) = jax.linear_transpose(lambda q: _multiply_accurately(q, wide_key, query.dtype), wide_query)(d_scores)
    (d_key,) = jax.linear_transpose(lambda k: _multiply_accurately(wide_query, k, query.dtype), wide_key)(d_scores)
    return d_query.astype(query.dtype), d_key.astype(key.dtype)


_scores.defvjp(_scores_forward, _scores_backward)


def _attend(scores, value, positions, segment_ids):
    """(batch, heads, length, keys) and (batch, keys, heads, head_dim) -> (batch, length, heads, head_dim)."""
    if positions is None:
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
    else:
        mask = jnp.arange(scores.shape[-1], dtype=jnp.int32)[None, None, None] <= positions[:, None, :, None]
    if segment_ids is not None:
        mask = mask & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    masked = jnp.where(mask, scores, -0.7 * float(jnp.finfo(jnp.float32).max))
    weights = jax.nn.softmax(masked.astype(jnp.float32)).astype(value.dtype)
    return jnp.einsum('BNTS,BSNH->BTNH', weights, value)


def rotary_position_embedding(x, theta, scaling=None, positions=None):
    """Rotates the pairs (x[i], x[i + head_dim/2]) by an angle that grows with the position.

        angle(position, i) = position * theta^(-2i / head_dim),    0 <= i < head_dim/2, if nothing scales them

    Angles and rotation are in float32. The pairing is that of Hugging Face's Llama, so that its weights need
    no permutation; the paper and Meta's own checkpoints pair (x[2i], x[2i+1]).

    Args:
      x: (batch, length, heads, head_dim), head_dim even.
      theta, scaling: see `rope_frequencies`.
      positions: (batch, length) integers; None for 0, 1, 2, ...

    Returns:
      The same shape and dtype.

    Source: Su et al., RoFormer (arXiv 2104.09864), section 3.2.2.

    Example:
      >>> x = jnp.array([[[[1.0, 0.0]], [[1.0, 0.0]]]])                       # position 0, position 1
      >>> rotary_position_embedding(x, theta=10000.0)[0, 1, 0].round(4)       # cos 1, sin 1
      Array([0.5403, 0.8415], dtype=float32)
    """
    length, half = x.shape[1], x.shape[-1] // 2
    frequencies = rope_frequencies(2 * half, theta, scaling)
    if positions is None:
        angles = (jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies[None, :])[None, :, None, :]
    else:
        angles = (positions.astype(jnp.float32)[:, :, None] * frequencies[None, None, :])[:, :, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def scan_layers(
    layer,
    x,
    *,
    num_layers,
    layer_transform=None,
    remat_policy=None,
    scan_unroll=1,
    positions=None,
    segment_ids=None,
):
    """Runs x through `num_layers` copies of `layer`, whose parameters are stacked along a new first axis.

        x = layer_i(x) with parameters layer_transform(params[i], i),    i = 0, ..., num_layers - 1

    The transform runs inside the rematerialised layer: unless the policy saves it, its result is computed
    again in the backward pass instead of being kept. It is not applied while the parameters are initialised.

    Args:
      layer: a bound linen module, x -> x; with positions x, positions -> x; with segments x, None, segment_ids -> x.
      x: (batch, length, hidden_size).
      num_layers: number of copies.
      layer_transform: see `Llama`; None leaves the parameters alone.
      remat_policy: None (keep all) or a name in REMAT_POLICIES.
      scan_unroll: see `Llama`.
      positions: (batch, length), where a cache holds what comes before x; else None.
      segment_ids: (batch, length), where rows hold several documents; else None.

    Returns:
      The last layer's output, of x's shape.
    """

    of_tokens = () if positions is None else (positions,)
    if segment_ids is not None:
        of_tokens = (positions, segment_ids)

    def apply_layer(layer, x, layer_index):
        with telling_layer(layer_index, num_layers):
            if layer_transform is None or layer.is_initializing():
                return layer(x, *of_tokens), None

            def transform(variables):
                return {'params': layer_transform(variables['params'], layer_index)}

            return nn.map_variables(type(layer).__call__, 'params', transform)(layer, x, *of_tokens), None

    if remat_policy is not None:
        # The scan keeps the backward pass apart from the forward one: no barrier is needed between them.
        apply_layer = nn.remat(apply_layer, prevent_cse=False, policy=REMAT_POLICIES[remat_policy])
    scan = nn.scan(
        apply_layer,
        variable_axes=dict.fromkeys(('params', *key_value_cache.COLLECTIONS), 0),
        split_rngs={True: True},  # all streams
        length=num_layers,
        unroll=min(scan_unroll, num_layers),
        check_constancy_invariants=False,  # layers share no variable, and the check traces them a second time
    )
    return scan(layer, x, jnp.arange(num_layers, dtype=jnp.int32))[0]


def positions_in_segments(segment_ids):
    """How many tokens of its segment stand before each token: (batch, length) -> the same, int32.

    Example:
      >>> positions_in_segments(jnp.array([[1, 1, 1, 2, 2, 0]]))
      Array([[0, 1, 2, 0, 1, 0]], dtype=int32)
    """
    indices = jnp.broadcast_to(jnp.arange(segment_ids.shape[1], dtype=jnp.int32), segment_ids.shape)
    begins = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] - 1) != 0
    return indices - jax.lax.cummax(jnp.where(begins, indices, 0), axis=1)


def take_tokens(x, at):
    """The rows of x (batch, length, hidden_size) at the indices (batch, number); all of them where `at` is None."""
    return x if at is None else jnp.take_along_axis(x, at[:, :, None], axis=1)


def normalize(norm, x):
    """norm(x), of linen, whose statistics promote x to float32: in a context where JAX may promote dtypes."""
    with jax.numpy_dtype_promotion('standard'):
        return norm(x)


def unconstrained(x, axes):
    """The `constrain` that leaves where activations lie to XLA."""
    del axes
    return x


def dot_general_cls(model):
    """What the linear layers of a model make their matmul with, from its `dot_general` or `dot_general_cls`.

    Raises:
      ValueError: if both are given.
    """
    dot_general = model.dot_general
    if dot_general is None:
        return model.dot_general_cls
    if model.dot_general_cls is not None:
        raise ValueError('dot_general and dot_general_cls are both given; the one takes the place of the other')
    return lambda: dot_general


def look_up(embed, tokens):
    """The rows of a linen `Embed` that tokens name, in its dtype, as it gives them; their gradient sums in float32."""
    return jnp.take(embed.embedding.astype(jnp.float32), tokens, axis=0).astype(embed.dtype)


def float32_dot_general(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None):
    """`jax.lax.dot_general` with a float32 result: logits are not rounded to the computation dtype.

    Their gradient is, so that the backward pass multiplies in that dtype; the weights' is summed in float32.
    """
    del preferred_element_type
    dot_general = quantized_dot_general(weight_gradient_dtype=jnp.float32)
    return dot_general(lhs, rhs, dimension_numbers, precision, jnp.float32)


def tied_logits(x, embedding):
    """x (batch, length, hidden_size) @ the transpose of embedding (vocab_size, hidden_size), in float32."""
    return float32_dot_general(x, embedding.astype(x.dtype), (((2,), (1,)), ((), ())))


def check_tokens(tokens):
    """Raises ValueError unless tokens is (batch, length)."""
    if tokens.ndim != 2:
        raise ValueError(f'tokens must have shape (batch, length), got {tokens.shape}')


def check_architecture(hidden_size, num_heads, num_kv_heads, remat_policy, scan_unroll, head_dim=None):
    """Raises ValueError for heads that don't divide, an unknown remat_policy and a scan_unroll below 1."""
    if num_heads < 1 or (head_dim is None and hidden_size % num_heads):
        raise ValueError(f'num_heads={num_heads} must divide hidden_size={hidden_size}')
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(f'num_kv_heads={num_kv_heads} must divide num_heads={num_heads}')
    if remat_policy is not None and remat_policy not in REMAT_POLICIES:
        raise ValueError(f'remat_policy={remat_policy!r} must be None or one of {", ".join(REMAT_POLICIES)}')
    if scan_unroll < 1:
        raise ValueError(f'scan_unroll={scan_unroll} must be at least 1')
