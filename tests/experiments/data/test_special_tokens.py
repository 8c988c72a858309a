"""Tokens that begin and end texts: those that a model's files say, or that are asked for, and no others."""

import json

import pytest
from small_tokenizers import IDS, write_huggingface

from configs.stored import MEANT_BEFORE
from experiments.data.special_tokens import ASK, SpecialTokens
from experiments.data.tokenizers import load_tokenizer

BEFORE = MEANT_BEFORE[2]['special_tokens']


def special(path, vocab_size=400, *, is_given=None, **asked):
    """Of a model that is given, with a vocabulary of this size, or of a new one, for 0."""
    is_given = vocab_size > 0 if is_given is None else is_given
    return load_tokenizer(path, ASK | asked, vocab_size=vocab_size, is_given=is_given).special


FILES = {
    'SentencePiece alone': (('sentencepiece',), SpecialTokens(1, (2,), True)),
    'and what it says is said again': (('sentencepiece', IDS, IDS), SpecialTokens(1, (2,), True)),
    'with a tokenizer that adds no BOS': (
        ('sentencepiece', IDS, None, {'add_bos_token': False, 'bos_token': '<s>', 'eos_token': '</s>'}),
        SpecialTokens(1, (2,), False),
    ),
    'without BOS, by null': (('sentencepiece', IDS, None, {'bos_token': None}), SpecialTokens(None, (2,), False)),
    'without its own': (('without', IDS), SpecialTokens(1, (2,), True)),
    'BPE that leads texts': (('leading', IDS), SpecialTokens(1, (2,), True)),
    'whatever is said of it': (
        ('leading', IDS, None, {'add_bos_token': False, 'bos_token': None, 'eos_token': '</s>'}),
        SpecialTokens(1, (2,), True),
    ),
    'BPE that does not': (('bpe', IDS, None, {'add_bos_token': True}), SpecialTokens(1, (2,), False)),
    'an EOS of another name': (('bpe', {}, None, {'eos_token': '<|im_end|>'}), SpecialTokens(None, (3,), False)),
    'a name with its settings': (
        ('bpe', {}, None, {'eos_token': {'content': '<|im_end|>', 'lstrip': False}, 'bos_token': {'content': '<s>'}}),
        SpecialTokens(1, (3,), False),
    ),
    'names in a map': (('bpe', {}, None, {}, {'eos_token': '</s>', 'bos_token': '<s>'}), SpecialTokens(1, (2,), False)),
    'a name that only tokenizer_config.json has': (
        *[('sentencepiece', IDS, None, {'eos_token': '<end>', 'added_tokens_decoder': {'399': {'content': '<end>'}}})],
        SpecialTokens(1, (399, 2), True),
    ),
    'a name that only added_tokens.json has': (
        ('sentencepiece', IDS, None, {'eos_token': '<end>'}, {}, {'<end>': 399}),
        SpecialTokens(1, (399, 2), True),
    ),
    'an EOS that is not its own': (
        ('sentencepiece', {'eos_token_id': 7}, IDS | {'eos_token_id': 7}),
        SpecialTokens(1, (7,), True),
    ),
    'names that are none': (
        ('sentencepiece', {}, None, {'bos_token': '', 'eos_token': 2, 'add_bos_token': True}),
        SpecialTokens(1, (2,), True),
    ),
    'a class whose tokens have no names': (
        ('bpe', IDS, None, {'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': '</s>'}),
        SpecialTokens(None, (2,), False),
    ),
    'several EOS': (
        ('bpe', {'eos_token_id': [2, 3]}, {'eos_token_id': [3, 50]}, {'eos_token': '<|im_end|>'}),
        SpecialTokens(None, (3, 2, 50), False),
    ),
    'EOS in generation_config.json alone': (
        ('bpe', {'eos_token_id': None}, {'eos_token_id': 7}),
        SpecialTokens(None, (7,), False),
    ),
}


@pytest.mark.parametrize(('files', 'expected'), FILES.values(), ids=FILES)
def test_what_the_files_say(folder, files, expected):
    """Of a model that is given: no id that it doesn't have, and no token by its name alone."""
    assert special(folder(*files)) == expected


