"""JSON as it is read, whoever wrote it, bounded and of the types that its reader asks for; and as it is written."""

import contextlib
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.files import paths

MOST_BYTES = 2**26  # the largest tokenizers have half of it
MOST_CONTAINERS = 2**22  # objects and arrays, which take much more memory than text
MOST_LEVELS = 64
KINDS = {dict: 'an object', list: 'an array', str: 'a string', int: 'an integer', float: 'a number', bool: 'a boolean'}


def read(path: str | os.PathLike, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """The object that a file holds.

    Args:
      path: of the file.
      **kinds: what has to be in it, and of which types: of `KINDS`. An integer is a number, too, and one
        beyond 64 bits no integer; a boolean is neither.

    Raises:
      ValueError: naming the file, if it can't be read; if it is no JSON, has an object with one key twice, numbers
        beyond 1.8e308, half a surrogate pair, more than MOST_BYTES, MOST_CONTAINERS or MOST_LEVELS; if it holds
        something else than an object, or lacks something, or has it of another type.

    Example:
      step = json_files.read(directory / 'checkpoint.json', step=int, config=dict)['step']
    """
    path = pathlib.Path(path)
    try:
        with open(paths.check_file(path), 'rb') as file:
            contents = parse(file.read(MOST_BYTES + 1), path)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    return require(contents, path, kinds)


def write(path: pathlib.Path, contents: Mapping[str, Any]) -> None:
    """Writes an object in one step: a reader, or a kill, finds the old one or the new.

    Raises:
      ValueError: a number that is not finite, which JSON doesn't have; what `atomic_files.new_file` refuses.
      OSError: naming the file.
    """
    try:
        text = json.dumps(contents, indent=2, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path} can't be written: {error}") from None
    from gaussq_jax.atomic_files import replace_file  # imports JAX, which processes that only read do without

    replace_file(path, text + '\n')


def parse(text: str | bytes, where: Any, *, allow_half_surrogates: bool = False) -> Any:
    """The value of a JSON text; ValueErrors as `read` raises them begin with `where`.

    With allow_half_surrogates, strings may hold halves of surrogate pairs, which can't be encoded in UTF-8.
    """
    try:
        if len(text) > MOST_BYTES:
            raise ValueError(f'more than {MOST_BYTES:,} bytes')
        text = text.decode('utf-8-sig') if isinstance(text, bytes) else text
        if text.count('{') + text.count('[') > MOST_CONTAINERS:
            raise ValueError(f'more than {MOST_CONTAINERS:,} objects and arrays')
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_float=_number)
        _check_levels(value)
        if not allow_half_surrogates and re.search(r'\\u[dD][89a-fA-F]', text):
            json.dumps(value, ensure_ascii=False).encode()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{where} is no JSON: {error}') from None
    except UnicodeEncodeError:
        raise ValueError(f"{where} can't be read: it has half a surrogate pair") from None
    except ValueError as error:
        raise ValueError(f"{where} can't be read: it has {error}") from None
    except RecursionError:
        raise ValueError(f"{where} can't be read: it has more than {MOST_LEVELS} levels") from None
    return value


def require(value: Any, where: Any, kinds: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """The value itself, an object that has these, as `read` says."""
    if not isinstance(value, dict):
        raise ValueError(f'{where} must hold a JSON object, not {_kind(value)}')
    for name, allowed in kinds.items():
        if name not in value:
            raise ValueError(f'{where} lacks {name!r}')
        allowed = allowed if isinstance(allowed, tuple) else (allowed,)
        if not any(is_a(value[name], kind) for kind in allowed):
            kinds_allowed = ' or '.join(map(KINDS.get, allowed))
            raise ValueError(f'{where}: {name!r} must be {kinds_allowed}, not {_kind(value[name])}')
    return value


@contextlib.contextmanager
def naming(source: Any) -> Iterator[None]:
    """ValueErrors of what was read from `source` name it, whoever raises them."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if str(source) in str(error) else f'{source}: {error}') from None


def is_a(value: Any, kind: type) -> bool:
    """Whether a value is of a type of `KINDS`."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _kind(value):
    return 'null' if value is None else next(name for kind, name in KINDS.items() if is_a(value, kind))


def _object(pairs):
    value = {}
    for name, inner in pairs:
        if name in value:
            raise ValueError(f'a key twice, {name[:80]!r}')
        value[name] = inner
    return value


def _integer(text):
    is_small = len(text) <= 20 and -(2**63) <= int(text) < 2**64
    return int(text) if is_small else _number(text)  # a number, as transformers' model_max_length, and no integer


def _number(text):
    if math.isinf(value := float(text)):
        raise ValueError(f'a number that is not finite, {text[:24]}')
    return value


def _check_levels(value):
    level = [value]
    for _ in range(MOST_LEVELS):
        if not level:
            return
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _inside(outer)]
    if any(isinstance(inner, dict | list) for inner in level):
        raise ValueError(f'more than {MOST_LEVELS} levels')


def _inside(container):
    return container.values() if isinstance(container, dict) else container
