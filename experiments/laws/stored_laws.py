"""Laws in files: a law, its intervals' draws, and what the runs behind it leave open, as JSON."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from experiments.files import foreign_text, json_files, paths
from experiments.laws.known_laws import RANGES, KnownLaw
from experiments.laws.law_choices import LAWS, LawChoice
from gaussq_jax import scaling_laws
from gaussq_jax.atomic_files import replace_file
from gaussq_jax.scaling_laws import ScalingLaw


def write_law(path: str | pathlib.Path, known: KnownLaw):
    """Writes a law as JSON, for `read_law`."""
    content = {
        'law': known.name,
        'origin': foreign_text.printable(' '.join(known.origin.split())),
        'constants': known.law.constants(),
        'noise': known.noise,
        'undetermined': known.undetermined,
        'determination': known.determination
        and {
            'names': known.determination.names,
            'unseen': known.determination.unseen.tolist(),
            'covariance': known.determination.covariance.tolist(),
            'alternatives': _laws_as_json(known.determination.alternatives),
            'ties': dict(known.determination.ties),
        },
        'ranges': known.ranges,
        'bootstrap': _laws_as_json(known.draws),
        'errors': known.errors,
        'scatter': known.scatter and {**known.scatter._asdict(), 'residuals': known.scatter.residuals.tolist()},
    }
    replace_file(paths.parse(path, '--output'), json.dumps(content, indent=1) + '\n')


def read_law(path: str | pathlib.Path, own: LawChoice | None = None) -> KnownLaw:
    """Reads what `write_law` has written.

    Args:
      path: of the file.
      own: the law of one's own that it is of, if it is.

    Raises:
      ValueError: if it is something else, or of a law that isn't known.
    """
    content = json_files.read(paths.parse(path, '--law'))
    try:
        family = _family(content['law'], own)
        law = family.from_constants(dict(zip(content['constants'], _numbers(content['constants'].values()))))
        origin, errors = content['origin'], content.get('errors')
        if not isinstance(origin, str) or not origin.isprintable() or len(origin) > 1000:
            raise ValueError('its origin is no line of text')
        if errors not in (None, *scaling_laws.ERRORS):
            raise ValueError(f'errors={errors!r} must be one of {", ".join(scaling_laws.ERRORS)}')
        return KnownLaw(
            law,
            origin,
            _ranges_of_json(content['ranges']),
            _laws_of_json(law, content['bootstrap']),
            _names_of_constants(law, content['undetermined']),
            None if content['noise'] is None else _numbers([content['noise']])[0],
            _determination_of_json(law, content.get('determination')),
            _scatter_of_json(content.get('scatter')),
            errors,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (
            f'it has no {error}'
            if isinstance(error, KeyError)
            else foreign_text.escaped(' '.join(f'{error}'.split()))[:200]
        )
        raise ValueError(f'{path} is not a law as `fit --output={path}` writes it: {reason}') from None


def _family(name: Any, own: LawChoice | None) -> type[ScalingLaw]:
    if own is not None and own.family.__name__ == name:
        return own.family
    if not isinstance(name, str) or name not in LAWS:
        raise ValueError(f"law={name!r:.80} is none of {', '.join(LAWS)}; one's own takes --law_name=FILE.py:NAME")
    return LAWS[name].family


def _laws_as_json(laws: Iterable[ScalingLaw]) -> list[list[float]]:
    """The constants of laws of one family and one choice of constants, in their order."""
    return [list(law.constants().values()) for law in laws]


def _laws_of_json(like: ScalingLaw, content: Any) -> tuple[ScalingLaw, ...]:
    names = list(like.constants())
    return tuple(like.from_constants(dict(zip(names, _numbers(values), strict=True))) for values in content)


def _numbers(values: Iterable[Any]) -> list[float]:
    values = list(values)
    if wrong := [value for value in values if not json_files.is_a(value, float)]:
        raise ValueError(f'{wrong[0]!r:.80} is no number')
    return list(map(float, values))


def _names_of_constants(law: ScalingLaw, names: Iterable[Any]) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in list(law.constants())]:
        raise ValueError(f'{unknown[0]!r:.80} is no constant of the law')
    return tuple(names)


def _ranges_of_json(content: Any) -> dict[str, tuple[float, float]]:
    """N and D, and what else there is: files of version 0.1 have no more."""
    return {column: _range_of_json(content[column]) for column in RANGES if column in ('N', 'D', *content)}


def _range_of_json(content: Any) -> tuple[float, float]:
    low, high = _numbers(content)
    if not 0 < low <= high:
        raise ValueError(f'{low:g} to {high:g} is no range')
    return low, high


def _determination_of_json(law: ScalingLaw, content: Any) -> scaling_laws.Determination | None:
    """None where a file has none, as those of version 0.1."""
    if content is None:
        return None
    names = _names_of_constants(law, content['names'])
    ties = content.get('ties', {})  # which version 0.1 has not
    _names_of_constants(law, ties)
    if {*ties} & {*names} or not {*ties.values()} <= {*names}:
        raise ValueError(f'ties must be of other constants to fitted ones, {", ".join(names)}')
    return scaling_laws.Determination(
        law,
        names,
        np.array(content['unseen'], float).reshape(-1, len(names)),
        np.array(content['covariance'], float).reshape(len(names), len(names)),
        _laws_of_json(law, content['alternatives']),
        ties,
    )


def _scatter_of_json(content: Any) -> scaling_laws.Scatter | None:
    """None where a file has none, as those of version 0.1."""
    if content is None:
        return None
    residuals = np.array(content['residuals'], float)
    if residuals.ndim != 1 or not residuals.size or not np.all(np.isfinite(residuals)):
        raise ValueError('scatter must have residuals, finite numbers')
    return scaling_laws.Scatter(residuals, bool(content['is_relative']))
