"""What weight sampling and simulated casts cost on one leaf, beside a copy of it: by shape, operation, implementation.

An operation can't move fewer bytes than its arguments and its results have. They, divided by its time, are a bandwidth,
to be compared with that of the faster of two copies in the same turns: float32 -> float32, and float32 -> bfloat16.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from experiments import timing
from gaussq_jax.formats import parse_format
from kernels_pallas import weight_sampling as kernels
from kernels_pallas.arg_specs import ArgSpec
from kernels_pallas.float_rounding import round_to_grid

DEFAULT_SHAPES = {  # regular expressions: what a minute measures on a CPU, and a few on a GPU
    'cpu': '^tiny/|ragged/wide|llama2-134m/attention',
    'gpu': '^tiny/mlp/gate|ragged/(wide|gpt2)|gpt2-124m/mlp/up|^llama2-|llama-7b/mlp/gate',
}
FORMAT = 'e3m2'
COPIES = ('copy', 'copy to bfloat16')
REFERENCE = 'xla'
CACHE_BYTES = 2**28  # more than any GPU's caches

Contender = tuple[str, str]  # operation, implementation


class Operation(NamedTuple):
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


def implementations() -> dict[str, str | None]:
    """The implementations of sampling and casts, and why those that can't run here can't."""
    return {name: kernels.why_not(name) for name in kernels.PREFERENCE}


def time_shape(spec: ArgSpec, turns: int, clock: str) -> list[dict[str, Any]]:
    """Times all operations on weights of one shape.

    Returns:
      A row for each contender: 'shape', 'operation', 'implementation', 'bytes', 'equals_reference' (to the bit; None
      for copies and the reference), what `take_turns` measured, the ratio being to the copy, 'bytes_per_second' and
      'copy_fraction'; or, where it fails, 'error'.
    """
    contenders = operations(spec)
    rows = {}
    for operation, name in contenders:
        checked = _check(contenders, operation, name)
        rows[operation, name] = {'shape': spec.name, 'operation': operation, 'implementation': name, **checked}
    works = {contender: call for contender, call in contenders.items() if 'error' not in rows[contender]}
    before = _overwrite_caches if jax.default_backend() == 'gpu' else None
    for contender, measured in timing.take_turns(works, turns, clock=clock, before=before).items():
        rows[contender] |= {**measured, 'bytes_per_second': rows[contender]['bytes'] / measured['seconds']}
    copy_bandwidth = max(rows[copy, REFERENCE]['bytes_per_second'] for copy in COPIES)
    for contender in works:
        rows[contender]['copy_fraction'] = rows[contender]['bytes_per_second'] / copy_bandwidth
    return list(rows.values())


def operations(spec: ArgSpec) -> dict[Contender, Operation]:
    """The copies; sampling and casts by each implementation that can run here."""
    keys = jax.random.split(jax.random.key(0), 3)
    w = 0.02 * jax.random.normal(keys[0], spec.shape)
    bits = jax.random.bits(keys[1], spec.shape)
    scale = jnp.exp2(-jax.random.uniform(keys[2], spec.blocks(kernels.BLOCK_SIZE), minval=3, maxval=5))
    key, origin = (jnp.uint32(1), jnp.uint32(2)), (jnp.uint32(0),) * 3
    inputs = {'float32': w, 'bfloat16': w.astype(jnp.bfloat16)}
    fmt = parse_format(FORMAT)
    grid = kernels.Grid(fmt.mantissa_bits, fmt.min_exponent, fmt.max)

    found = {(COPIES[0], REFERENCE): _operation(jnp.copy, w)}
    found[COPIES[1], REFERENCE] = _operation(lambda x: x.astype(jnp.bfloat16), w)
    for name in (name for name, reason in implementations().items() if reason is None):
        how = dict(block_size=kernels.BLOCK_SIZE, implementation=name)
        for dtype, x in inputs.items():
            for noise, to in (('rounded_normal', None), ('uniform', None), ('rounded_normal', FORMAT)):
                forward = functools.partial(
                    kernels.forward, noise=noise, dtype=jnp.bfloat16, grid=grid if to else None, **how
                )
                label = f'forward {dtype} -> {to or "bfloat16"}, {noise}'
                found[label, name] = _operation(forward, key, origin, x, scale)
        for noise in kernels.NOISES:
            backward = functools.partial(kernels.backward, noise=noise, **how)
            found[f'backward bfloat16, {noise}', name] = _operation(backward, key, origin, inputs['bfloat16'])
        cast = functools.partial(round_to_grid, **grid._asdict(), implementation=name)
        found['cast nearest_even', name] = _operation(cast, w)
        found['cast stochastic', name] = _operation(functools.partial(cast, rounding='stochastic'), w, bits)
    return found


def _operation(function: Callable, *arguments: Any) -> Operation:
    return Operation(jax.jit(function), arguments)


def _check(contenders: dict[Contender, Operation], operation: str, name: str) -> dict[str, Any]:
    """The bytes, and whether the bits are the reference's; or how it fails: the others are measured all the same."""
    contender, reference = contenders[operation, name], contenders[operation, REFERENCE]
    if name == REFERENCE:
        return {'bytes': reference.bytes, 'equals_reference': None}
    try:
        return {'bytes': contender.bytes, 'equals_reference': bool(_same_bits(contender(), reference()))}
    except Exception as error:  # of whatever kind: of lowering, of a compiler, of the device
        logging.info('%s by %s fails:', operation, name, exc_info=True)
        return {'error': f'{type(error).__name__}: {str(error).strip().splitlines()[0]}'}


@jax.jit
def _same_bits(results: Any, others: Any) -> jax.Array:
    unsigned = {2: jnp.uint16, 4: jnp.uint32}
    bits = lambda x: jax.lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize])
    equal = jax.tree.map(lambda x, y: jnp.all(bits(x) == bits(y)), results, others)
    return jnp.all(jnp.stack(jax.tree.leaves(equal)))


def _overwrite_caches() -> jax.Array:
    """So that what is read next comes from memory, as a leaf does in training, whatever the caches hold."""
    return _fill(jnp.float32(1))


@jax.jit
def _fill(value: jax.Array) -> jax.Array:
    return jnp.full(CACHE_BYTES // 4, value)
