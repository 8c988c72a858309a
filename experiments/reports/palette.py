"""The colours and markers of all pictures: those of Okabe and Ito, which every eye tells apart, on white.

Curves differ in their markers, too, for paper without colours.
"""

BLUE, VERMILION, GREEN, PURPLE = '#0072B2', '#D55E00', '#009E73', '#CC79A7'
ORANGE, SKY, BLACK = '#E69F00', '#56B4E9', '#000000'
GREY, PALE = '#888888', '#dddddd'  # of lines and areas that things are compared with

COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')


def color(i: int) -> str:
    """Of the i-th curve."""
    return COLORS[i % len(COLORS)]


def look(i: int) -> dict[str, str]:
    """Colour and marker of the i-th curve, as `plot` takes them; 49 differ."""
    return {'color': color(i), 'marker': MARKERS[(i + i // len(COLORS)) % len(MARKERS)]}
