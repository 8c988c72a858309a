"""Which tokens begin and end a text: what the files of a model say, and what is asked for instead.

`config.json` and `generation_config.json` have ids, `tokenizer_config.json` has names; a `tokenizer.json` leads texts
by itself, and a SentencePiece file knows its own. Where none of them says what ends a document, a training from scratch
takes a usual name, or one more id, for which its model has a place; a model that is given has no place for more.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from experiments.data.vocabularies import USUAL_ENDS, Vocabulary
from experiments.files import json_files
from experiments.files.huggingface_names import ADDED_TOKENS, CONFIG, GENERATION, NAMES, TOKENIZER_CONFIG

ASK = {'bos_token_id': '', 'eos_token_id': '', 'add_bos_token': ''}  # '': as the files say
NAMELESS = ('PreTrainedTokenizerFast', 'TokenizersBackend')  # classes without special tokens that aren't given


class SpecialTokens(NamedTuple):
    """Ids that stand for no text.

    bos: the beginning of a text; None if there is none.
    eos: the first one ends a document; any of them ends what a model writes.
    add_bos: whether every text begins with bos. A document doesn't, if it is also what ends the one before.
    """

    bos: int | None
    eos: tuple[int, ...]
    add_bos: bool

    @property
    def before_document(self) -> tuple[int, ...]:
        """What a document begins with."""
        return (self.bos,) if self.add_bos and self.bos not in self.eos else ()

    @property
    def before_prompt(self) -> tuple[int, ...]:
        """What a prompt begins with."""
        return (self.bos,) if self.add_bos else ()

    @property
    def prefix(self) -> int:
        """What a text follows that is scored from its first token on, and so has to follow something."""
        return self.eos[0] if self.bos is None else self.bos

    @property
    def settings(self) -> dict[str, str]:
        """What to ask `resolve` for to get the same, whatever the files say."""
        bos = 'none' if self.bos is None else str(self.bos)
        return dict(zip(ASK, (bos, ','.join(map(str, self.eos)), str(self.add_bos).lower())))


def resolve(
    vocabulary: Vocabulary,
    settings: Mapping[str, str] = ASK,
    *,
    folder: pathlib.Path | None = None,
    vocab_size: int = 0,
    is_given: bool = False,
) -> tuple[SpecialTokens, tuple[str, ...]]:
    """The special tokens, and remarks on what the files say that can't be.

    Args:
      vocabulary: of the tokenizer.
      settings: of `config.special_tokens`: bos_token_id, a number or 'none'; eos_token_id, numbers with commas between;
        add_bos_token, 'true' or 'false'; '' for what the files say. Of runs of version 0.1, bos_token_id is 'eos', the
        same, and eos_token_id is 'by_name', the first of USUAL_ENDS.
      folder: where the model's files are; None if there are none.
      vocab_size: of the model; 0: as many as it takes.
      is_given: whether that model has been trained already, elsewhere, on texts that begin and end as its files say.
        Those of a new one follow the end of a document where nothing else leads them.

    Raises:
      ValueError: naming what is wrong with a setting or a file; if nothing says what ends a document.
    """
    limit = vocab_size or vocabulary.vocab_size + 1
    files = _Files.read(folder if '' in settings.values() else None, vocabulary, limit)
    eos = _eos(vocabulary, settings['eos_token_id'], files, limit, is_given)
    asked, remarks = settings['bos_token_id'], list(files.remarks)
    if asked in ('none', 'eos'):
        bos = eos[0] if asked == 'eos' else None
    elif asked:
        (bos,) = _ids('bos_token_id', asked, limit, several=False)
    else:
        bos = _bos(vocabulary, files)
    leads = {'': None, 'true': True, 'false': False}.get(settings['add_bos_token'], ...)
    if leads is ...:
        raise ValueError(f"add_bos_token={settings['add_bos_token']!r} must be true or false, or '': as the files say")
    if leads and bos is None:
        raise ValueError('add_bos_token=true has no token to add: bos_token_id says which')
    if leads is None:
        leads = bos is not None if asked else _leads(vocabulary, files, bos)
        if not asked and files.add_bos is not None and files.add_bos != leads:
            remarks.append(
                f'{folder / TOKENIZER_CONFIG}: add_bos_token={files.add_bos}, but what counts is the tokenizer itself,'
                f' which puts {"a" if leads else "no"} token before texts'
            )
        if not leads and not asked and not is_given:
            bos, leads = eos[0], True
    return SpecialTokens(bos, eos, leads), tuple(remarks)


def _eos(vocabulary, asked, files, limit, is_given):
    if asked == 'by_name':
        return (vocabulary.end_by_name,)
    if asked:
        return _ids('eos_token_id', asked, limit, several=True)
    if found := files.eos or (() if vocabulary.eos is None else (vocabulary.eos,)):
        return found
    remedy = 'say it by eos_token_id, its id, or several with commas'
    if is_given or vocabulary.end_by_name >= limit:
        told = ''.join(f'; {remark}' for remark in files.remarks)
        raise ValueError(f'no file says which token ends a document: {remedy}{told}')
    if len(usual := [token for token in USUAL_ENDS if vocabulary.find(token) is not None]) > 1:
        raise ValueError(f'the tokenizer has {" and ".join(usual)}, any of which may end a document: {remedy}')
    return (vocabulary.end_by_name,)


def _bos(vocabulary, files):
    leading = vocabulary.leading or ()
    if len(leading) > 1:
        raise ValueError(
            f'the tokenizer puts {len(leading)} tokens before a text: say by bos_token_id which one to take'
        )
    if leading:
        return leading[0]
    if files.bos is not ...:
        return files.bos
    return files.config_bos if vocabulary.bos is None else vocabulary.bos


def _leads(vocabulary, files, bos):
    if vocabulary.leading is not None:
        return bool(vocabulary.leading)
    return bos is not None and files.add_bos is not False


class _Files(NamedTuple):
    """What the files of a model say.

    bos: of the tokenizer; None if it has none, `...` if they don't say. config_bos: of the model.
    """

    bos: Any = ...
    config_bos: int | None = None
    eos: tuple[int, ...] = ()
    add_bos: bool | None = None
    remarks: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder, vocabulary, limit):
        if folder is None:
            return cls()
        paths = {name: folder / name for name in (CONFIG, GENERATION, TOKENIZER_CONFIG, NAMES, ADDED_TOKENS)}
        contents = {name: json_files.read(path) if os.path.lexists(path) else {} for name, path in paths.items()}
        remarks, tokenizer_config = [], contents[TOKENIZER_CONFIG]
        names = {**contents[NAMES], **tokenizer_config}

        def ids_of(name: str, field: str) -> Iterator[int]:
            given = contents[name].get(field)
            for value in given if isinstance(given, list) else [given]:
                if json_files.is_a(value, int) and 0 <= value < limit:
                    yield value
                elif value is not None:
                    remarks.append(f'{folder / name}: {field}={value!r:.80} is none of {limit} ids, and is not used')

        def id_of(field: str) -> Any:
            """Of a token by its name; None if there is none, `...` if they don't say one that is there."""
            if field not in names:
                return None if tokenizer_config.get('tokenizer_class') in NAMELESS else ...
            token = names[field]
            token = token.get('content') if isinstance(token, dict) else token
            if token is None:
                return None
            found = _find(token, vocabulary, tokenizer_config, contents[ADDED_TOKENS])
            if found is None or found >= limit:
                where = folder / (TOKENIZER_CONFIG if field in tokenizer_config else NAMES)
                remarks.append(f'{where}: {field}={token!r:.80} is not in the vocabulary, and is not used')
                return ...
            return found

        of_tokenizer, add_bos = id_of('eos_token'), tokenizer_config.get('add_bos_token')
        eos = [] if of_tokenizer in (None, ...) else [of_tokenizer]
        eos += [*ids_of(CONFIG, 'eos_token_id'), *ids_of(GENERATION, 'eos_token_id')]
        bos, config_bos = id_of('bos_token'), next(ids_of(CONFIG, 'bos_token_id'), None)
        add_bos = add_bos if json_files.is_a(add_bos, bool) else None
        return cls(bos, config_bos, tuple(dict.fromkeys(eos)), add_bos, tuple(remarks))


def _find(token, vocabulary, tokenizer_config, added_tokens):
    """The id of a token, which may stand in tokenizer_config.json or added_tokens.json alone."""
    if not isinstance(token, str):
        return None
    if (found := vocabulary.find(token)) is not None:
        return found
    added = tokenizer_config.get('added_tokens_decoder')
    for number, entry in added.items() if isinstance(added, dict) else ():
        if isinstance(entry, dict) and entry.get('content') == token and _is_number(number):
            return int(number)
    found = added_tokens.get(token)
    return found if json_files.is_a(found, int) and found >= 0 else None


def _ids(name, text, limit, *, several):
    parts = [part.strip() for part in str(text).split(',')]
    if not all(_is_number(part) and int(part) < limit for part in parts) or (len(parts) > 1 and not several):
        what = 'ids with commas between' if several else "an id, or 'none'"
        raise ValueError(f'{name}={text!r} must be {what}, of 0 to {limit - 1}')
    return tuple(dict.fromkeys(map(int, parts)))


def _is_number(text):
    return len(text) < 10 and text.isascii() and text.isdecimal()
