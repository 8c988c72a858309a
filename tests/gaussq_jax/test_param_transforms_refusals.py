"""What would silently leave weights unsampled, or sample what must not be, is told."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gaussq_jax as gq

KEY = jax.random.key(2)
W = jax.random.normal(jax.random.key(0), (32, 64))


def test_one_leaf_under_its_path_is_sampled_as_in_the_whole():
    pqt, params = gq.gaussian_weight_sampling(), {'up': {'kernel': W}}
    state = pqt.init(params)
    whole, one = pqt.apply(KEY, params, state), pqt.apply(KEY, W, state, path=('up', 'kernel'))
    np.testing.assert_array_equal(one, whole['up']['kernel'])


def test_a_path_that_is_no_sequence_of_names_is_refused():
    pqt, params = gq.gaussian_weight_sampling(), {'up': {'kernel': W}}
    with pytest.raises(ValueError, match="path='up'"):
        pqt.apply(KEY, params['up'], pqt.init(params), path='up')


def test_a_path_under_which_nothing_is_learned_is_refused():
    """A typo in the path, with rules of one's own, would otherwise only cast."""
    rules = (gq.MatrixRule('layers/kernel', (0,), (1,), (2,)),)
    pqt, params = gq.gaussian_weight_sampling(rules=rules), {'layers': {'kernel': W[None]}}
    with pytest.raises(ValueError, match='layrs'):
        pqt.apply(KEY, {'weight': W}, pqt.init(params), path=('layrs',), layer=0)


@pytest.mark.parametrize('layer', [-1, 2])
def test_a_layer_that_is_not_there_is_refused(layer):
    pqt, params = gq.gaussian_weight_sampling(), {'layers': {'kernel': jnp.stack([W, W])}}
    with pytest.raises(ValueError, match=f'layer={layer}'):
        pqt.apply(KEY, {'kernel': W}, pqt.init(params), path=('layers',), layer=layer)


def test_two_leaves_with_one_path_are_refused():
    with pytest.raises(ValueError, match='two leaves have the path'):
        gq.gaussian_weight_sampling().init({'a/b': {'kernel': W}, 'a': {'b': {'kernel': W}}})


def test_a_weight_of_another_dtype_is_named():
    with pytest.raises(ValueError, match="'up/kernel' is float16"):
        gq.gaussian_weight_sampling().init({'up': {'kernel': W.astype(jnp.float16)}})


@pytest.mark.parametrize('head', ['lm_head', 'logits_dense', 'cls_head', 'mlm_head', 'qa_outputs', 'to_logits'])
def test_heads_are_cast_only(head):
    state = gq.gaussian_weight_sampling().init({'up': {'kernel': W}, head: {'kernel': W}})
    assert set(state) == {'up/kernel'}


def test_a_hidden_layer_before_the_logits_is_sampled():
    assert set(gq.gaussian_weight_sampling().init({'pre_logits': {'kernel': W}})) == {'pre_logits/kernel'}


def test_scanned_convolutions_and_lists_inside_layers():
    """Blocks never straddle layers, and an index anywhere under `layers` means that it is no stack."""
    params = {
        'layers': {
            'conv': {'kernel': jnp.ones((5, 3, 3, 32, 64))},
            'blocks': [{'attention': {'query': {'kernel': jnp.ones((64, 4, 32))}}}],
        }
    }
    state = gq.gaussian_weight_sampling().init(params)
    assert {path: b_i.shape for path, b_i in state.items()} == {
        'layers/conv/kernel': (5, 9, 2),
        'layers/blocks/0/attention/query/kernel': (2, 4),
    }


def test_what_the_rules_understood_is_logged(caplog):
    params = {'up': {'kernel': W}, 'expert': {'wi': W}, 'norm': {'scale': W[0]}}
    with caplog.at_level(logging.INFO, logger='gaussq_jax'):
        gq.gaussian_weight_sampling().init(params)
    assert 'up/kernel is sampled, as matrices of shape (32, 64)' in caplog.text
    assert 'expert/wi, of shape (32, 64), is named by no rule' in caplog.text
    assert 'norm/scale' not in caplog.text
    assert 'matches no leaf' in caplog.text
