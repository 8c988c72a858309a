"""Words of others, as they may be shown on a terminal."""

import unicodedata

BIDIRECTIONAL = '\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069'  # by these what follows looks otherwise
LONGEST, MOST_LINES = 1000, 50  # letters of a line of an error, and its lines


def printable(text: str) -> str:
    """What an error may show of others' words: lines of printable characters, and not without end."""
    lines = [line if len(line) <= LONGEST else f'{line[: LONGEST - 1]}…' for line in text.split('\n')]
    text = '\n'.join(lines[:MOST_LINES] + ['…'] * (len(lines) > MOST_LINES))
    return ''.join(letter if letter.isprintable() or letter == '\n' else ascii(letter)[1:-1] for letter in text)


def escaped(text: str) -> str:
    """A text of any language, without what a terminal would obey but for the ends of lines and tabs."""
    is_obeyed = lambda letter: unicodedata.category(letter) in ('Cc', 'Cs') or letter in BIDIRECTIONAL
    return ''.join(ascii(letter)[1:-1] if is_obeyed(letter) and letter not in '\n\t' else letter for letter in text)
