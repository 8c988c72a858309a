"""What simulated casts and fake quantization to float8_e4m3fn cost, ours and those of others.

Each contender does the same to one float32 matrix of normal values, and returns a float32 one: it rounds to the 8-bit
format, and comes back.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from experiments.benchmarks import timing
from gaussq_jax.block_scaling import fake_quantize
from gaussq_jax.formats import FloatFormat
from gaussq_jax.quantizer import Quantizer
from gaussq_jax.rounding import round_to_format
from gaussq_jax.text_table import text_table
from kernels_pallas.float_rounding import round_to_representable

FMT = FloatFormat(4, 3, 'fn')
QUANTIZERS = {
    'block of 32': Quantizer(FMT, block_size=32),
    'block of 128': Quantizer(FMT, block_size=128),
    'channel': Quantizer(FMT, block_size='channel'),
    'MX': Quantizer(FMT, block_size=32, scale='mx'),
}
AXES = {0: 'first axis', 1: 'last axis'}
DIVISOR = 128  # of both lengths: the others have whole blocks only

Contender = Callable[[], Any]


def benchmark(shape: str, turns: int | None) -> Iterator[tuple[dict[str, Any], str]]:
    """`time_casts` of a matrix of 'ROWSxCOLUMNS', and its table."""
    if not (lengths := re.fullmatch(r'(\d+)x(\d+)', shape)):
        raise ValueError(f'shape={shape!r} is not ROWSxCOLUMNS, such as 4096x4096')
    results = time_casts((int(lengths[1]), int(lengths[2])), turns or timing.DEFAULT_TURNS)
    table = casts_table(results['operations'])
    yield results, f'float32 {shape} to float8_e4m3fn and back, {results["device"]}\n{table}'


def casts_table(operations: dict[str, dict[str, Any]]) -> str:
    def cells(row):
        if isinstance(row, str):
            return (row,)
        return f'{row["nanoseconds_per_value"]:.3f} ns', f'{row["ratio"]:.2f}', timing.quartiles_text(row, 2)

    rows = [(what, by, *cells(row)) for what, rows in operations.items() for by, row in rows.items()]
    return text_table([('operation', 'by', 'a value', 'to a copy', 'quartiles'), *rows], left=(0, 1))


def time_casts(shape: tuple[int, int], turns: int) -> dict[str, Any]:
    """Times everything in `contenders` for `turns` turns.

    Returns:
      What it was measured on, and under 'operations' for each operation and contender what `take_turns` measured, the
      ratio being to a float32 copy, with 'nanoseconds_per_value'; or 'not installed'.

    Raises:
      ValueError: for a shape that isn't one of whole blocks.
    """
    if any(length % DIVISOR or not length for length in shape):
        raise ValueError(f'shape={"x".join(map(str, shape))}: both lengths must be multiples of {DIVISOR}')
    operations = contenders(np.random.default_rng(0).standard_normal(shape, np.float32))
    flat = {(what, by): call for what, calls in operations.items() for by, call in calls.items() if call}
    times = timing.take_turns(flat, turns)
    for row in times.values():
        row['nanoseconds_per_value'] = row['seconds'] / np.prod(shape) * 1e9
    rows = {what: {by: times.get((what, by), 'not installed') for by in calls} for what, calls in operations.items()}
    versions = {
        package: importlib.metadata.version(package) if _installed(package) else 'not installed'
        for package in ('ml_dtypes', 'qwix', 'torch')
    }
    return {**timing.provenance(), **versions, 'shape': list(shape), 'turns': turns, 'operations': rows}


def contenders(x: np.ndarray) -> dict[str, dict[str, Contender | None]]:
    """What is timed: for each operation on x and each that does it, a function of no arguments; None if not installed.

    The first is the copy. PyTorch computes where JAX does, if it can, and with as many threads.
    """
    on_device, key = jnp.asarray(x), jax.random.key(0)
    compiled = lambda function, *more: functools.partial(jax.jit(function), on_device, *more)
    torch = _PyTorch(x) if _installed('torch') else None
    operations = {
        'copy': {'jnp.copy': compiled(jnp.copy)},
        'cast': {
            'gaussq_jax': compiled(lambda x: round_to_format(x, FMT)),
            'lax.reduce_precision': compiled(
                lambda x: jax.lax.reduce_precision(x, FMT.exponent_bits, FMT.mantissa_bits)
            ),
            'XLA, to float8 and back': compiled(_through_float8),
            'XLA, clipped before that': compiled(lambda x: _through_float8(jnp.clip(x, -FMT.max, FMT.max))),
            'ml_dtypes on the host': lambda: x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32),
            'PyTorch, to float8 and back': torch and torch.through_float8,
            'PyTorch, emulated': torch and torch.emulated,
        },
        'cast, stochastically': {
            'gaussq_jax': compiled(lambda x, key: round_to_format(x, FMT, rounding='stochastic', key=key), key),
            'gaussq_jax, bits of jax.random': compiled(_by_bits_of_jax, key),
        },
    }
    for name, quantizer in QUANTIZERS.items():
        stochastic = dataclasses.replace(quantizer, rounding='stochastic')
        for axis, axis_name in AXES.items():
            operations[f'{name}, {axis_name}'] = {
                'gaussq_jax': compiled(functools.partial(fake_quantize, quantizer=quantizer, axis=axis)),
                'gaussq_jax, stochastic': compiled(
                    lambda x, key, quantizer=stochastic, axis=axis: fake_quantize(x, quantizer, axis=axis, key=key), key
                ),
                'qwix': compiled(functools.partial(_qwix, quantizer, axis)) if _installed('qwix') else None,
                'PyTorch': torch and functools.partial(torch.fake_quantize, quantizer, axis),
            }
    return operations


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _by_bits_of_jax(x: jax.Array, key: jax.Array) -> jax.Array:
    bits = jax.random.bits(key, x.shape, jnp.uint32)
    return round_to_representable(x, bits, representable=FMT.representable, rounding='stochastic')


def _through_float8(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float8_e4m3fn).astype(jnp.float32)


def _qwix(quantizer: Quantizer, axis: int, x: jax.Array) -> jax.Array:
    """Fake quantization in qwix; its MX scales are rounded up to a power of two, so that nothing saturates."""
    import qwix

    return qwix.dequantize(
        qwix.quantize(
            x,
            'mxfp8' if quantizer.scale == 'mx' else jnp.float8_e4m3fn,
            channelwise_axes=[1 - axis],
            tiled_axes={} if quantizer.block_size == 'channel' else {axis: quantizer.block_size},
        )
    )


class _PyTorch:
    """What one writes in PyTorch, uncompiled."""

    def __init__(self, x: np.ndarray):
        os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # its threads don't spin while others are timed
        self.torch = importlib.import_module('torch')
        affinity = getattr(os, 'sched_getaffinity', None)
        self.torch.set_num_threads(len(affinity(0)) if affinity else os.cpu_count())  # as XLA does
        self.on_gpu = jax.default_backend() == 'gpu' and self.torch.cuda.is_available()
        self.x = self.torch.tensor(x, device='cuda' if self.on_gpu else 'cpu')

    def through_float8(self):
        return self._finished(self._through_float8(self.x))

    def emulated(self):
        """The step of each value by its exponent, and round: what serves for any format."""
        exponent = self.torch.frexp(self.x).exponent - 1
        step = self.torch.exp2((exponent.clamp(min=FMT.min_exponent) - FMT.mantissa_bits).float())
        return self._finished((self.torch.round(self.x / step) * step).clamp(-FMT.max, FMT.max))

    def fake_quantize(self, quantizer: Quantizer, axis: int):
        size = self.x.shape[axis] if quantizer.block_size == 'channel' else quantizer.block_size
        blocks = self.x.unflatten(axis, (-1, size))
        absmax = blocks.abs().amax(axis + 1, keepdim=True)
        if quantizer.scale == 'mx':
            scale = self.torch.exp2(self.torch.floor(self.torch.log2(absmax)) - 8)  # 8: the exponent of 448
            scaled = (blocks / scale).clamp(-FMT.max, FMT.max)
        else:
            scale = absmax / FMT.max
            scaled = blocks / scale
        return self._finished((self._through_float8(scaled) * scale).flatten(axis, axis + 1))

    def _through_float8(self, x):
        return x.to(self.torch.float8_e4m3fn).float()

    def _finished(self, result):
        if self.on_gpu:
            self.torch.cuda.synchronize()
        return result
