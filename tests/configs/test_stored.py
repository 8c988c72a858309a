"""Configs of every version are read as what they meant, and later ones are refused."""

import pytest

from configs import common
from configs import stored as stored_configs
from configs.stored import MEANT_BEFORE, VERSION


def base_config():
    return common.base_config(common.parse('', **common.ARGUMENTS)).to_dict()


def test_a_config_of_an_earlier_version_gets_the_fields_that_it_lacks():
    """Those alone that were added since: a config without another field is a damaged one."""
    today, added = base_config(), MEANT_BEFORE[2] | MEANT_BEFORE[3]
    assert set(added) <= set(today)
    stored = {name: value for name, value in today.items() if name not in added}
    groups = 'quantization', 'optimizer'
    stored |= {group: {k: v for k, v in today[group].items() if k not in added[group]} for group in groups}
    before = {'special_tokens': added['special_tokens'], **{group: today[group] | added[group] for group in groups}}
    assert stored_configs.read(stored) == today | before
    assert stored_configs.read({**stored, 'scan_unroll': 3})['scan_unroll'] == 3
    assert set(stored_configs.read({})) == set(added)


def test_what_is_stored_says_its_version():
    """And so is read as what it says, without what was meant before."""
    today = base_config()
    stored = stored_configs.write(today)
    assert stored['config_version'] == VERSION and stored_configs.read(stored) == today
    del stored['invalid_text']
    assert 'invalid_text' not in stored_configs.read(stored)
    for version in (VERSION + 1, 0, '2', True, None, 1.0):
        with pytest.raises(ValueError, match=f'^it: config_version=.* must be of 1 to {VERSION}'):
            stored_configs.read(stored | {'config_version': version}, 'it')


def test_fields_are_added_to_groups(monkeypatch):
    """As to those of the optimizer, whose other fields stay."""
    monkeypatch.setattr(stored_configs, 'VERSION', VERSION + 1)
    monkeypatch.setitem(MEANT_BEFORE, VERSION + 1, {'optimizer': {'nesterov': False, 'b1': 0.5}})
    today = base_config()
    stored = {**today, 'config_version': VERSION}
    assert stored_configs.read(stored)['optimizer'] == {**today['optimizer'], 'nesterov': False}


def test_a_stored_config_has_the_types_of_a_config():
    """A text may be None, as in a config of one's own; it is then empty, in nested fields, too."""
    stored = common.base_config(common.parse('', **common.ARGUMENTS)).to_dict()
    odd = stored | {'data_dir': None, 'optimizer': stored['optimizer'] | {'name': None, 'learning_rate': 1}}
    completed = stored_configs.read(odd)
    assert (completed['data_dir'], completed['optimizer']['name'], odd['data_dir']) == ('', '', None)
    wrong = {
        'seed': True,
        'batch_size': '8',
        'optimizer': [],
        'deterministic': 1,
        'special_tokens': None,
        'model': 'llama',
    }
    for name, value in {**wrong, 'total_steps': None}.items():
        with pytest.raises(ValueError, match=f'^it: the field {name} must be an? '):
            stored_configs.read(stored | {name: value}, 'it')
    with pytest.raises(ValueError, match=r'^it: the field optimizer.b1 must be a number, not True'):
        stored_configs.read(stored | {'optimizer': stored['optimizer'] | {'b1': True}}, 'it')
