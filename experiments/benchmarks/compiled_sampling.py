"""What the kernels of weight sampling compile to for an H100, and how often sampling a model starts one."""

import dataclasses
import functools
import importlib
import importlib.metadata
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import timing
from experiments.devices import compiled_kernels, described_gpus
from experiments.devices.compiled_kernels import compile_to_text, count_launches
from gaussq_jax.formats import parse_format
from gaussq_jax.param_rules import DEFAULT_RULES, MatrixRule
from gaussq_jax.param_transforms import gaussian_weight_sampling
from gaussq_jax.text_table import text_table
from kernels_pallas.implementations import KERNELS
from kernels_pallas.weight_sampling import BLOCK_SIZE, NOISES

DIRECTIONS = ('forward', 'backward')
FORMATS = (None, 'e3m2')
MODELS = ((24, True), (4, False))  # layers, and whether they are stacked


def benchmark() -> Iterator[tuple[dict[str, Any], str]]:
    """`compile_report` and its table; then also 'launches', of `sampling_launches` for the `MODELS`, and theirs.

    Raises:
      CannotCompile: where a package is missing.
    """
    report = compile_report()  # before `provenance` looks for devices: see `described_gpus.devices`
    results = {**timing.provenance(), **report}
    compilers = f'JAX {jax.__version__}, ptxas {results["versions"]["ptxas"]}'
    yield results, f'weight sampling for {results["architecture"]}, {compilers}\n{kernels_table(results["rows"])}'
    results['launches'] = [
        {'layers': layers, 'stacked': stacked, 'implementation': name} | sampling_launches(layers, stacked, name)
        for layers, stacked in MODELS
        for name in ('xla', 'triton')
    ]
    yield results, f'\nlaunches to sample the weights of a Llama\n{launches_table(results["launches"])}'


def compile_report(
    shape: tuple[int, int, int] = (1, 4096, 4096),
    implementations: Sequence[str] = KERNELS,
    **settings: str | None,
) -> dict[str, Any]:
    """Compiles the kernels of weight sampling for an H100, and says what `CompiledKernel` does, and how much a weight.

    Args:
      shape: (l, m, n) of the weights, m and n multiples of 32.
      implementations: of `KERNELS`.
      **settings: those of a row, to compile only the kernels that have them.

    Returns:
      A dict for JSON: 'architecture', 'versions', 'shape' and 'rows'. A row has 'implementation', 'direction', 'dtype'
      (of the master weights; backward, of dW_hat), 'noise', 'format' (None: bfloat16), 'launches' (1, unless XLA adds
      some), what a `CompiledKernel` has, and 'instructions_per_weight'; or, if the kernel can't be compiled, 'error'.

    Raises:
      CannotCompile: where a package is missing.
    """
    described_gpus.devices()
    rows = []
    for implementation, direction, dtype, noise, fmt in itertools.product(
        implementations, DIRECTIONS, ('float32', 'bfloat16'), NOISES, FORMATS
    ):
        row = {'implementation': implementation, 'direction': direction, 'dtype': dtype, 'noise': noise, 'format': fmt}
        if (direction == 'backward' and fmt) or any(row[name] != value for name, value in settings.items()):
            continue
        try:
            rows.append(row | _measure(*_kernel(shape, **row), shape))
        except Exception as error:  # of whatever kind: of lowering, of XLA, of the assembler
            rows.append(row | {'error': f'{type(error).__name__}: {str(error).strip().splitlines()[0]}'})
    versions = {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib')}
    versions['ptxas'] = re.search(r'V[\d.]+', compiled_kernels.run_tool('ptxas', '--version').stdout)[0]
    return {'architecture': described_gpus.ARCHITECTURE, 'versions': versions, 'shape': list(shape), 'rows': rows}


def sampling_launches(layers: int, stacked: bool, implementation: str) -> dict[str, int]:
    """What sampling the weights of a Llama of 1B parameters' width starts on an H100: the kernels, and all around them.

    Returns:
      'leaves'; 'forward', the launches of W_hat of all of them; and 'with_gradients', those and dW and db.
    """
    matrix = lambda m, n: {'kernel': jax.ShapeDtypeStruct((layers, m, n) if stacked else (m, n), jnp.float32)}
    attention = {name: matrix(2048, 2048) for name in ('query', 'key', 'value', 'out')}
    mlp = {'gate': matrix(2048, 5632), 'up': matrix(2048, 5632), 'down': matrix(5632, 2048)}
    layer = {'attention': attention, 'mlp': mlp}
    params = {'layers': layer} if stacked else {f'layer_{i}': layer for i in range(layers)}
    with described_gpus.tracing():
        stack = MatrixRule('layers/.*', (0,), (1,), (2,), optional=True)
        transform = gaussian_weight_sampling(rules=(stack, *DEFAULT_RULES), implementation=implementation)
    state = jax.eval_shape(transform.init, params)
    key = jax.eval_shape(lambda: jax.random.key(0))
    d_samples = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)

    def with_gradients(key, params, state, d_samples):
        samples, pullback = jax.vjp(functools.partial(transform.apply, key), params, state)
        return samples, pullback(d_samples)

    launches = lambda function, *args: count_launches(compile_to_text(function, args)[1])
    return {
        'leaves': len(jax.tree.leaves(params)),
        'forward': launches(transform.apply, key, params, state),
        'with_gradients': launches(with_gradients, key, params, state, d_samples),
    }


