"""Cast the trained weights of a sweep's runs to fewer and fewer bits, and see what loss is left.

    python -m experiments.sweep --config=configs/sweeps/cast_down.py --workdir=runs/cast-down --jobs=2
    python -m experiments.cast_down --workdir=runs/cast-down --eval_batches=60 --output=docs/cast_down.png

The float32 master weights of each run's newest checkpoint are packed into a file: in one format for all matrices, with
MX scales; within budgets, in formats that are chosen for each matrix by squared error, and for each block of 32 x 32 by
squared error times squared gradient; and where bitwidths were learned, each block in the format of its own, without and
with a budget. What is read back from the file is evaluated on the validation split. Prints tables over the seeds for
each model size, and writes every number to WORKDIR/cast_down.csv: what is there for the same checkpoint is not measured
again. --eval_batches=-1 is the whole validation split.
"""

import itertools
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from absl import flags

import gaussq_jax as gq
from experiments import cli, methods, workdirs
from experiments.checkpoints.step_directories import load_contents
from experiments.data import loading
from experiments.files import csv_files, json_files, paths
from experiments.methods.settings import WAYS
from experiments.reports import cast_losses, format_choice, pictures
from experiments.reports.cast_losses import ERROR, LEARNED, SENSITIVITY, UNQUANTIZED, Cast
from experiments.training import evaluation
from experiments.training.experiment import TrainState, with_fixed_weights
from gaussq_jax.packed import Layout

WORKDIR = flags.DEFINE_string('workdir', None, "The sweep's directory.", required=True)
OUTPUT = flags.DEFINE_string('output', None, 'The picture: .png, .svg or .pdf. By default WORKDIR/cast_down.png.')
FORMATS = flags.DEFINE_list(
    'formats',
    ['float8_e4m3fn', 'float6_e3m2fn', 'e2m2', 'float4_e2m1fn'],
    'What to cast to, besides bfloat16, and chosen and learned formats.',
)
EVAL_BATCHES = flags.DEFINE_integer('eval_batches', -1, 'Batches to evaluate; -1 is all.', lower_bound=-1)

BUDGETS = (6.25, 5.25, 4.75, 4.25)  # mean stored bits: as of E3M2, E2M2 and E2M1 with their scales, and between

BLOCK_SIZE = 32  # of chosen formats: blocks as they are learned

Validate = Callable[[TrainState], dict[str, float]]


def main(argv):
    del argv
    start = time.perf_counter()
    with cli.user_errors():
        workdir = paths.parse(WORKDIR.value, '--workdir')
        output = paths.parse(OUTPUT.value, '--output') if OUTPUT.value else workdir / 'cast_down.png'
        pictures.check(output)
        done, left_out = read_sweep(workdir / 'results.csv')
        formats = [gq.parse_format(name).name for name in (UNQUANTIZED, *FORMATS.value)]
        casts = cast_runs(workdir, done, list(dict.fromkeys(formats)), EVAL_BATCHES.value)
        with json_files.naming(workdir / 'cast_down.csv'):
            sizes = cast_losses.group(casts)
        print(f'{time.perf_counter() - start:.0f} s\n', cast_losses.markdown(sizes), '', sep='\n')
        cast_losses.draw(sizes, output)
    print(f'written to {workdir / "cast_down.csv"} and {output}')
    if left_out:
        sys.exit(f'not done, and left out: {", ".join(left_out)}')


def read_sweep(path: pathlib.Path) -> tuple[list[str], list[str]]:
    """The names of the runs of a results.csv that are done, and of those that aren't.

    Raises:
      ValueError: if it is no table of a sweep, or no run is done.
    """
    rows = [row for _, row in csv_files.read(path)]
    done = [row['name'] for row in rows if row.get('status') == 'done' and row.get('name')]
    if not done:
        raise ValueError(
            f'{path} has no run that is done; its columns are {csv_files.in_words(rows[0] if rows else ())}'
        )
    return done, [row['name'] for row in rows if row['status'] != 'done']


def cast_runs(workdir: pathlib.Path, names: list[str], formats: list[str], eval_batches: int) -> list[Cast]:
    """All casts of these runs, those that the workdir's cast_down.csv has, and the others, which it has then."""
    table = workdir / 'cast_down.csv'
    by_run, evaluations = {}, {}
    for cast in read_casts(table) if table.exists() else ():
        by_run.setdefault(cast.run, []).append(cast)
    for i, name in enumerate(names):
        checkpoint = load_contents(workdir / name / 'checkpoints')['sha256']
        alike = [
            cast for cast in by_run.get(name, ()) if (cast.checkpoint, cast.eval_batches) == (checkpoint, eval_batches)
        ]
        if [cast.cast for cast in alike if cast_losses.kind(cast.cast) == cast_losses.UNIFORM] == formats:
            continue
        print(f'[{i + 1}/{len(names)}] {name}:', end='', flush=True)
        by_run[name] = cast_run(workdir / name, checkpoint, formats, eval_batches, evaluations)
        csv_files.write(table, Cast._fields, itertools.chain(*by_run.values()))
    return [cast for name in names for cast in by_run[name]]


