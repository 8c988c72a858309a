"""What weight sampling and simulated casts cost on one leaf, beside a copy of it: by shape, operation, implementation.

An operation can't move fewer bytes than its arguments and its results have. They, divided by its time, are a bandwidth,
to be compared with that of the faster of two copies in the same turns: float32 -> float32, and float32 -> bfloat16.
"""

import functools
from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from experiments.benchmarks import timing
from gaussq_jax.formats import parse_format
from gaussq_jax.text_table import text_table
from kernels_pallas import arg_specs
from kernels_pallas import weight_sampling as kernels
from kernels_pallas.arg_specs import ArgSpec
from kernels_pallas.float_rounding import round_to_representable

DEFAULT_SHAPES = {  # regular expressions: what a minute measures on a CPU, and a few on a GPU
    'cpu': '^tiny/|ragged/wide|llama2-134m/attention',
    'gpu': '^tiny/mlp/gate|ragged/(wide|gpt2)|gpt2-124m/mlp/up|^llama2-|llama-7b/mlp/gate',
}
FORMAT = 'e3m2'
COPIES = ('copy', 'copy to bfloat16')
REFERENCE = 'xla'
SLOW_TO_COMPILE = ('backward bfloat16, uniform', REFERENCE)  # for a GPU: a minute, and as much for every other shape
CACHE_BYTES = 2**28  # more than any GPU's caches

Name = tuple[str, str]  # operation, implementation


class Contender(NamedTuple):
    """What is timed: a compiled function of arrays."""

    function: Callable
    arguments: tuple

    def __call__(self) -> Any:
        return self.function(*self.arguments)

    @property
    def bytes(self) -> int:
        """Of what goes in and what comes out."""
        arrays = jax.tree.leaves((self.arguments, jax.eval_shape(self.function, *self.arguments)))
        return sum(x.size * x.dtype.itemsize for x in arrays)


def benchmark(shapes: str | None, turns: int | None, clock: str | None) -> Iterator[tuple[dict[str, Any], str]]:
    """`time_shape` of each shape, one after the other, and its table.

    Args:
      shapes: a regular expression of names in arg_specs.py; None for those of the device.
      turns: how many are timed; None for `timing.DEFAULT_TURNS`.
      clock: of `timing.CLOCKS`; None for the device's.

    Raises:
      ValueError: if no shape has such a name.
    """
    backend, clock, turns = jax.default_backend(), clock or timing.default_clock(), turns or timing.DEFAULT_TURNS
    specs = arg_specs.matching(shapes or DEFAULT_SHAPES.get(backend, DEFAULT_SHAPES['cpu']))
    results = {**timing.provenance(), 'clock': clock, 'turns': turns, 'implementations': implementations(), 'rows': []}
    missing = [f'{name} is not measured: {why}' for name, why in results['implementations'].items() if why is not None]
    yield results, '\n'.join([f"{results['device']}, by the {clock}'s clock", *missing])
    for spec in specs:
        leave_out = [SLOW_TO_COMPILE] if backend == 'gpu' and results['rows'] else []
        rows = time_shape(spec, turns, clock, leave_out=leave_out)
        results['rows'] += rows
        unseen = timing.unseen_text({' by '.join((row['operation'], row['implementation'])): row for row in rows})
        remark = f'{" by ".join(SLOW_TO_COMPILE)} is measured on the first shape alone: it takes a minute to compile\n'
        shape = ' x '.join(map(str, spec.shape))
        text = f'\n{spec.name}, {shape}\n{kernels_table(rows)}\n{unseen}{remark if leave_out else ""}'
        yield results, text.rstrip('\n')


def kernels_table(rows: list[dict[str, Any]]) -> str:
    def cells(row):
        if 'error' in row:
            return row['operation'], row['implementation'], row['error']
        return (
            row['operation'],
            row['implementation'],
            f'{row["seconds"] * 1e6:,.1f} µs',
            f'{row["bytes_per_second"] * 1e-9:,.1f} GB/s',
            f'{row["copy_fraction"]:.0%}',
            str(row.get('launches', '')),
            {None: '', True: 'equal', False: 'DIFFER'}[row['equals_reference']],
        )

    header = ('operation', 'implementation', 'median', 'bandwidth', 'of a copy', 'kernels', 'bits')
    return text_table([header, *map(cells, rows)], left=(0, 1))


def implementations() -> dict[str, str | None]:
    """The implementations of sampling and casts, and why those that can't run here can't."""
    return {name: kernels.why_not(name) for name in kernels.PREFERENCE}


