"""Which formats and scales a run's weights get: what its training rounded them to, or what flags ask for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gaussq_jax as gq
from experiments import methods, workdirs
from experiments.methods.settings import parse_block_size
from experiments.serving.targets import Target
from gaussq_jax import models
from gaussq_jax.packed import Layout
from gaussq_jax.quantizer import block_size_text

LEARNED, SERVED, BFLOAT16 = 'learned', 'served', 'bfloat16'


class Asked(NamedTuple):
    """What flags say; None where one isn't given."""

    format: str | None = None
    budget: float | None = None
    block_size: str | None = None
    scale: str | None = None
    target: Target | None = None

    def check(self):
        """ValueError for what would do nothing, or isn't there, naming the flag."""
        if self.format not in (None, LEARNED):
            try:
                gq.parse_format(self.format)
            except ValueError as error:
                raise ValueError(f'--{error}, or {LEARNED}') from None
            if self.budget is not None:
                raise ValueError(
                    f'--budget={self.budget:g} has no meaning with --format={self.format}, which is that of all weights'
                )
        if self.budget is not None and self.target and self.target.to_tensors and not self.target.choices:
            raise ValueError(
                f'--budget={self.budget:g} has no meaning with --to={self.target.name}, which has one format alone'
            )
        for name in ('block_size', 'scale'):
            if (value := getattr(self, name)) is not None and self.format in (None, LEARNED, BFLOAT16):
                is_none = self.format == BFLOAT16
                reason = 'which has no scales' if is_none else 'whose blocks and scales are those of the run'
                raise ValueError(f'--{name}={value} has no meaning with --format={self.format or LEARNED}, {reason}')

    @property
    def is_served(self) -> bool:
        """Whether formats are chosen anew, of those that the target has."""
        return self.budget is not None and self.format is None and self.target is not None and bool(self.target.choices)


class Chosen(NamedTuple):
    """How weights are stored."""

    params: Any  # that are quantized
    layout: Layout
    size: gq.ModelSize
    kept: dict[str, Any]  # what a file keeps of it: 'layout', 'budget', and what else `report.describe_layout` takes
    name: str  # of a file


def choose(run: workdirs.Run, asked: Asked) -> Chosen:
    """How the weights of a run are stored.

    Raises:
      ValueError: for learned bitwidths where none were learned; for a budget that can't be kept; as `uniform_layout`.
    """
    if asked.is_served:
        return _served(run, asked.budget, asked.target)
    if asked.format is None and asked.budget is None and not run.state.transform_state:
        return _as_trained(run)
    if asked.format in (None, LEARNED):
        return _learned(run, asked.budget)
    block_size = parse_block_size(asked.block_size or '32')
    quantizer = gq.Quantizer(asked.format, block_size=block_size, scale=asked.scale or 'mx')
    return _uniform(run, run.state.params, quantizer)


def _learned(run: workdirs.Run, budget: float | None) -> Chosen:
    params, bitwidths, transform = run.state.params, run.state.transform_state, run.experiment.transform
    if not bitwidths:
        given = f'--format={LEARNED}' if budget is None else f'--budget={budget:g}'
        served = '' if budget is None else '; or --to=compressed-tensors, say, whose formats a budget is spent on'
        raise ValueError(
            f'{given}: the method of this run is {run.experiment.config.method}, which learns no bitwidths; give a'
            f' format for all weights, for example --format=float6_e3m2fn{served}'
        )
    formats: Callable = gq.format_for_bitwidth
    if budget is not None:
        formats = transform.formats_within_budget(params, bitwidths, budget)
    layout = transform.learned_layout(params, bitwidths, formats=formats)
    size = transform.model_size(params, bitwidths, formats=formats)
    return Chosen(params, layout, size, {'layout': LEARNED, 'budget': budget}, _file_name(LEARNED, budget))


def _served(run: workdirs.Run, budget: float, target: Target) -> Chosen:
    params, transform = run.state.params, run.experiment.transform
    rules = dict(rules=transform.rules, unnamed=transform.unnamed)
    fused = models.fused_paths(run.experiment.model) if target.fuses else ()
    layout = gq.served_layout(params, budget, storages=target.choices, fused=fused, **rules)
    kept = {'layout': SERVED, 'budget': budget, 'target': target.name}
    name = f'{_file_name(SERVED, budget)}-{target.name}'
    return Chosen(params, layout, gq.layout_size(params, layout), kept, name)


def _as_trained(run: workdirs.Run) -> Chosen:
    """What the forward pass multiplies with: by the method's quantizer, in the dtype that it rounds, or bfloat16."""
    config, params = run.experiment.config, run.state.params
    rounded = methods.rounded_weights(config, int(run.state.step))
    if rounded is None:
        return _uniform(run, params, gq.Quantizer(BFLOAT16, scale='mx'))
    quantizer = rounded.quantizer.deterministic()
    if quantizer.rounding != 'nearest_even':
        raise ValueError(
            f'this run rounds its weights by {quantizer.rounding}, which no packed file has;'
            f' --format={quantizer.fmt} rounds them to nearest even'
        )
    if quantizer.hadamard is not None or quantizer.prescale != 1:
        raise ValueError(
            f'this run multiplies weights that are {quantizer.summary}, and no file holds what is transformed or'
            f' prescaled; --format={BFLOAT16} stores what they are before that'
        )
    products = BFLOAT16
    if methods.quantizes_matmuls(config):  # they round what the transform hands out, as they compute
        params, products = run.experiment.transform.apply(None, params, run.state.transform_state), config.dtype
    return _uniform(run, params, quantizer, products=products, full_precision=rounded.full_precision)


def _uniform(run: workdirs.Run, params: Any, quantizer: gq.Quantizer, **others: Any) -> Chosen:
    """All matrices quantized alike; with other arguments of `uniform_layout`."""
    fmt, block_size, scale = quantizer.fmt.name, quantizer.block_size, quantizer.scale
    scales = dict(block_size=block_size, scale=scale, scale_rounding=quantizer.scale_rounding, fit=quantizer.fit)
    layout = run.experiment.transform.uniform_layout(params, fmt, **scales, **others)
    kept = {'layout': fmt, 'budget': None}
    if (block_size, scale) != (32, 'mx'):
        kept |= {'block_size': list(block_size) if isinstance(block_size, tuple) else block_size, 'scale': scale}
    words = [fmt, *[block_size_text(block_size)] * (block_size != 32), *[scale] * (scale != 'mx')]
    words += [quantizer.scale_rounding] * (quantizer.scale_rounding != 'floor')
    words += [quantizer.fit] * (quantizer.fit != 'absmax') + ['kept'] * bool(others.get('full_precision'))
    name = '-'.join(words)
    return Chosen(params, layout, gq.layout_size(params, layout), kept, name)


def _file_name(layout: str, budget: float | None) -> str:
    return layout if budget is None else f'{layout}-{budget:.12g}'
