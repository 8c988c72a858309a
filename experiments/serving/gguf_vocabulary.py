"""A run's tokenizer as llama.cpp has it: the fields `tokenizer.ggml.*` of a GGUF file.

llama.cpp has its own code for each kind of tokenizer, chosen by name. Only what that code does alike is carried over:
bytes, byte-level BPE whose pre-tokenizer is one that it knows by a name, SentencePiece's BPE with byte fallback, also
as a tokenizer.json, and unigram without. All ids stay as they are. Two differences are left: by the rules of Llama 3
and Qwen2, llama.cpp takes an apostrophe and ſ (U+017F) for no contraction; and its server reads the names of special
tokens in a prompt as those tokens.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.data.tokenizers import Tokenizer
from experiments.data.vocabularies import Bytes, HuggingFace, SentencePiece
from experiments.files.foreign_text import printable

# Types of tokens, in GGUF as in SentencePiece's model.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
ENDS = ('eos', 'eot', 'eom')  # llama.cpp has these names for what ends a text, one token each
PREFIX = 'tokenizer.ggml.'
NEVER = '<|never|> <|never|>'  # a merge of what no text begins with: llama.cpp reads no vocabulary without merges

_GPT2, _BYTES = ({'type': 'ByteLevel', 'add_prefix_space': False, 'use_regex': regex} for regex in (True, False))
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_QWEN2 = _LLAMA3.replace('{1,3}', '')


def _split(pattern):
    return {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}


# llama.cpp's name of a pre-tokenizer -> the parts of the same in a tokenizer.json.
PRE_TOKENIZERS = {
    'gpt-2': [_GPT2],
    'llama-bpe': [_split(_LLAMA3), _BYTES],
    'qwen2': [_split(_QWEN2), _BYTES],
    'smollm': [{'type': 'Digits', 'individual_digits': True}, _GPT2],
}
IGNORE_MERGES = ('llama-bpe',)  # of these, the ones with which a word that is a token is one, whatever its merges say

_ESCAPE = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}
_PREFIX = {'type': 'Prepend', 'prepend': '▁'}
_METASPACE = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'never', 'split': False}
# Whether a space is put before all texts, and what makes of spaces what SentencePiece does. A Metaspace that puts one
# is not there: it does so before no text that begins with one.
ESCAPING = (
    (True, {'normalizer': {'type': 'Sequence', 'normalizers': [_PREFIX, _ESCAPE]}, 'pre_tokenizer': None}),
    (False, {'normalizer': _ESCAPE, 'pre_tokenizer': None}),
    (False, {'normalizer': None, 'pre_tokenizer': _METASPACE}),
)


class Token(NamedTuple):
    """text: as the file has it. score: of SentencePiece."""

    text: str
    kind: int = NORMAL
    score: float = 0.0


def describe_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The fields of a GGUF file with which llama.cpp has the ids of this tokenizer.

    Args:
      tokenizer: of a run.
      vocab_size: of the model, which may have more rows than the tokenizer has tokens: those become unused tokens.

    Returns:
      {key: a number, a bool, a text or a list of such}.

    Raises:
      ValueError: naming what llama.cpp has no counterpart of.

    Example:
      >>> from experiments.data.tokenizers import load_tokenizer
      >>> fields = describe_tokenizer(load_tokenizer('bytes'), 257)
      >>> fields['tokenizer.ggml.model'], fields['tokenizer.ggml.tokens'][97], fields['tokenizer.ggml.eos_token_id']
      ('gpt2', 'a', 256)
    """
    vocabulary, special = tokenizer.vocabulary, tokenizer.special
    kinds = {Bytes: _of_bytes, HuggingFace: _of_huggingface, SentencePiece: _of_sentencepiece}
    if type(vocabulary) not in kinds:
        raise ValueError(f'a vocabulary of {type(vocabulary).__name__} has no counterpart in llama.cpp')
    if len(special.eos) > len(ENDS):
        raise ValueError(
            f'eos_token_id={",".join(map(str, special.eos))}: llama.cpp has places for {len(ENDS)} of them'
        )
    fields, tokens = kinds[type(vocabulary)](vocabulary)
    for token in (*special.eos, *special.before_prompt):
        text = tokens[token].text if token in tokens else f'<|special_{token}|>'
        tokens[token] = Token(text, CONTROL, tokens.get(token, Token('')).score)
    tokens = [tokens.get(i, Token(f'<|unused_{i}|>', UNUSED)) for i in range(vocab_size)]
    if len({token.text for token in tokens}) < vocab_size:
        raise ValueError('the tokenizer has a token named <|unused_…|> or <|special_…|>, as those it lacks are named')
    texts, kinds, scores = map(list, zip(*tokens))
    if fields['model'] != 'gpt2':
        fields['scores'] = scores
    fields |= {
        'tokens': texts,
        'token_type': kinds,
        **{f'{name}_token_id': token for name, token in zip(ENDS, special.eos)},
        'bos_token_id': special.prefix,  # which is read, added or not
        'add_bos_token': special.add_bos,
        'add_eos_token': False,
    }
    return {PREFIX + name: value for name, value in fields.items()}


