"""Measure what weight sampling, simulated casts, checkpoints and generation cost, as ratios within one process.

    python -m experiments.benchmark kernel                        # each kernel beside a copy, on real shapes
    python -m experiments.benchmark kernel --shapes=llama2-1b --output=benchmarks/kernel.json
    python -m experiments.benchmark compile                       # what kernels compile to for an H100; needs no GPU
    python -m experiments.benchmark gemms                         # which GEMMs run on FP8 units; needs no GPU
    python -m experiments.benchmark step                          # training steps of configs/tiny.py
    python -m experiments.benchmark step --config=configs/llama2.py:size=134m --vocab_size=32000
    python -m experiments.benchmark depth                         # compile time, of 24 layers to that of 4
    python -m experiments.benchmark cast                          # casts to float8_e4m3fn, ours and others'
    python -m experiments.benchmark cast --shape=1024x1024 --output=benchmarks/cast.json
    python -m experiments.benchmark export --config=configs/llama2.py:size=134m --vocab_size=32000   # packed files
    python -m experiments.benchmark checkpoint --config=configs/llama2.py:size=134m --vocab_size=32000   # beside Orbax
    python -m experiments.benchmark generate --config=configs/tiny.py     # a token, with and without a cache
    python -m experiments.benchmark prepare --texts='texts/*.jsonl.zst' --tokenizer=tokenizer.json    # tokens/s
    python -m experiments.benchmark data --tokens=prepared                # batches beside copies, cold and warm

What is compared takes turns, one call each, so that whatever else the machine does falls on all alike; a ratio is
the median over the turns of the ratio to the base (bf16's step; a float32 copy) in the same turn. On a GPU, kernels
and steps are timed by the profiler, from the start of a call's first kernel to the end of its last, elsewhere by
the host's clock. Packed files are written and read once each, and compared with nothing. Of the others, qwix and
PyTorch come with the extras `peers` and `parity`; what isn't installed is listed as such.
"""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags

from experiments import cli
from experiments.benchmarks import timing
from experiments.files import paths
from gaussq_jax.atomic_files import replace_file

try:
    from ml_collections import config_flags
except ModuleNotFoundError:  # kernel, compile, gemms and cast, which have no use for it, do without
    config_flags = None

BENCHMARKS = {  # the module, and the flags that its `benchmark` takes
    'kernel': ('kernel_times', 'shapes', 'turns', 'clock'),
    'compile': ('compiled_sampling',),
    'gemms': ('compiled_gemms',),
    'step': ('step_times', 'config', 'methods', 'turns', 'vocab_size', 'clock'),
    'depth': ('depth_times', 'config', 'turns', 'vocab_size'),
    'cast': ('cast_times', 'shape', 'turns'),
    'export': ('export_times', 'config', 'vocab_size'),
    'checkpoint': ('checkpoint_times', 'config', 'turns', 'vocab_size'),
    'generate': ('generation_times', 'config', 'turns', 'vocab_size'),
    'prepare': ('preparation_times', 'texts', 'tokenizer', 'turns'),
    'data': ('data_times', 'tokens', 'turns'),
}
OUR_PACKAGES = ('experiments', 'gaussq_jax', 'kernels_pallas', 'configs')
DEFAULT_CONFIG = 'configs/tiny.py'
NOT_INSTALLED = "needs the package {}, which is not installed: pip install -e '.[experiments]'"
if config_flags:
    config_flags.DEFINE_config_file(
        'config', None, f'step, depth, export, checkpoint, generate: whose; file.py:name=value,…; else {DEFAULT_CONFIG}'
    )
flags.DEFINE_list(
    'methods',
    ['bf16', 'gaussws', 'diffq', 'naive', 'qwix-int8'],
    'step: whose; bf16 is the base. Those of the configs, recipes of fqt such as nvfp4, naive, qwix-int8, qwix-int4,'
    ' qwix-float8.',
)
flags.DEFINE_integer('vocab_size', 257, 'Tokens of the config; Llama 2 has 32000, GPT-2 50257.')
flags.DEFINE_string('shapes', None, 'kernel: a regex of names in arg_specs.py; else some, by the device.')
flags.DEFINE_string('texts', 'python_stdlib', 'prepare: what experiments.prepare --dataset takes.')
flags.DEFINE_string('tokenizer', 'tokenizer.json', 'prepare: a Hugging Face tokenizers .json file.')
flags.DEFINE_string('tokens', 'prepared', 'data: a folder with files *.tokens of uint16.')
flags.DEFINE_string('shape', '4096x4096', 'cast: the matrix, ROWSxCOLUMNS.')
flags.DEFINE_integer(
    'turns',
    None,
    f'Calls of each that are timed; else {timing.DEFAULT_TURNS}, depth and checkpoint: 5, prepare: 3.',
    lower_bound=1,
)
flags.DEFINE_enum('clock', None, timing.CLOCKS, 'kernel, step: else the profiler on a GPU, the host elsewhere.')
OUTPUT = flags.DEFINE_string('output', None, 'A JSON file for the results, rewritten after each one.')


def main(argv):
    name = ' '.join(argv[1:])
    if name not in BENCHMARKS:
        sys.exit(f'error: say what to measure: {" or ".join(BENCHMARKS)} (not {name!r})')
    with cli.user_errors():
        output = OUTPUT.value and paths.parse(OUTPUT.value, '--output')
        try:
            for results, text in measure(name):
                if text:
                    print(text, flush=True)
                if output:
                    replace_file(output, json.dumps(results, indent=2) + '\n')
        except ModuleNotFoundError as error:
            if error.name.partition('.')[0] in OUR_PACKAGES:
                raise
            sys.exit(f'error: {name} {NOT_INSTALLED.format(error.name)}')


def measure(name: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The results so far and what to print next; imported here is what not all benchmarks have the packages for."""
    module, *names = BENCHMARKS[name]
    benchmark = importlib.import_module(f'experiments.benchmarks.{module}').benchmark
    return benchmark(**{name: flags.FLAGS[name].value for name in names})


if __name__ == '__main__':
    if config_flags is None and any(re.match('--?config[.=]', argument) for argument in sys.argv):
        sys.exit(f'error: --config {NOT_INSTALLED.format("ml_collections")}')
    cli.start(main, default_config=DEFAULT_CONFIG if config_flags else None, takes_arguments=True)
