"""How long it takes to write a model to a packed file and to read it again, and the memory that takes."""

import ctypes
import gc
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments.benchmarks import timing
from experiments.training.experiment import make_experiment
from gaussq_jax import models
from gaussq_jax.packed import header_bytes
from gaussq_jax.text_table import text_table

LEARNED = 'learned'
DEFAULT_FORMATS = (LEARNED, 'float6_e3m2fn', 'float4_e2m1fn')
RULES = (models.RULES[0], *gq.DEFAULT_RULES)
BITWIDTHS = (3, 7)


def benchmark(config: ConfigDict, vocab_size: int) -> Iterator[tuple[dict[str, Any], str]]:
    """`time_exports` and its table."""
    results = time_exports(config, vocab_size=vocab_size)
    title = f'packed files of {results["config"]}, {results["parameters"]:,} parameters, {results["device"]}'
    yield results, f'{title}\n{exports_table(results["formats"])}'


def exports_table(formats: dict[str, dict[str, Any]]) -> str:
    def cells(fmt, row):
        yield from (fmt, f'{row["file_bytes"] * 1e-6:.1f} MB', f'{row["mean_stored_bits"]:.2f} bits')
        for name in ('write', 'read'):
            extra = row[name]['bytes']
            memory = 'unknown' if extra is None else f'{extra / row["file_bytes"]:.2f} files'
            yield from (f'{row[name]["seconds"]:.1f} s', memory)

    header = ('format', 'file', 'a quantized weight', 'write', 'memory', 'read', 'memory')
    return text_table([header, *(tuple(cells(fmt, row)) for fmt, row in formats.items())])


def time_exports(config: ConfigDict, *, vocab_size: int, formats: Sequence[str] = DEFAULT_FORMATS) -> dict[str, Any]:
    """Writes and reads random weights of the config's model, once in each format.

    Args:
      formats: names of formats, and 'learned': each block in the format of its own random bitwidth.

    Returns:
      What `timing.provenance` says, 'config', 'parameters', and 'formats': of each the 'file_bytes' and the
      'mean_stored_bits', and of 'write' and 'read' the 'seconds', compilation included, and the 'bytes' that the
      process took beyond what it had before at the most, the file's pages included; the weights that are read don't
      count. None but on Linux.

    Raises:
      ValueError: for a config or format that isn't allowed.
      RuntimeError: if a file is of another size than promised, or what is read is not what was to be written.
    """
    params = random_weights(config, vocab_size)
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / 'weights.safetensors'
        rows = {fmt: _time_export(path, params, _make_layout(params, fmt)) for fmt in formats}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {**timing.provenance(), 'config': config.name, 'parameters': parameters, 'formats': rows}


def random_weights(config: ConfigDict, vocab_size: int) -> Any:
    """Parameters of the config's model, normally distributed."""
    params = make_experiment(config, vocab_size).abstract_state.params
    return optax.tree.random_like(jax.random.key(0), params, jax.random.normal)


def _time_export(path: pathlib.Path, params: Any, layout: dict[str, gq.LeafLayout]) -> dict[str, Any]:
    size, write = _measure(lambda: gq.save_packed(path, params, layout))
    weights, read = _measure(lambda: gq.load_packed(path))
    if read['bytes'] is not None:
        read['bytes'] -= sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    file_bytes = path.stat().st_size
    if file_bytes != size.total_bytes + header_bytes(path):
        raise RuntimeError(f'the file has {file_bytes} bytes, not a header and the {size.total_bytes} promised')
    expected = gq.quantize_params(params, layout)
    if not jax.tree.all(jax.tree.map(lambda *leaves: bool(jnp.array_equal(*leaves)), weights, expected)):
        raise RuntimeError('the weights that were read are not those that were to be written')
    return {'file_bytes': file_bytes, 'mean_stored_bits': size.mean_stored_bits, 'write': write, 'read': read}


def _make_layout(params: Any, fmt: str) -> dict[str, gq.LeafLayout]:
    if fmt != LEARNED:
        return gq.uniform_layout(params, fmt, rules=RULES)
    b_target, b_init = BITWIDTHS
    transform = gq.gaussian_weight_sampling(b_init, b_target, rules=RULES)
    state = optax.tree.random_like(jax.random.key(0), transform.init(params), jax.random.uniform)
    return transform.learned_layout(params, state)


def _measure(function: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What the function returns; its seconds, and the bytes that the process grew by."""
    gc.collect()
    before = _reset_peak()
    start = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - start
    return result, {'seconds': seconds, 'bytes': None if before is None else _resident_bytes('VmHWM') - before}


def _reset_peak() -> int | None:
    """Makes what the process has now its peak, and says how much that is."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or what was freed but kept would be taken again unnoticed
        pathlib.Path('/proc/self/clear_refs').write_text('5')
    except (OSError, AttributeError):
        return None
    return _resident_bytes('VmRSS')


def _resident_bytes(name: str) -> int:
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f'{name}:'))
