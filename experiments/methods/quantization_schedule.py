"""When a method quantizes: from which step on, and up to which."""

import jax
from ml_collections import ConfigDict

from gaussq_jax import recipes
from gaussq_jax.three_gemms import Flag

Now = Flag | tuple[Flag, Flag]  # whether the forward and the backward pass quantize, if these may differ


def when(config: ConfigDict, step: int | jax.Array) -> Now:
    """Whether the step after so many steps quantizes, which is how the model is evaluated after these.

    It does from `config.quantization.start_step` on, and up to `end_step`, if that isn't 0; recipes that end in the
    forward pass alone, after it in the backward pass.
    """
    settings = config.quantization
    is_begun = step >= settings.start_step if settings.start_step else True
    if not settings.end_step:
        return is_begun
    is_on = is_begun & (step < settings.end_step)
    return (is_on, is_begun) if _ends_forward(config) else is_on


def quantizes_forward(config: ConfigDict, step: int) -> bool:
    """Whether the forward pass quantizes after so many steps."""
    now = when(config, step)
    return now[0] if isinstance(now, tuple) else now


def check_steps(config: ConfigDict):
    """ValueError for a start or an end after which nothing would be quantized, or learned from."""
    start, end = config.quantization.start_step, config.quantization.end_step
    for name, value in (('start_step', start), ('end_step', end)):
        if value and not 0 < value < config.total_steps:
            raise ValueError(
                f'config.quantization.{name}={value} must be at least 0 and less than config.total_steps='
                f'{config.total_steps}'
            )
    if 0 < end <= start:
        raise ValueError(f'config.quantization.end_step={end} must be after start_step={start}; 0 is no end')


def describe_steps(config: ConfigDict) -> str:
    """From which step on it quantizes, and to which; empty for all."""
    start, end = config.quantization.start_step, config.quantization.end_step
    what = 'the forward pass ' if end and _ends_forward(config) else ''
    return ', '.join([*[f'from step {start + 1} on'] * bool(start), *[f'{what}up to step {end}'] * bool(end)])


def _ends_forward(config: ConfigDict) -> bool:
    recipe = recipes.find(config.quantization.recipe) if config.quantization.recipe else None
    return recipe is not None and bool(recipe.operands) and recipe.ends == 'forward'
