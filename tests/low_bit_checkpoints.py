"""Folders of low-bit checkpoints of the tests, written by NumPy: a small Llama, its linear layers in random codes.

Each has the numbers that its codes and scales stand for, computed from the definitions of the formats in float64.
"""

import json
import struct

import ml_dtypes
import numpy as np
from small_checkpoints import LLAMA, change_json, write_checkpoint

MODEL = LLAMA.clone(hidden_size=64, mlp_size=96)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M3 = np.array([m / 8 for m in range(8)] + [(1 + m / 8) * 2.0**e for e in range(3) for m in range(8)])
ACTIVATIONS = {'num_bits': 8, 'type': 'float', 'strategy': 'token', 'dynamic': True, 'symmetric': True}
SAFETENSORS = {'bfloat16': 'BF16', 'float32': 'F32', 'uint8': 'U8', 'float8_e4m3fn': 'F8_E4M3', 'float16': 'F16'}
SAFETENSORS |= {'float8_e8m0fnu': 'F8_E8M0', 'int8': 'I8'}
BLOCK = (16, 32)  # outputs, inputs


def write(directory, form='mxfp4', *, tokenizer=True, **fields):
    """A folder of this form: one of FORMS; the numbers of each of its matrices, float32, by the tensor's name."""
    write_checkpoint(directory, MODEL, tokenizer=tokenizer)
    path, generator = directory / 'model.safetensors', np.random.default_rng(0)
    tensors, numbers = read_tensors(path), {}
    forms, said = FORMS[form]
    for name in [name for name in tensors if '_proj.' in name]:
        prefix = name.removesuffix('weight')
        encode = forms if callable(forms) else next(encode for of, encode in forms.items() if of in name)
        stored, numbers[name] = encode(generator, tensors.pop(name).shape)
        tensors |= {prefix + part: tensor for part, tensor in stored.items()}
    write_tensors(path, tensors)
    change_json(directory / 'config.json', quantization_config=said | fields)
    return numbers


def change_tensors(directory, **changes):
    """Sets tensors of the folder's one file; `...` takes one away, a function is given it."""
    path = directory / 'model.safetensors'
    tensors = read_tensors(path)
    changes = {name: change(tensors[name]) if callable(change) else change for name, change in changes.items()}
    write_tensors(path, {name: tensor for name, tensor in (tensors | changes).items() if tensor is not ...})


def read_tensors(path):
    """Name -> array, of any dtype of ml_dtypes."""
    contents = path.read_bytes()
    (length,) = struct.unpack('<Q', contents[:8])
    dtypes = {theirs: np.dtype(getattr(ml_dtypes, ours, ours)) for ours, theirs in SAFETENSORS.items()}
    return {
        name: np.frombuffer(contents[8 + length :][slice(*entry['data_offsets'])], dtypes[entry['dtype']]).reshape(
            entry['shape']
        )
        for name, entry in json.loads(contents[8 : 8 + length]).items()
        if name != '__metadata__'
    }


def write_tensors(path, tensors):
    header, data = {'__metadata__': {'format': 'pt'}}, b''
    for name, tensor in tensors.items():
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {'dtype': SAFETENSORS[tensor.dtype.name], 'shape': tensor.shape, 'data_offsets': offsets}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + data)


def _exponents(generator, shape):
    codes = generator.integers(110, 135, shape).astype(np.uint8)
    codes.reshape(-1)[0] = 0
    return codes, np.ldexp(1.0, codes.astype(int) - 127)


def _signed(magnitudes, codes):
    return np.where(codes >= magnitudes.size, -1.0, 1.0) * magnitudes[codes % magnitudes.size]


