"""Conversations, or prompts with their completions -> tokens, and which of these are learned: what the assistant says.

`text_feature` says which of the two a document has: 'messages', a list of {'role', 'content'}, or 'prompt+completion',
two texts or two lists of messages.
"""

import functools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.data import chat_templates
from experiments.data.bounded_jinja import BEGIN, END
from experiments.data.chat_templates import ROLE, InvalidChatError, Message, Span, TemplateError
from experiments.data.tokenizers import Tokenizer
from experiments.files import json_files
from experiments.files.huggingface_names import CHAT_TEMPLATE, TOKENIZER_CONFIG

FEATURES = ('messages', 'prompt+completion')  # what `text_feature` is of chats
NO_TURN = re.compile(r'[\w\s]*|.*think.*', re.IGNORECASE | re.DOTALL)  # added tokens that a text may have in it
NO_CHARACTERS = re.compile(f'[{BEGIN}{END}\ud800-\udfff]')


class ChatEncoder:
    """Documents of chats -> the ids of their tokens, and for each whether it is learned.

    A list of messages becomes the text that the tokenizer's chat template renders. Its special tokens are those of the
    vocabulary; none is added. Tokens are learned of which a character is of an answer: see
    `ChatTemplate.render_answers`. Of a prompt and a completion that are lists of messages, all that follows the prompt
    is learned. Two texts are tokenised as one, after what the tokenizer begins texts with; what is learned is the
    completion, and the end of the document after it. In texts, special tokens are not recognised.

    Messages must not hold the text of a token that could end their turn or begin another: of a special token, or of
    another added token that the template writes in conversations of one-letter contents, as DeepSeek's '<｜User｜>'.
    Added tokens that are no special ones may be in them if they have 'think' in their names, as '<think>' has, or
    letters, digits and white space alone.

    Attributes:
      template: the tokenizer's chat template; None without one.

    Args:
      tokenizer: of a tokenizer.json.
      folder: where its chat template is, if not `tokenizer.folder`.

    Raises:
      ValueError: a tokenizer that has no places of tokens in texts; a chat template that can't be read.

    Example:
      >>> from experiments.data.tokenizers import load_tokenizer
      >>> chat = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Ho'}]
      >>> encoder = ChatEncoder(load_tokenizer('runs/imported/tokenizer/tokenizer.json'))  # doctest: +SKIP
      >>> ids, mask, num_bytes = encoder.encode((chat,))                                   # doctest: +SKIP
      >>> print(encoder.show((chat,)))                                                     # doctest: +SKIP
      <|im_start|>user
      Hi<|im_end|>
      <|im_start|>assistant
      [Ho<|im_end|>
      ]

    Source: `apply_chat_template(..., return_assistant_tokens_mask=True)` of transformers 5; `SFTTrainer` of TRL 0.24,
    for prompts and completions.
    """

    def __init__(self, tokenizer: Tokenizer, folder: pathlib.Path | None = None):
        tokenizer.vocabulary.encode_with_offsets('', special=True)  # raises, if it can't
        folder = folder or tokenizer.folder
        self._tokenizer, self._folder = tokenizer, folder
        special = tokenizer.special
        names = {'bos_token': special.bos, 'eos_token': special.eos[0]}
        names = {name: tokenizer.vocabulary.name(token) for name, token in names.items() if token is not None}
        self.template = folder and chat_templates.read(folder, {name: text for name, text in names.items() if text})
        if lacking := [name for name in _added(folder) if tokenizer.vocabulary.find(name) is None]:
            raise ValueError(
                f'{folder / TOKENIZER_CONFIG} adds the token {lacking[0]!r}, which tokenizer.json lacks: write both'
                ' anew with save_pretrained of transformers'
            )

    def __reduce__(self):
        return ChatEncoder, (self._tokenizer, self._folder)

    def settings(self) -> dict[str, str]:
        """What decides the tokens beside the dataset and the tokenizer: for the manifest of what is prepared."""
        before = ','.join(map(str, self._tokenizer.special.before_prompt))  # two texts
        return {'chat_template': self.template.fingerprint if self.template else '', 'before_prompt': before}

    def encode(self, values: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray, int]:
        """The tokens of a document.

        Args:
          values: (messages,), or (prompt, completion).

        Returns:
          (ids, mask, num_bytes): int32 (n,); uint8 (n,), 1 where a token is learned; the UTF-8 bytes of the text that
          is learned, tokens of turns not counted.

        Raises:
          InvalidChatError: a document that is no such, has the text of a token of turns in a message, or no answer; one
            that the template fails on, or of which it doesn't tell what is learned.
          TemplateError: messages without a chat template; one that fails on ordinary conversations, too.
        """
        return self._encode(values)[:3]

    def show(self, values: tuple[Any, ...], begin: str = '[', end: str = ']') -> str:
        """A document as a model reads it, `begin` and `end` around each run of tokens that are learned.

        Raises:
          ValueError: as of `encode`.
        """
        _, mask, _, text, offsets = self._encode(values)
        edges = np.flatnonzero(np.diff(mask, prepend=0, append=0)).reshape(-1, 2)
        at = [(offsets[first, 0], offsets[last - 1, 1]) for first, last in edges]
        before = [0, *(stop for _, stop in at)]
        runs = [f'{text[stop:start]}{begin}{text[start:last]}{end}' for stop, (start, last) in zip(before, at)]
        return ''.join([*runs, text[before[-1] :]])

    def _encode(self, values):
        """What `encode` returns, the text with the names of tokens around it, and where in it each token is."""
        text, spans, is_rendered = self._text(values)
        vocabulary, special = self._tokenizer.vocabulary, self._tokenizer.special
        ids, offsets = vocabulary.encode_with_offsets(text, special=is_rendered)
        mask = np.zeros(len(ids), np.uint8)
        for begin, end in spans:
            (inside,) = np.nonzero((offsets[:, 0] < end) & (offsets[:, 1] > begin))
            if len(inside):
                mask[inside[0] : inside[-1] + 1] = 1
        learned = [text[begin:end] for begin, end in spans]
        if is_rendered:
            learned = [self._turn_text.sub('', part) for part in learned]
        else:
            before, after = special.before_prompt, special.eos[:1]
            names = [vocabulary.name(token) for token in (*before, *after)]
            ends = np.cumsum([0, *map(len, names[:-1]), len(text), len(names[-1])])
            framed = np.stack([ends[:-1], ends[1:]], axis=1)
            offsets = np.concatenate([framed[: len(before)], offsets + ends[len(before)], framed[-1:]])
            text = ''.join([*names[:-1], text, names[-1]])
            ids = np.concatenate([before, ids, after]).astype(np.int32)
            mask = np.concatenate([np.zeros(len(before), np.uint8), mask, np.ones(1, np.uint8)])
        if not mask[1:].any():
            raise InvalidChatError(f'there is nothing to learn in it: no message of the role {ROLE!r}')
        return ids, mask, sum(len(part.encode()) for part in learned), text, offsets

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of messages up to where the assistant answers; ValueErrors as of `encode`."""
        text = self._template().render(self._messages('messages', messages), add_generation_prompt=True)
        return self._tokenizer.vocabulary.encode_with_offsets(text, special=True)[0].tolist()

    def answering_tokenizer(self) -> Tokenizer:
        """The tokenizer, to which the token with which the template ends an answer is an end of texts, too."""
        ids, mask, _ = self.encode(([{'role': 'user', 'content': 'x'}, {'role': ROLE, 'content': 'x'}],))
        of, special = self._tokenizer, self._tokenizer.special
        of_turns = {of.vocabulary.find(name) for name in self._turn_names}
        ends = [token for token in ids[mask == 1].tolist() if token in of_turns][:1]
        special = special._replace(eos=tuple(dict.fromkeys((*special.eos, *ends))))
        return Tokenizer(of.vocabulary, special, of.remarks, of.folder)

    @functools.cached_property
    def _turn_names(self) -> tuple[str, ...]:
        """The texts of tokens that could end a turn or begin one."""
        vocabulary = self._tokenizer.vocabulary
        texts = self.template.render_ordinary() if self.template else []
        encoded = [vocabulary.encode_with_offsets(text, special=True)[0] for text in texts]
        written = {token for ids in encoded for token in ids.tolist()}
        added = [name for name in vocabulary.added_names if vocabulary.find(name) in written]
        return (*vocabulary.special_names, *(name for name in added if not NO_TURN.fullmatch(name)))

    @functools.cached_property
    def _turn_text(self) -> re.Pattern:
        """Finds such, whether the tokenizer looks for them before it normalises a text or after."""
        names = {spelt for name in self._turn_names for spelt in (name, self._tokenizer.vocabulary.normalize(name))}
        return re.compile('|'.join(map(re.escape, sorted(names - {''}, key=len, reverse=True))) or '(?!)')

    def _text(self, values: tuple[Any, ...]) -> tuple[str, list[Span], bool]:
        """The text, where in it is what is learned, and whether a template has rendered it."""
        if len(values) == 1:
            text, spans = self._template().render_answers(self._messages('messages', values[0]))
            return text, spans, True
        names = FEATURES[1].split('+')
        if all(isinstance(value, str | bytes) for value in values):
            prompt, completion = (_decode(name, value) for name, value in zip(names, values))
            if not completion:
                raise InvalidChatError('the completion is empty')
            return prompt + completion, [(len(prompt), len(prompt + completion))], False
        prompt, completion = (self._messages(name, value) for name, value in zip(names, values))
        if prompt[-1]['role'] == ROLE:
            raise InvalidChatError("the prompt's last message is the assistant's, whose answer it should ask for")
        if completion[0]['role'] != ROLE:
            raise InvalidChatError(f"the completion's first message must be of the role {ROLE!r}, whose answer it is")
        text, spans = self._template().render_completion(prompt, completion)
        return text, spans, True

    def _template(self) -> chat_templates.ChatTemplate:
        if self.template is None:
            raise TemplateError(
                f'{self._folder or "the tokenizer"} has no chat template, which makes text of messages: put one as'
                f' {CHAT_TEMPLATE} beside its tokenizer.json'
            )
        return self.template

    def _messages(self, name: str, messages: Any) -> list[dict[str, Any]]:
        """The messages, which are as they should be; else an InvalidChatError."""
        if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
            raise InvalidChatError(f'{name} must be a list of messages, not {_short(messages)}')
        for index, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get('role'), str):
                raise InvalidChatError(f"{name}[{index}] must have a 'role' and a 'content', not {_short(message)}")
            if not isinstance(message.get('content'), str):
                told = _short(message.get('content'))
                raise InvalidChatError(f'{name}[{index}]: the content must be a text, not {told}')
            if message.get('tool_calls'):
                raise InvalidChatError(f'{name}[{index}] has tool_calls, which are not supported')
            for text in _texts(message):
                if NO_CHARACTERS.search(text):
                    raise InvalidChatError(f'{name}[{index}] has code points in it that are no characters')
                for spelt in dict.fromkeys([text, self._tokenizer.vocabulary.normalize(text)]):
                    if forged := self._turn_text.search(spelt):
                        raise InvalidChatError(
                            f'{name}[{index}] has {forged[0]!r} in it, the text of a special token or of one that the'
                            ' chat template writes: it could end its turn and begin another'
                        )
        return [dict(message) for message in messages]


def _added(folder: pathlib.Path | None) -> list[str]:
    """The tokens that a folder's tokenizer_config.json adds to the vocabulary."""
    path = folder and folder / TOKENIZER_CONFIG
    added = json_files.read(path).get('added_tokens_decoder') if path and os.path.lexists(path) else {}
    entries = added.values() if isinstance(added, dict) else ()
    return [entry['content'] for entry in entries if isinstance(entry, dict) and isinstance(entry.get('content'), str)]


def _texts(value: Any) -> Iterator[str]:
    """All texts of what JSON has, names of fields among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.items():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _decode(name: str, text: str | bytes) -> str:
    try:
        text = text.decode() if isinstance(text, bytes) else text
        text.encode()
    except UnicodeError:
        raise InvalidChatError(f'the {name} is not UTF-8') from None
    return text


def _short(value: Any) -> str:
    return f'{value!r:.80}'
