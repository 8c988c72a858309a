"""Tokens that begin and end texts: those that a model's files say, or that are asked for, and no others."""

import json

import numpy as np
import pytest
import tokenizers
from programs import import_program, run_program
from small_checkpoints import write_checkpoint
from small_experiments import ONE_DEVICE, on_mesh, random_state, small_config
from small_tokenizers import write_huggingface, write_sentencepiece

from configs import common, from_run
from experiments import workdirs
from experiments.data.special_tokens import ASK, SpecialTokens
from experiments.data.token_cache import load_tokens
from experiments.data.tokenizers import load_tokenizer
from experiments.sweeps import trials
from experiments.training.experiment import make_experiment

export, import_hf = import_program('export'), import_program('import_hf')

NAMES = ('<unk>', '<s>', '</s>', '<|im_end|>')  # ids 0 to 3
BEFORE = common.ADDED['special_tokens']


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """Tokenizer files: SentencePiece with BOS 1 and EOS 2, and without; BPE with NAMES, one of which leads texts."""
    folder = tmp_path_factory.mktemp('sources')
    files = {
        'sentencepiece': write_sentencepiece(folder / 'a.model'),
        'without': write_sentencepiece(folder / 'b.model', bos_id=-1, eos_id=-1),
        'bpe': write_huggingface(folder / 'a.json', NAMES),
        'unnamed': write_huggingface(folder / 'b.json', ['<x>']),
    }
    leading = tokenizers.Tokenizer.from_file(str(files['bpe']))
    template = dict(single='<s> $A </s>', pair='<s> $A <s> $B', special_tokens=[('<s>', 1), ('</s>', 2)])
    leading.post_processor = tokenizers.processors.TemplateProcessing(**template)
    leading.save(str(folder / 'c.json'))
    return {name: path.read_bytes() for name, path in files.items()} | {'leading': (folder / 'c.json').read_bytes()}


@pytest.fixture
def folder(tmp_path, sources):
    """Writes a folder with a tokenizer and what its files say; the path of the tokenizer."""

    def write(source, config=None, generation=None, tokenizer=None, names=None, added=None):
        path = tmp_path / ('tokenizer.json' if sources[source].startswith(b'{') else 'tokenizer.model')
        path.write_bytes(sources[source])
        files = {'config': config, 'generation_config': generation, 'tokenizer_config': tokenizer}
        for name, contents in (files | {'special_tokens_map': names, 'added_tokens': added}).items():
            if contents is not None:
                (tmp_path / f'{name}.json').write_text(json.dumps(contents))
        return str(path)

    return write


def special(path, vocab_size=400, *, is_given=None, **asked):
    """Of a model that is given, with a vocabulary of this size, or of a new one, for 0."""
    is_given = vocab_size > 0 if is_given is None else is_given
    return load_tokenizer(path, ASK | asked, vocab_size=vocab_size, is_given=is_given).special


IDS = {'bos_token_id': 1, 'eos_token_id': 2}
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


# Texts


def test_documents_and_prompts(folder):
    """With BOS; without; and where the end of one document is the beginning of the next."""
    path = folder('leading', IDS)
    text, ids = 'def f', load_tokenizer(path).encode('def f').tolist()
    tokenizer = load_tokenizer(path)
    assert (
        tokenizer.encode_document(text).tolist() == [1, *ids, 2] and tokenizer.encode_document(text).dtype == np.int32
    )
    assert tokenizer.encode_prompt(text) == [1, *ids] and tokenizer.encode_prompt('') == [1]
    without = load_tokenizer(path, ASK | {'add_bos_token': 'false'})
    assert without.encode_document(text).tolist() == [*ids, 2]
    assert without.encode_prompt(text) == ids and without.encode_prompt('') == [1]
    before = load_tokenizer(path, BEFORE)
    assert before.encode_document(text).tolist() == [*ids, 2] and before.encode_prompt(text) == [2, *ids]
    none = load_tokenizer(path, ASK | {'bos_token_id': 'none', 'eos_token_id': '2,3'})
    assert none.encode_prompt(text) == ids and none.encode_prompt('') == [2]
    for each in (tokenizer, without, before, none):
        assert each.decode([*each.encode_document(text), *each.encode_document('(x)')]) == 'def f(x)'
    assert none.decode([*ids, 3]) == 'def f'  # any of them


def test_tokens_are_kept_by_how_documents_begin_and_end(folder):
    """As in version 0.1 by the same name."""
    path = folder('leading', IDS)
    assert load_tokenizer(path, BEFORE).framing == load_tokenizer('bytes').framing == ''
    asked = ({}, {'add_bos_token': 'false'}, {'eos_token_id': '3'}, {'bos_token_id': '5'})
    framings = [load_tokenizer(path, ASK | each).framing for each in asked]
    assert framings == ['1-2', '', '1-3', '5-2']


