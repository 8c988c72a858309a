"""A run as one HTML file that needs no other: what was trained, how it went, and what came of it."""

import math
import pathlib
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import methods
from experiments.data.tokenizers import Tokenizer
from experiments.files import foreign_text, json_files, paths
from experiments.methods.quantization_schedule import describe_steps
from experiments.reports import bitwidth_pictures, pictures, quantization, run_pictures, run_settings, stored_formats
from experiments.reports.html_page import folded, heading, image, page, paragraph, preformatted, table
from experiments.reports.run_records import RunRecord, SeedGroup, read_record, series, value_of
from experiments.training import generation, starts
from experiments.training.experiment import Experiment, TrainState
from gaussq_jax.atomic_files import replace_file
from gaussq_jax.models import key_value_cache

STYLE = {**pictures.STYLE, 'svg.hashsalt': 'run'}
MOST_ROWS = 12  # of evaluations
NUM_TOKENS, TEMPERATURE, SEED = 256, 0.8, 0  # of the sample of text
MOST_FLOP = 1e12  # of the sample, which is shorter then, or left out: a token reads all weights for few of them
ROUNDING = 'What rounding does to the weights'
LONGEST_REASON = 10_000  # bytes of diverged.txt


class Checkpoint(NamedTuple):
    """The newest checkpoint of a run, opened."""

    experiment: Experiment
    state: TrainState
    tokenizer: Tokenizer


def write(workdir: pathlib.Path, output: pathlib.Path, checkpoint: Checkpoint | None, *, prompt: str | None):
    """Writes the report on a run, whatever its method, and whether it is complete.

    Args:
      workdir: of the run.
      output: the HTML file.
      checkpoint: its newest one; None where there is none yet.
      prompt: how the sample of text begins; None for no sample.

    Raises:
      ValueError: what the run has written can't be read.
      OSError: the file can't be written.
    """
    record = read_record(workdir, needs_metrics=False)
    if record.config is None:
        raise ValueError(f'{workdir} is no directory of a run: it has no config.json')
    run_settings.check(record.config, workdir / 'config.json')
    summary = json_files.read(workdir / 'summary.json') if (workdir / 'summary.json').exists() else {}
    diverged = read_reason(workdir / 'diverged.txt')
    try:
        begun, damage = starts.read(workdir), ''
    except ValueError as error:
        begun, damage = [], foreign_text.printable(str(error))
    experiment = checkpoint and checkpoint.experiment
    sections = {
        '': lambda: state_section(record, checkpoint, summary, diverged),
        'What was trained': lambda: run_settings.model_section(record, experiment, summary, begun),
        'How it was started': lambda: run_settings.command_section(
            begun, damage, stem=record.config.get('branch_from', '')
        ),
        'Loss, learning rate and speed': lambda: curves_section(record),
        'Validation': lambda: validation_section(record),
        'Bitwidths': lambda: bitwidths_section(record, checkpoint),
        'Formats and sizes': lambda: formats_section(checkpoint),
        'Rollbacks and divergence': lambda: rollbacks_section(record, diverged),
        'A sample of text': lambda: text_section(workdir, checkpoint, prompt),
        'Summary': lambda: summary_section(summary),
    }
    with json_files.naming(workdir), plt.rc_context(STYLE):
        parts = [part for title, section in sections.items() for part in or_why_not(title, section)]
    replace_file(output, page(record.name, parts))


def or_why_not(title: str, section: Callable[[], list[str]], level: int = 2) -> list[str]:
    """The parts of a section; where it can't be made of what the run has, such as weights that are NaN, why not."""
    try:
        return section()
    except ValueError as error:
        why = foreign_text.printable(str(error))
        return [*[heading(title, level)] * bool(title), paragraph(f"This part can't be shown: {why}.", 'warning')]


def read_reason(path: pathlib.Path) -> str:
    """Why a run ended, as it has written it; empty if it hasn't."""
    if not path.exists():
        return ''
    with open(paths.check_file(path), 'rb') as file:
        return file.read(LONGEST_REASON).decode(errors='replace').strip()


def state_section(
    record: RunRecord, checkpoint: Checkpoint | None, summary: Mapping[str, Any], diverged: str
) -> list[str]:
    """How far the run has come."""
    total = record.config['total_steps']
    saved = int(checkpoint.state.step) if checkpoint else None
    if diverged:
        return [paragraph(f'This run has diverged, and ended: {diverged}.', 'warning')]
    if saved == total or (summary and summary.get('step', total) == total):
        return [paragraph(f'This run is complete: {total:,} steps.')]
    steps = [line['step'] for line in record.lines]
    logged = f'it has logged step {max(steps):,} of {total:,}' if steps else f'it has logged no step of {total:,}'
    told = 'there is no checkpoint' if saved is None else f'the newest checkpoint is of step {saved:,}'
    return [paragraph(f'This run is not complete: {logged}; {told}.', 'warning')]


