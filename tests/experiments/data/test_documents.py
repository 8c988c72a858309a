"""The text of a document, and what becomes of one that is not UTF-8."""

import pytest

from experiments.data.documents import decode


@pytest.mark.parametrize('invalid', ['error', 'replace', 'skip'])
@pytest.mark.parametrize('text', ['', 'naïve 日本 \U0001f600', '\0\r\n\ufffd\ufeff'])
def test_utf8_is_what_it_is(text, invalid):
    assert decode(text, invalid, str) == decode(text.encode(), invalid, str) == (text, True)


@pytest.mark.parametrize(
    ('value', 'reason', 'replaced'),
    [
        (b'na\xefve', 'not UTF-8, byte 2 is 0xef', 'na\ufffdve'),
        (b'\xff\xfe', 'not UTF-8, byte 0 is 0xff', '\ufffd\ufffd'),
        (b'x\xe6\x97', 'not UTF-8, byte 1 is 0xe6', 'x\ufffd'),
        ('a\ud83d b', r'not UTF-8, character 1 is half a surrogate pair, U\+D83D', 'a\ufffd b'),
        ('\udcff', r'not UTF-8, character 0 is half a surrogate pair, U\+DCFF', '\ufffd'),
    ],
)
def test_what_is_not_utf8(value, reason, replaced):
    assert decode(value, 'skip', str) == (None, False)
    assert decode(value, 'replace', str) == (replaced, False)
    with pytest.raises(ValueError, match=f'a, row 7: the document is {reason}; invalid_text=replace puts'):
        decode(value, 'error', lambda: 'a, row 7')


def test_a_null_is_left_out_or_an_error():
    assert decode(None, 'skip', str) == (None, False)
    for invalid in 'error', 'replace':
        with pytest.raises(ValueError, match=r'a, row 7: the document is null.*; invalid_text=skip leaves it'):
            decode(None, invalid, lambda: 'a, row 7')
