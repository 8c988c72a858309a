"""Tokens that a model writes after prompts, several texts at a time, with a cache of keys and values."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.training import meshes
from experiments.training.token_choice import NOT_FINITE, Sampling, choose
from gaussq_jax.models import key_value_cache

SHORTEST = 16  # sequences are padded to this length, twice that, and so on up to the window: each is compiled once

Step = dict[int, int]


class PromptTooLongError(ValueError):
    """A prompt is longer than the window, and the text doesn't slide."""


class TokenWriter:
    """A model that writes, one token after the other.

    The prompts are read at once. Each token that is written then costs one token, because the keys and values of those
    before it are kept. Tokens are those of a model that sees all of the text anew for each of them, but for rounding;
    and but for `fqt` with activations whose scale spans tokens (see `methods.scales_span_tokens`), because it depends
    on all tokens that are computed at a time. A model that keeps no cache (see `key_value_cache.keeps_cache`) sees all
    of the text anew for each token.

    Programs are compiled for each length of SHORTEST, twice that, and so on up to `window` to which prompts are
    padded, and for each such length that prompts with what follows them take.

    Args:
      model: `apply({'params': weights}, tokens (batch, length))` gives logits (batch, length, vocabulary).
      weights: what the model multiplies with.
      window: how many tokens the model sees at the most.
      vocab_size: of the tokenizer, where the model has more: those tokens are never written.
      ends: tokens after which no more is written; they are the last ones given.
      mesh: over which the texts are split; None for where JAX puts them.

    Example:
      >>> from gaussq_jax.models import Llama
      >>> model = Llama(vocab_size=256, num_layers=2, hidden_size=64, mlp_size=128, num_heads=4)
      >>> weights = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
      >>> writer = TokenWriter(model, weights, window=32)
      >>> steps = writer.write([[1, 2], [3, 4, 5]], num_tokens=4, sampling=Sampling(0), key=jax.random.key(0))
      >>> [sorted(step) for step in steps]
      [[0, 1], [0, 1], [0, 1], [0, 1]]
    """

    def __init__(
        self,
        model: Any,
        weights: Any,
        *,
        window: int,
        vocab_size: int | None = None,
        ends: Iterable[int] = (),
        mesh: Mesh | None = None,
    ):
        self.window = window
        self._weights, self._ends, self._mesh = weights, frozenset(ends), mesh
        self._keeps_cache = key_value_cache.keeps_cache(model)
        self._known = getattr(model, 'vocab_size', 2**31)

        @jax.jit
        def see(weights, batch):
            last = batch['last'][:, None]
            if self._keeps_cache:
                logits = model.apply({'params': weights}, batch['tokens'], logits_at=last)
            else:
                logits = jnp.take_along_axis(
                    model.apply({'params': weights}, batch['tokens']), last[:, :, None], axis=1
                )
            return logits[:, 0, :vocab_size]

        @functools.partial(jax.jit, static_argnames='length')
        def read(weights, batch, length):
            last = batch['last'][:, None]
            logits, cache = key_value_cache.read_prompts(model, weights, batch['tokens'], length, last)
            return logits[:, 0, :vocab_size], cache

        @functools.partial(jax.jit, donate_argnames='cache')
        def read_next(weights, cache, batch):
            logits, cache = key_value_cache.read_next(model, weights, cache, batch['tokens'], batch['last'][:, None])
            return logits[:, 0, :vocab_size], cache

        self._see, self._read, self._read_next = see, read, read_next

    def room(self, prompt: Sequence[int]) -> int:
        """How many tokens the model writes after a prompt while it sees all of the text: the last need not be seen."""
        return self.window + 1 - len(prompt)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_tokens: int,
        sampling: Sampling,
        key: jax.Array,
        rows: Sequence[int] | None = None,
        slides: bool = False,
        batch_size: int = 1,
    ) -> Iterator[Step]:
        """Writes a token after each prompt at a time, until all texts end.

        A text ends with `num_tokens` tokens, after one of `ends`, or where the window is full: see `room`. Those that
        go on beyond it are seen by their last `window` tokens, anew for each token, at positions from 0 on.

        Args:
          prompts: at least one, each of at least one token.
          num_tokens: how many to write, at the most; at least one.
          sampling: how tokens are chosen.
          key: a JAX PRNG key. A token that is drawn depends on it, on its row and on its position.
          rows: names of the prompts, integers from 0 to 2^31 - 1; 0, 1, 2, ... by default.
          slides: whether texts go on beyond the window, and prompts may be longer than it.
          batch_size: what is computed is padded to at least so many texts.

        Returns:
          An iterator over the steps, each {index of the prompt: token}, of the texts that have not ended before. Its
          step raises ValueError where logits are not finite.

        Raises:
          PromptTooLongError: a prompt longer than the window, unless it slides.
          ValueError: no prompts, or an empty one; a token that the model doesn't have; a num_tokens below 1; rows of
            another number than the prompts, or that can't be.
        """
        self._check(prompts, num_tokens, rows, slides)
        stops = [len(prompt) + (num_tokens if slides else min(num_tokens, self.room(prompt))) for prompt in prompts]
        batch_size = _filled(
            max(batch_size, len(prompts)), 1 if self._mesh is None else meshes.num_batch_shards(self._mesh)
        )
        names = _column(range(len(prompts)) if rows is None else rows, batch_size)
        length = self.padded(max(map(len, prompts)) + num_tokens - 1)  # the last token is not seen

        def steps():
            texts, cache = [list(prompt) for prompt in prompts], None
            writing = {i for i, text in enumerate(texts) if len(text) < stops[i]}
            while writing:
                logits, cache = self._read_texts(texts, writing, cache, batch_size, length)
                positions = _column(map(len, texts), batch_size)
                tokens = np.asarray(choose(logits, key, names, positions, sampling)).tolist()
                step = {i: tokens[i] for i in sorted(writing)}
                for i, token in step.items():
                    if token == NOT_FINITE:
                        raise ValueError(f'the logits after {len(texts[i])} tokens of prompts[{i}] are not finite')
                    texts[i].append(token)
                writing = {i for i, token in step.items() if token not in self._ends and len(texts[i]) < stops[i]}
                yield step

        return steps()

    def _check(self, prompts: Sequence[Sequence[int]], num_tokens: int, rows: Sequence[int] | None, slides: bool):
        if num_tokens < 1:
            raise ValueError(f'num_tokens={num_tokens}: allowed are integers from 1 on')
        if not len(prompts):
            raise ValueError('prompts is empty: at least one is needed')
        if rows is not None and len(rows) != len(prompts):
            raise ValueError(f'rows has {len(rows)} names: allowed are {len(prompts)}, one for each prompt')
        if wrong := [row for row in rows or () if not 0 <= row < 2**31]:
            raise ValueError(f'rows has the name {wrong[0]}: allowed are 0 to 2^31 - 1')
        for i, prompt in enumerate(prompts):
            if not len(prompt):
                raise ValueError(f'prompts[{i}] has no tokens: at least one is needed')
            if not slides and len(prompt) > self.window:
                raise PromptTooLongError(
                    f'prompts[{i}] has {len(prompt)} tokens: allowed are 1 to {self.window}, the window of the model'
                )
            if wrong := [token for token in prompt if not 0 <= token < self._known]:
                raise ValueError(f'prompts[{i}] has the token {wrong[0]}: allowed are 0 to {self._known - 1}')

    def padded(self, length: int) -> int:
        """The length to which sequences of this one are padded."""
        return min(max(SHORTEST, 1 << (length - 1).bit_length()), self.window)

    def _read_texts(
        self, texts: list[list[int]], writing: set[int], cache: Any, batch_size: int, length: int
    ) -> tuple[jax.Array, Any]:
        """The logits after each text being written, (batch, vocabulary), and the cache, of `length` positions."""
        fits = [self._keeps_cache and len(text) <= self.window for text in texts]
        by_cache = anew = None
        if any(fits[i] for i in writing):
            if cache is None:
                seen = [text if fit else text[:1] for text, fit in zip(texts, fits)]
                by_cache, cache = self._read(self._weights, self._padded_batch(seen, batch_size), length)
            else:
                last = [min(len(text), length) - 1 for text in texts]
                batch = self._batch([text[-1:] for text in texts], last, batch_size, 1)
                by_cache, cache = self._read_next(self._weights, cache, batch)
        if not all(fits[i] for i in writing):
            seen = [text[-self.window :] for text in texts]
            anew = self._see(self._weights, self._padded_batch(seen, batch_size))
        if by_cache is None or anew is None:
            return anew if by_cache is None else by_cache, cache
        return jnp.where(_column(fits, batch_size)[:, None].astype(bool), by_cache, anew), cache

    def _padded_batch(self, seen: Sequence[Sequence[int]], batch_size: int) -> dict[str, jax.Array]:
        lengths = [len(tokens) for tokens in seen]
        return self._batch(seen, [length - 1 for length in lengths], batch_size, self.padded(max(lengths)))

    def _batch(
        self, seen: Sequence[Sequence[int]], last: Sequence[int], batch_size: int, length: int
    ) -> dict[str, jax.Array]:
        """Tokens, padded with zeros after their ends, which a causal model doesn't see before; the last positions."""
        tokens = np.zeros((batch_size, length), np.int32)
        for row, of_text in zip(tokens, seen):
            row[: len(of_text)] = of_text
        batch = {'tokens': tokens, 'last': _column(last, batch_size)}
        return batch if self._mesh is None else meshes.to_devices(batch, self._mesh)


def _column(values: Iterable[int], batch_size: int) -> np.ndarray:
    """A number for each text; 0 for the rows of the batch that are of none."""
    values = list(values)
    return np.array(values + [0] * (batch_size - len(values)), np.int32)


def _filled(size: int, parts: int) -> int:
    """The least multiple of `parts` from this size on."""
    return -(-size // parts) * parts
