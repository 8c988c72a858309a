"""The template of a tokenizer: conversations -> the text that a model reads, and where in it the answers are."""

import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.data.bounded_jinja import BEGIN, END, Environment, RefusedError, TooSlowError, deadline
from experiments.files import json_files, paths
from experiments.files.huggingface_names import CHAT_TEMPLATE, NAMES, TOKENIZER_CONFIG

MOST_BYTES = 2**18  # of a template
ROLE = 'assistant'  # who answers
OF_THE_MACHINE = (TooSlowError, MemoryError, RecursionError)  # errors that the same messages may not meet elsewhere
MARK_ANSWERS = (
    'Put {% generation %} and {% endgeneration %} around what it writes in the template; or, where the template changes'
    ' earlier answers, as by leaving out their thinking, make each answer the last one of a conversation of its own'
)
BEGIN_ALIKE = (
    'The template has to begin an answer as it asks for it, or the completion with what the template asks with, as'
    " <think>; or give whole conversations, text_feature='messages', and a template with {% generation %}"
)

Message = Mapping[str, Any]
Span = tuple[int, int]


class TemplateError(ValueError):
    """What a template can't do with ordinary conversations either, or what the machine can't."""


class InvalidChatError(ValueError):
    """A document that is no conversation to learn from; others of the dataset may be."""


