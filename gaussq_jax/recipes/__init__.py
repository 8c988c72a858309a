"""Recipes of low-precision training, each a value with a name and its source."""

import functools

from gaussq_jax.kept_layers import KeptLayers, parse_kept_layers
from gaussq_jax.recipes.fp4_all_the_way import FP4_ALL_THE_WAY
from gaussq_jax.recipes.fp8 import DEEPSEEK_FP8, FP8_ROWWISE, FP8_TENSORWISE, MXFP8
from gaussq_jax.recipes.nvfp4 import NVFP4
from gaussq_jax.recipes.of_one_format import capybara, of_targets, qat
from gaussq_jax.recipes.quartet import QUARTET, QUARTET2
from gaussq_jax.recipes.recipe import Recipe

RECIPES = {
    recipe.name: recipe
    for recipe in (NVFP4, FP4_ALL_THE_WAY, QUARTET, QUARTET2, MXFP8, FP8_ROWWISE, FP8_TENSORWISE, DEEPSEEK_FP8)
}


def find(name: str) -> Recipe:
    """The recipe of this name, and 'nvfp4-hadamard' for one without a part (see `Recipe.without`).

    Raises:
      ValueError: for another name; says which there are.

    Example:
      >>> find('mxfp8').P1.summary
      'float8_e4m3fn by 32, mx rceil'
    """
    whole, *parts = name.split('-')
    if whole not in RECIPES:
        raise ValueError(f'recipe={name!r}: allowed are {", ".join(map(repr, RECIPES))}')
    try:
        return functools.reduce(Recipe.without, parts, RECIPES[whole])
    except ValueError as error:
        raise ValueError(f'recipe={name!r}: {error}') from None


def register(recipe: Recipe) -> Recipe:
    """Adds a recipe of one's own, which `find`, and `config.quantization.recipe`, then know by its name.

    Raises:
      ValueError: another recipe has the name, or it has a hyphen, which `find` reads as 'without'.
    """
    if not recipe.name.isidentifier():
        raise ValueError(f'the name of a recipe is a word of letters, digits and _, not {recipe.name!r}')
    if RECIPES.setdefault(recipe.name, recipe) != recipe:
        raise ValueError(f'a recipe {recipe.name!r} is there already')
    return recipe


__all__ = [
    'DEEPSEEK_FP8',
    'FP4_ALL_THE_WAY',
    'FP8_ROWWISE',
    'FP8_TENSORWISE',
    'MXFP8',
    'NVFP4',
    'QUARTET',
    'QUARTET2',
    'RECIPES',
    'KeptLayers',
    'Recipe',
    'capybara',
    'find',
    'of_targets',
    'parse_kept_layers',
    'qat',
    'register',
]
