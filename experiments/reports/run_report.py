"""A run as one HTML file that needs no other: what was trained, how it went, and what came of it."""

import json
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from flax import traverse_util
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from configs import common
from configs import stored as stored_configs
from experiments import methods
from experiments.data.tokenizers import Tokenizer
from experiments.files import foreign_text, json_files, paths
from experiments.reports import bitwidth_pictures, pictures, quantization, run_pictures, stored_formats
from experiments.reports.html_page import folded, heading, image, page, paragraph, preformatted, table
from experiments.reports.run_records import RunRecord, SeedGroup, read_record, series
from experiments.training import bitwidth_optimizers, generation, starts
from experiments.training.experiment import Experiment, TrainState
from experiments.training.starts import Start
from gaussq_jax.atomic_files import replace_file

STYLE = {**pictures.STYLE, 'svg.hashsalt': 'run'}
MOST_ROWS = 12  # of evaluations
NUM_TOKENS, TEMPERATURE, SEED = 256, 0.8, 0  # of the sample of text
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
    summary = json_files.read(workdir / 'summary.json') if (workdir / 'summary.json').exists() else {}
    diverged = read_reason(workdir / 'diverged.txt')
    begun = starts.read(workdir)
    with json_files.naming(workdir), plt.rc_context(STYLE):
        parts = [
            *state_section(record, checkpoint, summary, diverged),
            *model_section(record, checkpoint, summary, begun),
            *command_section(record, begun),
            *curves_section(record),
            *validation_section(record),
            *bitwidths_section(record, checkpoint),
            *formats_section(checkpoint),
            *rollbacks_section(record, diverged),
            *text_section(checkpoint, prompt),
            *summary_section(summary),
        ]
    replace_file(output, page(record.name, parts))


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
    logged = max((line['step'] for line in record.lines), default=0)
    saved = int(checkpoint.state.step) if checkpoint else None
    if diverged:
        return [paragraph(f'This run has diverged, and ended: {diverged}.', 'warning')]
    if summary or saved == total:
        return [paragraph(f'This run is complete: {total:,} steps.')]
    told = 'there is no checkpoint yet' if saved is None else f'the newest checkpoint is of step {saved:,}'
    return [paragraph(f'This run is not complete: it has logged step {logged:,} of {total:,}; {told}.', 'warning')]


def model_section(
    record: RunRecord, checkpoint: Checkpoint | None, summary: Mapping[str, Any], begun: Sequence[Start]
) -> list[str]:
    """What was trained by what on what; the fields of the config that are not at their defaults, and all of them."""
    config = record.config
    model = {name: value for name, value in config['model'].items() if name != 'family'}
    sizes = {'parameters': summary.get('parameters'), 'N': summary.get('N')}
    if checkpoint:
        sizes = {'parameters': checkpoint.experiment.num_params, 'N': checkpoint.experiment.num_linear_params}
    method = methods.find(config['method'])
    used = [*method.settings, *method.own_settings]
    if method.learns_bitwidths:
        optimizer = config['quantization']['optimizer']
        used += ['optimizer', 'start', *bitwidth_optimizers.USED.get(optimizer, ())]
    settings = in_words({name: config['quantization'][name] for name in used if name in config['quantization']})
    tokens = config['batch_size'] * config['sequence_length']
    optimizer = config['optimizer']
    rows = [
        ('model', f'{config["model"]["family"]}: {in_words(model)}'),
        ('parameters', known(sizes['parameters'])),
        ('N, weights of linear layers', known(sizes['N'])),
        ('method', f'{method.name}: {settings}' if settings else method.name),
        ('data', f'{config["dataset"]}, {config["train_split"]}; tokenizer {config["tokenizer"]}'),
        ('batch', f'{config["batch_size"]:,} sequences of {config["sequence_length"]:,} tokens: {tokens:,} tokens'),
        ('steps', f'{config["total_steps"]:,}, D = {config["total_steps"] * tokens:,} tokens'),
        ('optimizer', f'{optimizer["name"]}, learning rate {optimizer["learning_rate"]:g}'),
        ('seed', str(config['seed'])),
        ('devices', ', then '.join(dict.fromkeys(of.devices for of in begun)) or 'not recorded'),
    ]
    whole = json.dumps(stored_configs.write(config), indent=2, sort_keys=True)
    return [
        heading('What was trained'),
        table(('', ''), rows, 'words'),
        heading('Its config', 3),
        *changes_table(config),
        folded('the whole config', preformatted(whole)),
    ]