def cast_run(
    workdir: pathlib.Path, checkpoint: str, formats: list[str], eval_batches: int, evaluations: dict[str, Validate]
) -> list[Cast]:
    """Packs, reads back and evaluates each cast of a run; `evaluations` keeps what other runs of its shape can use."""
    run = workdirs.open_run(workdir, eval_batches=eval_batches)
    config = run.experiment.config
    used = {**config.quantization.to_dict(), **methods.unused_settings(config.method)}
    sampled = methods.find(config.method).learns_bitwidths
    casts, losses, data = [], {}, loading.load_data(config, run.tokenizer)
    for name, layout in layouts_of(run, formats, data).items():
        with tempfile.TemporaryDirectory() as directory:
            file = pathlib.Path(directory) / 'packed.safetensors'
            size = gq.save_packed(file, run.state.params, layout)
            weights = gq.load_packed(file, like=run.state.params)
            contents = file.read_bytes()
        if contents not in losses:  # a budget that is no constraint makes the same file
            are_rounded = bool(layout)
            experiment, state = with_fixed_weights(
                run.experiment, weights, int(run.state.step), are_rounded=are_rounded
            )
            key = what_evaluation_depends_on(config, int(run.state.step), are_rounded)
            if key not in evaluations:
                evaluations[key] = evaluation.make_validation(experiment, data)
            losses[contents] = evaluations[key](state)
        loss, bits_per_byte = (losses[contents][f'validation/{name}'] for name in ('loss', 'bits_per_byte'))
        print(f' {cast_losses.short_name(name)} {loss:.4f}', end='', flush=True)
        casts.append(
            Cast(
                run=workdir.name,
                N=run.experiment.num_linear_params,
                method=config.method,
                bitwidths=WAYS[config.quantization.optimizer] if sampled else '',
                b_target=f'{config.quantization.b_target:g}' if sampled else '',
                format=used['format'],
                seed=config.seed,
                step=int(run.state.step),
                checkpoint=checkpoint,
                eval_batches=eval_batches,
                cast=name,
                loss=loss,
                bits_per_byte=bits_per_byte,
                stored_bits=16.0 if not layout else size.mean_stored_bits,
                file_bytes=len(contents),
            )
        )
    print()
    return casts


def layouts_of(run: workdirs.Run, formats: list[str], data: loading.Data) -> dict[str, Layout]:
    """What a run's weights are cast to, by name; the linear layers are those that its method is for."""
    params, bitwidths, transform = run.state.params, run.state.transform_state, run.experiment.transform
    layouts = {name: transform.uniform_layout(params, name) for name in formats}
    uniform = transform.uniform_layout(params, 'e2m1')
    squared_gradients = format_choice.squared_gradients(run.experiment, run.state, data)
    for how, weights, by_matrix in ((ERROR, None, True), (SENSITIVITY, squared_gradients, False)):
        lost = format_choice.errors(params, uniform, BLOCK_SIZE, weights=weights)
        for budget in BUDGETS:
            chosen = format_choice.within_budget(params, uniform, lost, BLOCK_SIZE, budget, by_matrix=by_matrix)
            layouts[f'{how} {budget:g}'] = chosen
    if bitwidths:
        layouts[LEARNED] = transform.learned_layout(params, bitwidths)
        for budget in BUDGETS:
            within = transform.formats_within_budget(params, bitwidths, budget)
            layouts[f'{LEARNED} {budget:g}'] = transform.learned_layout(params, bitwidths, formats=within)
    return layouts


def what_evaluation_depends_on(config: Any, step: int, are_rounded: bool) -> str:
    """The fields of a config that more than the training reads; runs that agree share a compiled evaluation.

    Where matmuls are quantized, it depends on the step, too, and on whether weights are rounded already.
    """
    is_plain = not methods.quantizes_matmuls(config)
    training_only = {'seed', 'name', 'optimizer'} | ({'method', 'quantization'} if is_plain else set())
    fields = {name: value for name, value in config.to_dict().items() if name not in training_only}
    return json.dumps([fields] if is_plain else [fields, step, are_rounded])


def read_casts(path: pathlib.Path) -> list[Cast]:
    """What `cast_runs` wrote; ValueError for another table."""
    try:
        rows = [row for _, row in csv_files.read(path)]
        return [Cast(**{name: kind(row[name]) for name, kind in Cast.__annotations__.items()}) for row in rows]
    except (ValueError, KeyError):
        raise ValueError(f'{path} is not of this program, or damaged; delete it to measure again') from None


if __name__ == '__main__':
    cli.start(main)
