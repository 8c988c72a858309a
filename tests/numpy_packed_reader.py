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
    of_format = [formats[name] for name in leaf['formats']]
    scales = tensors.pop(f'{path}.scales')
    which = tensors.pop(f'{path}.formats') if len(leaf['formats']) > 1 else np.zeros(1, np.uint8)
    which = np.broadcast_to(which, scales.shape)
    scales = factors(path, leaf.get('scale', 'mx'), scales, of_format, which, tensors)  # in version 1 all are mx
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
            matrix[weights] = (numbers(codes, formats[name]) * scale[tile][weights]).astype(np.float32)
            starts[i] = end
    if leaf['dtype'] == 'bfloat16':  # to nearest even, of float32 numbers that are finite
        bits = matrices.view(np.uint32)
        matrices = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
    return matrices.reshape(sizes).transpose(np.argsort(axes))


def factors(path, kind, scales, formats, which, tensors):
    """What the numbers of each tile are multiplied by, float64."""
    if kind == 'mx':
        return np.ldexp(1.0, scales.astype(int) - 127)
    if kind == 'absmax':
        shifts = np.array([2 - math.floor(math.log2(fmt['max'])) for fmt in formats])
        return np.ldexp(scales.astype(np.float64), shifts[which])
    e4m3 = dict(exponent_bits=4, mantissa_bits=3, bias=7, max=448)
    scales = numbers(scales.astype(int), e4m3).astype(np.float32)
    return (scales / tensors.pop(f'{path}.divisors')[..., None, None]).astype(np.float64)


def numbers(codes, fmt):
    e, m = fmt['exponent_bits'], fmt['mantissa_bits']
    sign, exponent, mantissa = codes >> (e + m), codes >> m & (2**e - 1), codes & (2**m - 1)
    significand = mantissa + (exponent > 0) * 2**m
    magnitude = np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - fmt['bias'] - m)
    return np.where(magnitude > fmt['max'], np.nan, np.where(sign, -magnitude, magnitude))
