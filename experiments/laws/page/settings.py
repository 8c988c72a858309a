"""The settings of runs: what a law takes besides N and D, how that is called, and what it is compared with."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.laws.answers import columns_of
from experiments.laws.known_laws import columns_for
from experiments.laws.law_choices import UNQUANTIZED
from experiments.laws.notation import block_name, format_name, human
from experiments.laws.studies import Study
from experiments.laws.tables.run_cells import OPERANDS
from gaussq_jax.scaling_laws import ScalingLaw


class Setting(NamedTuple):
    """Runs that differ in N and D only."""

    label: str  # of its format or recipe, which settings of several groups may share
    group: str  # of its blocks, where there are several kinds; else ''
    inputs: dict[str, Any]  # of the law, besides N and D
    mask: np.ndarray  # of the runs
    is_reference: bool  # whether it is not quantized

    @property
    def name(self) -> str:
        return ', '.join(filter(None, (self.label, self.group))) or 'all runs'

    def run_text(self, N: float, D: float) -> str:
        """A run of it, for people."""
        return f'{self.name}: ' * bool(self.inputs) + f'N = {human(N)}, D = {human(D)}'


def settings_of(study: Study) -> list[Setting]:
    """The settings of a study's runs, those of least loss by the law first, at the runs' middle N and D."""
    law, columns = study.result.law, columns_for(study.choice, study.table)
    names = [name for name in input_names(law) if name in columns]
    rows = list(zip(*(columns[name].tolist() for name in names))) or [()] * study.table.num_runs
    settings = []
    for row in dict.fromkeys(rows):
        inputs = dict(zip(names, row))
        mask = np.array([other == row for other in rows])
        settings.append(Setting(label(inputs), group(inputs), inputs, mask, is_reference(inputs)))
    N, D = (math.exp(np.mean(np.log(columns[name]))) for name in 'ND')
    losses = law.loss(N=N, D=D, **stacked(settings)) * np.ones(len(settings))
    return [settings[i] for i in np.argsort(losses, kind='stable')]


def input_names(law: ScalingLaw) -> tuple[str, ...]:
    """What it takes besides N and D."""
    return tuple(name for name in law.COLUMNS if name not in ('N', 'D'))


def reference_inputs(law: ScalingLaw) -> dict[str, Any] | None:
    """What the law takes of what is not quantized; None where there is no such thing: by a law that knows no precision.

    Example:
      >>> from gaussq_jax.scaling_laws import PUBLISHED_CAPYBARA
      >>> reference_inputs(PUBLISHED_CAPYBARA)
      {'E': 8.0, 'M': 7.0, 'B': 1.0}
    """
    names = input_names(law)
    return {name: UNQUANTIZED[name] for name in names} if names and set(names) <= UNQUANTIZED.keys() else None


def is_reference(inputs: Mapping[str, Any]) -> bool:
    return bool(inputs) and all(
        name in UNQUANTIZED and (value or 'bf16' if name in ('forward', 'backward') else value) == UNQUANTIZED[name]
        for name, value in inputs.items()
    )


def stacked(settings: Iterable[Setting], dims: int = 0) -> dict[str, np.ndarray]:
    """The inputs of settings, of shape (settings, 1, ...) with so many ones."""
    columns = columns_of([setting.inputs for setting in settings])
    return {name: column.reshape(-1, *[1] * dims) for name, column in columns.items()}


def label(inputs: Mapping[str, Any]) -> str:
    """A format, bits or a recipe, for people.

    Example:
      >>> label({'E': 2.0, 'M': 1.0, 'B': 32.0}), label({'b': 3.0}), label({'P_w': 4.0, 'P_a': 16.0, 'epochs': 2.0})
      ('e2m1', '3 bits', 'w4 a16, epochs 2')
    """
    operands = [f'{OPERANDS[name]}{value:g}' for name, value in inputs.items() if name in OPERANDS and value < math.inf]
    parts = [' '.join(operands)] * bool(operands)
    for name, value in inputs.items():
        match name:
            case 'E':
                parts.append(format_name(*(int(x) if x % 1 == 0 else x for x in (value, inputs['M']))))
            case 'b' | 'P':
                parts.append('not sampled' if math.isinf(value) else f'{value:g} bits')
            case 'forward':
                parts.append(value or 'bf16')
            case 'backward':
                parts += [f'backward {value}'] * (value not in ('', 'bf16'))
            case 'M' | 'P_w' | 'P_a' | 'P_kv' | 'P_post':
                pass
            case 'B':
                parts += [block_title(value)] * ('E' not in inputs)
            case _:
                parts.append(f'{name} {value:g}')
    return ', '.join(parts)


def group(inputs: Mapping[str, Any]) -> str:
    """The blocks of a format, for people; '' of what has none."""
    return '' if 'E' not in inputs or inputs.get('B', 1) == 1 else block_title(inputs['B'])


def block_title(block: float | str) -> str:
    if block == 1:
        return 'not quantized'
    return f'a scale a {block}' if isinstance(block, str) else f'blocks of {block_name(block)}'


def blocks_of(settings: Sequence[Setting]) -> list[float | str]:
    """The block sizes of formats that there are, the numbers among them first, in order."""
    blocks = {setting.inputs['B'] for setting in settings if group(setting.inputs)}
    return sorted(blocks, key=lambda block: (isinstance(block, str), block))


def groups_of(settings: Sequence[Setting]) -> list[str]:
    """The groups there are, in the order of their blocks; [''] where there are none."""
    return [block_title(block) for block in blocks_of(settings)] or ['']


def looks(settings: Sequence[Setting]) -> dict[str, int]:
    """The number of each label, by which its colour and marker are chosen; that of the reference is last.

    A format looks alike in blocks of all sizes.
    """
    labels = dict.fromkeys(setting.label for setting in settings if not setting.is_reference)
    return {name: i for i, name in enumerate([*labels, *(s.label for s in settings if s.is_reference)])}
