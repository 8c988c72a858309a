"""Which tensors there are, under which names, whatever a target makes of each module."""

import numpy as np
import pytest
from serving_models import RULES, llama, mixed_layout, of_rows

import gaussq_jax as gq

TARGETS = [gq.to_mlx, gq.to_deepseek_fp8, gq.to_quark_mxfp6]


@pytest.mark.parametrize('to_target', TARGETS)
def test_two_tensors_of_one_name_are_an_error(to_target):
    params = {'up': {'kernel': np.ones((32, 8), np.float32), 'weight': np.ones(8, np.float32)}}
    layout = gq.uniform_layout(params, 'float4_e2m1fn', rules=[gq.MatrixRule('.*kernel'), gq.CastOnly('.*')])
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


def test_fused_modules_are_stored_alike():
    """Of MXFP4 and MXFP8 the latter; where one of them is held by none, all are in bfloat16."""
    params, _ = llama(tied=True)
    layout = mixed_layout(params, dict(fmt='float8_e4m3fn'), dict(fmt='float4_e2m1fn'))
    mlp = [f'model.layers.0.mlp.{name}_proj' for name in ('gate', 'up', 'down')]
    fused = dict.fromkeys(mlp, 'model.layers.0.mlp')
    tensors, config = gq.to_mlx(params, layout, fused=fused)
    others = [name for name, mode in config.items() if isinstance(mode, dict)]
    assert sorted(others) == sorted([*mlp, 'model.layers.1.mlp.down_proj'])
    assert all(tensors[f'{name}.weight'].shape[1] * 4 == params[f'{name}.weight'].shape[1] for name in mlp)
    layout = mixed_layout(params, dict(fmt='e3m4'), dict(fmt='float4_e2m1fn'))
    tensors, _ = gq.to_mlx(params, layout, fused=fused, unheld='bfloat16')
    assert {str(tensors[f'{name}.weight'].dtype) for name in mlp} == {'bfloat16'}
    assert 'model.layers.1.mlp.up_proj.scales' in tensors
