"""Evaluate a run's newest checkpoint: its loss on the whole validation split, or what quantization does to its weights.

    python -m experiments.evaluate --workdir=runs/tiny-gaussws
    python -m experiments.evaluate --workdir=runs/tiny-gaussws --quantization

The latter prints, for each weight matrix, the bits a weight, scales included; the share of weights that underflow to
zero, and of those that saturate, being beyond the largest magnitude that their block can hold; and the ratio of signal
to quantization noise. It writes them to WORKDIR/quantization.csv and draws them in WORKDIR/quantization.png. No data is
needed. The float32 master weights are quantized to the run's format and scales, to nearest: of fqt those of the forward
pass; of gaussws and diffq, if they have no format, that which each block's learned bitwidth asks for, whose name is not
counted in the bits.
--format, --block_size and --scale ask what another format would do:

    python -m experiments.evaluate --workdir=runs/tiny-bf16 --quantization --format=e2m1 --scale=nvfp4 --block_size=16
"""

import json
import pathlib

from absl import flags

from experiments import quantization_report, runs, training

WORKDIR = flags.DEFINE_string('workdir', None, "The run's directory.", required=True)
EVAL_BATCHES = flags.DEFINE_integer('eval_batches', -1, 'Batches to evaluate; -1 is all.', lower_bound=-1)
QUANTIZATION = flags.DEFINE_bool('quantization', False, 'Report on the quantization of the weights, not on the loss.')
FORMAT = flags.DEFINE_string('format', None, "With --quantization, a format instead of the run's own, such as e2m1.")
BLOCK_SIZE = flags.DEFINE_string('block_size', None, 'The same, what shares a scale: 32, 32x32, channel or tensor.')
SCALE = flags.DEFINE_string('scale', None, 'The same, how blocks are scaled: absmax, mx or nvfp4.')


def main(argv):
    del argv
    with runs.user_errors():
        check_flags()
    (report_quantization if QUANTIZATION.value else evaluate)(pathlib.Path(WORKDIR.value))


def check_flags():
    """Refuses a flag that would do nothing.

    Raises:
      ValueError: naming it.
    """
    meaningless = (EVAL_BATCHES,) if QUANTIZATION.value else (FORMAT, BLOCK_SIZE, SCALE)
    for flag in meaningless:
        if flag.present:
            only = 'without' if QUANTIZATION.value else 'with'
            raise ValueError(f'--{flag.name} has a meaning only {only} --quantization')


def evaluate(workdir: pathlib.Path):
    """Prints the metrics on the validation split as JSON."""
    with runs.user_errors():
        run = runs.open_run(workdir, eval_batches=EVAL_BATCHES.value)
        data = runs.load_data(run.experiment.config, run.tokenizer)
        validate = runs.make_validation(run.experiment, data)
    metrics = validate(run.state)
    bitwidths = training.bitwidth_metrics(run.experiment.transform, run.state.bitwidths)
    metrics.update({name: float(value) for name, value in bitwidths.items()})
    print(json.dumps({'step': int(run.state.step), **metrics}, indent=2))


def report_quantization(workdir: pathlib.Path):
    """Prints the table, and writes it and its picture to the workdir."""
    table, picture = workdir / 'quantization.csv', workdir / 'quantization.png'
    with runs.user_errors():
        run = runs.open_run(workdir)
        config = run.experiment.config
        quantizer = quantization_report.choose_quantizer(
            config, fmt=FORMAT.value, block_size=BLOCK_SIZE.value, scale=SCALE.value
        )
        rows = quantization_report.measure_run(run, quantizer)
        title = f'{workdir.name}, step {int(run.state.step)}: {quantization_report.describe(quantizer)}'
        quantization_report.write_csv(rows, table)
        quantization_report.draw(rows, title, picture)
    print(title, quantization_report.table(rows), f'written to {table} and {picture}', sep='\n')


if __name__ == '__main__':
    runs.start(main)