def time_shape(spec: ArgSpec, turns: int, clock: str, *, leave_out: Container[Name] = ()) -> list[dict[str, Any]]:
    """Times all operations on weights of one shape, but for those to be left out; all are compiled before, together.

    Returns:
      A row for each contender: 'shape', 'operation', 'implementation', 'bytes', 'equals_reference' (to the bit; None
      for copies, the reference, and where that is left out), what `take_turns` measured, the ratio being to the copy,
      'bytes_per_second' and 'copy_fraction'; or, where it fails, 'error'.
    """
    competing = {name: contender for name, contender in contenders(spec).items() if name not in leave_out}
    lower = {name: functools.partial(function.lower, *arguments) for name, (function, arguments) in competing.items()}
    compiled = timing.compile_together(lower)
    rows, works = {}, {}
    for (operation, name), contender in competing.items():
        row = rows[operation, name] = {'shape': spec.name, 'operation': operation, 'implementation': name}
        reference = compiled.get((operation, REFERENCE)) if name != REFERENCE else None
        try:
            call = contender._replace(function=compiled[operation, name].result())
            results = jax.block_until_ready(call())
            equals_reference = None
            if reference and not reference.exception():
                equals_reference = bool(_same_bits(results, contender._replace(function=reference.result())()))
        except Exception as error:  # of whatever kind: of lowering, of a compiler, of the device
            logging.info('%s by %s fails:', operation, name, exc_info=True)
            row['error'] = f'{type(error).__name__}: {str(error).strip().splitlines()[0]}'
        else:
            works[operation, name] = call
            row |= {'bytes': contender.bytes, 'equals_reference': equals_reference}
    before = _overwrite_caches if jax.default_backend() == 'gpu' else None
    for name, measured in timing.take_turns(works, turns, clock=clock, before=before).items():
        rows[name] |= {**measured, 'bytes_per_second': rows[name]['bytes'] / measured['seconds']}
    copy_bandwidth = max(rows[copy, REFERENCE]['bytes_per_second'] for copy in COPIES)
    copy_bytes = rows[COPIES[0], REFERENCE]['bytes']
    for row in (rows[name] for name in works):
        is_back_to_back = row['clock'] == timing.BACK_TO_BACK  # then its copy is one by the same clock
        row['copy_fraction'] = row['bytes_per_second'] / (
            copy_bytes / row['base_seconds'] if is_back_to_back else copy_bandwidth
        )
    return list(rows.values())


def contenders(spec: ArgSpec) -> dict[Name, Contender]:
    """The copies; sampling and casts by each implementation that can run here."""
    keys = jax.random.split(jax.random.key(0), 3)
    w = 0.02 * jax.random.normal(keys[0], spec.shape)
    bits = jax.random.bits(keys[1], spec.shape, jnp.uint16)
    scale = jnp.exp2(-jax.random.uniform(keys[2], spec.blocks(kernels.BLOCK_SIZE), minval=3, maxval=5))
    key, origin = (jnp.uint32(1), jnp.uint32(2)), (jnp.uint32(0),) * 3
    inputs = {'float32': w, 'bfloat16': w.astype(jnp.bfloat16)}
    representable = parse_format(FORMAT).representable

    found = {(COPIES[0], REFERENCE): (jnp.copy, w)}
    found[COPIES[1], REFERENCE] = (lambda x: x.astype(jnp.bfloat16), w)
    for name in (name for name, reason in implementations().items() if reason is None):
        how = dict(block_size=kernels.BLOCK_SIZE, implementation=name)
        for dtype, x in inputs.items():
            for noise, to in (('rounded_normal', None), ('uniform', None), ('rounded_normal', FORMAT)):
                options = dict(noise=noise, dtype=jnp.bfloat16, representable=representable if to else None, **how)
                forward = functools.partial(kernels.forward, **options)
                found[f'forward {dtype} -> {to or "bfloat16"}, {noise}', name] = (forward, key, origin, x, scale)
        for noise in kernels.NOISES:
            backward = functools.partial(kernels.backward, noise=noise, **how)
            found[f'backward bfloat16, {noise}', name] = (backward, key, origin, inputs['bfloat16'])
        cast = functools.partial(round_to_representable, representable=representable, implementation=name)
        found['cast nearest_even', name] = (cast, w)
        found['cast stochastic', name] = (functools.partial(cast, rounding='stochastic'), w, bits)
    return {name: Contender(jax.jit(function), tuple(arguments)) for name, (function, *arguments) in found.items()}


@jax.jit
def _same_bits(results: Any, others: Any) -> jax.Array:
    bits = lambda x: jax.lax.bitcast_convert_type(x, jnp.uint8)
    equal = jax.tree.map(lambda x, y: jnp.array_equal(bits(x), bits(y)), results, others)
    return jnp.all(jnp.stack(jax.tree.leaves(equal)))


def _overwrite_caches() -> jax.Array:
    """So that what is read next comes from memory, as a leaf does in training, whatever the caches hold."""
    return jnp.ones(CACHE_BYTES // 4, jnp.float32)