def test_further_ends_that_are_text_stay_text(folder):
    """A line's end ends what is written, not what is read."""
    tokenizer = load_tokenizer('bytes', ASK | {'eos_token_id': '256,10'})
    assert tokenizer.decode(tokenizer.encode_document('a\nb')) == 'a\nb'
    assert tokenizer.special.eos == (256, 10)


def test_the_size_of_tokens_is_that_of_what_documents_hold(folder):
    """Whatever else ends what is written: the same tokens, of the same name."""
    one, other = (load_tokenizer('bytes', ASK | {'eos_token_id': ids}) for ids in ('256', '256,257'))
    assert (one.num_document_ids, other.num_document_ids, other.vocab_size) == (257, 257, 258)
    assert load_tokenizer(folder('bpe', IDS), ASK | {'eos_token_id': '400'}).num_document_ids == 401


def test_special_tokens_are_told(folder):
    path = folder('leading', {'eos_token_id': [2, 3]})
    assert load_tokenizer(path).describe() == (
        'documents begin with <s> (1) and end with </s> (2); so may what is written, or with <|im_end|> (3)'
    )
    assert load_tokenizer('bytes').describe() == 'documents end with 256'


# Runs


def test_a_run_keeps_its_special_tokens(folder, tmp_path, monkeypatch):
    """Found once, at its start; a run of version 0.1 has stored none, and keeps those that it had."""
    path, workdir = folder('leading', {'eos_token_id': [2, 3]}), tmp_path / 'run'
    found = {'bos_token_id': '1', 'eos_token_id': '2,3', 'add_bos_token': 'true'}

    def started(stored, **asked):
        monkeypatch.setattr(workdirs, 'newest_step', lambda directory: None if stored is None else 4)
        workdir.mkdir(exist_ok=True)
        (workdir / 'config.json').write_text(json.dumps(stored))
        config = small_config(tokenizer=path, **{f'special_tokens__{name}': value for name, value in asked.items()})
        tokenizer = workdirs.settle_tokenizer(config, workdir)
        return tokenizer.special, config.special_tokens.to_dict()

    assert started(None) == (SpecialTokens(1, (2, 3), True), found)
    assert started(None, eos_token_id='3') == (SpecialTokens(1, (3,), True), found | {'eos_token_id': '3'})
    kept = {'bos_token_id': '7', 'eos_token_id': '8', 'add_bos_token': 'false'}
    assert started({'special_tokens': kept}) == (SpecialTokens(7, (8,), False), kept)
    assert started({}) == (SpecialTokens(2, (2,), True), BEFORE)
    assert started(None, eos_token_id=' 3, 3') == (SpecialTokens(1, (3,), True), found | {'eos_token_id': ' 3, 3'})
    assert started(None, **BEFORE) == (SpecialTokens(2, (2,), True), BEFORE)  # as from a run of version 0.1


def test_a_sweep_compares_what_texts_begin_and_end_with(folder):
    """Not how it is spelled, or who said it; a run of version 0.1 is another, if its documents began otherwise."""
    path = folder('leading', IDS)

    def are_one(present, stored, tokenizer=path):
        both = ({'tokenizer': tokenizer, 'vocab_size': 0, 'special_tokens': asked} for asked in (present, stored))
        one, other = trials._special_tokens(*both)
        return one == other

    found = {'bos_token_id': '1', 'eos_token_id': '2', 'add_bos_token': 'true'}
    assert are_one(ASK, found) and are_one(found | {'eos_token_id': ' 2,2'}, found)
    assert not are_one(ASK | {'eos_token_id': '3'}, found) and not are_one(ASK, found | {'eos_token_id': '3'})
    assert not are_one(ASK, BEFORE) and are_one(BEFORE, BEFORE)
    assert are_one(ASK, BEFORE, 'bytes')
    # Of a tokenizer that is no longer there, what is said counts.
    assert are_one(ASK, found, 'gone.json') and not are_one(ASK | {'eos_token_id': '3'}, found, 'gone.json')


def test_documents_of_a_training_begin_with_bos(folder):
    new, old = (load_tokenizer(folder('leading', IDS), settings) for settings in (ASK, BEFORE))
    ours, before = (load_tokens('python_stdlib', 'validation', tokenizer) for tokenizer in (new, old))
    tokens = np.asarray(ours.tokens)
    assert tokens[0] == 1 and tokens[-1] == 2
    np.testing.assert_array_equal(np.flatnonzero(tokens == 1)[1:], np.flatnonzero(tokens == 2)[:-1] + 1)
    np.testing.assert_array_equal(tokens[tokens != 1], before.tokens)
    assert ours.num_bytes == before.num_bytes and ours.num_tokens == before.num_tokens + ours.num_documents


