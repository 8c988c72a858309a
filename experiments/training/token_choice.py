"""The next token of a text, by its logits: the likeliest, or drawn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from experiments.files import json_files

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-6, 1e6
NOT_FINITE = -1  # in place of a token, where the logits tell none


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

        p = softmax(logits / temperature), of the tokens that top_k and then top_p leave

    Attributes:
      temperature: 0 takes the likeliest token.
      top_k: only this many of the likeliest tokens are drawn from; None for all.
      top_p: only the fewest of the likeliest tokens whose probabilities, after top_k, sum to this; None or 1 for
        all.

    Raises:
      ValueError: a temperature that isn't 0 or from 1e-6 to 1e6, a top_k below 1, a top_p that isn't above 0 and at
        most 1; top_k or top_p with a temperature of 0.

    Source: Fan et al. (arXiv 1805.04833) for top_k; Holtzman et al. (arXiv 1904.09751), section 3.1, for top_p.

    Example:
      >>> Sampling(temperature=0.8, top_k=40, top_p=0.95).top_k
      40
    """

    temperature: float
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        temperature, top_k, top_p = self.temperature, self.top_k, self.top_p
        if not json_files.is_a(temperature, float) or not (
            temperature == 0 or LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE
        ):
            raise ValueError(
                f'temperature={temperature!r}: allowed are 0 and numbers from {LOWEST_TEMPERATURE:g} to'
                f' {HIGHEST_TEMPERATURE:g}'
            )
        if top_k is not None and not (json_files.is_a(top_k, int) and top_k >= 1):
            raise ValueError(f'top_k={top_k!r}: allowed are integers from 1 on')
        if top_p is not None and not (json_files.is_a(top_p, float) and 0 < top_p <= 1):
            raise ValueError(f'top_p={top_p!r}: allowed are numbers above 0, up to 1')
        for name, value in (('top_k', top_k), ('top_p', top_p)):
            if value is not None and not temperature:
                raise ValueError(f'{name}={value} has no meaning with temperature=0, which takes the likeliest token')


@functools.partial(jax.jit, static_argnames='sampling')
def choose(logits: jax.Array, key: jax.Array, rows: jax.Array, positions: jax.Array, sampling: Sampling) -> jax.Array:
    """The next token of each row, (batch,) int32; NOT_FINITE of one whose largest logit is not finite, or is NaN.

    A token depends on its row's logits, the key, the row's name and the position, and on no other row.

    Args:
      logits: (batch, vocab_size).
      key: a JAX PRNG key.
      rows, positions: (batch,) integers, the rows' names and where in it each token comes to stand.
      sampling: how.
    """
    largest = logits.max(-1)
    or_none = lambda tokens: jnp.where(jnp.isfinite(largest), tokens, NOT_FINITE).astype(jnp.int32)
    if not sampling.temperature:
        return or_none(jnp.argmax(logits, axis=-1))

    def draw(logits, largest, row, position):
        tempered = (logits - largest).astype(jnp.float32) / jnp.float32(sampling.temperature)
        of_token = jax.random.fold_in(jax.random.fold_in(key, row), position)
        return jax.random.categorical(of_token, keep_likeliest(tempered, sampling.top_k, sampling.top_p))

    return or_none(jax.vmap(draw)(logits, largest, rows, positions))


def keep_likeliest(logits: jax.Array, top_k: int | None, top_p: float | None) -> jax.Array:
    """Logits (vocab_size,), with -inf for the tokens that top_k and top_p leave out; of equal ones the first stay.

    Example:
      >>> keep_likeliest(jnp.array([1.0, 3.0, 2.0]), top_k=2, top_p=None)
      Array([-inf,   3.,   2.], dtype=float32)
    """
    top_p = None if top_p == 1 else top_p  # which sums in float32 reach before the last token
    if top_k is None and top_p is None:
        return logits
    order = jnp.argsort(-logits, stable=True)
    ranked = logits[order]
    is_kept = jnp.arange(logits.size, dtype=jnp.int32) < (top_k or logits.size)
    if top_p is not None:
        probabilities = jax.nn.softmax(jnp.where(is_kept, ranked, -jnp.inf))
        before = jnp.concatenate([jnp.zeros(1, logits.dtype), jnp.cumsum(probabilities)[:-1]])
        is_kept &= (before < top_p).at[0].set(True)  # also if top_p is 0 in float32
    return jnp.full_like(logits, -jnp.inf).at[order].set(jnp.where(is_kept, ranked, -jnp.inf))
