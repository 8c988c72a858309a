"""What a worker makes of documents: the tokens that a tokenizer makes of each by itself, however they come to it."""

import json
import pickle

import numpy as np
import pytest
from small_blocks import SmallBlock
from small_tokenizers import IDS, NAMES, REAL_TEXT, write_huggingface, write_sentencepiece

from experiments.data.preparation import encoding
from experiments.data.preparation.encoding import BlockEncoder, Settings
from experiments.data.tokenizers import load_tokenizer

TEXTS = ('', 'a </s> b', '<|im_end|>', 'naïve 日本', *REAL_TEXT.split('\n\n')[:40])


@pytest.fixture(scope='module', params=['sentencepiece', 'tokenizers', 'bytes'])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp('tokenizers')
    if request.param == 'sentencepiece':
        return load_tokenizer(str(write_sentencepiece(folder / 'a.model')), {**IDS, 'add_bos_token': 'true'})
    if request.param == 'tokenizers':
        return load_tokenizer(str(write_huggingface(folder / 'a.json', NAMES)), {**IDS, 'add_bos_token': 'true'})
    return load_tokenizer('bytes')


@pytest.mark.parametrize('batch', [1, 100, 10**6])
def test_documents_are_as_encode_document_has_them(tokenizer, monkeypatch, batch):
    monkeypatch.setattr(encoding, 'BATCH_TEXT', batch)
    block = SmallBlock('file', 0, TEXTS, 0)
    encoded = BlockEncoder(Settings('texts'), tokenizer).encode(block, 'train')['train']
    expected = np.concatenate([tokenizer.encode_document(text) for text in TEXTS])
    assert encoded.tokens.tolist() == expected.tolist() and encoded.tokens.dtype == np.dtype('<u2')


def test_tokenizers_go_to_processes(tokenizer):
    """Special tokens in a text are text there, too."""
    again = pickle.loads(pickle.dumps(tokenizer))
    assert (again.fingerprint, again.special, again.framing) == (
        tokenizer.fingerprint,
        tokenizer.special,
        tokenizer.framing,
    )
    for text in TEXTS:
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
        assert again.decode(again.encode_document(text)) == tokenizer.decode(tokenizer.encode_document(text))


def test_dropout_of_a_tokenizer_is_of_its_training(tmp_path):
    """A text has the same tokens each time."""
    contents = json.loads(write_huggingface(tmp_path / 'a.json').read_text())
    contents['model']['dropout'] = 0.9
    (tmp_path / 'b.json').write_text(json.dumps(contents))
    without, with_dropout = (load_tokenizer(str(tmp_path / name)) for name in ('a.json', 'b.json'))
    for tokenizer in (with_dropout, pickle.loads(pickle.dumps(with_dropout))):
        assert tokenizer.encode(REAL_TEXT).tolist() == without.encode(REAL_TEXT).tolist()


@pytest.mark.parametrize(
    ('settings', 'told'),
    [
        (dict(invalid_text='ignore'), "invalid_text='ignore'; allowed: error, replace, skip"),
        (dict(invalid_text='replace', text_feature='messages'), 'allowed: error, skip, of text_feature=messages'),
        (dict(held_out=0), 'held_out=0; allowed: between 0 and 1'),
        (dict(held_out=float('nan')), 'held_out=nan; allowed: between 0 and 1'),
    ],
)
def test_settings_that_cannot_be(settings, told):
    with pytest.raises(ValueError, match=told):
        Settings('texts', **settings)


def test_features():
    assert Settings('texts', 'body').features == ('body',)
    assert Settings('texts', 'a+b').features == ('a+b',)
    assert Settings('texts', 'prompt+completion').features == ('prompt', 'completion')


def test_splits_are_a_share_of_documents():
    """The share is that of blake2b, as written in the documentation."""
    of = [encoding.split_of(str(i).encode(), 0.01) for i in range(20_000)]
    assert 150 < of.count('validation') < 250
    assert encoding.split_of(b'', 1 - 2**-53) == 'validation'
    # blake2b of b'abc', 8 bytes, is d8bb14d833d59559: 0.8466… of 2^64.
    assert encoding.split_of(b'abc', 0.8466) == 'train' and encoding.split_of(b'abc', 0.8467) == 'validation'