def _of_bytes(vocabulary: Bytes) -> tuple[dict[str, Any], dict[int, Token]]:
    """Byte-level BPE that merges nothing."""
    letters = {i: Token(letter) for i, letter in enumerate(_letters())}
    return {'model': 'gpt2', 'pre': 'gpt-2', 'merges': [NEVER]}, letters


def _of_huggingface(vocabulary: HuggingFace) -> tuple[dict[str, Any], dict[int, Token]]:
    contents, model = vocabulary.contents, vocabulary.contents['model']
    odd = ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix')
    wrong = [f'{name}={model[name]!r:.80}' for name in odd if model.get(name)]
    if model.get('type') != 'BPE' or wrong:
        raise _refusal(f'a model of {" with ".join([str(model.get("type")), *wrong])}')
    merges = [tuple(merge.split(' ') if isinstance(merge, str) else merge) for merge in model['merges']]
    tokens = {i: Token(text) for text, i in model['vocab'].items()}
    for added in contents.get('added_tokens') or ():
        odd = [name for name in ('single_word', 'lstrip', 'rstrip') if added.get(name)]
        if not added['special'] and (odd or model.get('byte_fallback')):
            raise _refusal(f'the added token {printable(added["content"]):.80} with {(*odd, "byte_fallback")[0]}')
        tokens[added['id']] = Token(added['content'], CONTROL if added['special'] else USER_DEFINED)
    return (_of_converted_bpe if model.get('byte_fallback') else _of_byte_level_bpe)(contents, tokens, merges)


def _of_byte_level_bpe(contents, tokens, merges) -> tuple[dict[str, Any], dict[int, Token]]:
    model = contents['model']
    if contents.get('normalizer') is not None:
        raise _refusal(f'the normalizer {contents["normalizer"]!s:.200}')
    pre = _pre_tokenizer(contents.get('pre_tokenizer'))
    if bool(model.get('ignore_merges')) != (pre in IGNORE_MERGES):
        raise _refusal(f'ignore_merges={model.get("ignore_merges")} with the pre-tokenizer that it calls {pre}')
    if missing := set(_letters()) - model['vocab'].keys():
        raise _refusal(f'a vocabulary without the byte {min(missing)!r}')
    pairs = [' '.join(merge) for merge in merges]
    if spaced := next((pair for pair in pairs if pair.count(' ') != 1), None):
        raise _refusal(f'the merge {printable(spaced):.80}, of parts with a space')
    return {'model': 'gpt2', 'pre': pre, 'merges': pairs or [NEVER]}, tokens


def _of_converted_bpe(contents, tokens, merges) -> tuple[dict[str, Any], dict[int, Token]]:
    """SentencePiece's BPE, as transformers converts it: a piece's score becomes the place of the merges that make it.

    It is converted back where the merges are all that make pieces of pieces, those of a piece in a row. Where two of a
    row can be done, `tokenizers` does the first of the row, and llama.cpp that which is first in the text, as
    SentencePiece does.
    """
    model = contents['model']
    escaping = {'normalizer': contents.get('normalizer'), 'pre_tokenizer': contents.get('pre_tokenizer')}
    with_prefix = next((is_led for is_led, one in ESCAPING if one == escaping), None)
    if with_prefix is None or model.get('ignore_merges'):
        raise _refusal(f'byte_fallback with {escaping | {"ignore_merges": model.get("ignore_merges")}!s:.300}')
    of_bytes = {f'<0x{byte:02X}>' for byte in range(256)}
    if missing := of_bytes - model['vocab'].keys():
        raise _refusal(f'a vocabulary without the byte {min(missing)}')
    unknown = model.get('unk_token')
    kinds = dict.fromkeys(of_bytes, BYTE) | {unknown: UNKNOWN}
    tokens = {i: token._replace(kind=kinds.get(token.text, token.kind)) for i, token in tokens.items()}
    texts = {token.text for token in tokens.values() if token.kind == NORMAL}
    made = [text for text, _ in itertools.groupby(first + second for first, second in merges)]
    places = {text: place for place, text in enumerate(made)}
    if lacking := {pair for text in texts for pair in _pairs(text, texts)}.symmetric_difference(merges):
        raise _refusal(
            f'not all merges that make its pieces, or others, such as {printable(" ".join(min(lacking))):.80}'
        )
    if len(places) < len(made):
        raise _refusal('other merges between those of a piece')
    scored = [token._replace(score=-float(places.get(token.text, 0))) for _, token in sorted(tokens.items())]
    fields = {'model': 'llama', 'pre': 'default', 'add_space_prefix': with_prefix}
    if unknown in model['vocab']:
        fields['unknown_token_id'] = model['vocab'][unknown]
    return fields, dict(zip(sorted(tokens), _unmade(scored)))


