"""Which GEMMs of a linear layer GPUs with FP8 and FP4 units get to run, in how many launches and in how much memory."""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import timing
from experiments.devices import described_gpus
from experiments.devices.compiled_kernels import compile_described, count_launches
from gaussq_jax import recipes
from gaussq_jax.text_table import text_table

SHAPE = (4096, 4096, 11008)  # tokens, inputs and outputs of the layer
LAYERS = ('simulated channel', 'hardware channel', 'simulated tensor', 'hardware tensor', 'jax mxfp8', 'jax nvfp4')
CUBLAS_FP8 = '__cublas$lt$matmul$f8'
CUDNN_BLOCK_SCALED = '__cudnn$blockScaledDot'
OPTIONS = {'xla_gpu_enable_triton_gemm': False}  # of XLA, whose own kernels for FP8 multiply in bfloat16

_MATMUL = ((1,), (0,)), ((), ())  # X W


def benchmark() -> Iterator[tuple[dict[str, Any], str]]:
    """`gemms_report` and its table.

    Raises:
      CannotCompile: where a package is missing.
    """
    rows = gemms_report()  # before `provenance` looks for devices: see `described_gpus.devices`
    results = {**timing.provenance(), 'shape': list(SHAPE), 'options': OPTIONS, 'rows': rows}
    shape = ' x '.join(map(str, SHAPE))
    yield results, f'a layer of {shape}, bfloat16, forward and backward, JAX {jax.__version__}\n{gemms_table(rows)}'


def gemms_report(
    gpus: Sequence[str] = tuple(described_gpus.GPUS),
    layers: Sequence[str] = LAYERS,
    shape: tuple[int, int, int] = SHAPE,
) -> list[dict[str, Any]]:
    """Compiles Y = X W, dX = dY W^T and dW = X^T dY of bfloat16 for described GPUs.

    Args:
      gpus: of `described_gpus.GPUS`.
      layers: of LAYERS: 'simulated' or 'hardware' FP8 with scales by channel or by tensor, E4M3 forward and E5M2 for
        gradients; or `jax.nn.scaled_dot_general` with 'mxfp8' or 'nvfp4'.
      shape: tokens, inputs and outputs.

    Returns:
      Of each GPU and layer: 'fp8_gemms' of cuBLASLt, 'block_scaled_gemms' of cuDNN, 'launches' and 'temporary_bytes'.

    Raises:
      CannotCompile: where a package is missing.
    """
    tokens, inputs, outputs = shape
    args = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((tokens, inputs), (inputs, outputs), (tokens, outputs))]
    rows = []
    for gpu in gpus:
        for layer in layers:
            _, compiled = compile_described(_layer(*layer.split()), args, gpu=gpu, options=OPTIONS)
            text = compiled.as_text()
            calls = re.findall(r'custom_call_target="([^"]*)"', text)
            counts = {'fp8_gemms': calls.count(CUBLAS_FP8), 'block_scaled_gemms': calls.count(CUDNN_BLOCK_SCALED)}
            costs = {
                'launches': count_launches(text),
                'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
            }
            rows.append({'gpu': gpu, 'layer': layer, **counts, **costs})
    return rows


def gemms_table(rows: list[dict[str, Any]]) -> str:
    def cells(row):
        counts = (str(row[name]) for name in ('fp8_gemms', 'block_scaled_gemms', 'launches'))
        return row['gpu'], row['layer'], *counts, f'{row["temporary_bytes"] / 1e6:.0f}'

    header = ('gpu', 'layer', 'FP8 GEMMs', 'block-scaled GEMMs', 'launches', 'temporary MB')
    return text_table([header, *map(cells, rows)], left=(0, 1))


def _layer(arithmetic: str, name: str) -> Callable[..., tuple[jax.Array, ...]]:
    """The function (X, W, dY) -> (Y, dX, dW)."""
    if arithmetic == 'jax':
        return _with_gradients(_scaled_dot_general(name))
    recipe = recipes.find({'channel': 'fp8_rowwise', 'tensor': 'fp8_tensorwise'}[name]).replace(arithmetic=arithmetic)
    return _with_gradients(functools.partial(recipe.dot_general(), dimension_numbers=_MATMUL))


def _with_gradients(multiply):
    def layer(x, w, dy):
        y, pullback = jax.vjp(multiply, x, w)
        return y, *pullback(dy)

    return layer


def _scaled_dot_general(mode):
    def multiply(x, w):
        config = jax.nn.get_scaled_dot_general_config(mode, jnp.ones((1,)) if mode == 'nvfp4' else None)
        return jax.nn.scaled_dot_general(x, w, _MATMUL, preferred_element_type=x.dtype, configs=[config] * 3)

    return multiply
