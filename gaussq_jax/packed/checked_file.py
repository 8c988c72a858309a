"""Files of packed weights: safetensors, with metadata that describes itself and a digest of every byte.

The safetensors metadata has one entry, `KEY`, whose value is JSON: 'version', 'sha256', and what `write` was given. The
digest is the SHA-256 of the whole file with zeros in its own place. Nothing that is read is executed. The package
safetensors is imported where a file is written or read: the rest of the library does without.
"""

import hashlib
import json
import math
import os
import pathlib
import re
import stat
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from gaussq_jax.atomic_files import new_file

KEY = 'gaussq_jax'
RESERVED = '__metadata__'
VERSION, VERSIONS = 2, (1, 2)  # that is written, and those that are read
CHUNK = 1 << 22
NO_DIGEST = '0' * 64


def write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], contents: Mapping[str, Any]):
    """Writes a file in one step: a reader, or a kill, finds the old one or the new.

    Args:
      path: of the file; its directory is there.
      tensors: NumPy arrays of a dtype that safetensors has.
      contents: what JSON keeps, to be read with them.

    Raises:
      ValueError: for contents that JSON can't keep; for a name that tensors can't have; for a path of what is no file.
      OSError: where the file can't be written; what was there before is as it was.
    """
    path = pathlib.Path(path)
    text = to_json({'version': VERSION, 'sha256': NO_DIGEST, **contents})
    if RESERVED in tensors:
        raise ValueError(f'a tensor cannot be named {RESERVED!r}, which means something else in safetensors files')
    with new_file(path) as partial:
        try:
            save_tensors(partial, tensors, {KEY: text})
        except OSError as error:
            raise OSError(f'{path} could not be written: {error}') from error
        header = _read_header(partial)
        place = 8 + header.index(NO_DIGEST.encode())
        digest = _digest(partial, header)
        with open(partial, 'r+b') as file:
            file.seek(place)
            file.write(digest.encode())
            file.flush()
            os.fsync(file.fileno())


def save_tensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]):
    """Writes a safetensors file that whoever may read other new files of this user may read.

    Args:
      path: of the file; its directory is there.
      tensors: NumPy arrays, in any order of memory, of a dtype that safetensors has.
      metadata: texts, kept beside them.

    Raises:
      OSError: where it can't be written.

    Example:
      >>> import safetensors.numpy, tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     save_tensors(pathlib.Path(directory, 'file'), {'up': np.ones(3, np.float16)}, {'format': 'pt'})
      ...     safetensors.numpy.load_file(f'{directory}/file')
      {'up': array([1., 1., 1.], dtype=float16)}
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path.touch()
    mode = path.stat().st_mode  # safetensors itself would let nobody else read it
    try:
        save_file({name: np.asarray(tensor, order='C') for name, tensor in tensors.items()}, path, dict(metadata))
    except SafetensorError as error:
        raise OSError(f'{path} could not be written: {error}') from error
    path.chmod(mode)


def open_checked(path: str | os.PathLike) -> tuple[dict[str, Any], Any]:
    """What `write` was given besides the tensors, after every byte was checked; and the `safe_open` file, for these.

    Raises:
      ValueError: naming the file, if it is damaged, no safetensors file, or one of others.
      OSError: if it can't be read.
    """
    from safetensors import SafetensorError, safe_open

    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would be waited for, a device may have no end
        raise ValueError(f'{path} is no file')
    with open(path, 'rb') as file:
        start = file.read(2)
    try:
        opened = safe_open(path, 'numpy')
    except (SafetensorError, OSError) as error:
        is_pickle = start in (b'PK', b'\x80\x02')  # a zip archive, as torch.save writes, or what it wrote before
        said = ' '.join(str(error).split())
        reason = 'it is a pickle, as PyTorch writes them, which is never loaded' if is_pickle else said
        raise ValueError(f'{path} is no safetensors file, or a damaged one: {reason}') from None
    metadata = opened.metadata() or {}
    if KEY not in metadata:
        raise ValueError(f'{path} is a safetensors file, but not of packed weights: its metadata has no {KEY!r}')
    try:
        contents = of_json(metadata[KEY])
        version, digest = contents['version'], contents.pop('sha256')
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f'{path} is damaged: its metadata {KEY!r} is not what it should be ({error!r})') from None
    if isinstance(version, bool) or version not in VERSIONS:
        raise ValueError(f'{path} is of version {version!r:.80}; this program reads {" and ".join(map(str, VERSIONS))}')
    is_digest = isinstance(digest, str) and re.fullmatch('[0-9a-f]{64}', digest)
    if not is_digest or digest != _digest(path, _read_header(path), digest):
        raise ValueError(f'{path} is damaged: its bytes are not those that were written (SHA-256)')
    return contents, opened


def to_json(contents: Mapping[str, Any]) -> str:
    """Contents as JSON; ValueError where it can't keep them."""
    try:
        return json.dumps(contents, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f'info cannot be stored as JSON: {error}') from error


def of_json(text: str) -> Any:
    """The inverse; ValueError for numbers that a file may not have: beyond 64 bits, or not finite."""
    return json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_number)


def header_bytes(path: str | os.PathLike) -> int:
    """The bytes of a safetensors file before its first tensor: 8, which say how long the header is, and the header.

    What `save_packed` writes has so many more than `ModelSize.total_bytes`.

    Raises:
      OSError: if the file can't be read.

    Example:
      >>> import safetensors.numpy, tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     safetensors.numpy.save_file({'up': np.ones(3, np.float16)}, f'{directory}/file')
      ...     os.path.getsize(f'{directory}/file') - header_bytes(f'{directory}/file')
      6
    """
    return 8 + len(_read_header(path))


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f'a number beyond 64 bits, {text[:24]}')
    return int(text)


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f'a number that is not finite, {text[:24]}')
    return value


def _read_header(path) -> bytes:
    with open(path, 'rb') as file:
        (length,) = struct.unpack('<Q', file.read(8))
        return file.read(length)


def _digest(path, header: bytes, digest: str = NO_DIGEST) -> str:
    """The SHA-256 of the file with zeros in the first place in its header where the digest stands."""
    sha256 = hashlib.sha256(struct.pack('<Q', len(header)))
    sha256.update(header.replace(digest.encode(), NO_DIGEST.encode(), 1))
    with open(path, 'rb') as file:
        file.seek(8 + len(header))
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
    return sha256.hexdigest()