def _of_sentencepiece(vocabulary: SentencePiece) -> tuple[dict[str, Any], dict[int, Token]]:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(vocabulary.contents)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    kind = trainer.ModelType.Name(trainer.model_type)
    does = {
        'byte_fallback': (trainer.byte_fallback, kind == 'BPE'),
        'add_dummy_prefix': (normalizer.add_dummy_prefix, kind == 'BPE' and normalizer.add_dummy_prefix),
        'normalizer': (normalizer.name if normalizer.precompiled_charsmap else 'identity', 'identity'),
        'remove_extra_whitespaces': (normalizer.remove_extra_whitespaces, False),
        'escape_whitespaces': (normalizer.escape_whitespaces, True),
        'treat_whitespace_as_suffix': (trainer.treat_whitespace_as_suffix, False),
    }
    if wrong := [f'{name}={value}' for name, (value, carried) in does.items() if value != carried]:
        raise _refusal(f'{wrong[0]} with SentencePiece {kind}')
    if kind not in ('BPE', 'UNIGRAM'):
        raise _refusal(f'SentencePiece {kind}')
    pieces = [Token(piece.piece, piece.type, piece.score) for piece in proto.pieces]
    if kind == 'BPE':
        pieces = _unmade(pieces)
    if odd := [piece for piece in pieces if piece.kind in (USER_DEFINED, UNUSED)]:
        raise _refusal(f'piece {printable(odd[0].text):.80}, which is user-defined or unused')
    fields = {
        'model': 'llama' if kind == 'BPE' else 't5',
        'pre': 'default',
        'add_space_prefix': normalizer.add_dummy_prefix,
        'remove_extra_whitespaces': False,
        'unknown_token_id': trainer.unk_id,
    }
    return fields, dict(enumerate(pieces))


def _unmade(pieces: list[Token]) -> list[Token]:
    """The pieces, the special ones renamed that llama.cpp would make of text: it merges to whatever is a token."""
    texts = {piece.text for piece in pieces}
    for i, (text, kind, _) in enumerate(pieces):
        if kind != NORMAL and _pairs(text, texts):
            if kind not in (CONTROL, UNKNOWN):
                raise _refusal(f'piece {printable(text):.80}, which its other pieces make')
            pieces[i] = pieces[i]._replace(text=f'<|special_{i}|>')
    return pieces


def _pairs(text: str, texts: set[str]) -> list[tuple[str, str]]:
    """What llama.cpp makes a text of: two of these texts, or single letters."""
    pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
    return [pair for pair in pairs if all(len(part) == 1 or part in texts for part in pair)]


def _pre_tokenizer(contents: Any) -> str:
    """llama.cpp's name of the pre-tokenizer of a tokenizer.json."""
    is_sequence = isinstance(contents, Mapping) and contents.get('type') == 'Sequence'
    parts = contents['pretokenizers'] if is_sequence else [contents]
    if all(isinstance(part, Mapping) for part in parts):
        usual = {'ByteLevel': {'use_regex': True}}  # where older files don't say it
        said = [usual.get(part.get('type'), {}) | part for part in parts]
        said = [{name: value for name, value in part.items() if name != 'trim_offsets'} for part in said]
        for name, expected in PRE_TOKENIZERS.items():
            if said == expected:
                return name
    raise _refusal(f'the pre-tokenizer {contents!s:.300}')


def _refusal(what: str) -> ValueError:
    return ValueError(
        f'the tokenizer has {what}, of which llama.cpp has no counterpart; allowed: bytes, byte-level BPE'
        f' without a normalizer and with a pre-tokenizer of {", ".join(PRE_TOKENIZERS)}, SentencePiece BPE with byte'
        ' fallback, also converted to a tokenizer.json, or unigram without, all with the identity as normalizer'
    )


def _letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]