def test_a_training_from_a_run_has_its_special_tokens(folder, tmp_path):
    run = small_config(tokenizer=folder('leading', IDS), special_tokens__eos_token_id='3').to_dict()
    (tmp_path / 'config.json').write_text(json.dumps(run))
    config = from_run.get_config(f'run={tmp_path}')
    assert config.special_tokens.to_dict() == ASK | {'eos_token_id': '3'}
    for name in common.ADDED:
        del run[name]
    (tmp_path / 'config.json').write_text(json.dumps(run))
    assert from_run.get_config(f'run={tmp_path}').special_tokens.to_dict() == BEFORE


def test_an_import_finds_them_and_an_export_tells_them(tmp_path, capsys):
    """EOS is of tokenizer_config.json, and any of config.json; BOS is asked for; the longest sequence is theirs."""
    checkpoint = write_checkpoint(tmp_path / 'theirs')
    arguments = dict(CHECKPOINT=str(checkpoint), WORKDIR=str(tmp_path / 'run'), TOKENIZER=None, SEQUENCE_LENGTH=None)
    run_program(import_hf, **arguments, BOS='4', EOS='', ADD_BOS='')
    printed = capsys.readouterr().out
    assert 'begin with % (4) and end with </s> (258); so may what is written, or with ( (7)' in printed
    with on_mesh(ONE_DEVICE):
        run = workdirs.open_run(tmp_path / 'run')
        assert run.tokenizer.special == SpecialTokens(4, (258, 7), True)
        export.write_huggingface(run, tmp_path / 'run', run.state.params, tmp_path / 'again')
    config = json.loads((tmp_path / 'again' / 'config.json').read_text())
    told = {'bos_token_id': 4, 'eos_token_id': [258, 7], 'max_position_embeddings': 40, 'pad_token_id': None}
    assert told.items() <= ({'pad_token_id': None} | config).items()
    names = json.loads((tmp_path / 'again' / 'tokenizer_config.json').read_text())
    assert names == {'eos_token': '</s>', 'bos_token': '%', 'add_bos_token': True}
    again = load_tokenizer(str(tmp_path / 'again' / 'tokenizer.json'), vocab_size=264, is_given=True)
    assert again.special == run.tokenizer.special


def test_an_import_of_version_0_1_tells_what_its_checkpoint_does(tmp_path):
    checkpoint = write_checkpoint(tmp_path / 'theirs')
    with on_mesh(ONE_DEVICE):
        import_hf.import_checkpoint(checkpoint, tmp_path / 'run')
        run = workdirs.open_run(tmp_path / 'run')
        run.experiment.config.special_tokens.update(BEFORE)
        old = run._replace(tokenizer=load_tokenizer(run.experiment.config.tokenizer, BEFORE))
        assert old.tokenizer.special == SpecialTokens(258, (258,), True)
        export.write_huggingface(old, tmp_path / 'run', run.state.params, tmp_path / 'again')
    config = json.loads((tmp_path / 'again' / 'config.json').read_text())
    assert (config['bos_token_id'], config['eos_token_id']) == (None, [258, 7])


def test_a_run_of_our_own_tells_transformers_all(folder, tmp_path):
    """A Llama's longest sequence is that of training; tokenizer_config.json says what leads texts."""
    config = small_config(tokenizer=folder('sentencepiece'))
    tokenizer = load_tokenizer(config.tokenizer)
    with on_mesh(ONE_DEVICE):
        experiment = make_experiment(config, tokenizer.vocab_size)
        run = workdirs.Run(experiment, tokenizer, random_state(experiment))
        export.write_huggingface(run, tmp_path / 'workdir', run.state.params, tmp_path / 'folder')
    written = json.loads((tmp_path / 'folder' / 'config.json').read_text())
    assert written['max_position_embeddings'] == config.sequence_length
    assert (written['bos_token_id'], written['eos_token_id']) == (1, 2)
    told = json.loads((tmp_path / 'folder' / 'tokenizer_config.json').read_text())
    assert told == {'bos_token': '<s>', 'eos_token': '</s>', 'add_bos_token': True}
    again = load_tokenizer(str(tmp_path / 'folder' / 'tokenizer.model'), vocab_size=400, is_given=True)
    assert again.special == tokenizer.special
