"""MXFP6 as AMD Quark stores it: E3M2 or E2M3, four codes in three bytes."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from gaussq_jax.packed.layout import LeafLayout
from gaussq_jax.serving.matrices import NOTHING_FUSED, Module
from gaussq_jax.serving.storages import MXFP6_E2M3, MXFP6_E3M2
from gaussq_jax.serving.tensors import e8m0_scales, packed_codes, to_tensors, unquantized

DTYPES = {MXFP6_E3M2: 'fp6_e3m2', MXFP6_E2M3: 'fp6_e2m3'}


def to_quark_mxfp6(
    params: Any,
    layout: Mapping[str, LeafLayout],
    *,
    fused: Mapping[str, str] = NOTHING_FUSED,
    unheld: str = 'error',
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The weights of a layout in MXFP6 as AMD Quark exports it, and the `quantization_config` by which it is read.

        X.weight        uint8 (out, 3 in / 4)    codes of 6 bits, the first input in the lowest bits of the first byte
        X.weight_scale  uint8 (out, in / 32)     2^(code - 127)

    Activations are not quantized: 'input_tensors' is None.

    Args:
      params: pytree of weights, with the names that the server has for them.
      layout: of these params, such as `uniform_layout(params, 'float6_e3m2fn')`.
      fused, unheld: as for `serving.matrices.modules`.

    Returns:
      The tensors by name; and the `quantization_config` of config.json. Most modules have the format of
      'global_quant_config', others that of their entry in 'layer_quant_config'. Modules that aren't quantized are in
      'exclude', and lm_head among them, tied or not, unless the layout has it.

    Raises:
      ValueError: for a layout that neither E3M2 nor E2M3 holds exactly, by 32 inputs; as
        `serving.tensors.to_tensors`.

    Example:
      >>> import gaussq_jax as gq
      >>> params = {'up': {'kernel': np.ones((32, 8), np.float32)}}
      >>> tensors, config = to_quark_mxfp6(params, gq.uniform_layout(params, 'float6_e3m2fn'))
      >>> {name: (str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()}
      {'up.weight': ('uint8', (8, 24)), 'up.weight_scale': ('uint8', (8, 1))}
      >>> config['global_quant_config']['weight']['dtype']
      'fp6_e3m2'

    Source: amd-quark 0.13, quark.torch.utils.pack.Pack_fp6 and QConfig.to_dict; transformers 5.24 loads such a model
    with it, on a CPU. vLLM 0.33 says that it reads these tensors (QuarkOCP_MX): that was read, and not run.
    """
    tensors, storages = to_tensors(params, layout, 'quark-mxfp6', _stored, fused=fused, unheld=unheld)
    found = {name: storage for name, storage in storages.items() if storage}
    if not found:
        return tensors, {}
    usual = collections.Counter(found.values()).most_common(1)[0][0]
    config = {
        'quant_method': 'quark',
        'quant_mode': 'eager_mode',
        'global_quant_config': _of_layers(usual),
        'layer_type_quant_config': {},
        'layer_quant_config': {name: _of_layers(storage) for name, storage in found.items() if storage != usual},
        'kv_cache_quant_config': {},
        'softmax_quant_spec': None,
        'algo_config': None,
        'exclude': unquantized(storages),
        'export': {
            'kv_cache_group': [],
            'min_kv_scale': 0.0,
            'pack_method': 'reorder',
            'weight_format': 'real_quantized',
            'weight_merge_groups': None,
        },
    }
    return tensors, config


def _stored(module: Module) -> dict[str, np.ndarray]:
    return {'weight': packed_codes(module), 'weight_scale': e8m0_scales(module)}


def _of_layers(storage) -> dict[str, Any]:
    weight = {
        'dtype': DTYPES[storage],
        'is_dynamic': False,
        'qscheme': 'per_group',
        'ch_axis': -1,
        'group_size': 32,
        'symmetric': None,
        'round_method': 'half_even',
        'scale_type': 'float',
        'scale_format': 'e8m0',
        'scale_calculation_mode': 'even',
        'mx_element_dtype': None,
        'observer_cls': 'PerBlockMXObserver',
        'is_scale_quant': False,
    }
    return {'input_tensors': None, 'output_tensors': None, 'weight': weight, 'bias': None, 'target_device': None}
