"""Evaluate a run's newest checkpoint, or a packed file: its loss on the whole validation split, or its quantization.

    python -m experiments.evaluate --workdir=runs/tiny-gaussws
    python -m experiments.evaluate --workdir=runs/tiny-gaussws --quantization

The latter prints, for each weight matrix, the bits a weight, scales included; the share of weights that underflow to
zero, and of those that saturate, being beyond the largest magnitude that their block can hold; and the ratio of signal
to quantization noise. It writes them to WORKDIR/quantization.csv and draws them in WORKDIR/quantization.png. No data is
needed. The float32 master weights are quantized to the run's format and scales, to nearest: of fqt those of the forward
pass, by its recipe or its settings, and layers that it keeps are in bfloat16; of gaussws and diffq, if they have no
format, that which each block's learned bitwidth asks for, whose name is counted, too, as it is kept in packed files.
--format, --block_size and --scale ask what another format would do:

    python -m experiments.evaluate --workdir=runs/tiny-bf16 --quantization --format=e2m1 --scale=nvfp4 --block_size=16

Beside the loss of a run with a teacher that is still there is 'validation/kl': KL(teacher || student), in nats a token.

Of a packed file of `experiments.export`, whose weights are evaluated as they are, it prints both: what they lost when
they were packed, and their loss. No workdir is needed. With --quantization it reads no text, and writes the former next
to the file, as .csv and .png.

    python -m experiments.evaluate --weights=runs/tiny-gaussws/learned.safetensors

Which text that is, is yours to say by --dataset and --data_dir, unless it is python_stdlib, which every machine has.
"""

import dataclasses
import json
import math
import pathlib
import sys

import jax
from absl import flags

from experiments import cli, workdirs
from experiments.data import loading
from experiments.data.datasets import python_stdlib
from experiments.files import json_files, paths
from experiments.reports import quantization
from experiments.training import bitwidth_metrics, distillation, evaluation
from experiments.training.experiment import Experiment

WORKDIR = flags.DEFINE_string('workdir', None, "The run's directory.")
WEIGHTS = flags.DEFINE_string('weights', None, 'A packed file, in place of --workdir.')
TOKENIZER = flags.DEFINE_string(
    'tokenizer', None, "With --weights, the tokenizer's file, if it isn't beside them or in the folder tokenizer there."
)
DATASET = flags.DEFINE_string('dataset', None, 'With --weights, text like that of training, as config.dataset has it.')
DATA_DIR = flags.DEFINE_string('data_dir', None, 'With --weights, where TFDS keeps it, if not where it usually does.')
EVAL_BATCHES = flags.DEFINE_integer('eval_batches', -1, 'Batches to evaluate; -1 is all.', lower_bound=-1)
QUANTIZATION = flags.DEFINE_bool('quantization', False, 'Report on the quantization of the weights, not on the loss.')
FORMAT = flags.DEFINE_string('format', None, "With --quantization, a format instead of the run's own, such as e2m1.")
BLOCK_SIZE = flags.DEFINE_string('block_size', None, 'The same, what shares a scale: 32, 32x32, channel or tensor.')
SCALE = flags.DEFINE_string('scale', None, 'The same, how blocks are scaled: absmax, mx or nvfp4.')


def main(argv):
    del argv
    with cli.user_errors():
        check_flags()
        changes = {} if QUANTIZATION.value else {'eval_batches': EVAL_BATCHES.value}
        changes |= {flag.name: flag.value for flag in (DATASET, DATA_DIR) if flag.present}
        run = workdirs.open_either(WORKDIR.value, WEIGHTS.value, TOKENIZER.value, **changes)
        dataset = run.experiment.config.dataset
        if run.packed and not (QUANTIZATION.value or DATASET.present) and dataset != python_stdlib.NAME:
            told = f'--weights={WEIGHTS.value} is of a training on {dataset!r}'  # and should not choose what is opened
            raise ValueError(f'{told}: say --dataset, and maybe --data_dir')
        source = paths.parse(WEIGHTS.value or WORKDIR.value, '--weights' if WEIGHTS.value else '--workdir')
    if QUANTIZATION.value or run.packed:
        changes = dict(fmt=FORMAT.value, block_size=BLOCK_SIZE.value, scale=SCALE.value)
        report_quantization(run, source, changes, is_written=QUANTIZATION.value)
    if not QUANTIZATION.value:
        evaluate(run)


