"""A reader of packed weights in nothing but NumPy: docs/packed_format.md, line by line."""

import json
import math
import struct

import numpy as np

DTYPES = {'BOOL': '?', 'U8': '<u1', 'U16': '<u2', 'U32': '<u4', 'U64': '<u8', 'BF16': '<u2'} | {
    **{'I8': '<i1', 'I16': '<i2', 'I32': '<i4', 'I64': '<i8', 'F16': '<f2', 'F32': '<f4', 'F64': '<f8'}
}


def read(path):
    """The weights by path, those of few bits and bfloat16 as float32; and what the file says of itself."""
    with open(path, 'rb') as file:
        (length,) = struct.unpack('<Q', file.read(8))
        header, data = json.loads(file.read(length)), file.read()
    about = json.loads(header.pop('__metadata__')['gaussq_jax'])
    tensors = {}
    for name, entry in header.items():
        start, end = entry['data_offsets']
        tensors[name] = np.frombuffer(data[start:end], DTYPES[entry['dtype']]).reshape(entry['shape'])
        if entry['dtype'] == 'BF16':
            tensors[name] = (tensors[name].astype(np.uint32) << 16).view(np.float32)
    packed = {path: unpack_leaf(path, leaf, tensors, about['formats']) for path, leaf in about['leaves'].items()}
    return packed | tensors, about  # unpack_leaf takes its own tensors out


def unpack_leaf(path, leaf, tensors, formats):
    scales = tensors.pop(f'{path}.scales')
    which = tensors.pop(f'{path}.formats') if len(leaf['formats']) > 1 else np.zeros_like(scales)
    streams = [tensors.pop(f'{path}.codes.{name}') for name in leaf['formats']]
    axes = leaf['batch_axes'] + leaf['row_axes'] + leaf['col_axes']
    sizes = [leaf['shape'][axis] for axis in axes]
    batch, rows = len(leaf['batch_axes']), len(leaf['row_axes'])
    m, n = math.prod(sizes[batch : batch + rows]), math.prod(sizes[batch + rows :])
    matrices = np.empty((math.prod(sizes[:batch]), m, n), np.float32)
    tile_rows, tile_columns = leaf['tile']
    tile = np.arange(m)[:, None] // tile_rows, np.arange(n) // tile_columns  # of each weight
    starts = [0] * len(streams)
    for matrix, scale, of_tile in zip(matrices, *(grid.reshape(-1, *grid.shape[-2:]) for grid in (scales, which))):
        for i, name in enumerate(leaf['formats']):
            weights = of_tile[tile] == i
            count, bits = weights.sum(), formats[name]['bits']
            end = starts[i] + math.ceil(count * bits / 8)
            stream = np.unpackbits(streams[i][starts[i] : end], bitorder='little')[: count * bits]
            codes = stream.reshape(count, bits).astype(np.int64) @ (1 << np.arange(bits))
            matrix[weights] = np.ldexp(numbers(codes, formats[name]), scale[tile][weights].astype(int) - 127)
            starts[i] = end
    return matrices.reshape(sizes).transpose(np.argsort(axes))


def numbers(codes, fmt):
    e, m = fmt['exponent_bits'], fmt['mantissa_bits']
    sign, exponent, mantissa = codes >> (e + m), codes >> m & (2**e - 1), codes & (2**m - 1)
    significand = mantissa + (exponent > 0) * 2**m
    magnitude = np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - fmt['bias'] - m)
    return np.where(magnitude > fmt['max'], np.nan, np.where(sign, -magnitude, magnitude))
