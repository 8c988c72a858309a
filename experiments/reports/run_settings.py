"""What a run was of, for its report: its model, method, data and config, and the commands that started it."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util

from configs import common
from configs import stored as stored_configs
from experiments import methods
from experiments.files import foreign_text, json_files
from experiments.reports.html_page import folded, heading, paragraph, preformatted, table
from experiments.reports.run_records import RunRecord
from experiments.training import bitwidth_optimizers
from experiments.training.experiment import Experiment
from experiments.training.starts import Start

REQUIRED = {  # of a config.json
    **dict.fromkeys(('method', 'dataset', 'train_split', 'tokenizer'), str),
    **dict.fromkeys(('seed', 'total_steps', 'batch_size', 'sequence_length'), int),
    **dict.fromkeys(('model', 'quantization', 'optimizer'), dict),
}
OF_GROUPS = {
    'model': {'family': str},
    'quantization': {'format': str, 'rounding': str, 'optimizer': str},
    'optimizer': {'name': str, 'learning_rate': float},
}


def check(config: Mapping[str, Any], path: Any):
    """Raises ValueError, naming the path, for a config that lacks what a report is of."""
    json_files.require(config, path, REQUIRED)
    for group, kinds in OF_GROUPS.items():
        json_files.require(config[group], f'{path}: {group}', kinds)


def model_section(
    record: RunRecord, experiment: Experiment | None, summary: Mapping[str, Any], begun: Sequence[Start]
) -> list[str]:
    """What was trained by what on what; the fields of the config that are not at their defaults, and all of them."""
    config = record.config
    model = {name: value for name, value in config['model'].items() if name != 'family'}
    sizes = {'parameters': summary.get('parameters'), 'N': summary.get('N')}
    if experiment:
        sizes = {'parameters': experiment.num_params, 'N': experiment.num_linear_params}
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
        heading('Its config, where it differs from the defaults of configs/common.py', 3),
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
        return [paragraph("It doesn't.")]
    return [table(('field', 'value', 'default'), sorted(changed), 'words')]


def command_section(begun: Sequence[Start], damage: str, *, stem: str) -> list[str]:
    """The commands that started it; why they can't be read, if they can't. `stem` is the run that it branched off."""
    parts = [heading('How it was started')]
    if damage:
        return [*parts, paragraph(f"The command can't be read: {damage}.", 'warning')]
    if not begun:
        return [*parts, paragraph('The command is not recorded: this run is of a version that did not keep it.')]
    if begun[0].from_step and stem:
        parts.append(paragraph(f'It branched off {stem}: the steps before are of that run.'))
    elif begun[0].from_step:
        parts.append(paragraph('How it began is not recorded: it was begun by a version that did not keep that.'))
    for start in begun:
        at = f'from step {start.from_step:,}' if start.from_step else 'from the beginning'
        command = shlex.join(['python', '-m', 'experiments.train', *start.arguments])
        parts += [paragraph(f'{at}, on {start.devices}:'), preformatted(foreign_text.escaped(command))]
    return parts


def in_words(settings: Mapping[str, Any]) -> str:
    """{'num_layers': 3, 'format': ''} -> 'num_layers 3': what is empty is left out."""
    return ', '.join(f'{name} {value}' for name, value in settings.items() if value not in ('', None))


def in_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def known(value: Any) -> str:
    return f'{value:,}' if json_files.is_a(value, int) else 'not known without a checkpoint'