def curves_section(record: RunRecord) -> list[str]:
    """Loss, learning rate and speed over steps."""
    parts = [heading('Loss, learning rate and speed')]
    if not any('train/loss' in line for line in record.lines):
        return [*parts, paragraph('No loss has been logged yet.')]
    return [*parts, image(curves_figure(record), 'losses, learning rate and speed over steps')]


def curves_figure(record: RunRecord) -> Figure:
    """The three panels."""
    figure, (loss, rate, speed) = plt.subplots(1, 3, figsize=(12, 3.6), layout='constrained')
    group = SeedGroup('validation', [record])
    run_pictures.loss_panel(loss, [group], {group.label: (run_pictures.palette.BLUE, '-')})
    loss.get_legend().remove()
    for panel, metric, label in (
        (rate, 'learning_rate', 'learning rate'),
        (speed, 'tokens_per_second', 'tokens a second'),
    ):
        panel.plot(*series(record.lines, metric), color=run_pictures.palette.BLUE, linewidth=1.4)
        panel.set(xlabel='step', title=label)
        panel.title.set_fontsize(10)
        panel.set_ylim(0)
    return figure


def validation_section(record: RunRecord) -> list[str]:
    """Losses on other text, at evenly chosen steps, the last among them."""
    lines = [line for line in record.lines if 'validation/loss' in line]
    parts = [heading('Validation')]
    if not lines:
        return [*parts, paragraph('Nothing has been evaluated yet.')]
    has_noise = any('validation/loss_with_noise' in line for line in lines)
    of_sources = sorted({name for line in lines for name in line if re.fullmatch('validation/.+/loss', name)})
    header = ['step', 'loss (nats a token)', 'bits per byte', *['with noise', 'gap by noise'] * has_noise]
    header += [f'loss of {name.split("/")[1]}' for name in of_sources]
    rows = []
    shown = pictures.evenly_chosen(lines, MOST_ROWS)
    for line in shown:
        names = ('validation/loss', 'validation/loss_with_noise', 'validation/bits_per_byte')
        loss, noisy, in_bytes = (value_of(line, name) for name in names)
        both = noisy is not None and loss and math.isfinite(loss) and math.isfinite(noisy)
        cells = [f'{line["step"]:,}', number(loss, '.4f'), number(in_bytes, '.4f')]
        gap = 100 * (noisy / loss - 1) if both else None
        cells += [number(noisy, '.4f'), number(gap, '+.2f', ' %')] if has_noise else []
        cells += [number(value_of(line, name), '.4f') for name in of_sources]
        rows.append(cells)
    told = of_validation(record.config, has_noise)
    if len(shown) < len(lines):
        told = f'{len(shown)} of {len(lines):,} evaluations. {told}'
    return [*parts, paragraph(told), table(header, rows)]


def of_validation(config: Mapping[str, Any], has_noise: bool) -> str:
    """Of which weights its losses are."""
    method, quantization = methods.find(config['method']), config['quantization']
    fmt, recipe = quantization['format'] or method.default_format, methods.matmul_recipe(ConfigDict(config))
    are_rounded = fmt and (recipe is None or method.learns_bitwidths)
    told = f'These are losses of the weights {f"rounded to {fmt}" if are_rounded else "in bfloat16"}'
    if recipe is not None:
        what = f'quantized by the recipe {recipe.name}' if quantization['recipe'] else f'rounded to {fmt}'
        told += f', with operands of the matmuls {what}'
    when = describe_steps(ConfigDict(config))
    told += f', {when}' * bool(when)
    told += ', without noise' if method.learns_bitwidths else ''
    is_stochastic = 'rounding' in method.settings and quantization['rounding'] == 'stochastic'
    if is_stochastic or (recipe is not None and recipe.needs_key):
        told += '; rounding is stochastic in training steps only, and here to nearest'
    told += '; those with noise are of weights as in a training step' if has_noise else ''
    return (
        f'{told}. What the weights lose in a format of those below is not in them: python -m experiments.evaluate'
        ' --weights=FILE measures that, of a file of experiments.export.'
    )


def bitwidths_section(record: RunRecord, checkpoint: Checkpoint | None) -> list[str]:
    """The learned bitwidths, now and over steps."""
    if not methods.find(record.config['method']).learns_bitwidths:
        return [heading('Bitwidths'), paragraph(f'The method {record.method} learns no bitwidths.')]
    return [heading('Bitwidths'), *bitwidth_pictures.parts(record, learned_bitwidths(checkpoint))]


