"""A page of HTML that needs no other file: its headings, paragraphs, tables and pictures."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.reports import palette

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; overflow-wrap: anywhere; }} h2 {{ font-size: 1.25rem; margin-top: 2.5rem; }}
img {{ max-width: 100%; display: block; margin: 1rem 0; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: .9rem; }}
th, td {{ padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }}
th {{ border-bottom: 1px solid #222; font-weight: 600; }}
th:first-child, td:first-child, .words td, .words th {{ text-align: left; padding-left: 0; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .6rem .8rem; font-size: .85rem; }}
td {{ overflow-wrap: anywhere; }} summary {{ cursor: pointer; }}
.warning {{ border-left: 4px solid {warning}; padding-left: .8rem; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole file."""
    return PAGE.format(title=html.escape(title), body='\n'.join(parts), warning=palette.VERMILION)


def image(figure: Figure, alt: str) -> str:
    """The figure, inside the page."""
    file = io.BytesIO()
    figure.savefig(file, format='svg', metadata={'Date': None})
    plt.close(figure)
    encoded = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{encoded}">'


def heading(text: str, level: int = 2) -> str:
    return f'<h{level}>{html.escape(text)}</h{level}>'


def paragraph(text: str, kind: str = '') -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f'<p>{html.escape(text)}</p>'


def preformatted(text: str) -> str:
    """As it is, line by line, as code and tables of text are."""
    return f'<pre>{html.escape(text)}</pre>'


def folded(summary: str, part: str) -> str:
    """A part that is shown at a click on its summary."""
    return f'<details><summary>{html.escape(summary)}</summary>{part}</details>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], kind: str = '') -> str:
    """A table; of the kind 'words', its cells begin below each other, and those of numbers end so."""
    row = lambda tag, cells: '<tr>' + ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells) + '</tr>'
    begin = f'<table class="{kind}">' if kind else '<table>'
    return begin + row('th', header) + ''.join(row('td', cells) for cells in rows) + '</table>'