def test_what_is_asked_for_comes_first(folder):
    path = folder('leading', IDS, IDS, {'eos_token': '</s>'})
    assert special(path, eos_token_id='3, 7') == SpecialTokens(1, (3, 7), True)
    assert special(path, bos_token_id='none') == SpecialTokens(None, (2,), False)
    assert special(path, bos_token_id='5') == SpecialTokens(5, (2,), True)
    assert special(path, add_bos_token='false') == SpecialTokens(1, (2,), False)
    assert special(folder('bpe', IDS), bos_token_id='1') == SpecialTokens(1, (2,), True)
    for found in (special(path), special(path, bos_token_id='none', eos_token_id='3,7')):
        assert special(folder('unnamed', {}), **found.settings) == found


def test_tokens_beyond_those_of_the_tokenizer_are_found_again(folder):
    """As those of a chat that tokenizer_config.json alone has: a model has a place for them, and they are no text."""
    path = folder(
        'sentencepiece', IDS, None, {'eos_token': '<end>', 'added_tokens_decoder': {'420': {'content': '<end>'}}}
    )
    found = special(path, 432)
    assert found == SpecialTokens(1, (420, 2), True)
    again = load_tokenizer(path, found.settings, vocab_size=432)
    assert again.special == found and again.vocab_size == 421
    assert again.decode([*again.encode('def f'), 410, 420]) == 'def f'


def test_ids_that_a_model_does_not_have_are_told(folder):
    """A small GPT-2 keeps the ids of a large one in its config.json."""
    large = {'bos_token_id': 50256, 'eos_token_id': 50256}
    path = folder('bpe', large, {'eos_token_id': [50256, 2, -1, 'x']}, {'bos_token': '<none>', 'eos_token': '</s>'})
    tokenizer = load_tokenizer(path, vocab_size=400, is_given=True)
    assert tokenizer.special == SpecialTokens(None, (2,), False)
    assert [remark.rsplit('/', 1)[1] for remark in tokenizer.remarks] == [
        'config.json: eos_token_id=50256 is none of 400 ids, and is not used',
        'generation_config.json: eos_token_id=50256 is none of 400 ids, and is not used',
        'generation_config.json: eos_token_id=-1 is none of 400 ids, and is not used',
        "generation_config.json: eos_token_id='x' is none of 400 ids, and is not used",
        "tokenizer_config.json: bos_token='<none>' is not in the vocabulary, and is not used",
        'config.json: bos_token_id=50256 is none of 400 ids, and is not used',
    ]


REFUSED = {
    'nothing says what ends': (('unnamed', {}), {}, 'no file says which token ends a document: say it by eos_token_id'),
    'a usual name is none either': (('bpe', {}), {}, 'no file says which token ends a document'),
    'no place for one more': (('unnamed', {}), {'is_given': False}, 'no file says which token ends a document'),
    'EOS beyond': (('bpe', IDS), {'eos_token_id': '2,400'}, r"eos_token_id='2,400' must be ids .* of 0 to 399"),
    'EOS of text': (('bpe', IDS), {'eos_token_id': '</s>'}, "eos_token_id='</s>' must be ids with commas between"),
    'several BOS': (('bpe', IDS), {'bos_token_id': '1,2'}, "bos_token_id='1,2' must be an id, or 'none'"),
    'BOS that is none': (('bpe', {'eos_token_id': 2}), {'add_bos_token': 'true'}, 'add_bos_token=true has no token'),
    'neither true nor false': (('bpe', IDS), {'add_bos_token': 'yes'}, "add_bos_token='yes' must be true or false"),
}


