"""Text that a model writes, a token after the other."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.tokenizers import Tokenizer
from experiments.training.experiment import Experiment, TrainState


def write_text(
    experiment: Experiment,
    state: TrainState,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    num_tokens: int,
    temperature: float,
    seed: int,
) -> str:
    """The prompt and what the weights, rounded, without noise, write after it: up to an end of document.

    Args:
      experiment, state: of the model.
      tokenizer: of both.
      prompt: how the text begins.
      num_tokens, temperature: as for `generate`.
      seed: another seed, another text.
    """
    ids = tokenizer.encode_prompt(prompt)
    tokens = generate(
        experiment.model,
        experiment.transform.apply(None, state.params, state.transform_state),
        jnp.asarray(ids, jnp.int32),
        key=jax.random.key(seed),
        num_tokens=num_tokens,
        window=experiment.config.sequence_length,
        temperature=temperature,
        vocab_size=tokenizer.vocab_size,
        ends=tokenizer.special.eos,
    )
    written = [token for token in np.asarray(tokens).tolist() if token not in tokenizer.special.eos]
    return whole_text(tokenizer, ids, written)


def whole_text(tokenizer: Tokenizer, prompt: Iterable[int], tokens: Iterable[int]) -> str:
    """The text of a prompt and of what follows it, decoded as one: alone, SentencePiece drops a leading space."""
    return tokenizer.decode([*prompt, *tokens])


def generate(
    model,
    weights,
    prompt: jax.Array,
    *,
    key: jax.Array,
    num_tokens: int,
    window: int,
    temperature: float,
    vocab_size: int | None = None,
    ends: Sequence[int] = (),
) -> jax.Array:
    """The tokens that follow the prompt, each drawn from softmax(logits / temperature): `num_tokens`, or up to an end.

    The model sees the last `window` tokens, anew for each token it writes.

    Args:
      model: `apply({'params': weights}, tokens (1, window))` gives logits (1, window, vocabulary).
      weights: what the model multiplies with.
      prompt: (length,) int32, at least one token.
      key: a JAX PRNG key.
      num_tokens: how many to write, at the most.
      window: the longest sequence that the model was trained on.
      temperature: 0 takes the likeliest token.
      vocab_size: of the tokenizer, where the model has more: those tokens are never written.
      ends: tokens after which no more is written; they are the last ones given.
    """
    length = prompt.size
    tokens = jnp.zeros(max(length + num_tokens, window), jnp.int32).at[:length].set(prompt)

    def is_writing(state):
        position, tokens = state
        ended = jnp.isin(tokens[position - 1], jnp.asarray(ends, jnp.int32)) & (position > length)
        return (position < length + num_tokens) & ~ended

    def write_token(state):
        position, tokens = state
        start = jnp.maximum(position - window, 0)
        seen = jax.lax.dynamic_slice(tokens, (start,), (window,))
        logits = model.apply({'params': weights}, seen[None])[0, position - start - 1, :vocab_size]
        if temperature:
            token = jax.random.categorical(jax.random.fold_in(key, position), logits / temperature)
        else:
            token = jnp.argmax(logits)
        return position + 1, tokens.at[position].set(token.astype(jnp.int32))

    stop, tokens = jax.jit(lambda tokens: jax.lax.while_loop(is_writing, write_token, (length, tokens)))(tokens)
    return tokens[length : int(stop)]
