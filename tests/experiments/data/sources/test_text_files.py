"""Text files, each of which is a document."""

import pytest
from small_sources import open_text, places_of, rows_of

from experiments.data.sources import text_files


def test_a_file_is_a_document(tmp_path):
    """With all its bytes; what an editor puts before them to tell their encoding is none of it."""
    contents = {'a': b'one\r\ntwo\n', 'b': b'', 'c': b'\xef\xbb\xbfna\xc3\xafve', 'd': b'\xff', 'e': 5_000_000 * b'x'}
    for name, text in contents.items():
        (tmp_path / f'{name}.txt').write_bytes(text)
    source = open_text(tmp_path / '*.txt')
    assert rows_of(source) == [(text.removeprefix(b'\xef\xbb\xbf'),) for text in contents.values()]
    assert places_of(source) == [f'{tmp_path}/{name}.txt, row 0' for name in contents]


def test_a_larger_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, 'MOST_BYTES', 1000)
    (tmp_path / 'a.txt').write_bytes(1000 * b'x')
    assert len(rows_of(open_text(tmp_path / 'a.txt'))) == 1
    (tmp_path / 'a.txt').write_bytes(1001 * b'x')
    with pytest.raises(ValueError, match=r'a\.txt is a document of more than 1,000 bytes'):
        rows_of(open_text(tmp_path / 'a.txt'))


def test_text_is_no_chat(tmp_path):
    (tmp_path / 'a.txt').write_text('x')
    with pytest.raises(ValueError, match=r"text_feature='messages': .*a\.txt is text"):
        rows_of(open_text(tmp_path / 'a.txt', features=('messages',)))
