"""Measure what weight sampling and simulated casts cost, as ratios within one process.

    python -m experiments.benchmark kernel                        # each kernel beside a copy, on real shapes
    python -m experiments.benchmark kernel --shapes=llama2-1b --output=benchmarks/kernel.json
    python -m experiments.benchmark compile                       # what kernels compile to for an H100; needs no GPU
    python -m experiments.benchmark step                          # training steps of configs/tiny.py
    python -m experiments.benchmark step --config=configs/llama2.py:size=134m --vocab_size=32000
    python -m experiments.benchmark depth                         # compile time, of 24 layers to that of 4
    python -m experiments.benchmark cast                          # casts to float8_e4m3fn, ours and others'
    python -m experiments.benchmark cast --shape=1024x1024 --output=benchmarks/cast.json
    python -m experiments.benchmark export --config=configs/llama2.py:size=134m --vocab_size=32000   # packed files

What is compared takes turns, one call each, so that whatever else the machine does falls on all alike; a ratio is
the median over the turns of the ratio to the base (bf16's step; a float32 copy) in the same turn. On a GPU, kernels
and steps are timed by the profiler, from the start of a call's first kernel to the end of its last, elsewhere by
the host's clock. Packed files are written and read once each, and compared with nothing. Of the others, qwix and
PyTorch come with the extras `peers` and `parity`; what isn't installed is listed as such.
"""

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from experiments import cli
from experiments.benchmarks import timing
from experiments.files import paths
from gaussq_jax.atomic_files import replace_file
from kernels_pallas import arg_specs

try:
    from ml_collections import config_flags
except ModuleNotFoundError:  # kernel, compile and cast, which have no use for it, do without
    config_flags = None

DEFAULT_CONFIG = 'configs/tiny.py'
DEFAULT_TURNS = 40
NOT_INSTALLED = "needs the package {}, which is not installed: pip install -e '.[experiments]'"
CONFIG = config_flags and config_flags.DEFINE_config_file(
    'config', None, f'step, depth, export: whose; file.py:name=value,…; else {DEFAULT_CONFIG}'
)
METHODS = flags.DEFINE_list(
    'methods',
    ['bf16', 'gaussws', 'diffq', 'naive', 'qwix-int8'],
    'step: whose; bf16 is the base. Those of the configs, naive, qwix-int8, qwix-int4, qwix-float8.',
)
VOCAB_SIZE = flags.DEFINE_integer('vocab_size', 257, 'Tokens of the config; Llama 2 has 32000, GPT-2 50257.')
SHAPES = flags.DEFINE_string('shapes', None, 'kernel: a regex of names in arg_specs.py; else some, by the device.')
SHAPE = flags.DEFINE_string('shape', '4096x4096', 'cast: the matrix, ROWSxCOLUMNS.')
TURNS = flags.DEFINE_integer(
    'turns', None, f'Calls of each that are timed; else {DEFAULT_TURNS}, depth: 5.', lower_bound=1
)
CLOCK = flags.DEFINE_enum('clock', None, timing.CLOCKS, 'kernel, step: else the profiler on a GPU, the host elsewhere.')
OUTPUT = flags.DEFINE_string('output', None, 'A JSON file for the results, rewritten after each one.')


def main(argv):
    measures = {
        'kernel': kernel,
        'compile': compile_kernels,
        'step': step,
        'depth': depth,
        'cast': cast,
        'export': export,
    }
    measure = measures.get(' '.join(argv[1:]))
    if measure is None:
        sys.exit(f'error: say what to measure: {" or ".join(measures)} (not {" ".join(argv[1:])!r})')
    with cli.user_errors():
        try:
            measure()
        except ModuleNotFoundError as error:
            if error.name.partition('.')[0] in ('experiments', 'gaussq_jax', 'kernels_pallas', 'configs'):
                raise
            sys.exit(f'error: {" ".join(argv[1:])} {NOT_INSTALLED.format(error.name)}')


