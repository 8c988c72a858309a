"""The colours of pictures."""

import numpy as np
from matplotlib.colors import to_rgb

from experiments.reports import palette


def test_curves_differ_whatever_their_number():
    looks = [tuple(palette.look(i).values()) for i in range(49)]
    assert len(set(looks)) == 49
    assert len({color for color, _ in looks[:7]}) == len({marker for _, marker in looks[:7]}) == 7


def test_colors_differ_for_every_eye():
    """In linear RGB, seen as by people without red or green cones (Viénot, Brettel and Mollon 1999), and on white."""
    protan = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    deutan = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    linear = lambda colors: np.array(list(map(to_rgb, colors))) ** 2.2
    for seen_as in (np.eye(3), protan, deutan):
        seen = linear([*palette.COLORS, 'white']) @ seen_as.T
        apart = np.linalg.norm(seen[:, None] - seen, axis=-1) + np.eye(len(seen))
        assert apart.min() > 0.09, apart.round(2)
