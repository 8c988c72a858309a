"""Which tensors there are, under which names, whatever a target makes of each module."""

import numpy as np
import pytest
from serving_models import RULES, llama, of_rows

import gaussq_jax as gq

TARGETS = [gq.to_mlx, gq.to_deepseek_fp8, gq.to_quark_mxfp6]


@pytest.mark.parametrize('to_target', TARGETS)
def test_two_tensors_of_one_name_are_an_error(to_target):
    params = {'up': {'kernel': np.ones((32, 8), np.float32), 'weight': np.ones(8, np.float32)}}
    layout = gq.uniform_layout(params, 'float4_e2m1fn', rules=[gq.MatrixRule('.*kernel'), gq.CastOnly('.*')])
    layout = {path: of_leaf for path, of_leaf in layout.items()}
    with pytest.raises(ValueError, match=r"two leaves of params are stored under the name 'up.weight'"):
        to_target(params, layout, unheld='bfloat16')


@pytest.mark.parametrize('to_target', [*TARGETS, gq.to_qarray])
def test_what_becomes_of_others_is_one_of_two_things(to_target):
    params, rules = of_rows(np.ones((8, 32), np.float32))
    with pytest.raises(ValueError, match=r"unheld='keep': it must be 'error' or 'bfloat16'"):
        to_target(params, gq.uniform_layout(params, 'e2m1', rules=rules), unheld='keep')


@pytest.mark.parametrize('to_target', TARGETS)
def test_a_model_without_quantized_modules_has_no_config(to_target):
    params, _ = llama(tied=True)
    tensors, config = to_target(params, gq.uniform_layout(params, 'bfloat16', rules=RULES))
    assert not config and tensors.keys() == params.keys()
    assert {str(tensor.dtype) for tensor in tensors.values()} == {'bfloat16'}


@pytest.mark.parametrize('to_target', TARGETS)
def test_a_layout_of_other_params_is_an_error(to_target):
    params, rules = of_rows(np.ones((8, 32), np.float32))
    layout = gq.uniform_layout(params, 'e2m1', rules=rules)
    with pytest.raises(ValueError, match=r"the layout is of other params: they have no leaf 'up\.weight'"):
        to_target({'down.weight': params['up.weight']}, layout)
