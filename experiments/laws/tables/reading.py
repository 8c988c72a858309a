"""How a table of runs is read, as flags say it."""

import csv
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Reading(NamedTuple):
    """What to take from a table of runs, and as what."""

    columns: Mapping[str, str] = {}  # ours -> the file's, where its name doesn't tell; '' where the file has none
    where: tuple[tuple[str, str], ...] = ()  # runs whose column has this value, for each of these
    best_of: bool = False  # of runs of one N, D, recipe and seed, the one of the least loss
    extra: tuple[str, ...] = ()  # columns of numbers that a law of one's own needs
    recipes: Mapping[str, str] = {}  # recipes as the table has them -> as they are read


AS_IT_IS = Reading()


def parse_columns(text: str) -> dict[str, str]:
    """Ours -> the file's, of a flag; a pair with a comma stands in quotes; 'B=' says that the file has no B.

    Raises:
      ValueError: naming --columns.

    Example:
      >>> parse_columns('N=params,D=tokens,"loss=loss, eval"')
      {'N': 'params', 'D': 'tokens', 'loss': 'loss, eval'}
    """
    return _pairs('columns', text, 'N=params,D=tokens')


def parse_recipes(text: str) -> dict[str, str]:
    """Recipes of a table -> what to read them as, of a flag.

    Raises:
      ValueError: naming --recipes.

    Example:
      >>> parse_recipes('QuEST=mxfp4')
      {'QuEST': 'mxfp4'}
    """
    recipes = _pairs('recipes', text, 'QuEST=mxfp4')
    if unsaid := [name for name, other in recipes.items() if not other]:
        raise ValueError(f'--recipes={text!r:.200} says nothing for {unsaid[0]!r:.80}')
    return recipes


def parse_where(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Columns and the values that runs have to have, of a flag that may be given several times.

    Raises:
      ValueError: naming --where.

    Example:
      >>> parse_where(['dataset=c4', 'mult=1'])
      (('dataset', 'c4'), ('mult', '1'))
    """
    return tuple(_pair('where', text, text, 'dataset=c4') for text in texts)


def _pairs(flag: str, text: str, example: str) -> dict[str, str]:
    try:
        (parts,) = csv.reader([text], strict=True)
    except (csv.Error, ValueError):
        raise ValueError(f'--{flag}={text!r:.200} must be pairs such as {example}') from None
    pairs = {}
    for part in parts or ['']:
        name, value = _pair(flag, text, part, example)
        if name in pairs:
            raise ValueError(f'--{flag}={text!r:.200} has {name!r:.80} twice')
        pairs[name] = value
    return pairs


def _pair(flag: str, text: str, part: str, example: str) -> tuple[str, str]:
    name, equals, value = (side.strip() for side in part.partition('='))
    if not name or not equals:
        raise ValueError(f'--{flag}={text!r:.200} must be {"pairs" if "," in example else "one"} such as {example}')
    return name, value