def learned_bitwidths(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """{path: bitwidths of its blocks}; {} without a checkpoint."""
    if checkpoint is None:
        return {}
    return checkpoint.experiment.transform.bitwidths(checkpoint.state.transform_state)


def formats_section(checkpoint: Checkpoint | None) -> list[str]:
    """What the newest weights take in several formats; why learned ones are what they are; and each leaf."""
    parts = [heading('Formats and sizes')]
    if checkpoint is None:
        return [*parts, paragraph('There is no checkpoint whose weights could be stored.')]
    transform, params, state = checkpoint.experiment.transform, *checkpoint.state[1:3]
    num_params = checkpoint.experiment.num_params
    rows = [
        (name, f'{bits:.3f}', f'{num_bytes:,}', f'{100 * num_bytes / (4 * num_params):.1f} %')
        for name, bits, num_bytes in stored_formats.sizes(transform, params, state)
    ]
    parts += [
        paragraph(
            f'What the weights of step {int(checkpoint.state.step):,} take, scales and all: bits of a quantized weight,'
            ' bytes of all weights, and their share of those in float32. Weights not quantized are in bfloat16.'
        ),
        table(('format', 'bits a weight', 'bytes', 'of float32'), rows),
    ]
    if learned_bitwidths(checkpoint):
        layout, size = transform.learned_layout(params, state), transform.model_size(params, state)
        parts += [paragraph(f'{reason}.') for reason in stored_formats.reasons(transform, params, state)]
        parts.append(paragraph('A --budget is one of experiments.export, in bits a quantized weight.'))
        parts.append(folded('each leaf', preformatted(stored_formats.leaf_table(params, layout, size))))
    return [*parts, *or_why_not(ROUNDING, lambda: quantization_part(checkpoint), 3)]


def quantization_part(checkpoint: Checkpoint) -> list[str]:
    """What rounding does to each matrix, where the method rounds weights."""
    config = checkpoint.experiment.config
    method = methods.find(config.method)
    if method.weights(config) is None and not (method.learns_bitwidths and not config.quantization.format):
        return []
    quantizer = quantization.choose_quantizer(config)
    rows = quantization.measure_run(checkpoint.experiment, checkpoint.state, quantizer)
    return [
        heading(ROUNDING, 3),
        paragraph(f'To {quantization.describe(quantizer)}.'),
        image(quantization.heat_maps_of(rows), 'bits, underflow, saturation and noise of each matrix'),
        folded('each matrix', preformatted(quantization.table(rows))),
    ]


def rollbacks_section(record: RunRecord, diverged: str) -> list[str]:
    """Where it went back; nothing if it never did."""
    lines = [line for line in record.lines if 'rollback/from_step' in line]
    if not (lines or diverged):
        return []
    names = ('rollback/from_step', 'rollback/loss', 'rollback/skipped_batches')
    rows = [[f'{line["step"]:,}', *(number(value_of(line, name), '.6g') for name in names)] for line in lines]
    header = ('back to step', 'from step', 'loss there', 'batches skipped')
    parts = [heading('Rollbacks and divergence'), *[table(header, rows)] * bool(rows)]
    return [*parts, *[paragraph(f'It ended: {diverged}.', 'warning')] * bool(diverged)]


def text_section(workdir: pathlib.Path, checkpoint: Checkpoint | None, prompt: str | None) -> list[str]:
    """What the newest weights write, where that takes no more than MOST_FLOP."""
    if prompt is None:
        return []
    parts = [heading('A sample of text')]
    if checkpoint is None:
        return [*parts, paragraph('There is no checkpoint that could write.')]
    experiment = checkpoint.experiment
    of_token = 2 * experiment.num_params
    if not key_value_cache.keeps_cache(experiment.model):
        of_token *= experiment.config.sequence_length
    num_tokens = min(NUM_TOKENS, int(MOST_FLOP // of_token))
    if not num_tokens:
        command = ['python', '-m', 'experiments.generate', f'--workdir={workdir}', f'--prompt={prompt}']
        told = f'It is left out: each token takes {of_token:.2g} FLOP of this model. This command writes one:'
        return [*parts, paragraph(told), preformatted(foreign_text.escaped(shlex.join(command)))]
    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(checkpoint.state.params)):
        raise ValueError('the weights have NaN or infinity among them')
    text = generation.write_text(*checkpoint, prompt, num_tokens=num_tokens, temperature=TEMPERATURE, seed=SEED)
    told = f'After {prompt!r}, by the weights of step {int(checkpoint.state.step):,}, at temperature {TEMPERATURE:g},'
    told = f'{told} seed {SEED}, {num_tokens} tokens at the most, and no more than its window has room for:'
    return [*parts, paragraph(told), preformatted(foreign_text.escaped(text))]


def summary_section(summary: Mapping[str, Any]) -> list[str]:
    """What the run came to, as it has written it."""
    parts = [heading('Summary')]
    if not summary:
        return [*parts, paragraph('A run writes its summary at its end.')]
    rows = [(name, value_text(value)) for name, value in summary.items()]
    return [*parts, table(('', ''), rows)]


def value_text(value: Any) -> str:
    """A value of summary.json."""
    if json_files.is_a(value, int):
        return f'{value:,}'
    if isinstance(value, list):
        return ', '.join(map(value_text, value))
    return f'{value:.6g}' if json_files.is_a(value, float) else run_settings.in_json(value)


def number(value: float | None, form: str, unit: str = '') -> str:
    return '' if value is None else f'{value:{form}}{unit}'
