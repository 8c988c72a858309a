"""Parameter trees of public models: each leaf is read as a table written by hand says, or refused."""

import jax
import jax.numpy as jnp
import pytest
from parameter_families import FAMILIES

import gaussq_jax as gq
from gaussq_jax.param_reading import read_params


def tree_of(name):
    if name != 'Haiku':
        return FAMILIES[name].tree()
    tree = {}
    for path, (shape, _) in FAMILIES[name].leaves.items():
        module, _, leaf = path.partition('|')
        tree.setdefault(module, {})[leaf] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


def read(tree, rules):
    """{path: what is read}: roles, or what is done with the leaf."""
    readings = read_params(tree, rules)
    return {
        path: ' '.join(reading.matrices[0].roles) if reading.action == 'sampled' else reading.action
        for path, reading in readings.items()
    }


@pytest.mark.parametrize('name', FAMILIES)
def test_each_leaf_is_read_as_it_is(name):
    family = FAMILIES[name]
    expected = {path.replace('|', '/'): what for path, what in family.expected().items()}
    expected |= dict.fromkeys(family.others or {}, 'kept')
    assert read(tree_of(name), (*family.rules, *gq.DEFAULT_RULES)) == expected


@pytest.mark.parametrize('name', [name for name, family in FAMILIES.items() if family.rules])
def test_what_nothing_tells_is_refused_and_nothing_else(name):
    family = FAMILIES[name]
    readings = read(family.tree(), gq.DEFAULT_RULES)
    assert {path for path, what in readings.items() if what == 'unexplained'} == family.refused()
    with pytest.raises(ValueError, match=f'{len(family.refused())} of {len(readings)} leaves are unexplained'):
        gq.gaussian_weight_sampling().init(family.tree())
