"""docs/recipes.md: what it shows runs, prints what it says, and its table has every recipe."""

import pathlib
import re

import jax.numpy as jnp
import pytest

import gaussq_jax as gq
from gaussq_jax import recipes

PAGE = (pathlib.Path(__file__).parents[3] / 'docs/recipes.md').read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def names():
    """What the blocks of Python define, one after the other, and what they print."""
    defined, printed = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, 'RECIPES', dict(recipes.RECIPES))
        patch.setattr('builtins.print', printed.append)
        for block in re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL):
            exec(block, defined)
        defined['found'] = recipes.find('mxfp6')
    return defined | {'printed': printed}


def test_the_errors_that_it_prints(names):
    (_, shown) = re.findall(r'```\n((?:.*e-3\n)+)```', PAGE)[-1:] * 2
    for line, expected in zip(names['printed'], shown.splitlines(), strict=True):
        assert line[:17] == expected[:17]
        assert float(line[17:]) == pytest.approx(float(expected[17:]), rel=3e-3)  # JAX's own versions draw otherwise


def test_the_model_has_gradients(names):
    kernels = names['gradients']['params']
    assert all(float(jnp.abs(layer['kernel']).max()) > 0 for layer in kernels.values()) and len(kernels) == 2


def test_a_recipe_of_ones_own(names):
    assert names['found'] is names['MXFP6']
    assert names['MXFP6'].kept('any', 3).tolist() == [False, False, True]


def test_the_table_has_all_recipes():
    rows = re.findall(r'^\| (`.*?) \|', PAGE, re.MULTILINE)
    shown = {name for row in rows for name in re.findall(r'`(\w+)`', row)}
    assert shown >= gq.recipes.RECIPES.keys()
