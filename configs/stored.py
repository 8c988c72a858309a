"""Configs as runs store them, and how those of earlier versions are read: as what they meant then."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from configs import common
from experiments.files import json_files

VERSION = 3  # of the fields there are; what version 0.1.0 stored says none, and is of 1
VERSION_FIELD = 'config_version'
IDENTITIES = ('corpus', 'initial_weights', 'teacher_weights')  # which a checkpoint keeps beside the fields
# The version that added them -> fields, and what was done before there were such. Who adds a field to
# `common.base_config` adds a version, or to the last one if that is not released yet.
MEANT_BEFORE = {
    2: {
        'scan_unroll': 1,
        'invalid_text': 'error',
        'special_tokens': {'bos_token_id': 'eos', 'eos_token_id': 'by_name', 'add_bos_token': 'true'},
    },
    3: {
        'quantization': {
            **{'optimizer': 'adamw', 'start': 0.0, 'price': 0.0, 'fall': 0.0},
            **{'recipe': '', 'full_precision': '', 'start_step': 0, 'end_step': 0, 'arithmetic': 'simulated'},
        },
        'held_out': 0.005,
        'packing': '',
        'teacher': '',
        'distillation': {'temperature': 1.0, 'weight': 1.0},
        'optimizer': {'schedule': 'cosine', 'decay_steps': 0},
        'branch_from': '',
        'keep_period': 0,
    },
}


def write(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored of a resolved config: all of it, in the form of today."""
    return {VERSION_FIELD: VERSION, **read({VERSION_FIELD: VERSION, **config}, 'the config')}


def read(stored: Mapping[str, Any], source: Any = 'a stored config') -> dict[str, Any]:
    """A stored config of any version since 0.1.0, with every field of today's that was added since.

    A text may be None, as in a config of one's own: it is then empty.

    Raises:
      ValueError: for a version after this one, and for a field of another type than a config's; begins with `source`.
    """
    stored = dict(stored)
    version = stored.pop(VERSION_FIELD, 1)
    if not json_files.is_a(version, int) or not 1 <= version <= VERSION:
        raise ValueError(f"{source}: {VERSION_FIELD}={version!r:.80} must be of 1 to {VERSION}, which is today's")
    for added_in, fields in MEANT_BEFORE.items():
        if version < added_in:
            stored = _merged(fields, stored)
    like = {**common.base_config(common.parse('', **common.ARGUMENTS)).to_dict(), 'model': {'family': ''}}
    return _checked(stored, like, source)


def to_look_at(stored: Mapping[str, Any], source: Any, changes: Mapping[str, Any]) -> ConfigDict:
    """The config of a run that is opened again, changed, on whatever devices there are.

    Args:
      stored: as `read` gives it.
      source: of it, for errors.
      changes: fields that replace those of it; by default all devices share the weights.

    Raises:
      ValueError: it lacks fields that version 0.1.0 had.
    """
    fields = traverse_util.flatten_dict(common.base_config(common.parse('', **common.ARGUMENTS)).to_dict(), sep='.')
    if missing := {*fields, 'model.family'} - set(traverse_util.flatten_dict(dict(stored), sep='.')):
        raise of_another_program(source, missing)
    config = ConfigDict({name: value for name, value in stored.items() if name not in IDENTITIES})
    config.update({'mesh': {'data': 1, 'fsdp': -1, 'tensor': 1}, **changes})
    return config


def of_another_program(source: Any, missing: set[str]) -> ValueError:
    """The error for a stored config that lacks fields of all versions."""
    return ValueError(
        f'{source} is of another program or of a version before 0.1.0: its config lacks {", ".join(sorted(missing))}'
    )


def as_begun(config: dict[str, Any], begun: dict[str, Any]) -> dict[str, Any]:
    """A config where what it leaves to a tokenizer's files is what its run, as `read` has it, found there."""
    found, asked = begun['special_tokens'], config['special_tokens']
    return config | {'special_tokens': {name: value or found.get(name, '') for name, value in asked.items()}}


def _merged(before, stored):
    """The stored fields, and of those that they lack the ones from before."""
    both = {
        name: _merged(before[name], stored[name])
        for name in before.keys() & stored.keys()
        if _are_groups(before[name], stored[name])
    }
    return {**before, **stored, **both}


def _are_groups(*values):
    return all(isinstance(value, dict) for value in values)


def _checked(config, like, source, prefix=''):
    checked = dict(config)
    for name in like.keys() & config.keys():
        value, kind = config[name], type(like[name])
        value = '' if value is None and kind is str else value
        if not json_files.is_a(value, kind):
            field, kind = f'{prefix}{name}', json_files.KINDS[kind]
            raise ValueError(f'{source}: the field {field} must be {kind}, not {value!r:.80}')
        checked[name] = _checked(value, like[name], source, f'{prefix}{name}.') if kind is dict else value
    return checked
