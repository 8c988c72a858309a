"""What a checkpoint holds beside its arrays, checkpoint.json, and whether a program may go on from it.

{"step": 4, "leaves": {"params/w": "float32[4, 8]", …}, "data_state": {"json": …}, "config": {…}}
"""

import base64
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.files import json_files

CONTENTS = 'checkpoint.json'
ABSENT = type('Absent', (), {'__repr__': lambda self: '(absent)'})()
MOST_SHOWN = 20  # of leaves that differ


def make_contents(step: int, leaves: Mapping[str, Any], data_state: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be stored of a step.

    Args:
      leaves: of the state, as `leaves_by_name` gives them.
      data_state: bytes, or anything that JSON keeps as it is.
      config: JSON-able.

    Raises:
      ValueError: something that JSON can't hold, by its name.
    """
    return {
        'step': step,
        'leaves': {name: describe_leaf(leaf) for name, leaf in leaves.items()},
        'data_state': _encode_data_state(data_state),
        'config': _through_json('config', config),
    }


def write_contents(directory: pathlib.Path, contents: Mapping[str, Any]) -> None:
    """Writes them into the directory of a step that isn't whole yet."""
    (directory / CONTENTS).write_text(json.dumps(contents, indent=1), encoding='utf-8')


def read_contents(directory: pathlib.Path) -> dict[str, Any]:
    """What was written there; ValueError if it is something else."""
    return json_files.read(directory / CONTENTS, step=int, leaves=dict, data_state=dict, config=dict)


def data_state_in(contents: Mapping[str, Any]) -> Any:
    """The data iterator's state, as it was given; ValueError if it is of no kind that is written."""
    match contents['data_state']:
        case {'base64': str(text)}:
            return base64.b64decode(text, validate=True)
        case {'json': value}:
            return value
    raise ValueError(f'{CONTENTS} has a data_state of no kind that is written')


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths, as arrays, in the pytree's order; ValueError for two of one path."""
    leaves = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        if name in leaves:
            raise ValueError(f'state: two of its leaves have the path {name}')
        leaves[name] = leaf if hasattr(leaf, 'dtype') else np.asarray(leaf)
    return leaves


def describe_leaf(leaf: Any) -> str:
    """Its dtype and its shape: 'float32[4, 8]'."""
    return f'{leaf.dtype}{list(leaf.shape)}'


def stored_name(contents: Mapping[str, Any], name: str, former_names: Mapping[str, str]) -> str:
    """The name of a leaf in a checkpoint, whose field may have had another, of `former_names`."""
    field, _, path = name.partition('/')
    former, stored = f'{former_names.get(field)}/{path}', contents['leaves']
    return former if name not in stored and former in stored else name


def check_leaves(directory: pathlib.Path, contents: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    """ValueError, naming the leaves, if a checkpoint has others, or of other shapes or dtypes, than the program."""
    present = {name: describe_leaf(leaf) for name, leaf in leaves.items()}
    if found := list(differences(contents['leaves'], present)):
        more = len(found) - MOST_SHOWN
        shown = found[:MOST_SHOWN] + [f'... and {more} more'] * (more > 0)
        raise ValueError(
            f'the checkpoint {directory} does not hold the state of this program. Leaves that differ:\n  '
            + '\n  '.join(shown)
            + '\nUse another --workdir, or the model, method and optimizer that it was saved with.'
        )


def check_identity(
    directory: pathlib.Path,
    stored: Mapping[str, Any],
    present: Mapping[str, Any],
    identity: Sequence[str],
    clues: Sequence[str] = (),
) -> None:
    """ValueError, naming the fields, if a checkpoint's config has other values for the keys `identity`.

    With them it names those of `clues` that differ, which may be why.

    Raises:
      ValueError: also for a key that the present config doesn't have.
    """
    present = _through_json('config', present)
    if unknown := [key for key in identity if key not in present]:
        raise ValueError(f'identity names {unknown}, but config has only {sorted(present)}')
    differing = lambda keys: [
        line for key in keys for line in differences(stored.get(key, ABSENT), present.get(key, ABSENT), key)
    ]
    if found := differing(identity):
        found += differing(clues)
        raise ValueError(
            f'the checkpoint {directory} was saved by a run with another config:\n  '
            + '\n  '.join(found)
            + '\nUse another --workdir for this config, or give the stored values to continue that run.'
        )


def differences(stored: Any, present: Any, name: str = '') -> Iterator[str]:
    """Where two values as JSON has them differ, in a line each; `name` is that of the values themselves."""
    if isinstance(stored, dict) and isinstance(present, dict):
        for key in dict.fromkeys([*stored, *present]):
            inner = f'{name}.{key}' if name else key
            yield from differences(stored.get(key, ABSENT), present.get(key, ABSENT), inner)
    elif stored != present:
        yield f'{name}: stored {stored!r}, present {present!r}'


def _through_json(name: str, value: Any) -> Any:
    """A copy of a value as JSON keeps it."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f'{name}={value!r} cannot be stored as JSON: {error}') from error


def _encode_data_state(data_state: Any) -> dict[str, Any]:
    if isinstance(data_state, bytes):
        return {'base64': base64.b64encode(data_state).decode()}
    copy = _through_json('data_state', data_state)
    if copy != data_state:
        raise ValueError(f'data_state={data_state!r}: JSON makes it {copy!r}; give bytes, or what JSON keeps')
    return {'json': copy}