def check_flags():
    """Refuses a flag that would do nothing: a ValueError names it."""
    meaningless = (EVAL_BATCHES,) if QUANTIZATION.value else (FORMAT, BLOCK_SIZE, SCALE)
    for flag in meaningless:
        if flag.present:
            only = 'without' if QUANTIZATION.value else 'with'
            raise ValueError(f'--{flag.name} has a meaning only {only} --quantization')
    for flag in (DATASET, DATA_DIR):
        if flag.present and (QUANTIZATION.value or not WEIGHTS.value):
            raise ValueError(f'--{flag.name} has a meaning only with --weights, and without --quantization')
    for flag in (FORMAT, BLOCK_SIZE, SCALE):
        if flag.present and WEIGHTS.value:
            raise ValueError(f'--{flag.name} has no meaning with --weights, which are quantized already')


def evaluate(run: workdirs.Run):
    """Prints the metrics on the validation split as JSON; of packed weights, also what they take."""
    with cli.user_errors():
        data = loading.load_data(run.experiment.config, run.tokenizer)
        validate = evaluation.make_validation(with_teacher(run), data)
    try:
        metrics = validate(run.state)
    except OSError as error:  # of the data
        cli.fail(error)
    bitwidths = bitwidth_metrics.of_state(run.experiment.transform, run.state.transform_state)
    metrics.update({name: float(value) for name, value in bitwidths.items()})
    if run.packed:
        size = run.packed.size
        stored = {} if math.isnan(size.mean_stored_bits) else {'bits/mean_stored': size.mean_stored_bits}
        metrics.update({**stored, 'bytes': size.total_bytes})
    print(json.dumps({'step': int(run.state.step), **metrics}, indent=2))


def with_teacher(run: workdirs.Run) -> Experiment:
    """The experiment with the teacher of its run, if there was one that is still there; a line says if it isn't."""
    if not run.experiment.config.teacher:
        return run.experiment
    try:
        teacher = distillation.find(run.experiment, run.tokenizer, paths.parse(WORKDIR.value, '--workdir'))
        jax.block_until_ready(teacher.weights)  # what can fail, does so here
    except ValueError as error:
        print(f'validation/kl is left out: {error}', file=sys.stderr)
        teacher = None
    return dataclasses.replace(run.experiment, teacher=teacher)


def report_quantization(run: workdirs.Run, source: pathlib.Path, changes: dict[str, str | None], *, is_written: bool):
    """Prints what quantization does to the weights, with `changes` as `quantization.choose_quantizer` takes them.

    Where `is_written`, the table and its picture also go to the workdir, or next to the file: `source`.
    """
    with cli.user_errors():
        if run.packed:
            with json_files.naming(source):
                what = quantization.describe_layout(run.packed.info, run.packed.layout)
                rows = quantization.from_json(run.packed.info['report'])
        else:
            quantizer = quantization.choose_quantizer(run.experiment.config, **changes)
            what = quantization.describe(quantizer)
            rows = quantization.measure_run(run.experiment, run.state, quantizer)
    title = f'{source.name}, step {int(run.state.step)}: {what}'
    print(title)
    if not rows:
        return
    print(quantization.table(rows))
    if is_written:
        files = source.with_suffix('') if run.packed else source / 'quantization'
        table, picture = (files.with_name(files.name + suffix) for suffix in ('.csv', '.png'))
        with cli.user_errors():
            quantization.write_csv(rows, table)
            quantization.draw(rows, title, picture)
        print(f'written to {table} and {picture}')


if __name__ == '__main__':
    cli.start(main)
