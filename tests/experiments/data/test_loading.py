"""What `config.dataset` names: alone or in a mixture, prepared here or elsewhere, or written by another program."""

import hashlib
import json
import pathlib
from fractions import Fraction

import fsspec
import numpy as np
import pytest
from small_experiments import small_config
from token_folders import write_nanogpt, write_prepared

from experiments.data import loading
from experiments.data.packing import PackedRows
from experiments.data.preparation import preparing, verification
from experiments.data.preparation.encoding import Settings
from experiments.data.rows import TextRows
from experiments.data.token_data import in_memory
from experiments.data.tokenizers import load_tokenizer

SHARDS = [np.arange(200), np.arange(50, 250)]
CHATS = [(np.arange(100), np.arange(100) % 2, [40, 60])]


@pytest.fixture
def folders(tmp_path):
    return {
        'a': write_prepared(tmp_path / 'a', train=SHARDS, validation=SHARDS[:1]),
        'b': write_prepared(tmp_path / 'b', train=SHARDS[::-1], validation=SHARDS[1:]),
        'chats': write_prepared(tmp_path / 'chats', train=CHATS, validation=CHATS),
    }


def load(dataset, **changes):
    config = small_config(dataset=str(dataset), sequence_length=16, **changes)
    return loading.load_data(config, loading.load_tokenizer(config)), config


def test_a_prepared_folder(folders, tmp_path):
    data, config = load(folders['a'], cache_dir=str(tmp_path))
    ((name, weight, train, validation, dataset),) = data.sources
    assert (name, weight, dataset) == ('', 1, str(folders['a']))
    assert (train.num_tokens, validation.num_tokens) == (400, 200)
    assert (data.sha256, data.validation_sha256) == (train.sha256, validation.sha256)
    assert isinstance(loading.make_rows(train, config), TextRows)


def test_a_mixture(folders, tmp_path):
    write_nanogpt(tmp_path / 'c.bin', [np.arange(97, 123)] * 9)
    text = f'0.6 one={folders["a"]}; 0.3 two={folders["b"]}; 0.1 three={tmp_path}/*.bin'
    data, config = load(text, cache_dir=str(tmp_path), held_out=0.2)
    assert [(source.name, source.weight) for source in data.sources] == [
        ('one', Fraction(6, 10)),
        ('three', Fraction(1, 10)),
        ('two', Fraction(3, 10)),
    ]
    named = [(source.name, str(source.weight), source.train.sha256) for source in data.sources]
    assert data.sha256 == hashlib.sha256(json.dumps(named).encode()).hexdigest()
    others = (text.replace('0.1', '0.2'), text.replace('one', 'ten'), f'1 one={folders["a"]}; 1 two={folders["b"]}')
    assert data.sha256 not in [load(other, cache_dir=str(tmp_path))[0].sha256 for other in others]
    rows, weights = loading.train_rows(data, config)
    assert set(rows) == set(weights) == {'one', 'two', 'three'}


def test_errors_of_a_mixture_name_the_source(folders, tmp_path):
    with pytest.raises(ValueError, match=f'two: dataset={str(tmp_path)!r}/none.bin'.replace("'/none", '/none')):
        load(f'1 one={folders["a"]}; 1 two={tmp_path}/none.bin', cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match='chats is of chats, others are of text; mix one kind'):
        load(f'1 text={folders["a"]}; 1 chats={folders["chats"]}', cache_dir=str(tmp_path))


def test_a_damaged_copy_of_what_is_elsewhere_is_fetched_anew(folders, tmp_path):
    """But the damaged folder of a user is an error."""
    system, cache = fsspec.filesystem('memory'), tmp_path / 'cache'
    for path in folders['a'].iterdir():
        system.pipe(f'/damaged copy/{path.name}', path.read_bytes())
    for _ in range(2):
        data, _ = load('memory://damaged copy', cache_dir=str(cache))
        np.testing.assert_array_equal(np.concatenate(data.sources[0].train.shards), np.concatenate(SHARDS))
        (shard,) = cache.glob('fetched/*/train-00001.tokens')
        shard.write_bytes(bytes(len(shard.read_bytes())))
    (folders['a'] / shard.name).write_bytes(shard.read_bytes())
    with pytest.raises(OSError, match=r'train-00001.tokens is damaged'):
        load(folders['a'], cache_dir=str(cache))


def test_packing(folders, tmp_path):
    data, config = load(folders['chats'], cache_dir=str(tmp_path), text_feature='messages')
    assert isinstance(loading.make_rows(data.sources[0].train, config), PackedRows)
    config.packing = 'segmented'
    with pytest.raises(ValueError, match="packing='segmented'; allowed: '' alone, of chats"):
        loading.make_rows(data.sources[0].train, config)
    text = in_memory(np.arange(100) % 10)
    assert set(loading.make_rows(text, config).read(np.arange(2))) == {'tokens', 'segments'}
    config.packing = 'whole'
    with pytest.raises(ValueError, match="packing='whole'; allowed: '' and 'segmented', of text"):
        loading.make_rows(text, config)


def test_damage_is_told_by_all_data(folders, tmp_path, monkeypatch):
    """That of a shard which is verified in the background, whichever source it is of."""
    monkeypatch.setattr(verification, 'MOST_AT_ONCE', 0)
    shard = pathlib.Path(folders['b'], 'train-00001.tokens')
    shard.write_bytes(bytes(len(shard.read_bytes())))
    data, _ = load(f'1 one={folders["a"]}; 1 two={folders["b"]}', cache_dir=str(tmp_path))
    for thread in verification.threading.enumerate():
        if thread.name == 'verification':
            thread.join(20)
    with pytest.raises(OSError, match=r'train-00001.tokens is damaged'):
        data.raise_if_damaged()


def test_text_and_chats_are_asked_for_as_such(folders, tmp_path):
    """Tokens are there already, but what a step does with them is the config's."""
    for dataset, text_feature, allowed in (
        ('a', 'messages', 'text; allowed: text'),
        ('chats', 'text', 'chats; allowed: messages'),
    ):
        with pytest.raises(ValueError, match=f"text_feature='{text_feature}': .* has tokens of {allowed}"):
            load(folders[dataset], cache_dir=str(tmp_path), text_feature=text_feature)


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (dict(train_split='train[:1%]'), "train_split='train\\[:1%\\]': .* was prepared with 'train'"),
        (dict(invalid_text='skip'), "invalid_text='skip': .* was prepared with 'error'"),
    ],
)
def test_a_config_that_asks_for_another_text_than_was_prepared(tmp_path, change, told):
    (tmp_path / 'a.jsonl').write_text('\n'.join(json.dumps({'text': f'text {i}'}) for i in range(200)))
    settings = Settings(str(tmp_path / 'a.jsonl'), held_out=0.1)
    tokenizer = load_tokenizer('bytes')
    folder = preparing.prepare(tmp_path / 'tokens', settings, tokenizer, passes=preparing.open_passes(settings)).folder
    load(folder, cache_dir=str(tmp_path / 'cache'))
    with pytest.raises(ValueError, match=told):
        load(folder, cache_dir=str(tmp_path / 'cache'), **change)
