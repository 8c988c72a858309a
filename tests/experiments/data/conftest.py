"""A small dataset on disk; tokenizers, and what the files beside them say."""

import json

import pytest
import tokenizers
from small_datasets import TinyText
from small_tokenizers import NAMES, write_huggingface, write_sentencepiece


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tensorflow_datasets')
    TinyText(data_dir=folder, file_format='array_record').download_and_prepare()
    return folder


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
