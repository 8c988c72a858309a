"""Weights as the package compressed-tensors stores them, which vLLM, SGLang and transformers read."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gaussq_jax.packed import LeafLayout, scale_codes
from gaussq_jax.serving.matrices import NOTHING_FUSED, Module
from gaussq_jax.serving.storages import FP8_BLOCK, FP8_CHANNEL, MXFP4, MXFP6_E2M3, MXFP8, NVFP4
from gaussq_jax.serving.tensors import packed_codes, to_tensors, unquantized

_MX = {'strategy': 'group', 'group_size': 32, 'scale_dtype': 'torch.uint8', 'zp_dtype': 'torch.uint8'}
_E4M3_SCALES = {'scale_dtype': 'torch.float8_e4m3fn', 'zp_dtype': 'torch.float8_e4m3fn'}
# The format of a storage, and the arguments of its weights beside type, symmetric and dynamic.
FORMATS = {
    MXFP4: ('mxfp4-pack-quantized', {'num_bits': 4, **_MX}),
    NVFP4: ('nvfp4-pack-quantized', {'num_bits': 4, 'strategy': 'tensor_group', 'group_size': 16, **_E4M3_SCALES}),
    MXFP6_E2M3: ('mxfp6-pack-quantized', {'num_bits': 6, **_MX}),
    MXFP8: ('mxfp8-quantized', {'num_bits': 8, **_MX}),
    FP8_CHANNEL: ('float-quantized', {'num_bits': 8, 'strategy': 'channel'}),
    FP8_BLOCK: ('float-quantized', {'num_bits': 8, 'strategy': 'block', 'block_structure': [128, 128]}),
}


def to_compressed_tensors(
    params: Any,
    layout: Mapping[str, LeafLayout],
    *,
    fused: Mapping[str, str] = NOTHING_FUSED,
    unheld: str = 'error',
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the `quantization_config` of a checkpoint of compressed-tensors: no number is rounded again.

    Of a module X (out, in):

        MXFP4           X.weight_packed uint8 (out, in/2), the lower half of a byte the even input
        MXFP6 (E2M3)    X.weight_packed uint8 (out, 3 in/4), four codes in three bytes, the lowest bits first
        MXFP8, FP8      X.weight float8_e4m3fn (out, in)
        NVFP4           as MXFP4, and X.weight_global_scale float32 (1,), which divides the scales
        X.weight_scale  MX: uint8 (out, in/32), 2^(c - 127); NVFP4: float8_e4m3fn (out, in/16); FP8: (out, 1) or
                        (out/128, in/128), bfloat16 where all are powers of two, else float32

    Args:
      params: pytree of weights, such as `models.to_huggingface` gives it.
      layout: how they are quantized, such as `models.huggingface_layout` gives it.
      fused: module name -> a name of those that are stored alike, as `models.fused_modules` gives it: servers make one
        matrix of queries, keys and values, and one of gate and up.
      unheld: what becomes of modules that no format holds exactly: 'error', or 'bfloat16', which holds them.

    Returns:
      (tensors, quantization_config). All other leaves are in bfloat16, but for those that the layout keeps. The config
      names no activations: they stay as the server has them. It is {} if there is nothing quantized.

    Raises:
      ValueError: for a module that no format holds exactly, saying why, and what would; as `quantize_params`.

    Example:
      >>> import gaussq_jax as gq
      >>> params = {'up': {'kernel': np.ones((64, 32), np.float32)}}
      >>> tensors, config = to_compressed_tensors(params, gq.uniform_layout(params, 'float4_e2m1fn'))
      >>> {name: tensor.shape for name, tensor in tensors.items()}, config['format']
      ({'up.weight_packed': (32, 32), 'up.weight_scale': (32, 2)}, 'mxfp4-pack-quantized')

    Source: compressed-tensors 0.20, `compressors`.
    """
    tensors, storages = to_tensors(params, layout, 'compressed-tensors', _stored, fused=fused, unheld=unheld)
    groups = defaultdict(list)
    for name, storage in storages.items():
        if storage:
            groups[storage].append(name)
    return tensors, _config(groups, unquantized(storages)) if groups else {}


def _stored(module: Module) -> dict[str, np.ndarray]:
    scales, divisor = module.scales()
    is_packed = module.storage.fmt.bits < 8
    weights = (
        {'weight_packed': packed_codes(module)} if is_packed else {'weight': module.codes().view(jnp.float8_e4m3fn)}
    )
    if module.storage.scale == 'nvfp4':
        scales = scales.astype(jnp.float8_e4m3fn)
        return weights | {'weight_scale': scales, 'weight_global_scale': np.reshape(divisor, 1)}
    if module.storage.scale == 'mx':
        return weights | {'weight_scale': scale_codes.encode(scales, 'mx')}
    are_powers = np.all(np.frexp(scales)[0] == 0.5)
    return weights | {'weight_scale': scales.astype(jnp.bfloat16 if are_powers else np.float32)}


def _config(groups: Mapping[Any, list[str]], ignored: list[str]) -> dict[str, Any]:
    """Names of classes and of modules are not mixed: which of them wins differs between readers."""
    described = {}
    for i, (storage, names) in enumerate(groups.items()):
        name, weights = FORMATS[storage]
        described[f'group_{i}'] = {
            'targets': ['Linear'] if len(groups) == 1 else names,
            'weights': {'type': 'float', 'symmetric': True, 'dynamic': False, **weights},
            'input_activations': None,
            'output_activations': None,
            'format': name,
        }
    formats = {group['format'] for group in described.values()}
    return {
        'quant_method': 'compressed-tensors',
        'quantization_status': 'compressed',
        'format': formats.pop() if len(formats) == 1 else 'mixed-precision',
        'ignore': ignored,
        'config_groups': described,
        'kv_cache_scheme': None,
    }