@pytest.mark.parametrize(('files', 'asked', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(folder, files, asked, message):
    with pytest.raises(ValueError, match=message):
        special(folder(*files), **asked)


@pytest.mark.parametrize('contents', ['{', '[]', '\xff', '[' * 100_000])
@pytest.mark.parametrize('name', ['config.json', 'generation_config.json', 'tokenizer_config.json'])
def test_a_damaged_file_is_named(folder, tmp_path, name, contents):
    path = folder('leading', IDS)
    (tmp_path / name).write_bytes(contents.encode('latin1'))
    with pytest.raises(ValueError, match=rf'{name} (is no JSON|must hold a JSON object|.* more than 64 levels)'):
        special(path)
    assert special(path, bos_token_id='1', eos_token_id='2', add_bos_token='true') == SpecialTokens(1, (2,), True)


def test_templates_of_tokenizers(folder, tmp_path):
    """Whatever letters there are, and what is behind a text; of several tokens before it, one has to be said."""
    path = folder('bpe', IDS)
    contents = json.loads((tmp_path / 'tokenizer.json').read_text())
    text, tokens = {'Sequence': {'id': 'A', 'type_id': 0}}, {'<s>': [1], '</s>': [2], '<|im_end|>': [3]}
    piece = lambda name: {'SpecialToken': {'id': name, 'type_id': 0}}
    special_tokens = {name: {'id': name, 'ids': ids, 'tokens': [name]} for name, ids in tokens.items()}
    pair = [text, {'Sequence': {'id': 'B', 'type_id': 1}}]
    template = dict(type='TemplateProcessing', pair=pair, special_tokens=special_tokens)

    def leads(processor, **asked):
        (tmp_path / 'tokenizer.json').write_text(json.dumps(contents | {'post_processor': processor}))
        return special(path, **asked)

    assert leads(template | {'single': [text, piece('</s>')]}) == SpecialTokens(1, (2,), False)
    led = template | {'single': [piece('<|im_end|>'), text, piece('</s>')]}
    assert leads(led) == SpecialTokens(3, (2,), True)
    byte_level = dict(type='ByteLevel', add_prefix_space=True, trim_offsets=False, use_regex=True)
    assert leads(dict(type='Sequence', processors=[byte_level, led])) == SpecialTokens(3, (2,), True)
    roberta = dict(type='RobertaProcessing', sep=['</s>', 2], cls=['<s>', 1], trim_offsets=True, add_prefix_space=False)
    assert leads(roberta) == SpecialTokens(1, (2,), True)
    several = template | {'single': [piece('<s>'), piece('<|im_end|>'), text]}
    with pytest.raises(ValueError, match='puts 2 tokens before a text: say by bos_token_id which one to take'):
        leads(several)
    assert leads(several, bos_token_id='1') == SpecialTokens(1, (2,), True)
    assert load_tokenizer(path, BEFORE).special == SpecialTokens(2, (2,), True)


def test_what_a_tokenizer_and_its_config_disagree_about_is_told(folder):
    for source, says, does in (('leading', False, 'a'), ('bpe', True, 'no')):
        path = folder(source, IDS, None, {'add_bos_token': says, 'bos_token': '<s>', 'eos_token': '</s>'})
        (remark,) = load_tokenizer(path, vocab_size=400, is_given=True).remarks
        assert f'add_bos_token={says}' in remark and remark.endswith(f'puts {does} token before texts')


# Training from scratch


def test_a_new_model_has_a_place_for_an_end(folder):
    """By a usual name, if there is one of them, or by one more id; and prompts follow it where nothing else leads."""
    assert special(folder('unnamed'), 0) == SpecialTokens(400, (400,), True)
    assert load_tokenizer(folder('unnamed')).vocab_size == 401
    assert special(folder('bpe'), 0) == SpecialTokens(2, (2,), True)
    assert special(folder('leading'), 0) == SpecialTokens(1, (2,), True)
    assert special(folder('sentencepiece'), 0) == SpecialTokens(1, (2,), True)
    assert special(folder('without'), 0) == SpecialTokens(400, (400,), True)
    assert special('bytes', 0) == SpecialTokens(256, (256,), True)


def test_usual_names_that_are_several_are_not_guessed(folder, tmp_path):
    path = write_huggingface(tmp_path / 'both.json', ['</s>', '<|endoftext|>'])
    with pytest.raises(ValueError, match=r'has <\|endoftext\|> and </s>, any of which may end a document'):
        load_tokenizer(str(path))
    assert load_tokenizer(str(path), ASK | {'eos_token_id': '1'}).end_of_document == 1
    assert load_tokenizer(str(path), BEFORE).special == SpecialTokens(1, (1,), True)  # as version 0.1


def test_files_beside_a_tokenizer_of_another_name_are_not_its(folder, tmp_path):
    path = folder('bpe', None, None, {'eos_token': '<|im_end|>'})
    (tmp_path / 'mine.json').write_bytes((tmp_path / 'tokenizer.json').read_bytes())
    assert special(path, 0).eos == (3,) and special(str(tmp_path / 'mine.json'), 0).eos == (2,)