def kernels_table(rows: list[dict[str, Any]]) -> str:
    def cells(row):
        fmt = f' -> {row["format"]}' if row['format'] else ''
        name = f'{row["direction"]} {row["dtype"]}{fmt}, {row["noise"]}'
        if 'error' in row:
            return name, row['implementation'], row['error']
        per_weight = f'{row["instructions_per_weight"]:.1f}' if row['instructions_per_weight'] else 'unknown'
        return name, row['implementation'], per_weight, str(row['registers']), str(row['spill_bytes'])

    header = ('kernel', 'implementation', 'instructions a weight', 'registers', 'bytes spilt')
    return text_table([header, *map(cells, rows)], left=(0, 1))


def launches_table(rows: list[dict[str, Any]]) -> str:
    def cells(row):
        model = f'{row["layers"]}, {"stacked" if row["stacked"] else "apart"}'
        return model, row['implementation'], *(str(row[name]) for name in ('leaves', 'forward', 'with_gradients'))

    header = ('layers', 'implementation', 'leaves', 'W_hat', 'with gradients')
    return text_table([header, *map(cells, rows)], left=(0, 1))


def _kernel(shape, *, implementation, direction, dtype, noise, format):
    """The function that a row is about, and the shapes of its arguments."""
    module = importlib.import_module(f'kernels_pallas.weight_sampling.{implementation}')
    l, m, n = shape
    of_shape = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    places = of_shape('uint32', l, 5), of_shape('uint32', m // BLOCK_SIZE), of_shape('uint32', n)
    if direction == 'backward':
        return functools.partial(module.backward, noise=noise), (*places, of_shape(dtype, *shape))
    representable = parse_format(format).representable if format else None
    function = functools.partial(module.forward, noise=noise, dtype=jnp.bfloat16, representable=representable)
    scale = of_shape('float32', l, m // BLOCK_SIZE, n // BLOCK_SIZE)
    return function, (*places, of_shape(dtype, *shape), scale)


def _measure(function, args, shape):
    kernels, launches = compiled_kernels.compile_for_h100(function, *args)
    [kernel] = [kernel for kernel in kernels if kernel.programs is not None]
    l, m, n = shape
    per_weight = {'instructions_per_weight': None if kernel.loops else kernel.instructions_per(l * m * n)}
    return {'launches': launches, **dataclasses.asdict(kernel), **per_weight}
