"""Special tokens in use: texts begin and end with them, and a run, its import and its export keep them."""

import json

import numpy as np
from programs import import_program, run_program
from small_checkpoints import write_checkpoint
from small_datasets import load_tokens
from small_experiments import ONE_DEVICE, on_mesh, random_state, small_config
from small_tokenizers import IDS

from configs import from_run
from configs.stored import MEANT_BEFORE
from experiments import workdirs
from experiments.data.special_tokens import ASK, SpecialTokens
from experiments.data.tokenizers import load_tokenizer
from experiments.serving import folders
from experiments.serving.targets import TRANSFORMERS
from experiments.sweeps import sweep_runs
from experiments.training.experiment import make_experiment

import_hf = import_program('import_hf')

BEFORE = MEANT_BEFORE[2]['special_tokens']


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
        one, other = sweep_runs._special_tokens(*both)
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
    tokens = np.asarray(ours.shards[0])
    assert tokens[0] == 1 and tokens[-1] == 2
    np.testing.assert_array_equal(np.flatnonzero(tokens == 1)[1:], np.flatnonzero(tokens == 2)[:-1] + 1)
    np.testing.assert_array_equal(tokens[tokens != 1], before.shards[0])
    assert ours.num_bytes == before.num_bytes and ours.num_tokens == before.num_tokens + ours.num_documents


def test_a_training_from_a_run_has_its_special_tokens(folder, tmp_path):
    run = small_config(tokenizer=folder('leading', IDS), special_tokens__eos_token_id='3').to_dict()
    (tmp_path / 'config.json').write_text(json.dumps(run))
    config = from_run.get_config(f'run={tmp_path}')
    assert config.special_tokens.to_dict() == ASK | {'eos_token_id': '3'}
    for name in MEANT_BEFORE[2]:
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
        folders.write(run, tmp_path / 'run', tmp_path / 'again', TRANSFORMERS, run.state.params, {})
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
        folders.write(old, tmp_path / 'run', tmp_path / 'again', TRANSFORMERS, run.state.params, {})
    config = json.loads((tmp_path / 'again' / 'config.json').read_text())
    assert (config['bos_token_id'], config['eos_token_id']) == (None, [258, 7])


def test_a_run_of_our_own_tells_transformers_all(folder, tmp_path):
    """A Llama's longest sequence is that of training; tokenizer_config.json says what leads texts."""
    config = small_config(tokenizer=folder('sentencepiece'))
    tokenizer = load_tokenizer(config.tokenizer)
    with on_mesh(ONE_DEVICE):
        experiment = make_experiment(config, tokenizer.vocab_size)
        run = workdirs.Run(experiment, tokenizer, random_state(experiment))
        folders.write(run, tmp_path / 'workdir', tmp_path / 'folder', TRANSFORMERS, run.state.params, {})
    written = json.loads((tmp_path / 'folder' / 'config.json').read_text())
    assert written['max_position_embeddings'] == config.sequence_length
    assert (written['bos_token_id'], written['eos_token_id']) == (1, 2)
    told = json.loads((tmp_path / 'folder' / 'tokenizer_config.json').read_text())
    assert told == {'bos_token': '<s>', 'eos_token': '</s>', 'add_bos_token': True}
    again = load_tokenizer(str(tmp_path / 'folder' / 'tokenizer.model'), vocab_size=400, is_given=True)
    assert again.special == tokenizer.special
