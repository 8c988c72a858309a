"""Tokenizers: text comes back exactly, ids mean the same everywhere, and a wrong file is one clear error."""

import base64
import itertools
import json
import pathlib
import shutil

import hypothesis
import numpy as np
import pytest
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from small_tokenizers import REAL_TEXT, write_huggingface, write_sentencepiece

from experiments.data import replacements
from experiments.data.special_tokens import ASK
from experiments.data.tokenizers import load_tokenizer

FOREIGN_TEXT = 'naïve façade — 日本語, Ελληνικά, 🙂\u200d👩 e\u0301\r\n\ttabs  and   spaces \x00 end\n\n'


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tokenizers')
    return {
        'bytes': 'bytes',
        'sentencepiece': str(write_sentencepiece(folder / 'tiny.model')),
        'huggingface': str(write_huggingface(folder / 'tiny.json')),
    }


@pytest.fixture(params=['bytes', 'sentencepiece', 'huggingface'])
def tokenizer(request, files):
    return load_tokenizer(files[request.param])


@pytest.mark.parametrize('text', [REAL_TEXT, FOREIGN_TEXT, '', 'x'], ids=['real', 'foreign', 'empty', 'letter'])
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert isinstance(ids, np.ndarray)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text


def test_ids_are_in_the_vocabulary_and_end_no_document(tokenizer):
    ids = tokenizer.encode(REAL_TEXT + FOREIGN_TEXT)
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.end_of_document not in ids
    assert 0 <= tokenizer.end_of_document < tokenizer.vocab_size


def test_end_of_document_decodes_to_nothing(tokenizer):
    ids = [*tokenizer.encode('def f'), tokenizer.end_of_document, *tokenizer.encode('(x)')]
    assert tokenizer.decode(ids) == 'def f(x)'
    assert tokenizer.decode(np.asarray(ids, np.uint16)) == 'def f(x)'


@pytest.mark.parametrize('text', ['<|endoftext|>', '</s>', '<s>', '<unk>', '<pad>'])
def test_special_tokens_in_the_text_are_text(tmp_path, files, text):
    # A document that talks about '</s>' must not be cut in two there.
    special = write_huggingface(tmp_path / 'special.json', ['<|endoftext|>', '</s>', '<s>', '<unk>', '<pad>'])
    for spec in (*files.values(), special):
        tokenizer = load_tokenizer(str(spec), ASK | ({'eos_token_id': '1'} if spec == special else {}))
        ids = tokenizer.encode(f'a{text}b')
        assert tokenizer.end_of_document not in ids
        assert tokenizer.decode(ids) == f'a{text}b'


@pytest.mark.parametrize('foreign', [-1, 10**6])
def test_foreign_ids_are_refused(tokenizer, foreign):
    with pytest.raises(ValueError, match=f'ids holds {foreign}; allowed: 0 to {tokenizer.vocab_size - 1}'):
        tokenizer.decode([foreign])


@hypothesis.given(hypothesis.strategies.text())
def test_bytes_are_utf8(text):
    tokenizer = load_tokenizer('bytes')
    assert tokenizer.encode(text).tolist() == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_vocabulary():
    tokenizer = load_tokenizer('bytes')
    assert (tokenizer.vocab_size, tokenizer.end_of_document, tokenizer.fingerprint) == (257, 256, 'bytes')
    assert tokenizer.decode([ord('a'), 0xFF, ord('b')]) == 'a\ufffdb'


def test_sentencepiece_with_and_without_end_of_sentence(tmp_path):
    with_end = load_tokenizer(str(write_sentencepiece(tmp_path / 'with.model')))
    assert (with_end.end_of_document, with_end.vocab_size) == (2, 400)
    without = load_tokenizer(str(write_sentencepiece(tmp_path / 'without.model', eos_id=-1, bos_id=-1)))
    assert (without.end_of_document, without.vocab_size) == (400, 401)
    assert without.decode([*without.encode('def'), 400]) == 'def'


def test_huggingface_end_of_document(tmp_path):
    # A well-known name, wherever it is in the vocabulary, or else a new id at its end.
    named = load_tokenizer(str(write_huggingface(tmp_path / 'named.json', ['<pad>', '</s>'])))
    assert (named.end_of_document, named.vocab_size) == (1, 400)
    unnamed = load_tokenizer(str(write_huggingface(tmp_path / 'unnamed.json', [])))
    assert (unnamed.end_of_document, unnamed.vocab_size) == (400, 401)


def test_huggingface_vocabulary_with_holes(tmp_path):
    # The largest id, not the number of tokens, is what an embedding table needs to hold.
    path = write_huggingface(tmp_path / 'holes.json', ['</s>'])
    contents = json.loads(path.read_text())
    contents['added_tokens'][0]['id'] = contents['model']['vocab']['</s>'] = 5000
    path.write_text(json.dumps(contents))
    assert load_tokenizer(str(path)).vocab_size == 5001
    assert load_tokenizer(str(path)).end_of_document == 5000


