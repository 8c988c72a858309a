"""Quantized weights as other software stores them: code by code and scale by scale, nothing rounded again."""

from gaussq_jax.serving.compressed_tensors import to_compressed_tensors
from gaussq_jax.serving.deepseek_fp8 import to_deepseek_fp8
from gaussq_jax.serving.mlx import to_mlx
from gaussq_jax.serving.qarray import to_qarray
from gaussq_jax.serving.quark_mxfp6 import to_quark_mxfp6
from gaussq_jax.serving.served_layout import served_layout

__all__ = [
    'served_layout',
    'to_compressed_tensors',
    'to_deepseek_fp8',
    'to_mlx',
    'to_qarray',
    'to_quark_mxfp6',
]
