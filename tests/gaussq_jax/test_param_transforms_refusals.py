"""What would silently leave weights unsampled, or sample what must not be, is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameter_trees import RULES

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
    pqt, params = gq.gaussian_weight_sampling(rules=RULES), {'layers': {'kernel': jnp.stack([W, W])}}
    with pytest.raises(ValueError, match=f'layer={layer}'):
        pqt.apply(KEY, {'kernel': W}, pqt.init(params), path=('layers',), layer=layer)


@pytest.mark.parametrize('key', [KEY, None])
def test_a_state_of_other_params_is_refused_with_all_that_differs(key):
    pqt, params = gq.gaussian_weight_sampling(), {'up': {'kernel': W}, 'down': {'kernel': W}}
    with pytest.raises(ValueError, match=r"it lacks \['down/kernel', 'up/kernel'\] and has \['gate/kernel'\] besides"):
        pqt.apply(key, params, {'gate/kernel': jnp.ones((1, 2))})


def test_two_leaves_with_one_path_are_refused():
    with pytest.raises(ValueError, match='two leaves have the path'):
        gq.gaussian_weight_sampling().init({'a/b': {'kernel': W}, 'a': {'b': {'kernel': W}}})


def test_a_weight_of_another_dtype_is_named():
    with pytest.raises(ValueError, match=r'up/kernel, .*: it is float16: only float32 and bfloat16 are sampled'):
        gq.gaussian_weight_sampling().init({'up': {'kernel': W.astype(jnp.float16)}})


@pytest.mark.parametrize('head', ['lm_head', 'logits_dense', 'cls_head', 'mlm_head', 'qa_outputs', 'to_logits'])
def test_heads_are_cast_only(head):
    state = gq.gaussian_weight_sampling().init({'up': {'kernel': W}, head: {'kernel': W}})
    assert set(state) == {'up/kernel'}


def test_a_hidden_layer_before_the_logits_is_sampled():
    assert set(gq.gaussian_weight_sampling().init({'pre_logits': {'kernel': W}})) == {'pre_logits/kernel'}
