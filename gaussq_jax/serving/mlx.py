"""MXFP4 and MXFP8 as MLX and mlx-lm store them."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from gaussq_jax.packed.layout import LeafLayout
from gaussq_jax.serving.matrices import NOTHING_FUSED, Module
from gaussq_jax.serving.storages import MXFP4, MXFP8
from gaussq_jax.serving.tensors import e8m0_scales, packed_codes, to_tensors

MODES = {
    MXFP4: {'group_size': 32, 'bits': 4, 'mode': 'mxfp4'},
    MXFP8: {'group_size': 32, 'bits': 8, 'mode': 'mxfp8'},
}


def to_mlx(
    params: Any,
    layout: Mapping[str, LeafLayout],
    *,
    fused: Mapping[str, str] = NOTHING_FUSED,
    unheld: str = 'error',
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The weights of a layout as MLX multiplies with them, and what mlx-lm reads of them in config.json.

        X.weight  uint32 (out, in bits / 32)   codes of 4 or 8 bits, the first input in the lowest bits of a word
        X.scales  uint8 (out, in / 32)         2^(code - 127)

    `mlx.core.dequantize` of them is `quantize_params`, bit for bit: MLX's MXFP8 is float8_e4m3fn, and its smallest
    scale is 2^-127, as here. (This was run on a CPU. On GPUs, subnormal results were not measured.) MLX's NVFP4 is no
    storage: its layers have no scale for a whole matrix.

    Args:
      params: pytree of weights, with the names that mlx-lm loads; a Llama's are those of Hugging Face.
      layout: of these params, such as `quantize_params` takes.
      fused, unheld: as for `serving.matrices.modules`; MLX itself makes one matrix of none.

    Returns:
      The tensors by name; and the `quantization` of config.json. Its own mode is the most frequent one; modules of
      another have an entry by name. A module without scales is not quantized, and needs no entry.

    Raises:
      ValueError: for a layout that neither MXFP4 nor MXFP8 holds exactly; as `serving.tensors.to_tensors`.

    Example:
      >>> import gaussq_jax as gq
      >>> params = {'up': {'kernel': np.ones((32, 8), np.float32)}}
      >>> tensors, config = to_mlx(params, gq.uniform_layout(params, 'float4_e2m1fn'))
      >>> {name: (str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()}
      {'up.weight': ('uint32', (8, 4)), 'up.scales': ('uint8', (8, 1))}
      >>> config
      {'group_size': 32, 'bits': 4, 'mode': 'mxfp4'}

    Source: mlx 0.32, mlx.core.dequantize; mlx-lm 0.32, mlx_lm.utils.load_model.
    """
    tensors, storages = to_tensors(params, layout, 'mlx', _stored, fused=fused, unheld=unheld)
    modes = {name: MODES[storage] for name, storage in storages.items() if storage}
    if not modes:
        return tensors, {}
    usual = MODES[collections.Counter(storage for storage in storages.values() if storage).most_common(1)[0][0]]
    return tensors, usual | {name: dict(mode) for name, mode in modes.items() if mode != usual}


def _stored(module: Module) -> dict[str, np.ndarray]:
    return {'weight': packed_codes(module).view('<u4'), 'scales': e8m0_scales(module)}
