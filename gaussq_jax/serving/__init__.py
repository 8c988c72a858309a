"""Quantized weights as other software stores them: code by code and scale by scale, nothing rounded again."""

from gaussq_jax.serving.compressed_tensors import to_compressed_tensors

__all__ = ['to_compressed_tensors']
