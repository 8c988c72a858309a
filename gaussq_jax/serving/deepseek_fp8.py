"""FP8 weights with a float32 scale for each block of 128 x 128, as DeepSeek-V3 is stored."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gaussq_jax.packed.layout import LeafLayout
from gaussq_jax.serving.matrices import NOTHING_FUSED, Module
from gaussq_jax.serving.storages import FP8_BLOCK
from gaussq_jax.serving.tensors import to_tensors, unquantized


def to_deepseek_fp8(
    params: Any,
    layout: Mapping[str, LeafLayout],
    *,
    fused: Mapping[str, str] = NOTHING_FUSED,
    unheld: str = 'error',
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The weights of a layout in DeepSeek's FP8, and the `quantization_config` by which servers know it.

        X.weight            float8_e4m3fn (out, in)
        X.weight_scale_inv  float32 (ceil(out / 128), ceil(in / 128))    what a block's numbers are multiplied by

    Servers compute with these weights, and round activations to FP8, too: 'dynamic', a scale for each 128 of a token.
    Where that isn't wanted, `FineGrainedFP8Config(dequantize=True)` of transformers gives the weights in bfloat16.

    Args:
      params: pytree of weights, with the names that the server has for them.
      layout: of these params, such as `uniform_layout(params, 'float8_e4m3fn', block_size=(128, 128), scale='absmax')`.
      fused, unheld: as for `serving.matrices.modules`.

    Returns:
      The tensors by name; and the `quantization_config` of config.json. Modules that aren't quantized are named there,
      and lm_head among them, tied or not, unless the layout has it.

    Raises:
      ValueError: for a layout that this doesn't hold exactly; for a matrix of, say, 192 inputs, which transformers cuts
        in blocks of 96; as `serving.tensors.to_tensors`.

    Example:
      >>> import gaussq_jax as gq
      >>> params = {'up': {'kernel': np.ones((256, 128), np.float32)}}
      >>> layout = gq.uniform_layout(params, 'float8_e4m3fn', block_size=(128, 128), scale='absmax')
      >>> tensors, config = to_deepseek_fp8(params, layout)
      >>> {name: (str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()}
      {'up.weight': ('float8_e4m3fn', (128, 256)), 'up.weight_scale_inv': ('float32', (1, 2))}
      >>> config['modules_to_not_convert']
      ['lm_head']

    Source: DeepSeek-V3 technical report, arXiv 2412.19437, section 3.3; transformers 5.24,
    transformers.integrations.finegrained_fp8.
    """
    tensors, storages = to_tensors(params, layout, 'deepseek-fp8', _stored, fused=fused, unheld=unheld)
    config = {
        'quant_method': 'fp8',
        'fmt': 'e4m3',
        'activation_scheme': 'dynamic',
        'weight_block_size': list(FP8_BLOCK.tile),
        'modules_to_not_convert': unquantized(storages),
    }
    return tensors, config if any(storages.values()) else {}


def _stored(module: Module) -> dict[str, np.ndarray]:
    scales, _ = module.scales()
    return {'weight': module.codes().view(jnp.float8_e4m3fn), 'weight_scale_inv': scales.astype(np.float32)}