class ChatTemplate:
    """A Jinja template as `transformers` renders it, in a sandbox, and bounded (see `bounded_jinja`).

    Attributes:
      fingerprint: names what it renders: the template and the tokens that it is given.
      marks_answers: whether it says what the answers are, by {% generation %} blocks.

    Args:
      source: the template.
      tokens: what it is given beside messages: 'bos_token', 'eos_token' and the like, as texts.
      where: the file, for errors.

    Raises:
      TemplateError: no template of Jinja, or a longer one than MOST_BYTES.

    Example:
      >>> turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
      >>> template = ChatTemplate(turns + "{% if add_generation_prompt %}<assistant>{% endif %}", {}, 'the example')
      >>> chat = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Ho'}]
      >>> text, answers = template.render_answers(chat)
      >>> text, [text[begin:end] for begin, end in answers]
      ('<user>Hi</><assistant>Ho</>', ['Ho</>'])

    Source: `apply_chat_template` of transformers 5; the template's own messages, as they are, are all it sees.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], where: str):
        self._where, self._tokens = where, dict(tokens)
        if len(source) > MOST_BYTES:
            raise TemplateError(f'{where}: the chat template has {len(source):,} characters; allowed: {MOST_BYTES:,}')
        self._environment = Environment()
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # of Jinja, or of Python's compiler, to which some are too deep
            raise TemplateError(f"{where}: the chat template can't be compiled: {_said(error)}") from None
        self.marks_answers = re.search(r'\{%[-+]?\s*generation\b', source) is not None
        self.fingerprint = hashlib.sha256(repr((source, sorted(self._tokens.items()))).encode()).hexdigest()[:16]

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation; with `add_generation_prompt` up to where the assistant's next answer begins.

        Raises:
          InvalidChatError: the template fails, or raises an exception of its own, or takes more than it may.
          TemplateError: so it does with an ordinary conversation; or it takes too long.
        """
        render = lambda chat: self._render(chat, add_generation_prompt, deadline())[0]
        return self._attempt(render, [messages], [[chat[:-1]] for chat in _ordinary(1)])

    def render_ordinary(self) -> list[str]:
        """The texts of conversations of one-letter contents, with and without a system's message and a next answer."""
        texts, end = [], deadline()
        for chat in _ordinary(2):
            for messages in (chat, chat[:-1]):
                for asks in (False, True):
                    with contextlib.suppress(InvalidChatError):
                        texts.append(self._render(messages, asks, end)[0])
        return texts

    def render_answers(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The text of a conversation, and where in it the answers are, as pairs of indices.

        They are what {% generation %} blocks hold, where the template has such. Else, of each message of the assistant,
        what the text of the conversation up to it has beyond that of the conversation before it, rendered with
        add_generation_prompt: the answer, and what ends it. The eos_token with which a template ends a conversation
        that asks for no answer, as Phi-3's, belongs to the last one.

        Raises:
          InvalidChatError: as `render`; a template without such blocks, which renders these messages otherwise
            once others follow.
          TemplateError: so it does with an ordinary conversation.
        """
        answers = sum(message['role'] == ROLE for message in messages)
        return self._attempt(self._answers, [messages], [[chat] for chat in _ordinary(1 + (answers > 1))])

    def render_completion(self, prompt: Sequence[Message], completion: Sequence[Message]) -> tuple[str, list[Span]]:
        """The text of both, and where the completion is: all that follows the prompt; errors as `render_answers`."""
        ordinary = [[chat[:-1], chat[-1:]] for chat in _ordinary(1)]
        return self._attempt(self._completion, [prompt, completion], ordinary)

    def _attempt(self, method: Callable[..., Any], args: list[Any], ordinary: list[list[Any]]) -> Any:
        """What a method gives; where it fails with each of the ordinary arguments, too, that is no fault of these."""
        try:
            return method(*args)
        except InvalidChatError as error:
            for others in ordinary:
                try:
                    method(*others)
                except InvalidChatError:
                    continue
                raise
            raise TemplateError(str(error)) from None

    def _answers(self, messages):
        end = deadline()  # of all renderings together
        text, spans = self._render(messages, False, end)
        if self.marks_answers:
            return text, spans
        for index, message in enumerate(messages):
            if message['role'] == ROLE:
                before, _ = self._render(messages[:index], True, end)
                through = text if index + 1 == len(messages) else self._render(messages[: index + 1], False, end)[0]
                if not text.startswith(through):
                    through = through.removesuffix(self._tokens.get('eos_token', ''))
                for part, whole, what in [
                    (before, through, f'messages[:{index}] with add_generation_prompt=True'),
                    (through, text, f'messages[:{index + 1}]'),
                ]:
                    self._check_prefix(part, whole, f'message {index}', what, MARK_ANSWERS)
                spans.append((len(before), len(through)))
        return text, spans

    def _completion(self, prompt, completion):
        end = deadline()
        before, text = self._render(prompt, True, end)[0], self._render([*prompt, *completion], False, end)[0]
        self._check_prefix(before, text, 'the completion', 'the prompt with add_generation_prompt=True', BEGIN_ALIKE)
        return text, [(len(before), len(text))]

    def _render(self, messages, add_generation_prompt, end):
        self._environment.begin(end)
        try:
            rendered = self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
        except RefusedError as error:
            raise InvalidChatError(f'{self._where}: the chat template takes no such messages: {_said(error)}') from None
        except Exception as error:
            kind = TemplateError if isinstance(error, OF_THE_MACHINE) else InvalidChatError
            at = f'on messages[:{len(messages)}]' if messages else "before messages[0], which is the assistant's"
            raise kind(f'{self._where}: the chat template fails {at}: {_said(error)}') from None
        pieces, text, begins, spans = re.split(f'([{BEGIN}{END}])', rendered), '', [], []
        for piece in pieces:
            if piece == BEGIN:
                begins.append(len(text))
            elif piece == END and begins:
                spans.append((begins.pop(), len(text)))
            else:
                text += piece
        return text, spans

    def _check_prefix(self, prefix, text, learned, what, advice):
        if not text.startswith(prefix):
            same = prefix[: next((i for i, (a, b) in enumerate(zip(prefix, text)) if a != b), len(text))]
            raise InvalidChatError(
                f'{self._where}: what the assistant wrote in {learned} is not told from the rest by rendering: {what}'
                f' is no beginning of what follows, and differs after {same[-40:]!r}. {advice}'
            )


def _ordinary(answers: int) -> list[list[Message]]:
    """Conversations of so many answers that a template should take, or one of them."""
    turns = [{'role': role, 'content': 'x'} for role in ('user', ROLE)] * answers
    return [turns, [{'role': 'system', 'content': 'x'}, *turns]]


def read(folder: pathlib.Path, names: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template of a folder, None if it has none: CHAT_TEMPLATE, or what TOKENIZER_CONFIG has.

    Args:
      folder: of a tokenizer.
      names: 'bos_token' and 'eos_token' where the folder's files don't say them.

    Raises:
      ValueError: a file that can't be read, or has no such template; as `ChatTemplate`.
    """
    said = [
        json_files.read(folder / name) if os.path.lexists(folder / name) else {} for name in (NAMES, TOKENIZER_CONFIG)
    ]
    config = said[0] | said[1]
    tokens = {name: _text(value) for name, value in config.items() if name.endswith('_token')}
    tokens = {**names, **{name: value for name, value in tokens.items() if value is not None}}
    path = folder / CHAT_TEMPLATE
    if os.path.lexists(path):
        return ChatTemplate(_read_text(path), tokens, str(path))
    path, source = folder / TOKENIZER_CONFIG, said[1].get('chat_template')
    if source is None:
        return None
    if isinstance(source, list):  # of several, by their names
        named = {entry.get('name'): entry.get('template') for entry in source if isinstance(entry, dict)}
        source = named.get('default')
    if not isinstance(source, str):
        raise TemplateError(f"{path}: chat_template must be a text, or a list of named ones with a 'default'")
    return ChatTemplate(source, tokens, str(path))


def _read_text(path: pathlib.Path) -> str:
    try:
        with open(paths.check_file(path), encoding='utf-8') as file:
            return file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise TemplateError(f"{path}: the chat template can't be read: {_said(error)}") from None


def _text(token: Any) -> str | None:
    token = token.get('content') if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _said(error: Exception) -> str:
    return f'{" ".join(str(error).split()):.300}' or type(error).__name__
