"""Write text with a run's newest checkpoint, or with a packed file of `experiments.export`.

python -m experiments.generate --workdir=runs/tiny-gaussws --prompt='def '
python -m experiments.generate --weights=runs/tiny-gaussws/learned.safetensors --prompt='def '
"""

import os
import sys
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli, workdirs
from experiments.data.tokenizers import Tokenizer
from experiments.files import foreign_text

WORKDIR = flags.DEFINE_string('workdir', None, "The run's directory.")
WEIGHTS = flags.DEFINE_string('weights', None, 'A packed file, in place of --workdir.')
TOKENIZER = flags.DEFINE_string(
    'tokenizer', None, "With --weights, the tokenizer's file, if it isn't beside them or in the folder tokenizer there."
)
PROMPT = flags.DEFINE_string('prompt', '', 'How the text begins.')
NUM_TOKENS = flags.DEFINE_integer('num_tokens', 256, 'How many tokens to write, if no document ends.', lower_bound=1)
TEMPERATURE = flags.DEFINE_float('temperature', 0.8, '0 always takes the likeliest token.', lower_bound=0.0)
SEED = flags.DEFINE_integer('seed', 0, 'Another seed, another text.', lower_bound=0, upper_bound=2**32 - 1)


def main(argv):
    del argv
    with cli.user_errors():
        run = workdirs.open_either(WORKDIR.value, WEIGHTS.value, TOKENIZER.value)
        text = typed(PROMPT.value)
    tokenizer = run.tokenizer
    prompt = tokenizer.encode_prompt(text)
    weights = run.experiment.transform.apply(None, run.state.params, run.state.transform_state)
    tokens = generate(
        run.experiment.model,
        weights,
        jnp.asarray(prompt, jnp.int32),
        key=jax.random.key(SEED.value),
        num_tokens=NUM_TOKENS.value,
        window=run.experiment.config.sequence_length,
        temperature=TEMPERATURE.value,
        vocab_size=tokenizer.vocab_size,
        ends=tokenizer.special.eos,
    )
    written = [token for token in np.asarray(tokens).tolist() if token not in tokenizer.special.eos]
    text = whole_text(tokenizer, prompt, written)
    print(foreign_text.escaped(text) if sys.stdout.isatty() else text)  # a terminal obeys what it is told


def typed(prompt: str) -> str:
    """A text of the command line, in UTF-8 whatever the locale is; ValueError if it is none."""
    try:
        return os.fsencode(prompt).decode()
    except UnicodeError as error:
        raise ValueError(f'--prompt={prompt!r} is no UTF-8: {error.reason}') from None


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


if __name__ == '__main__':
    cli.start(main)