def test_huggingface_file_that_truncates_pads_and_adds_tokens(tmp_path, files):
    # What such a file asks for is right for a model's inputs, and would lose or add text here.
    other = tokenizers.Tokenizer.from_file(files['huggingface'])
    other.enable_truncation(4)
    other.enable_padding(length=8)
    other.post_processor = tokenizers.processors.TemplateProcessing(
        single='<|endoftext|> $A', special_tokens=[('<|endoftext|>', 0)]
    )
    other.save(str(tmp_path / 'other.json'))
    for text in (REAL_TEXT, 'x'):
        expected = load_tokenizer(files['huggingface']).encode(text)
        np.testing.assert_array_equal(load_tokenizer(str(tmp_path / 'other.json')).encode(text), expected)


@pytest.mark.parametrize('kind', ['sentencepiece', 'huggingface'])
def test_fingerprint_is_of_the_contents(tmp_path, files, kind):
    # Protects: cached tokens are found again on another machine, and not used for another tokenizer.
    suffix = files[kind][files[kind].rindex('.') :]
    copy = shutil.copy(files[kind], tmp_path / f'copy{suffix}')
    assert load_tokenizer(str(copy)).fingerprint == load_tokenizer(files[kind]).fingerprint
    if kind == 'sentencepiece':
        other = write_sentencepiece(tmp_path / 'other.model', eos_id=-1)
    else:
        other = write_huggingface(tmp_path / 'other.json', [])
    assert load_tokenizer(str(other)).fingerprint != load_tokenizer(files[kind]).fingerprint


@pytest.mark.parametrize(
    ('name', 'contents', 'message'),
    [
        ('gpt2', None, r"tokenizer='.*gpt2' is unknown"),
        ('tiny.txt', b'text', r"tokenizer='.*tiny\.txt' is unknown"),
        ('missing.model', None, r"missing\.model' can't be read: No such file"),
        ('missing.json', None, r"missing\.json' can't be read: No such file"),
        ('empty.model', b'', r"empty\.model' isn't a SentencePiece file"),
        ('foreign.model', b'\x80\x04pickle' * 9, r"foreign\.model' isn't a SentencePiece file"),
        ('empty.json', b'', r"empty\.json' isn't a Hugging Face tokenizers file"),
        ('foreign.json', b'{"model_type": "llama"}', r"foreign\.json' isn't a Hugging Face tokenizers file"),
        ('list.json', b'[1, 2]', r"list\.json' isn't a Hugging Face tokenizers file"),
        ('binary.json', b'\xff\xfe', r"binary\.json' isn't a Hugging Face tokenizers file"),
    ],
)
def test_wrong_file_is_one_error(tmp_path, name, contents, message):
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(str(tmp_path / name))
    assert "allowed: 'bytes', a SentencePiece '.model' file" in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_directory_is_one_error(tmp_path):
    (tmp_path / 'folder.json').mkdir()
    with pytest.raises(ValueError, match='is no file'):
        load_tokenizer(str(tmp_path / 'folder.json'))


def replace(content, **pattern):
    return {'type': 'Replace', 'pattern': pattern, 'content': content}


def sequence(*parts, of='normalizers'):
    return {'type': 'Sequence', of: list(parts)}


def untyped(part):
    return {name: value for name, value in part.items() if name != 'type'}


BERT = {'type': 'BertNormalizer', 'clean_text': True, 'handle_chinese_chars': True, 'lowercase': False}
TENFOLD = replace('a' * 10, String='a')
DOUBLE = replace('a', Regex='(?=.)')
METASPACE = {'type': 'Metaspace', 'replacement': 'b', 'prepend_scheme': 'never', 'split': True}
SPACES = [replace('b' * 30, String=' '), METASPACE]
OTHER_BOMBS = [
    [replace('a' * 20, String='')] * 3,
    [{'type': 'ByteLevel'}] * 12,
    [replace('ﷺ', String='ل'), {'type': 'NFKC'}] * 5,
    [{'type': 'NFD'}, replace('ᾂ', String='α')] * 7,
    [BERT, replace('中', String=' ')] * 8,
    [{'type': 'Prepend', 'prepend': 'a' * 1000}, replace('b' * 900, String='a')],
    *([replace('a', Regex=regex)] * 13 for regex in ('[[q]w]*', '[[:digit:]]*', '[q[w]e]*', '[a&&[b]]*')),
]


