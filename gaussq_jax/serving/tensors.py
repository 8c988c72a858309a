"""The tensors of a model by name: what a target stores of each module, and all other leaves."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gaussq_jax.packed import bit_packing, scale_codes
from gaussq_jax.packed.layout import LeafLayout
from gaussq_jax.serving.matrices import NOTHING_FUSED, Module, modules
from gaussq_jax.serving.storages import Storage


def to_tensors(
    params: Any,
    layout: Mapping[str, LeafLayout],
    target: str,
    stored: Callable[[Module], Mapping[str, np.ndarray]],
    *,
    fused: Mapping[str, str] = NOTHING_FUSED,
    unheld: str = 'error',
) -> tuple[dict[str, np.ndarray], dict[str, Storage | None]]:
    """What `stored` makes of each quantized module; all other leaves as `quantize_params` gives them.

    Args:
      params, layout, target, fused, unheld: as for `modules`.
      stored: a module -> its tensors, by what follows the module's name and a dot.

    Returns:
      The tensors by name; and the storage of each module by name, None where its weight is in bfloat16. Those of a
      leaf that isn't in the layout are there, too, if it is a matrix that is called 'weight'.

    Raises:
      ValueError: for two tensors of the same name; as `modules`.

    Example:
      >>> import gaussq_jax as gq
      >>> params = {'up.weight': np.ones((8, 32), np.float32), 'lm_head.weight': np.ones((4, 8), np.float32)}
      >>> rules = [gq.MatrixRule('up.weight', (), (1,), (0,)), gq.CastOnly('lm_head.weight')]
      >>> layout = gq.uniform_layout(params, 'float4_e2m1fn', rules=rules)
      >>> tensors, storages = to_tensors(params, layout, 'mlx', lambda module: {'weight': packed_codes(module)})
      >>> {name: tensor.shape for name, tensor in tensors.items()}
      {'lm_head.weight': (4, 8), 'up.weight': (8, 16)}
      >>> {name: storage and storage.name for name, storage in storages.items()}
      {'lm_head': None, 'up': 'MXFP4'}
    """
    tensors, storages = {}, {}
    for module in modules(params, layout, target, fused=fused, unheld=unheld):
        if isinstance(module, Module):
            storages[module.name] = module.storage
            parts = {'weight': module.weights()} if module.storage is None else stored(module)
            found = {f'{module.name}.{part}': tensor for part, tensor in parts.items()}
        else:
            name, array = module
            found = {name: array}
            if name.endswith('.weight') and array.ndim == 2:
                storages[name.removesuffix('.weight')] = None
        if taken := tensors.keys() & found.keys():
            raise ValueError(f'two leaves of params are stored under the name {min(taken)!r}; rename one of them')
        tensors |= found
    return tensors, storages


def packed_codes(module: Module) -> np.ndarray:
    """The codes of each row in a stream of bits, the least significant first: uint8 (out, in bits / 8)."""
    codes = module.codes()
    return bit_packing.pack(codes.reshape(-1), module.storage.fmt.bits).reshape(len(codes), -1)


def e8m0_scales(module: Module) -> np.ndarray:
    """The scales as exponents, uint8 (out, in / 32): code c is the scale 2^(c - 127)."""
    return scale_codes.encode(module.scales()[0], 'mx')


def unquantized(storages: Mapping[str, Storage | None]) -> list[str]:
    """The modules that aren't quantized, in order of their names; lm_head also where it has no weight of its own.

    Example:
      >>> unquantized({'wte': None, 'up': object()})
      ['lm_head', 'wte']
    """
    return sorted({name for name, storage in storages.items() if storage is None} | ({'lm_head'} - storages.keys()))
