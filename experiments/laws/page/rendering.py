"""Data to a page: one HTML file that fetches nothing, whatever texts the data have in them."""

import json
import pathlib
from typing import Any

import jinja2
import markupsafe

from experiments.reports import palette

FOLDER = pathlib.Path(__file__).parent
SYMBOLS = {'o': 'circle', 's': 'square', '^': 'triangle', 'D': 'diamond', 'v': 'wye', 'P': 'cross', 'X': 'star'}
ESCAPED = str.maketrans({c: f'\\u{ord(c):04x}' for c in '<>&\u2028\u2029'})  # in JSON inside of HTML


def render(data: dict[str, Any]) -> str:
    """The page of what `law_page` tells of laws, as HTML: {'title': text, 'remarks': texts, 'laws': [...]}."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = lambda name: markupsafe.Markup((FOLDER / name).read_text(encoding='utf-8'))
    return environment.get_template('report.html.jinja').render(
        data=data,
        json=embedded(data | {'looks': looks()}),
        colors=palette.COLORS,
        warning=palette.VERMILION,
        css=source('report.css'),
        plot=source('plot.js'),
        script=source('report.js'),
    )


def embedded(data: Any) -> markupsafe.Markup:
    """JSON that ends no element of HTML and begins none.

    Example:
      >>> print(embedded({'run': '</script>&'}))
      {"run":"\\u003c/script\\u003e\\u0026"}
    """
    text = json.dumps(data, separators=(',', ':'), allow_nan=False)
    return markupsafe.Markup(text.translate(ESCAPED))


def looks() -> list[dict[str, str]]:
    """Colours and markers of the palette, as report.js takes them; colours are those of the page, light or dark."""
    return [
        {'color': f'var(--series-{palette.COLORS.index(look["color"])})', 'symbol': SYMBOLS[look['marker']]}
        for look in map(palette.look, range(len(palette.COLORS) * len(palette.MARKERS)))
    ]
