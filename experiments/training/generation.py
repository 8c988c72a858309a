"""Text that a model writes, a token after the other."""

from collections.abc import Iterable, Iterator, Sequence

import jax

from experiments.data.tokenizers import Tokenizer
from experiments.training.experiment import Experiment, TrainState
from experiments.training.token_choice import Sampling
from experiments.training.token_writer import TokenWriter

UNKNOWN = '\ufffd'  # what bytes are decoded to that are no UTF-8, or not yet


class Text:
    """A prompt, and what has been written after it so far.

    Attributes:
      prompt: its tokens; none where it is not shown.
      room: how many tokens can follow before the model's window is full.
      tokens: those that follow, without one that ends the text.
      has_ended: whether such a token was written.

    Example:
      >>> from experiments.data.tokenizers import load_tokenizer
      >>> text = Text(load_tokenizer('bytes'), list(b'na'), room=8)
      >>> pieces = [text.new_piece()]
      >>> for token in 'ïve'.encode():
      ...     text.add(token)
      ...     pieces.append(text.new_piece())
      >>> pieces
      ['na', '', 'ï', 'v', 'e']
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], room: int):
        self.prompt, self.room = list(prompt), room
        self.tokens, self.has_ended = [], False
        self._tokenizer, self._given = tokenizer, ''

    def __str__(self):
        return whole_text(self._tokenizer, self.prompt, self.tokens)

    @property
    def fills_window(self) -> bool:
        """Whether the model has seen as much as it can."""
        return not self.has_ended and len(self.tokens) >= self.room

    def add(self, token: int):
        """Takes one more token."""
        self.has_ended = token in self._tokenizer.special.eos
        if not self.has_ended:
            self.tokens.append(token)

    def new_piece(self, *, is_last: bool = False) -> str:
        """What has come since the last call, as far as later tokens don't change it; all of it if it `is_last`.

        Bytes of half a character wait. The pieces together are the text, unless a tokenizer decodes what has been
        given in another way once more follows; then the last piece is a new line and all of the text again.
        """
        text = str(self)
        if is_last and not text.startswith(self._given):
            return f'\n{text}'
        sure = text if is_last else text.rstrip(UNKNOWN)
        if not sure.startswith(self._given):
            return ''
        piece, self._given = sure[len(self._given) :], sure
        return piece


def write_texts(
    experiment: Experiment,
    state: TrainState,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    *,
    num_tokens: int,
    sampling: Sampling,
    seed: int,
    slides: bool = False,
    shows_prompts: bool = True,
) -> Iterator[list[Text]]:
    """What the weights, rounded, without noise, write after prompts, all of them at a time: up to an end of document.

    Args:
      experiment, state: of the model.
      tokenizer: of both.
      prompts: how the texts begin; or the tokens of that.
      num_tokens, sampling, slides: as for `TokenWriter.write`.
      seed: another seed, other texts. A text depends on its place among the prompts, and on none of the others.
      shows_prompts: whether the texts are shown from their beginning on, or from what is written.

    Yields:
      The texts, the same ones after each step: at first the prompts alone.

    Raises:
      ValueError: as `TokenWriter.write`.
    """
    writer = TokenWriter(
        experiment.model,
        experiment.transform.apply(None, state.params, state.transform_state),
        window=experiment.config.sequence_length,
        vocab_size=tokenizer.vocab_size,
        ends=tokenizer.special.eos,
        mesh=experiment.mesh,
    )
    ids = [tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    steps = writer.write(ids, num_tokens=num_tokens, sampling=sampling, key=jax.random.key(seed), slides=slides)
    texts = [Text(tokenizer, prompt if shows_prompts else (), writer.room(prompt)) for prompt in ids]
    yield texts
    for step in steps:
        for i, token in step.items():
            texts[i].add(token)
        yield texts


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
    """The prompt and what is written after it: `write_texts` of one prompt, while the model sees all of it."""
    how = dict(num_tokens=num_tokens, sampling=Sampling(temperature), seed=seed)
    (text,) = list(write_texts(experiment, state, tokenizer, [prompt], **how))[-1]
    return str(text)


def whole_text(tokenizer: Tokenizer, prompt: Iterable[int], tokens: Iterable[int]) -> str:
    """The text of a prompt and of what follows it, decoded as one: alone, SentencePiece drops a leading space."""
    return tokenizer.decode([*prompt, *tokens])
