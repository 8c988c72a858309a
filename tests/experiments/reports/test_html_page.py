"""Pages of HTML: what is put into them is text, and a picture is inside."""

import base64
import re

import matplotlib.pyplot as plt
import pytest

from experiments.reports import html_page

HOSTILE = '<b>&"x"</b>'
ESCAPED = '&lt;b&gt;&amp;&quot;x&quot;&lt;/b&gt;'


@pytest.mark.parametrize(
    'part',
    [
        html_page.heading(HOSTILE),
        html_page.paragraph(HOSTILE),
        html_page.paragraph(HOSTILE, 'warning'),
        html_page.preformatted(HOSTILE),
        html_page.folded(HOSTILE, ''),
        html_page.table((HOSTILE,), []),
        html_page.table(('',), [(HOSTILE,)], 'words'),
        html_page.page(HOSTILE, []),
    ],
)
def test_texts_are_escaped(part):
    """Whoever wrote them."""
    assert ESCAPED in part and '<b>' not in part


def test_parts_stand_in_the_page_as_they_are():
    part = html_page.folded('more', html_page.preformatted('a\n b'))
    assert part == '<details><summary>more</summary><pre>a\n b</pre></details>'
    assert part in html_page.page('title', [html_page.heading('one'), part])
    assert html_page.table(('a',), [('1',)], 'words') == (
        '<table class="words"><tr><th>a</th></tr><tr><td>1</td></tr></table>'
    )


def test_a_picture_is_inside():
    figure, _ = plt.subplots()
    picture = html_page.image(figure, HOSTILE)
    encoded = re.fullmatch(f'<img alt="{ESCAPED}" src="data:image/svg\\+xml;base64,(.*)">', picture)[1]
    assert base64.b64decode(encoded).rstrip().endswith(b'</svg>')
    assert not plt.fignum_exists(figure.number)
