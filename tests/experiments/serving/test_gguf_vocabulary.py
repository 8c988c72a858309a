"""The fields that give llama.cpp a run's tokenizer, and what they can't say."""

import json

import pytest
import small_tokenizers
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from small_checkpoints import change_json, write_tokenizer

from experiments.data.tokenizers import load_tokenizer
from experiments.serving.gguf_vocabulary import describe_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
LLAMA3 = (  # as in the file of Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r'|\s+(?!\S)|\s+'
)
BYTES = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True}
SPECIAL = dict(bos_token_id='none', eos_token_id='258', add_bos_token='false')


def fields_of(tokenizer, vocab_size):
    return {
        key.removeprefix('tokenizer.ggml.'): value for key, value in describe_tokenizer(tokenizer, vocab_size).items()
    }


def split(regex):
    parts = [{'type': 'Split', 'pattern': {'Regex': regex}, 'behavior': 'Isolated', 'invert': False}]
    return {'type': 'Sequence', 'pretokenizers': [*parts, BYTES | {'use_regex': False}]}


def test_bytes():
    """Byte-level BPE without a merge; ids stay, and rows without a token are unused."""
    fields = fields_of(load_tokenizer('bytes'), 260)
    alphabet = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = [alphabet.pre_tokenize_str(chr(i))[0][0] for i in range(128)]  # one byte each
    assert fields['tokens'][:128] == letters and set(fields['tokens'][:256]) == set(alphabet.alphabet())
    assert fields['tokens'][256:] == ['<|special_256|>', '<|unused_257|>', '<|unused_258|>', '<|unused_259|>']
    assert fields['token_type'] == 256 * [NORMAL] + [CONTROL] + 3 * [UNUSED]
    assert (fields['model'], fields['pre'], len(fields['merges'])) == ('gpt2', 'gpt-2', 1)
    assert fields['bos_token_id'] == fields['eos_token_id'] == 256
    assert (fields['add_bos_token'], fields['add_eos_token']) == (True, False)


def test_byte_level_bpe(tmp_path):
    write_tokenizer(tmp_path / 'tokenizer.json')
    contents = json.loads((tmp_path / 'tokenizer.json').read_text())
    added = [*contents['added_tokens'], contents['added_tokens'][0] | {'id': 262, 'content': '<x>', 'special': False}]
    change_json(tmp_path / 'tokenizer.json', added_tokens=added)
    fields = fields_of(load_tokenizer(str(tmp_path / 'tokenizer.json')), 264)
    assert fields['tokens'][256:] == [
        'de',
        'def',
        '</s>',
        *(f'<|unused_{i}|>' for i in (259, 260, 261)),
        '<x>',
        '<|unused_263|>',
    ]
    assert fields['token_type'][256:] == [NORMAL, NORMAL, CONTROL, UNUSED, UNUSED, UNUSED, USER_DEFINED, UNUSED]
    assert (fields['model'], fields['pre'], fields['merges']) == ('gpt2', 'gpt-2', ['d e', 'de f'])
    assert fields['eos_token_id'] == 258 and 'scores' not in fields


@pytest.fixture(scope='module')
def protos(tmp_path_factory):
    """SentencePiece models, to be changed."""
    folder = tmp_path_factory.mktemp('sentencepiece')
    kinds = {'bpe': {}, 'unigram': dict(model_type='unigram', byte_fallback=False)}
    files = {kind: small_tokenizers.write_sentencepiece(folder / kind, **options) for kind, options in kinds.items()}
    return {kind: sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes()) for kind, file in files.items()}


def load_proto(folder, proto):
    (folder / 'words.model').write_bytes(proto.SerializeToString())
    return load_tokenizer(str(folder / 'words.model'))


def copy_of(proto, spec='trainer_spec', **fields):
    copy = type(proto).FromString(proto.SerializeToString())
    for name, value in fields.items():
        setattr(getattr(copy, spec), name, value)
    return copy


@pytest.mark.parametrize(('prefix', 'kind'), [(False, 'bpe'), (True, 'bpe'), (False, 'unigram')])
def test_sentencepiece(tmp_path, protos, prefix, kind):
    proto = copy_of(protos[kind], 'normalizer_spec', add_dummy_prefix=prefix)
    fields = fields_of(load_proto(tmp_path, proto), 401)
    assert fields['tokens'] == [*(piece.piece for piece in proto.pieces), '<|unused_400|>']
    assert fields['token_type'][:4] == [UNKNOWN, CONTROL, CONTROL, BYTE if kind == 'bpe' else NORMAL]
    assert fields['scores'] == [*(piece.score for piece in proto.pieces), 0.0]
    assert fields['model'] == {'bpe': 'llama', 'unigram': 't5'}[kind]
    assert fields['add_space_prefix'] == prefix and fields['remove_extra_whitespaces'] is False
    assert [fields[f'{name}_token_id'] for name in ('unknown', 'bos', 'eos')] == [0, 1, 2]