@pytest.mark.parametrize(
    ('fields', 'error'),
    [
        (dict(normalizer=sequence(*[TENFOLD] * 12)), r'its normalizer may make a letter 1e\+12; allowed are 4096'),
        (dict(normalizer=sequence(sequence(*[TENFOLD] * 4))), r'its normalizer may make a letter 1e\+04'),
        (dict(normalizer=untyped(sequence(*[TENFOLD] * 12))), 'a part of its normalizers has no type'),
        (dict(normalizer=sequence(*[untyped(TENFOLD)] * 12)), 'a part of its normalizers has no type'),
        (dict(decoder=sequence(*[TENFOLD] * 12, of='decoders')), r'its decoder may make a letter 1e\+12'),
        (
            dict(decoder={**sequence(), **sequence(*[TENFOLD] * 12, of='decoders')}),
            r'its decoder may make a letter 1e\+12',
        ),
        (dict(normalizer=sequence(*[replace('ab', Regex='')] * 12)), 'its normalizer may make a letter'),
        (dict(normalizer=sequence(*[DOUBLE] * 13)), 'its normalizer may make a letter'),
        (dict(normalizer=sequence(*[replace('a', Regex='a{1}?')] * 13)), 'its normalizer may make a letter'),
        (
            dict(model={'type': 'BPE', 'vocab': {'a': 2**32 - 1}, 'merges': []}, added_tokens=[]),
            'has 1 tokens, and ids up',
        ),
        (dict(model={'type': 'BPE', 'vocab': {}, 'merges': []}, added_tokens=[]), 'has 0 tokens'),
        (dict(model={'type': 'WordPiece', 'vocab': {}, 'unk_token': 5}), 'invalid type: integer `5`'),
        (dict(post_processor={'type': 'BertProcessing', 'sep': ['x', 1], 'cls': ['x', 10**9]}), 'which is no token'),
        (dict(truncation=[], padding={'strategy': {'Fixed': 2**40}}), 'invalid length 1'),
    ],
    ids=itertools.count(),
)
def test_bombs(tmp_path, files, fields, error):
    """Some bytes that would be gigabytes, at once or at the first text."""
    contents = json.loads(pathlib.Path(files['huggingface']).read_text()) | fields
    (tmp_path / 'bomb.json').write_text(json.dumps(contents))
    with pytest.raises(
        ValueError, match=rf"^tokenizer='{tmp_path}/bomb.json' isn't a Hugging Face tokenizers file: .*{error}"
    ):
        load_tokenizer(str(tmp_path / 'bomb.json'))


def test_a_sentencepiece_bomb(tmp_path):
    """An a becomes 5,000 of them."""
    (tmp_path / 'rules.tsv').write_text('61\t' + ' '.join(['61'] * 5000) + '\n')
    write_sentencepiece(tmp_path / 'bomb.model', normalization_rule_tsv=str(tmp_path / 'rules.tsv'))
    with pytest.raises(ValueError, match='its normalizer may make a letter 5,000; allowed are 4096'):
        load_tokenizer(str(tmp_path / 'bomb.model'))


def test_normalizers_of_published_models_are_none(tmp_path):
    """Llama's, ALBERT's and XLM-R's replace, too; many replacements that don't meet make no more than one of them."""
    nfkc = write_sentencepiece(tmp_path / 'nfkc.model', normalization_rule_name='nmt_nfkc')
    load_tokenizer(str(nfkc))
    charsmap = sentencepiece_model_pb2.ModelProto.FromString(nfkc.read_bytes()).normalizer_spec.precompiled_charsmap
    precompiled = {'type': 'Precompiled', 'precompiled_charsmap': base64.b64encode(charsmap).decode()}
    quotes = [replace('"', String='``'), replace('"', String="''"), replace(' ', Regex=' {2,}')]
    for parts in (
        [{'type': 'Prepend', 'prepend': '_'}, replace('_', String=' ')],
        [*quotes, {'type': 'NFKD'}, {'type': 'StripAccents'}, {'type': 'Lowercase'}, precompiled],
        [
            replace(text, String=letter)
            for letter, text in zip('½¼¾…—№℀⅓', ['1/2', '1/4', '3/4', '...', '---', 'No.', 'a/c', '1/3'])
        ],
    ):
        replacements.check({'normalizer': sequence(*parts), 'decoder': None})
    of_mistral = [
        replace(' ', String='▁'),
        {'type': 'ByteFallback'},
        {'type': 'Fuse'},
        {'type': 'Strip', 'content': ' '},
    ]
    replacements.check({'decoder': sequence(*of_mistral, of='decoders')})


def test_damaged_sentencepiece_models(tmp_path, files):
    """What is no model, or ends within a field."""
    contents = pathlib.Path(files['sentencepiece']).read_bytes()
    for damaged in (contents[: len(contents) // 2], b'\xff' * 100, b'\x0b\x0c', contents + b'\x1a'):
        (tmp_path / 'damaged.model').write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.model' isn't a SentencePiece file"):
            load_tokenizer(str(tmp_path / 'damaged.model'))


def test_a_panic_is_an_error(monkeypatch, tmp_path, files):
    """Of Rust's: `except Exception` doesn't catch it."""

    class PanicException(BaseException):
        pass

    def panic(*_):
        raise PanicException('called `Option::unwrap()` on a `None` value')

    monkeypatch.setattr(tokenizers.Tokenizer, 'from_str', panic)
    with pytest.raises(ValueError, match='it panicked: called `Option::unwrap'):
        load_tokenizer(str(files['huggingface']))