def changes_table(config: Mapping[str, Any]) -> list[str]:
    """The fields that are not at the defaults which all configs share."""
    argument = common.parse(f'method={config["method"]}', **common.ARGUMENTS)
    defaults = traverse_util.flatten_dict(common.base_config(argument).to_dict(), sep='.')
    fields = traverse_util.flatten_dict(dict(config), sep='.')
    changed = [
        (name, in_json(value), in_json(defaults[name]))
        for name, value in fields.items()
        if name in defaults and value != defaults[name]
    ]
    if not changed:
        return [paragraph('All fields have their defaults.')]
    return [table(('field', 'value', 'default'), sorted(changed), 'words')]


def command_section(record: RunRecord, begun: Sequence[Start]) -> list[str]:
    """The commands that started it."""
    parts = [heading('How it was started')]
    if not begun:
        return [*parts, paragraph('The command is not recorded: this run is of a version that did not keep it.')]
    if begun[0].from_step:
        parts.append(paragraph('How it began is not recorded: it was begun by a version that did not keep that.'))
    for start in begun:
        at = f'from step {start.from_step:,}' if start.from_step else 'from the beginning'
        command = shlex.join(['python', '-m', 'experiments.train', *start.arguments])
        parts += [paragraph(f'{at}, on {start.devices}:'), preformatted(foreign_text.escaped(command))]
    return parts


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
    header = ['step', 'loss (nats a token)', 'bits per byte', *['with noise', 'gap by noise'] * has_noise]
    rows = []
    for line in pictures.evenly_chosen(lines, MOST_ROWS):
        loss, noisy = line['validation/loss'], line.get('validation/loss_with_noise')
        cells = [f'{line["step"]:,}', f'{loss:.4f}', number(line.get('validation/bits_per_byte'), '.4f')]
        gap = None if noisy is None or not loss else 100 * (noisy / loss - 1)
        cells += [number(noisy, '.4f'), number(gap, '+.2f', ' %')] if has_noise else []
        rows.append(cells)
    return [*parts, paragraph(of_validation(record.config, has_noise)), table(header, rows)]


def of_validation(config: Mapping[str, Any], has_noise: bool) -> str:
    """Of which weights its losses are."""
    method, quantization = methods.find(config['method']), config['quantization']
    fmt = quantization['format'] or method.default_format
    if method.operands(ConfigDict(config)):
        told = f'These are losses of the weights in bfloat16, with operands of the matmuls rounded to {fmt}'
    else:
        told = f'These are losses of the weights {f"rounded to {fmt}" if fmt else "in bfloat16"}'
    told += ', without noise' if method.learns_bitwidths else ''
    if 'rounding' in method.settings and quantization['rounding'] == 'stochastic':
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
        return [*parts, paragraph('There is no checkpoint yet whose weights could be stored.')]
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
    return [*parts, *quantization_part(checkpoint)]


def quantization_part(checkpoint: Checkpoint) -> list[str]:
    """What rounding does to each matrix, where the method rounds weights."""
    try:
        quantizer = quantization.choose_quantizer(checkpoint.experiment.config)
    except ValueError:  # it rounds none
        return []
    rows = quantization.measure_run(checkpoint.experiment, checkpoint.state, quantizer)
    return [
        heading('What rounding does to the weights', 3),
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
    rows = [[f'{line["step"]:,}', *(number(line.get(name), '.6g') for name in names)] for line in lines]
    header = ('back to step', 'from step', 'loss there', 'batches skipped')
    parts = [heading('Rollbacks and divergence'), *[table(header, rows)] * bool(rows)]
    return [*parts, *[paragraph(f'It ended: {diverged}.', 'warning')] * bool(diverged)]


def text_section(checkpoint: Checkpoint | None, prompt: str | None) -> list[str]:
    """What the newest weights write."""
    if prompt is None:
        return []
    parts = [heading('A sample of text')]
    if checkpoint is None:
        return [*parts, paragraph('There is no checkpoint yet that could write.')]
    text = generation.write_text(*checkpoint, prompt, num_tokens=NUM_TOKENS, temperature=TEMPERATURE, seed=SEED)
    told = f'After {prompt!r}, by the weights of step {int(checkpoint.state.step):,}, at temperature {TEMPERATURE:g},'
    return [*parts, paragraph(f'{told} seed {SEED}:'), preformatted(foreign_text.escaped(text))]


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
    return f'{value:.6g}' if json_files.is_a(value, float) else in_json(value)


def in_words(settings: Mapping[str, Any]) -> str:
    """{'num_layers': 3, 'format': ''} -> 'num_layers 3': what is empty is left out."""
    return ', '.join(f'{name} {value}' for name, value in settings.items() if value not in ('', None))


def in_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def known(value: Any) -> str:
    return f'{value:,}' if json_files.is_a(value, int) else 'not known before the first checkpoint'


def number(value: float | None, form: str, unit: str = '') -> str:
    return '' if value is None else f'{value:{form}}{unit}'