def kernel():
    """Times the kernels on each shape, and prints and writes what there is after each."""
    from experiments.benchmarks import kernel_times

    clock = CLOCK.value or timing.default_clock()
    default = kernel_times.DEFAULT_SHAPES.get(jax.default_backend(), kernel_times.DEFAULT_SHAPES['cpu'])
    specs = arg_specs.matching(SHAPES.value or default)
    implementations = kernel_times.implementations()
    results = {**timing.environment(), 'clock': clock, 'turns': number_of_turns(), 'implementations': implementations}
    results['rows'] = []
    print(f"{results['device']}, by the {clock}'s clock")
    for name, reason in implementations.items():
        if reason is not None:
            print(f'{name} is not measured: {reason}')
    for spec in specs:
        slow = kernel_times.SLOW_TO_COMPILE
        leave_out = [slow] if jax.default_backend() == 'gpu' and results['rows'] else []
        rows = kernel_times.time_shape(spec, number_of_turns(), clock, leave_out=leave_out)
        print_table(
            f'\n{spec.name}, {" x ".join(map(str, spec.shape))}',
            ('operation', 'implementation', 'median', 'bandwidth', 'of a copy', 'kernels', 'bits'),
            map(_kernel_cells, rows),
        )
        print_clocks({f'{row["operation"]} by {row["implementation"]}': row for row in rows})
        if leave_out:
            print(f'{" by ".join(slow)} is measured on the first shape alone: it takes a minute to compile')
        results['rows'] += rows
        write(results)


def compile_kernels():
    """Compiles the kernels for an H100, and prints what they need and how often sampling a model starts one."""
    from experiments.devices import compiled_kernels

    try:
        compiled_kernels.find_h100()  # before `environment` looks for devices: see there
        results = {**timing.environment(), **compiled_kernels.compile_report()}
    except compiled_kernels.CannotCompile as error:
        raise ValueError(error) from None
    print_table(
        f'weight sampling for {results["architecture"]}, JAX {jax.__version__}, ptxas {results["versions"]["ptxas"]}',
        ('kernel', 'implementation', 'instructions a weight', 'registers', 'bytes spilt'),
        map(_compiled_cells, results['rows']),
    )
    results['launches'] = [
        {'layers': layers, 'stacked': stacked, 'implementation': name}
        | compiled_kernels.sampling_launches(layers, stacked, name)
        for layers, stacked in ((24, True), (4, False))
        for name in ('xla', 'triton')
    ]
    print_table(
        '\nlaunches to sample the weights of a Llama',
        ('layers', 'implementation', 'leaves', 'W_hat', 'with gradients'),
        (
            (
                f'{row["layers"]}, {"stacked" if row["stacked"] else "apart"}',
                row['implementation'],
                *(str(row[name]) for name in ('leaves', 'forward', 'with_gradients')),
            )
            for row in results['launches']
        ),
    )
    write(results)


def step():
    """Times the training steps that the flags say, and prints them; what there is is written after each method."""
    from experiments.benchmarks import step_times

    clock = CLOCK.value or timing.default_clock()
    results = step_times.time_steps(
        CONFIG.value, METHODS.value, number_of_turns(), vocab_size=VOCAB_SIZE.value, clock=clock, keep=write
    )
    print_table(
        f'training step of {results["config"]}, {results["parameters"]:,} parameters, {results["tokens"]:,} tokens,'
        f" {results['device']}, by the {clock}'s clock",
        ('method', '', 'median step', 'bf16 beside it', 'to bf16', 'quartiles', 'kernels'),
        (
            (name, row) if isinstance(row, str) else (name, '', *_step_cells(row))
            for name, row in results['methods'].items()
        ),
    )
    print_clocks(results['methods'])


def depth():
    """Times how long training steps of few and of many layers take to compile, and prints them."""
    from experiments.benchmarks import compile_times

    turns = number_of_turns(compile_times.DEFAULT_TURNS)
    results = compile_times.time_depths(CONFIG.value, turns, vocab_size=VOCAB_SIZE.value)
    print_table(
        f'compiling the training step of {results["config"]}, {results["device"]}',
        ('layers', '', 'median', 'to the first', 'quartiles'),
        (
            (layers, '', f'{row["seconds"]:.2f} s', f'{row["ratio"]:.2f}', _quartiles(row, 2))
            for layers, row in results['depths'].items()
        ),
    )
    write(results)


