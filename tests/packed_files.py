"""Packed files that are whole, that others rewrote, and how they are refused."""

import functools
import hashlib
import json
import re
import struct

import numpy as np
import numpy_float_formats as oracle
import pytest

import gaussq_jax as gq

RULE = gq.MatrixRule('.*', (0,), (1,), (2,))
FORMATS = tuple(map(gq.parse_format, ('e2m1', 'float8_e4m3')))
INDICES = np.uint8([[[0, 1, 1], [0, 1, 0]], [[1, 1, 0], [0, 0, 0]]])
LAYOUT = {
    'kernel': gq.LeafLayout(RULE, (4, 4), FORMATS, INDICES),
    'single': gq.LeafLayout(RULE, (4, 4), FORMATS[:1], np.zeros_like(INDICES)),
}

NOTHING = {'formats': {}, 'leaves': {}, 'other_leaves': ['x'], 'info': {}}


def save(path, seed=0, info=None):
    leaves = {name: oracle.heavy_tailed((2, 7, 9), seed=seed) for name in LAYOUT}
    gq.save_packed(path, {**leaves, 'bias': np.arange(seed, seed + 3, dtype=np.float32)}, LAYOUT, info=info)


@functools.cache
def whole_file(directory):
    save(directory / 'whole.safetensors', info={'config': {'name': 'tiny'}})
    return (directory / 'whole.safetensors').read_bytes()


def refused(path, data=None):
    """Says how the file is refused: in one line that begins with its name."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        gq.load_packed(path)
    message = str(caught.value)
    assert message.startswith(f'{path} ') and '\n' not in message and len(message) < len(str(path)) + 400
    return message.removeprefix(f'{path} ')


def header_length(data):
    return 8 + struct.unpack('<Q', data[:8])[0]


def rewritten(data, change_contents=lambda contents: None, change_tensors=lambda tensors: None):
    """The file of someone who writes other contents or tensors, and the right digest of that."""
    length = header_length(data)
    header, payload = json.loads(data[8:length]), data[length:]
    contents = json.loads(header.pop('__metadata__')['gaussq_jax'])
    tensors = {
        name: np.frombuffer(
            payload[slice(*entry['data_offsets'])], {'U8': 'u1', 'BF16': '<u2', 'F32': '<f4'}[entry['dtype']]
        )
        .reshape(entry['shape'])
        .copy()
        for name, entry in header.items()
    }
    change_tensors(tensors)
    change_contents(contents)
    contents['sha256'] = '0' * 64
    header, payload = {'__metadata__': {'gaussq_jax': json.dumps(contents)}}, b''
    for name, tensor in tensors.items():
        dtypes = {'uint8': 'U8', 'uint16': 'BF16', 'float32': 'F32', 'int16': 'I16', 'complex64': 'C64'}
        dtype = dtypes[tensor.dtype.name]
        end = len(payload) + tensor.nbytes
        header[name] = {'dtype': dtype, 'shape': tensor.shape, 'data_offsets': [len(payload), end]}
        payload += tensor.tobytes()
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    data = struct.pack('<Q', len(text)) + text + payload
    return data.replace(b'0' * 64, hashlib.sha256(data).hexdigest().encode(), 1)
