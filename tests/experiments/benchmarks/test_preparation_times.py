"""Preparing is timed beside the batch call of `tokenizers`, on the same text."""

import json

import pytest
from small_tokenizers import write_huggingface

from experiments.benchmarks import preparation_times


def test_both_take_turns(tmp_path):
    texts = [f'document {i} of some words' for i in range(500)]
    (tmp_path / 'a.jsonl').write_text('\n'.join(json.dumps({'text': text}) for text in texts))
    tokenizer = str(write_huggingface(tmp_path / 'tokenizer.json'))
    ((results, text),) = preparation_times.benchmark(str(tmp_path / 'a.jsonl'), tokenizer, 1)
    assert results['bytes'] == len(''.join(texts)) and results['tokens'] > 2 * len(texts)
    assert list(results['times']) == ['tokenizers', 'prepare'] and results['times']['tokenizers']['ratio'] == 1
    assert 'tokenizers' in text and 'prepare' in text


def test_another_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"--tokenizer='bytes'; allowed: a Hugging Face tokenizers \.json file"):
        next(preparation_times.benchmark('python_stdlib', 'bytes', 1))
