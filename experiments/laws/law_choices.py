"""The laws that a program can be asked for: by name, or in a file of one's own."""

import dataclasses
import importlib.util
import inspect
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from experiments.files import paths
from gaussq_jax import scaling_laws
from gaussq_jax.scaling_laws import ScalingLaw
from gaussq_jax.scaling_laws.inputs import REFERENCE

NO_NUMBERS = ('B', 'forward', 'backward')  # columns of laws that are texts, or may be
EVERY_TABLE = ('N', 'D', 'E', 'M', 'P', 'b', 'P_w', 'P_a', 'P_kv', 'P_post')
UNQUANTIZED = {  # by the columns of precision, what is not rounded: by every law it costs nothing, or next to nothing
    **{'E': 8.0, 'M': 7.0, 'B': 1.0, 'b': math.inf, 'forward': REFERENCE, 'backward': REFERENCE},
    **dict.fromkeys(('P', 'P_w', 'P_a', 'P_kv'), 16.0),
    'P_post': math.inf,
}


class LawChoice(NamedTuple):
    """A law to fit, and what `scaling_laws.fit` fixes of its constants."""

    family: type[ScalingLaw]
    fixed: Mapping[str, float | str] = {}

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that a table of runs must have for it; P comes from E and M, where there is none."""
        return tuple(name for name in self.family.COLUMNS if name not in self.family.DEFAULTS)

    @property
    def knows_precision(self) -> bool:
        return bool(UNQUANTIZED.keys() & {*self.family.COLUMNS})


TIED = {'beta': 'alpha'}
LAWS = {
    'capybara': LawChoice(scaling_laws.CapybaraLaw),
    'effective': LawChoice(scaling_laws.EffectiveLaw),
    'chinchilla': LawChoice(scaling_laws.ChinchillaLaw),
    'chinchilla-tied': LawChoice(scaling_laws.ChinchillaLaw, TIED),
    'outer': LawChoice(scaling_laws.OuterExponentLaw),
    'outer-tied': LawChoice(scaling_laws.OuterExponentLaw, TIED),
    'kaplan': LawChoice(scaling_laws.KaplanLaw),
    'kumar': LawChoice(scaling_laws.KumarLaw),
    'kumar-operands': LawChoice(scaling_laws.KumarOperandsLaw),
    'bitwidth': LawChoice(scaling_laws.BitwidthLaw),
    'qat': LawChoice(scaling_laws.QATLaw),
}


def extra_columns(choices: Iterable[LawChoice]) -> tuple[str, ...]:
    """The columns of numbers that laws take, besides those of every table."""
    names = dict.fromkeys(name for choice in choices for name in choice.family.COLUMNS)
    return tuple(name for name in names if name not in (*EVERY_TABLE, *NO_NUMBERS))


def find(name: str, flag: str = '--law_name') -> LawChoice:
    """The law of a name, or the class in a file, as 'my_laws.py:RepeatingLaw', which is run.

    Raises:
      ValueError: for another name, a file that isn't there or fails, what is in it no law, or one that is not whole.
    """
    if name in LAWS:
        return LAWS[name]
    path, colon, class_name = name.rpartition(':')
    if not colon or not path.endswith('.py'):
        known = ', '.join(LAWS)
        raise ValueError(f'{flag}={name!r} must be one of {known}; or a class in a file, as my_laws.py:MyLaw')
    family = getattr(_run(paths.parse(path, flag)), class_name, None)
    if not (isinstance(family, type) and issubclass(family, ScalingLaw) and dataclasses.is_dataclass(family)):
        raise ValueError(f'{flag}={name}: there is no dataclass {class_name} in it that is a ScalingLaw')
    if '_loss' not in vars(family) or tuple(getattr(family, 'COLUMNS', ()))[:2] != ('N', 'D'):
        raise ValueError(f"{flag}={name}: it needs _loss, and COLUMNS, of which the first are 'N' and 'D'")
    if len({*family.COLUMNS, 'loss'}) <= len(family.COLUMNS):
        raise ValueError(f"{flag}={name}: its COLUMNS must be different, and 'loss' none of them")
    try:
        inspect.signature(family._loss).bind(None, *family.COLUMNS)
    except TypeError as error:
        takes = ', '.join(family.COLUMNS)
        raise ValueError(f'{flag}={name}: its _loss must take {takes}, which are its COLUMNS: {error}') from None
    return LawChoice(family)


def _run(path: pathlib.Path):
    paths.check_file(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever its author has done
        raise ValueError(f'{path} fails: {type(error).__name__}: {error}') from None
    return module


def parse_fixed(texts: list[str]) -> dict[str, float | str]:
    """Of --fixed: constants with a number, or another's name: ['gamma=1', 'beta=alpha'].

    Raises:
      ValueError: for what is neither.
    """
    fixed = {}
    for text in texts:
        match = re.fullmatch(r'\s*(\w+(?:\[.*?\])?)\s*=\s*(\S.*?)\s*', text)  # a recipe in brackets may have an =
        if not match:
            raise ValueError(f'--fixed={text!r} must be a constant with a number or the name of another: gamma=1')
        name, value = match.groups()
        if name in fixed:
            raise ValueError(f'--fixed has {name} twice: {fixed[name]} and {value}')
        try:
            fixed[name] = float(value)
        except ValueError:
            fixed[name] = value
    return fixed