def cast():
    """Times casts and fake quantization, and prints them."""
    from experiments.benchmarks import cast_times

    if not (match := re.fullmatch(r'(\d+)x(\d+)', SHAPE.value)):
        raise ValueError(f'shape={SHAPE.value!r} is not ROWSxCOLUMNS, such as 4096x4096')
    results = cast_times.time_casts((int(match[1]), int(match[2])), number_of_turns())
    print_table(
        f'float32 {SHAPE.value} to float8_e4m3fn and back, {results["device"]}',
        ('operation', 'by', 'a value', 'to a copy', 'quartiles'),
        (
            (what, by, row) if isinstance(row, str) else (what, by, *_cast_cells(row))
            for what, rows in results['operations'].items()
            for by, row in rows.items()
        ),
    )
    write(results)


def export():
    """Times how long packed files take to write and to read, and prints that and their sizes."""
    from experiments.benchmarks import export_times

    results = export_times.time_exports(CONFIG.value, vocab_size=VOCAB_SIZE.value)
    print_table(
        f'packed files of {results["config"]}, {results["parameters"]:,} parameters, {results["device"]}',
        ('format', '', 'file', 'a quantized weight', 'write', 'memory', 'read', 'memory'),
        ((fmt, '', *_export_cells(row)) for fmt, row in results['formats'].items()),
    )
    write(results)


def print_clocks(rows: dict[str, Any]):
    """Says which rows the profiler saw nothing of."""
    measured = {name: row for name, row in rows.items() if isinstance(row, dict)}
    if names := [name for name, row in measured.items() if row.get('clock') == timing.BACK_TO_BACK]:
        print(f'timed by the host, back to back, because the profiler saw nothing: {"; ".join(names)}')


def number_of_turns(default: int = DEFAULT_TURNS) -> int:
    return TURNS.value or default


def print_table(title: str, header: Sequence[str], rows):
    """Prints rows of cells, of which those at the end may be missing, in columns; the first two are of words."""
    rows = [header, *([*row, *[''] * (len(header) - len(row))] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    print(title)
    for row in rows:
        cells = [cell.rjust(width) if i > 1 else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        print('  '.join(cells).rstrip(), flush=True)


def write(results: dict[str, Any]):
    if OUTPUT.value:
        replace_file(paths.parse(OUTPUT.value, '--output'), json.dumps(results, indent=2) + '\n')


def _kernel_cells(row) -> Sequence[str]:
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


def _compiled_cells(row) -> Sequence[str]:
    name = f'{row["direction"]} {row["dtype"]}{" -> " + row["format"] if row["format"] else ""}, {row["noise"]}'
    if 'error' in row:
        return name, row['implementation'], row['error']
    per_weight = f'{row["instructions_per_weight"]:.1f}' if row['instructions_per_weight'] else 'unknown'
    return name, row['implementation'], per_weight, str(row['registers']), str(row['spill_bytes'])


def _step_cells(row) -> Sequence[str]:
    times = (f'{row[name] * 1e3:.1f} ms' for name in ('seconds', 'base_seconds'))
    return *times, f'{row["ratio"]:.3f}', _quartiles(row, 3), str(row.get('launches', ''))


def _cast_cells(row) -> Sequence[str]:
    return f'{row["nanoseconds_per_value"]:.3f} ns', f'{row["ratio"]:.2f}', _quartiles(row, 2)


def _export_cells(row) -> Sequence[str]:
    cells = [f'{row["file_bytes"] * 1e-6:.1f} MB', f'{row["mean_stored_bits"]:.2f} bits']
    for name in ('write', 'read'):
        extra = row[name]['bytes']
        memory = 'unknown' if extra is None else f'{extra / row["file_bytes"]:.2f} files'
        cells += [f'{row[name]["seconds"]:.1f} s', memory]
    return cells


def _quartiles(row, digits: int) -> str:
    return ' .. '.join(f'{quartile:.{digits}f}' for quartile in row['ratio_quartiles'])


if __name__ == '__main__':
    if config_flags is None and any(re.match('--?config[.=]', argument) for argument in sys.argv):
        sys.exit(f'error: --config {NOT_INSTALLED.format("ml_collections")}')
    cli.start(main, default_config=DEFAULT_CONFIG if config_flags else None, takes_arguments=True)
