"""Quantized weights as other software stores them: code by code and scale by scale, nothing rounded again."""
