"""The matrices of low-bit checkpoints as float32, each dequantized when it is asked for."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from experiments.files.quantization_config import FIELD, MOST_NAME_CHARACTERS, Encoding, QuantizationConfig
from gaussq_jax.packed import bit_packing, scale_codes

WEIGHTS = 2**22  # that are dequantized at a time, or as many as a row has
SCALES = {'mx': ('U8', 'F8_E8M0'), 'nvfp4': ('F8_E4M3',), 'absmax': ('F32', 'BF16', 'F16', 'F8_E8M0')}
PLAIN = {'BF16': 'bfloat16', 'F16': 'float16', 'F32': 'float32', 'F64': 'float64'}
_ADDED = re.compile(r'weight_.*|.*_(scale|zero_point)|.*g_idx')  # what quantization adds to a module, by its last name


class StoredTensors(Protocol):
    """Tensors of files by name, as `huggingface_folder.Tensors`."""

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, name: str) -> np.ndarray: ...

    def kind(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The dtype, as safetensors calls it, and the shape."""

    def codes(self, name: str) -> np.ndarray:
        """The bytes of one whose dtype has eight bits, uint8 of its shape."""


class LowBitTensors(Mapping[str, np.ndarray]):
    """Tensors by name, those that were quantized as float32: of a module X, X.weight.

        W = code * scale                     MX and FP8, one float32 product
        W = code * (scale / divisor)         NVFP4, a quotient and a product, each rounded to float32

    These are the numbers of which compressed-tensors computes the bfloat16 ones, and rounds them so. (Where scales are
    float16 it multiplies in float16.)

    Attributes:
      remarks: how many matrices are stored how, in a line, and those of the configuration.

    Args:
      tensors: as they are stored.
      quantization: what the configuration says of them.

    Raises:
      ValueError: tensors that the configuration doesn't explain, or lacks; dtypes and shapes that don't fit one
        another; when one is asked for, scales that aren't numbers, and products beyond float32. Names the tensor.

    Source: compressed-tensors 0.20 (`compressors/`); OCP Microscaling Formats 1.0, section 5.
    """

    def __init__(self, tensors: StoredTensors, quantization: QuantizationConfig):
        self._tensors, parts, stored = tensors, defaultdict(set), Counter()
        self._encodings = {}  # None of what isn't quantized
        for name in tensors:
            if len(name) > MOST_NAME_CHARACTERS:
                raise ValueError(f'{name!r:.80} … is a name of more than {MOST_NAME_CHARACTERS} characters')
            part = name.rpartition('.')[2]
            parts[name.removesuffix(part)].add(part)
        for prefix, found in parts.items():
            encoding = quantization.encoding_of(prefix[:-1]) if self._has_matrix(prefix, found) else None
            if encoding is None:
                stored += self._check_plain(prefix, found)
            else:
                self._check_encoded(prefix, found, encoding)
                self._encodings[f'{prefix}weight'] = encoding
                found = found - {*encoding.parts, *encoding.of_activations}
                stored[encoding.storage.name] += 1
            self._encodings |= dict.fromkeys(f'{prefix}{part}' for part in sorted(found))
        if not any(self._encodings.values()):
            raise ValueError(f'{FIELD} is there, but no tensor of what it quantizes')
        self.remarks = (self._describe(stored, quantization.software), *quantization.remarks)

    def __getitem__(self, name: str) -> np.ndarray:
        prefix, encoding = name.removesuffix('weight'), self._encodings[name]
        if encoding is None:
            return self._tensors[name]
        codes = self._tensors.codes(f'{prefix}{encoding.weight}')
        storage = encoding.storage
        rows, columns = self._shape(prefix, encoding)
        inputs, outputs = (min(side or size, size) for side, size in zip(storage.tile, (columns, rows)))
        scales = self._scales(prefix, encoding).reshape(-(-rows // outputs), -(-columns // inputs))
        numbers = bit_packing.decoded(storage.fmt)
        weights = np.empty((rows, columns), np.float32)
        step = max(1, WEIGHTS // columns)
        for start in range(0, rows, step):
            band = weights[start : start + step]
            band_codes = bit_packing.unpack(codes[start : start + step].reshape(-1), storage.fmt.bits, band.size)
            factors = scales[np.arange(start, start + len(band)) // outputs].repeat(inputs, axis=1)[:, :columns]
            with np.errstate(over='ignore'):
                np.multiply(numbers[band_codes].reshape(band.shape), factors, out=band)
            if np.isinf(band).any():
                raise ValueError(f'{name}: some of its values are infinite in float32')
        return weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._encodings)

    def __len__(self) -> int:
        return len(self._encodings)

    def _scales(self, prefix: str, encoding: Encoding) -> np.ndarray:
        """What the numbers of each tile are multiplied by, float32."""
        name, kind = f'{prefix}{encoding.scale}', encoding.storage.scale
        dtype = self._tensors.kind(name)[0]
        if kind == 'absmax' and dtype != 'F8_E8M0':
            scales = self._tensors[name].astype(np.float32)
            if not np.all(np.isfinite(scales) & (scales >= 0)):
                raise ValueError(f'{name} has scales that are not finite, or below 0')
        else:
            try:
                scales = scale_codes.decode(self._tensors.codes(name), 'mx' if kind == 'absmax' else kind)
            except ValueError as error:
                raise ValueError(f'{name}: {error}') from None
            scales = scales.astype(np.float32)
        if encoding.divisor is None:
            return scales
        divisor = self._tensors[f'{prefix}{encoding.divisor}'].reshape(())
        if not 0 < divisor < np.inf:
            raise ValueError(f'{prefix}{encoding.divisor}={divisor:.3g} must be a positive number')
        with np.errstate(over='ignore'):
            scales = scales / divisor
        if not np.all(np.isfinite(scales)):
            raise ValueError(f'{name} divided by {encoding.divisor}={divisor:.3g} is infinite in float32')
        return scales

    def _shape(self, prefix: str, encoding: Encoding) -> tuple[int, int]:
        """Of the matrix: (outputs, inputs)."""
        rows, bytes_of_row = self._tensors.kind(f'{prefix}{encoding.weight}')[1]
        return rows, bytes_of_row * 8 // encoding.storage.fmt.bits

    def _has_matrix(self, prefix: str, found: set[str]) -> bool:
        weight = next((part for part in ('weight_packed', 'weight') if part in found), None)
        return weight is not None and len(self._tensors.kind(f'{prefix}{weight}')[1]) == 2

    def _check_plain(self, prefix: str, found: set[str]) -> Counter:
        """That nothing of it is quantized; the matrices among them, by dtype."""
        matrices = Counter()
        for part in sorted(found):
            name = f'{prefix}{part}'
            dtype, shape = self._tensors.kind(name)
            if _ADDED.fullmatch(part):
                raise ValueError(f'{name} is there, but {FIELD} does not say that {prefix[:-1]} is quantized')
            if part == 'weight' and dtype not in PLAIN:
                raise ValueError(f'{name} is of {dtype}, but {FIELD} does not say that {prefix[:-1]} is quantized')
            if part == 'weight' and len(shape) == 2:
                matrices[PLAIN[dtype]] += 1
        return matrices

    def _check_encoded(self, prefix: str, found: set[str], encoding: Encoding):
        """That it has its tensors and no others, of dtypes and shapes that fit."""
        storage = encoding.storage
        if lacking := [part for part in encoding.parts if part not in found]:
            raise ValueError(f'{prefix[:-1]} lacks {lacking[0]}, though {FIELD} says that it is {storage.name}')
        known = {*encoding.parts, *encoding.of_activations, 'bias'}
        if unknown := sorted(part for part in found - known if part == 'weight' or _ADDED.fullmatch(part)):
            raise ValueError(f'{prefix}{unknown[0]} has no place beside {" and ".join(encoding.parts)}')
        is_packed = storage.fmt.bits < 8
        self._check_tensor(prefix, encoding.weight, ('U8',) if is_packed else ('F8_E4M3',), None)
        rows, columns = self._shape(prefix, encoding)
        kind, stored = self._tensors.kind(f'{prefix}{encoding.weight}')
        inputs, outputs = storage.tile
        if 0 in stored or columns * storage.fmt.bits != 8 * stored[1]:
            raise ValueError(f'{prefix}{encoding.weight}: {kind} {stored} is no matrix of {storage.name}')
        if outputs == 1 and inputs and columns % inputs:
            raise ValueError(f'{prefix}{encoding.weight}: its {columns} inputs are no multiple of {inputs}')
        shapes = ((-(-rows // (outputs or rows)), -(-columns // (inputs or columns))),)
        if inputs is outputs is None:
            shapes = ((1,), ())
        self._check_tensor(prefix, encoding.scale, SCALES[storage.scale], shapes)
        if encoding.divisor:
            self._check_tensor(prefix, encoding.divisor, ('F32',), ((1,), ()))

    def _check_tensor(self, prefix: str, part: str, dtypes: tuple[str, ...], shapes: tuple | None):
        dtype, shape = self._tensors.kind(f'{prefix}{part}')
        if dtype not in dtypes:
            raise ValueError(f'{prefix}{part}: its dtype {dtype} must be {" or ".join(dtypes)}')
        if shapes is not None and shape not in shapes:
            raise ValueError(f'{prefix}{part}: its shape {shape} must be {" or ".join(map(str, shapes))}')

    def _describe(self, stored: Counter, software: str) -> str:
        storages = {encoding.storage for encoding in self._encodings.values() if encoding}
        names = sorted(storage.name for storage in storages)
        counts = [f'{stored[name]:,} of {name}' for name in (*names, *sorted(stored.keys() - names))]
        how = 'dequantized exactly' if all(storage.scale == 'mx' for storage in storages) else 'dequantized in float32'
        return f'matrices of {software}: {", ".join(counts)}; {how}'
