"""Quantized weights as other software stores them: code by code and scale by scale, nothing rounded again."""

from gaussq_jax.serving.compressed_tensors import to_compressed_tensors
from gaussq_jax.serving.served_layout import served_layout

__all__ = ['served_layout', 'to_compressed_tensors']
