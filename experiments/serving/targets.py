"""What `export --to` names: software that weights are written for, one record each."""

import dataclasses
from collections.abc import Callable
from typing import Any

import gaussq_jax as gq
from gaussq_jax.serving.storages import MXFP4, MXFP6_E2M3, MXFP6_E3M2, MXFP8, Storage


@dataclasses.dataclass(frozen=True)
class Target:
    """Software, by what it reads.

    Attributes:
      name: as `--to` has it, and `storages.TARGETS`.
      to_tensors: (params, layout, fused=, unheld=) -> tensors, and the value of `field` in config.json; None where it
        reads no low bits in a folder.
      field: of config.json.
      choices: what a budget chooses from, besides bfloat16; none where it has one format alone.
      fuses: whether it makes one matrix of queries, keys and values, and one of gate and up.
    """

    name: str
    to_tensors: Callable[..., tuple[dict[str, Any], dict[str, Any]]] | None = None
    field: str = 'quantization_config'
    choices: tuple[Storage, ...] = ()
    fuses: bool = False


TRANSFORMERS = Target('transformers')
COMPRESSED_TENSORS = Target('compressed-tensors', gq.to_compressed_tensors, choices=(MXFP4, MXFP8), fuses=True)
DEEPSEEK_FP8 = Target('deepseek-fp8', gq.to_deepseek_fp8, fuses=True)
QUARK_MXFP6 = Target('quark-mxfp6', gq.to_quark_mxfp6, choices=(MXFP6_E3M2, MXFP6_E2M3), fuses=True)
MLX = Target('mlx', gq.to_mlx, 'quantization', choices=(MXFP4, MXFP8))
GGUF = Target('gguf', choices=(MXFP4,))
TARGETS = {target.name: target for target in (TRANSFORMERS, COMPRESSED_TENSORS, DEEPSEEK_FP8, QUARK_MXFP6, MLX, GGUF)}