def test_several_ends(tmp_path):
    """Each has its place; which of ours is only an end isn't text of theirs."""
    special = dict(bos_token_id='none', eos_token_id='7,9,300', add_bos_token='false')
    fields = fields_of(load_tokenizer('bytes', special, vocab_size=301), 301)
    assert [fields[f'{name}_token_id'] for name in ('eos', 'eot', 'eom', 'bos')] == [7, 9, 300, 7]
    assert [fields['token_type'][token] for token in (7, 8, 9, 300)] == [CONTROL, NORMAL, CONTROL, CONTROL]
    assert not fields['add_bos_token']
    special['eos_token_id'] += ',8'
    with pytest.raises(ValueError, match=r'eos_token_id=7,9,300,8: llama[.]cpp has places for 3 of them'):
        describe_tokenizer(load_tokenizer('bytes', special, vocab_size=301), 301)


@pytest.mark.parametrize(
    ('pre_tokenizer', 'ignore_merges', 'name'),
    [
        ({'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': False}, False, 'gpt-2'),
        (split(LLAMA3), True, 'llama-bpe'),
        (split(LLAMA3.replace('{1,3}', '')), False, 'qwen2'),
        (
            {'type': 'Sequence', 'pretokenizers': [{'type': 'Digits', 'individual_digits': True}, BYTES]},
            False,
            'smollm',
        ),
    ],
)
def test_pre_tokenizers_that_have_a_name(tmp_path, pre_tokenizer, ignore_merges, name):
    file = byte_level(tmp_path, ignore_merges=ignore_merges, pre_tokenizer=pre_tokenizer)
    assert fields_of(load_tokenizer(str(file), SPECIAL), 259)['pre'] == name
    file = byte_level(tmp_path, ignore_merges=not ignore_merges, pre_tokenizer=pre_tokenizer)
    with pytest.raises(ValueError, match=f'ignore_merges={not ignore_merges} with the pre-tokenizer .* {name}'):
        describe_tokenizer(load_tokenizer(str(file), SPECIAL), 259)


