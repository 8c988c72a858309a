"""JSON of others: what it holds, or one error that names the file."""

import json
import re

import pytest

from experiments.files import json_files


def test_it_reads_what_json_writes(tmp_path):
    value = {
        'ints': [0, -(2**63), 2**64 - 1],
        'floats': [1e308, -0.5, 1e-320],
        'text': 'naïve 😀',
        'none': None,
        'on': True,
    }
    for ensure_ascii in (True, False):
        (tmp_path / 'file.json').write_text(json.dumps(value, ensure_ascii=ensure_ascii), encoding='utf-8')
        assert json_files.read(tmp_path / 'file.json', ints=list, text=str, on=bool) == value
    (tmp_path / 'file.json').write_text('{"model_max_length": 1000000000000000019884624838656}')  # of transformers
    assert json_files.read(tmp_path / 'file.json', model_max_length=float) == {'model_max_length': 1e30}


def test_it_writes_what_it_reads(tmp_path):
    """Or nothing: JSON has no number that is not finite."""
    path, value = tmp_path / 'file.json', {'a': [1, 0.1, None, True], 'b': {'naïve': '😀'}}
    json_files.write(path, value)
    assert json_files.read(path) == value
    with pytest.raises(ValueError, match='not JSON compliant'):
        json_files.write(path, {'a': float('inf')})
    assert json_files.read(path) == value and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ('text', 'error'),
    [
        ('', 'is no JSON'),
        ('{"a": 1', 'is no JSON'),
        (b'{"a": "\xff"}', 'is no JSON'),
        ('null', 'must hold a JSON object, not null'),
        ('[1]', 'must hold a JSON object, not an array'),
        ('{"b": 1}', "lacks 'a'"),
        ('{"a": "1"}', "'a' must be an integer, not a string"),
        ('{"a": 1.5}', "'a' must be an integer, not a number"),
        ('{"a": true}', "'a' must be an integer, not a boolean"),
        ('{"a": null}', "'a' must be an integer, not null"),
        ('{"a": 1, "a": 2}', "it has a key twice, 'a'"),
        (f'{{"a": 1{"0" * 400}}}', 'it has a number that is not finite'),
        ('{"a": 18446744073709551616}', "'a' must be an integer, not a number"),
        ('{"a": 1e400}', 'it has a number that is not finite'),
        ('{"a": "\\ud800"}', 'it has half a surrogate pair'),
        (f'{{"a": {"[" * 64}{"]" * 64}}}', 'it has more than 64 levels'),
        ('[' * 100_000, 'more than 64 levels'),
        (f'{{"a": 1, "b": [{",".join(["[]"] * json_files.MOST_CONTAINERS)}]}}', 'objects and arrays'),
        (' ' * json_files.MOST_BYTES + '{"a": 1}', 'it has more than 67,108,864 bytes'),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else 'bytes',
)
def test_what_is_not_read(tmp_path, text, error):
    path = tmp_path / 'file.json'
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=f'^{re.escape(str(path))}.*{re.escape(error)}') as raised:
        json_files.read(path, a=int)
    assert len(str(raised.value)) < 300 and '\n' not in str(raised.value)


def test_what_is_no_file(tmp_path):
    for path, error in ((tmp_path, 'is no file'), (tmp_path / 'nothing', "can't be read: No such file")):
        with pytest.raises(ValueError, match=f'^{re.escape(str(path))} {error}'):
            json_files.read(path)


def test_types_that_are_a_choice():
    assert json_files.require({'loss': 'NaN'}, 'it', {'loss': (float, str)}) == {'loss': 'NaN'}
    with pytest.raises(ValueError, match=r"^it: 'loss' must be a number or a string, not an array$"):
        json_files.require({'loss': []}, 'it', {'loss': (float, str)})
