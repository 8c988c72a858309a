"""What a checkpoint holds beside its arrays, checkpoint.json, and whether a program may go on from it.

{"step": 4, "leaves": {"params/w": "float32[4, 8]", …}, "data_state": {"json": …}, "config": {…}}
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.files import json_files

CONTENTS = 'checkpoint.json'
FORMER_NAMES = {'transform_state': 'bitwidths'}  # of fields of a state, in checkpoints of configs without a version
ABSENT = type('Absent', (), {'__repr__': lambda self: '(absent)'})()
MOST_SHOWN = 20  # of leaves that differ


def make_contents(step: int, leaves: Mapping[str, Any], data_state: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be stored of a step; ValueError, by its name, for something that JSON can't hold."""
    if (copy := _through_json('data_state', data_state)) != data_state:
        raise ValueError(f'data_state={data_state!r}: JSON makes it {copy!r}; give what JSON keeps')
    return {
        'step': step,
        'leaves': {name: describe_leaf(leaf) for name, leaf in leaves.items()},
        'data_state': {'json': copy},
        'config': _through_json('config', config),
    }


def read_contents(directory: pathlib.Path) -> dict[str, Any]:
    """What was written there; ValueError if it is something else."""
    contents = json_files.read(directory / CONTENTS, step=int, leaves=dict, data_state=dict, config=dict)
    json_files.require(contents['data_state'], f'data_state in {directory / CONTENTS}', {'json': dict})
    return contents


def describe_leaf(leaf: Any) -> str:
    """Its dtype and its shape: 'float32[4, 8]'."""
    return f'{leaf.dtype}{list(leaf.shape)}'


def stored_name(contents: Mapping[str, Any], name: str) -> str:
    """The name of a leaf in a checkpoint, whose field may have had another, of FORMER_NAMES."""
    field, _, path = name.partition('/')
    former, stored = f'{FORMER_NAMES.get(field)}/{path}', contents['leaves']
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


def differences(stored: Any, present: Any, name: str = '') -> Iterator[str]:
    """A line for each field, named by its path below `name`, that differs between two values of JSON."""
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