def byte_level(folder, ignore_merges=False, model=None, **changes):
    file = folder / 'words.json'
    write_tokenizer(file)
    of_model = json.loads(file.read_text())['model'] | {'ignore_merges': ignore_merges} | (model or {})
    change_json(file, model=of_model, **changes)
    return file


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(normalizer={'type': 'NFC'}), "the tokenizer has the normalizer {'type': 'NFC'}, of which llama.cpp"),
        (dict(pre_tokenizer=BYTES | {'add_prefix_space': True}), 'pre-tokenizer .*add_prefix_space.: True'),
        (
            dict(pre_tokenizer=split(r'\w+')),
            r'pre-tokenizer .*\\w\+.*; allowed: bytes, .* gpt-2, llama-bpe, qwen2, smol',
        ),
        (dict(pre_tokenizer=None), 'pre-tokenizer None'),
        (dict(model={'dropout': 0.5}), 'a model of BPE with dropout=0.5'),
        (dict(model={'byte_fallback': True}), "byte_fallback with {'normalizer': None, 'pre_tokenizer'"),
        (dict(model={'merges': [['d', 'e'], ['de', ' f']], 'vocab': ...}), 'the merge de  f, of parts with a space'),
    ],
)
def test_what_llama_cpp_does_not_do(tmp_path, changes, message):
    if isinstance(changes.get('model', {}).get('vocab'), type(...)):
        vocabulary = json.loads(byte_level(tmp_path).read_text())['model']['vocab']
        changes['model']['vocab'] = vocabulary | {' f': 260, 'de f': 261}
    file = byte_level(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        describe_tokenizer(load_tokenizer(str(file), SPECIAL), 300)


def test_other_kinds_of_models(tmp_path):
    model = small_tokenizers.write_sentencepiece(tmp_path / 'words.model', normalization_rule_name='nmt_nfkc')
    small_tokenizers.write_huggingface_kinds(tmp_path, model)
    special = dict(bos_token_id='none', eos_token_id='1', add_bos_token='false')
    for kind, name in {'unigram': 'Unigram', 'wordpiece': 'WordPiece', 'wordlevel': 'WordLevel'}.items():
        with pytest.raises(ValueError, match=f'the tokenizer has a model of {name}'):
            describe_tokenizer(load_tokenizer(str(tmp_path / f'{kind}.json'), special), 300)


@pytest.mark.parametrize(
    ('kind', 'spec', 'fields', 'message'),
    [
        ('unigram', 'trainer_spec', dict(model_type=2), 'byte_fallback=False with SentencePiece BPE'),
        ('bpe', 'trainer_spec', dict(model_type=1), 'byte_fallback=True with SentencePiece UNIGRAM'),
        ('unigram', 'trainer_spec', dict(model_type=4), 'SentencePiece CHAR'),
        ('unigram', 'normalizer_spec', dict(add_dummy_prefix=True), 'add_dummy_prefix=True with SentencePiece UNIGRAM'),
        ('bpe', 'normalizer_spec', dict(remove_extra_whitespaces=True), 'remove_extra_whitespaces=True'),
        ('bpe', 'normalizer_spec', dict(escape_whitespaces=False), 'escape_whitespaces=False'),
        ('bpe', 'trainer_spec', dict(treat_whitespace_as_suffix=True), 'treat_whitespace_as_suffix=True'),
    ],
)
def test_what_llama_cpp_does_not_do_of_sentencepiece(tmp_path, protos, kind, spec, fields, message):
    tokenizer = load_proto(tmp_path, copy_of(protos[kind], spec, **fields))
    with pytest.raises(ValueError, match=f'the tokenizer has {message}'):
        describe_tokenizer(tokenizer, 400)


def metaspace(scheme):
    return {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': scheme, 'split': False}


@pytest.mark.parametrize('changes', [{}, dict(normalizer=None, pre_tokenizer=metaspace('never'))])
@pytest.mark.parametrize('prefix', [False, True])
def test_converted_sentencepiece(tmp_path, protos, prefix, changes):
    """As of the model that it was converted from, but for the numbers that order its pieces."""
    (tmp_path / 'words.model').write_bytes(protos['bpe'].SerializeToString())
    file = small_tokenizers.write_converted(tmp_path / 'words.json', tmp_path / 'words.model', prefix)
    change_json(file, **changes)
    fields = fields_of(load_tokenizer(str(file), SPECIAL), 401)
    expected = fields_of(load_tokenizer(str(tmp_path / 'words.model'), SPECIAL), 401)
    assert fields.pop('add_space_prefix') == (prefix and not changes)
    scores = [fields.pop('scores'), expected.pop('scores')]
    made = [i for i, kind in enumerate(fields['token_type']) if kind == NORMAL and len(fields['tokens'][i]) > 1]
    order = [sorted(made, key=lambda i, of_all=of_all: -of_all[i]) for of_all in scores]
    assert order[0] == order[1] and len(made) > 50
    assert fields == {name: expected[name] for name in fields}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(normalizer=None, pre_tokenizer=metaspace('always')), 'byte_fallback with .*Metaspace'),
        (dict(normalizer=None), "byte_fallback with {'normalizer': None"),
        (dict(model={'ignore_merges': True}), "byte_fallback with .*'ignore_merges': True"),
        (dict(model=lambda model: model['merges'].pop()), 'not all merges that make its pieces'),
        (dict(model=lambda model: model['merges'].sort()), 'other merges between those'),
        (dict(model=lambda model: model['vocab'].update({'<x0A>': model['vocab'].pop('<0x0A>')})), 'the byte <0x0A>'),
    ],
)
def test_conversions_that_are_not_alike(tmp_path, protos, changes, message):
    (tmp_path / 'words.model').write_bytes(protos['bpe'].SerializeToString())
    file = small_tokenizers.write_converted(tmp_path / 'words.json', tmp_path / 'words.model')
    model = json.loads(file.read_text())['model']
    change = changes.get('model', {})
    change(model) if callable(change) else model.update(change)
    change_json(file, **changes | {'model': model})
    with pytest.raises(ValueError, match=message):
        describe_tokenizer(load_tokenizer(str(file), SPECIAL), 400)


def test_normalizers_and_symbols_of_sentencepiece(tmp_path):
    options = dict(normalization_rule_name='nmt_nfkc'), dict(user_defined_symbols=['<x>'])
    messages = 'normalizer=nmt_nfkc with SentencePiece BPE', 'piece <x>, which is user-defined or unused'
    for given, message in zip(options, messages):
        file = small_tokenizers.write_sentencepiece(tmp_path / 'words.model', **given)
        with pytest.raises(ValueError, match=message):
            describe_tokenizer(load_tokenizer(str(file)), 400)


def test_special_tokens_that_text_could_make(tmp_path, protos):
    """Where '<' and 's>' are pieces, llama.cpp would make '<s>' of text, were it a token by that name."""
    proto = copy_of(protos['bpe'])
    by_name = {piece.piece: piece for piece in proto.pieces}
    by_name['self'].piece = 's>'
    assert fields_of(load_proto(tmp_path, proto), 400)['tokens'][:3] == ['<unk>', '<|special_1|>', '</s>']
    by_name['arg'].piece, by_name['ype'].piece = '<0x4', '1>'
    with pytest.raises(ValueError, match='piece <0x41>, which its other pieces make'):
        describe_tokenizer(load_proto(tmp_path, proto), 400)


def test_a_name_that_is_taken(tmp_path):
    vocabulary = json.loads(byte_level(tmp_path).read_text())['model']['vocab']
    file = byte_level(tmp_path, model={'vocab': vocabulary | {'<|unused_262|>': 260}})
    with pytest.raises(ValueError, match=r'has a token named <.unused_….>'):
        describe_tokenizer(load_tokenizer(str(file), SPECIAL), 264)
