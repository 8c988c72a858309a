"""Which tokens begin and end a text: what the files of a model say, and what is asked for instead.

`config.json` and `generation_config.json` have ids, `tokenizer_config.json` has names; a `tokenizer.json` leads texts
by itself, and a SentencePiece file knows its own. Where none of them says what ends a document, a training from scratch
takes a usual name, or one more id, for which its model has a place; a model that is given has no place for more.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from experiments.huggingface_folder import CONFIG, GENERATION, NAMES, TOKENIZER_CONFIG, read_json

ASK = {'bos_token_id': '', 'eos_token_id': '', 'add_bos_token': ''}  # '': as the files say
USUAL_ENDS = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>')


class Vocabulary(Protocol):
    """What a tokenizer's own file says.

    vocab_size: ids are in [0, vocab_size).
    bos, eos: ids of its own; None if it says nothing of them.
    leading: the id that it puts before every text; None if none; always None if the file doesn't say.
    says_leading: whether it does.
    end_by_name: the first of USUAL_ENDS that it has; `vocab_size`, one more, if none.
    find: the id of a token, None if it isn't there.
    """

    vocab_size: int
    bos: int | None
    eos: int | None
    leading: int | None
    says_leading: bool
    end_by_name: int

    def find(self, token: str) -> int | None: ...


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
    asked = settings['bos_token_id']
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
        if not leads and not asked and not is_given:
            bos, leads = eos[0], True
    return SpecialTokens(bos, eos, leads), files.remarks


def _eos(vocabulary, asked, files, limit, is_given):
    if asked == 'by_name':
        return (vocabulary.end_by_name,)
    if asked:
        return _ids('eos_token_id', asked, limit, several=True)
    own = () if vocabulary.eos is None else (vocabulary.eos,)
    if found := tuple(dict.fromkeys((*files.eos, *own))):
        return found
    remedy = 'say it by eos_token_id, its id, or several with commas'
    if is_given or vocabulary.end_by_name >= limit:
        raise ValueError(f'no file says which token ends a document: {remedy}')
    if len(usual := [token for token in USUAL_ENDS if vocabulary.find(token) is not None]) > 1:
        raise ValueError(f'the tokenizer has {" and ".join(usual)}, any of which may end a document: {remedy}')
    return (vocabulary.end_by_name,)


def _bos(vocabulary, files):
    if vocabulary.leading is not None:
        return vocabulary.leading
    if files.bos is not ...:
        return files.bos
    return files.config_bos if vocabulary.bos is None else vocabulary.bos


def _leads(vocabulary, files, bos):
    if vocabulary.says_leading:
        return vocabulary.leading is not None
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
        paths = {name: folder / name for name in (CONFIG, GENERATION, TOKENIZER_CONFIG, NAMES)}
        contents = {name: read_json(path) if path.is_file() else {} for name, path in paths.items()}
        remarks, names = [], {**contents[NAMES], **contents[TOKENIZER_CONFIG]}

        def ids_of(name: str, field: str) -> Iterator[int]:
            given = contents[name].get(field)
            for value in given if isinstance(given, list) else [given]:
                if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit:
                    yield value
                elif value is not None:
                    remarks.append(f'{folder / name}: {field}={value!r} is none of {limit} ids, and is not used')

        def id_of(field: str) -> int | None:
            token = names.get(field)
            token = token.get('content') if isinstance(token, dict) else token
            if token is None:
                return None
            found = _find(token, vocabulary, contents[TOKENIZER_CONFIG])
            if found is None or found >= limit:
                remarks.append(
                    f'{folder / TOKENIZER_CONFIG}: {field}={token!r} is not in the vocabulary, and is not used'
                )
                return None
            return found

        of_tokenizer = id_of('eos_token')
        eos = [] if of_tokenizer is None else [of_tokenizer]
        eos += [*ids_of(CONFIG, 'eos_token_id'), *ids_of(GENERATION, 'eos_token_id')]
        bos = id_of('bos_token') if 'bos_token' in names else ...
        config_bos = next(ids_of(CONFIG, 'bos_token_id'), None)
        add_bos = contents[TOKENIZER_CONFIG].get('add_bos_token')
        return cls(bos, config_bos, tuple(eos), add_bos if isinstance(add_bos, bool) else None, tuple(remarks))


def _find(token, vocabulary, tokenizer_config):
    """The id of a token, which may stand in tokenizer_config.json alone."""
    if (found := vocabulary.find(str(token))) is not None:
        return found
    added = tokenizer_config.get('added_tokens_decoder')
    for number, entry in added.items() if isinstance(added, dict) else ():
        if isinstance(entry, dict) and entry.get('content') == token and str(number).isdecimal():
            return int(number)
    return None


def _ids(name, text, limit, *, several):
    parts = [part.strip() for part in str(text).split(',')]
    if not all(part.isdecimal() and int(part) < limit for part in parts) or (len(parts) > 1 and not several):
        what = 'ids with commas between' if several else "an id, or 'none'"
        raise ValueError(f'{name}={text!r} must be {what}, of 0 to {limit - 1}')
    return tuple(dict.fromkeys(map(int, parts)))