def _mxfp4(generator, shape):
    codes = generator.integers(0, 16, shape).astype(np.uint8)
    scale_codes, scales = _exponents(generator, (shape[0], shape[1] // 32))
    packed = codes[:, ::2] | codes[:, 1::2] << 4
    return {'weight_packed': packed, 'weight_scale': scale_codes}, _product(_signed(E2M1, codes), scales, (1, 32))


def _mxfp6(generator, shape):
    codes = generator.integers(0, 64, shape)
    scale_codes, scales = _exponents(generator, (shape[0], shape[1] // 32))
    words = sum(codes[:, i::4] << (6 * i) for i in range(4))
    packed = np.stack([words & 255, words >> 8 & 255, words >> 16], -1).astype(np.uint8).reshape(shape[0], -1)
    return {'weight_packed': packed, 'weight_scale': scale_codes}, _product(_signed(E2M3, codes), scales, (1, 32))


def _mxfp8(generator, shape):
    codes = _fp8(generator, shape)
    scale_codes, scales = _exponents(generator, (shape[0], shape[1] // 32))
    return {'weight': codes, 'weight_scale': scale_codes}, _product(codes.astype(float), scales, (1, 32))


def _nvfp4(generator, shape):
    codes = generator.integers(0, 16, shape).astype(np.uint8)
    scales = generator.integers(0, 127, (shape[0], shape[1] // 16)).astype(np.uint8).view(ml_dtypes.float8_e4m3fn)
    divisor = generator.uniform(100, 5000, 1).astype(np.float32)
    packed = codes[:, ::2] | codes[:, 1::2] << 4
    quotients = (scales.astype(float) / divisor.astype(float)).astype(np.float32)
    stored = {'weight_packed': packed, 'weight_scale': scales, 'weight_global_scale': divisor}
    return stored, _product(_signed(E2M1, codes), quotients.astype(float), (1, 16))


def _fp8(generator, shape):
    codes = generator.integers(0, 256, shape).astype(np.uint8)
    return np.where(codes % 128 == 127, 0, codes).astype(np.uint8).view(ml_dtypes.float8_e4m3fn)


def _float_scales(shape_of, tile, dtype='float32', part='weight_scale'):
    def encode(generator, shape):
        codes = _fp8(generator, shape)
        scales = generator.uniform(1e-4, 1e-2, shape_of(shape)).astype(getattr(ml_dtypes, dtype, dtype))
        sides = tile or (shape[0] if scales.size == 1 else 1, shape[1])
        blocks = np.asarray(scales, float).reshape(-(-shape[0] // sides[0]), -(-shape[1] // sides[1]))
        return {'weight': codes, part: scales}, _product(codes.astype(float), blocks, sides)

    return encode


def _product(numbers, scales, tile):
    """Each product is rounded once: float64 holds it exactly."""
    rows, columns = numbers.shape
    factors = scales.repeat(tile[0], 0)[:rows].repeat(tile[1], 1)[:, :columns]
    return (numbers * factors).astype(np.float32)


def _blocks_of(shape):
    return tuple(-(-size // side) for size, side in zip(shape, BLOCK))


def _with_input_scale(encode, part):
    """The same, and the scale of a static quantization of activations."""

    def encode_both(generator, shape):
        stored, numbers = encode(generator, shape)
        return stored | {part: np.ones(1, np.float32)}, numbers

    return encode_both


def scheme(num_bits, strategy, **fields):
    weights = {'num_bits': num_bits, 'type': 'float', 'symmetric': True, 'strategy': strategy, 'dynamic': False}
    weights |= {'group_size': None, 'block_structure': None, 'actorder': None, 'observer': 'minmax', **fields}
    return {'targets': ['Linear'], 'weights': weights, 'input_activations': None, 'output_activations': None}


def compressed(form, group, **fields):
    said = {'quant_method': 'compressed-tensors', 'format': form, 'config_groups': {'group_0': group}}
    said |= {'ignore': ['lm_head'], 'kv_cache_scheme': None, 'quantization_status': 'compressed'}
    said |= {'sparsity_config': {}, 'transform_config': {}, 'global_compression_ratio': None, 'version': '0.20.1'}
    return said | fields


DEEPSEEK = {
    'quant_method': 'fp8',
    'fmt': 'e4m3',
    'activation_scheme': 'dynamic',
    'weight_block_size': [*BLOCK],
}
MX = {'group_size': 32, 'scale_dtype': 'torch.uint8'}
CHANNELS = lambda shape: (shape[0], 1)
NVFP4 = scheme(4, 'tensor_group', group_size=16, scale_dtype='torch.float8_e4m3fn')
MIXED = {  # FP8 and NVFP4 whose activations were quantized, by a regex, and by the class of what is left
    'group_0': scheme(8, 'channel') | {'targets': ['re:.*self_attn.*_proj$'], 'format': 'float-quantized'},
    'group_1': NVFP4 | {'format': 'nvfp4-pack-quantized', 'input_activations': ACTIVATIONS},
}
FORMS = {  # name -> what makes a matrix, or those whose names have a part; and the configuration
    'mxfp4': (_mxfp4, compressed('mxfp4-pack-quantized', scheme(4, 'group', **MX))),
    'mxfp6': (_mxfp6, compressed('mxfp6-pack-quantized', scheme(6, 'group', **MX))),
    'mxfp8': (_mxfp8, compressed('mxfp8-quantized', scheme(8, 'group', **MX))),
    'nvfp4': (_nvfp4, compressed('nvfp4-pack-quantized', NVFP4)),
    'fp8 channel': (
        _float_scales(CHANNELS, None, 'bfloat16'),
        compressed('float-quantized', scheme(8, 'channel')),
    ),
    'fp8 tensor': (_float_scales(lambda shape: (1,), None), compressed('float-quantized', scheme(8, 'tensor'))),
    'fp8 scalar': (
        _float_scales(lambda shape: (), None, 'bfloat16'),
        compressed('naive-quantized', scheme(8, 'tensor')),
    ),
    'fp8 group': (
        _float_scales(lambda shape: (shape[0], shape[1] // 32), (1, 32)),
        compressed('float-quantized', scheme(8, 'group', group_size=32)),
    ),
    'fp8 block': (
        _float_scales(_blocks_of, BLOCK),
        compressed('float-quantized', scheme(8, 'block', block_structure=[*BLOCK])),
    ),
    'deepseek': (_float_scales(_blocks_of, BLOCK, part='weight_scale_inv'), DEEPSEEK),
    'deepseek bfloat16': (_float_scales(_blocks_of, BLOCK, 'bfloat16', 'weight_scale_inv'), DEEPSEEK),
    'deepseek tensor': (
        _float_scales(lambda shape: (), None, part='weight_scale_inv'),
        DEEPSEEK | {'weight_block_size': None},
    ),
    'mixed': (
        {
            'self_attn': _float_scales(CHANNELS, None, 'float16'),
            'mlp': _with_input_scale(_nvfp4, 'input_global_scale'),
        },
        compressed('mixed-precision', None, config_groups=MIXED),
    ),
}
