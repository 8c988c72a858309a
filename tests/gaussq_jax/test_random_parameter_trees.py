"""Random parameter trees: no leaf is misread; with names none is refused, without no more than the page says."""

import collections
import pathlib
import re

import numpy as np
import pytest
from random_parameter_trees import Draw

import gaussq_jax as gq
from gaussq_jax.param_reading import read_params

PAGE = pathlib.Path(__file__).parents[2] / 'docs/parameter_trees.md'
KINDS = {  # of leaves: what the page calls them
    'two axes': 'linear layers of two axes of their own',
    'fused heads': 'fused heads',
    'experts': 'experts without biases',
    'heads from latents': 'heads from latents (MLA) without biases',
    'einsum': 'einsums with the inputs among the outputs',
    'blocks on a diagonal': 'blocks on a diagonal (Griffin)',
    'convolution': 'convolutions',
    'convolution by another name': 'convolutions not called so',
}
COUNTS = [pytest.param(300, id='300'), pytest.param(10_000, id='10000', marks=pytest.mark.slow)]


def read(draw, rules=gq.DEFAULT_RULES):
    """Of each matrix: its kind, whether it is refused; raises for one that is misread."""
    readings = read_params(draw.tree(), rules)
    for path, truth in draw.truth().items():
        reading = readings[path]
        if reading.action == 'sampled':
            rule = reading.matrices[0]
            assert (frozenset(rule.batch_axes), rule.row_axes, rule.col_axes) == truth, (path, draw.weights, draw.sizes)
        else:
            assert reading.action == 'unexplained' or 'depthwise' in reading.why, (path, draw.weights, draw.sizes)
        yield path, reading.action == 'unexplained'


@pytest.mark.parametrize('apart', [False, True], ids=['few sizes', 'sizes apart'])
@pytest.mark.parametrize('count', COUNTS)
def test_without_names(count, apart):
    refused = collections.defaultdict(list)
    for seed in range(count):
        draw = Draw(np.random.default_rng(seed), apart=apart)
        for path, is_refused in read(draw):
            refused[draw.weights[path].kind].append(is_refused)
    assert refused.keys() == KINDS.keys()
    for kind, of_kind in refused.items():
        row = re.search(rf'^\| {re.escape(KINDS[kind])} \| (\S+) \| (\S+) \|', PAGE.read_text(encoding='utf-8'), re.M)
        assert np.mean(of_kind) <= float(row[1 + apart]), kind
        assert np.mean(of_kind) >= 0.4 * float(row[1 + apart]), f'{kind}: the page says too much'


@pytest.mark.parametrize('count', COUNTS)
def test_with_names_nothing_is_refused(count):
    for seed in range(count):
        draw = Draw(np.random.default_rng(seed), with_names=True)
        assert not any(is_refused for path, is_refused in read(draw) if draw.has_names(path))


@pytest.mark.parametrize('count', COUNTS)
def test_with_rules_nothing_is_refused(count):
    for seed in range(count // 10):
        draw = Draw(np.random.default_rng(seed))
        rules = [
            gq.MatrixRule(re.escape(path), sorted(batch), rows, cols)
            for path, (batch, rows, cols) in draw.truth().items()
        ]
        assert not any(is_refused for _, is_refused in read(draw, (*rules, *gq.DEFAULT_RULES)))
