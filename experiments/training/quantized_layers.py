"""Which linear layers a method quantizes, how, and what share of the FLOPs that is: checked and told before a step."""

import itertools
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments import methods
from experiments.training import flops
from gaussq_jax import models
from gaussq_jax.hardware_dot_general import XLA_FLAG
from gaussq_jax.param_reading import matrix_rules
from gaussq_jax.recipes import Recipe

WIDTH = 70  # of a line, beside its label


class LinearLayers(NamedTuple):
    """Linear layers of one path: a stack of them, or one by itself."""

    path: str  # of the module
    inputs: int
    outputs: int
    size: int  # of all their weights
    is_kept: np.ndarray  # which are in full precision: bool (layers,), or () of one by itself


def check(config: ConfigDict, transform: gq.ParamTransform, params: Any):
    """Refuses what would quantize nothing, or something else than is meant, or what would fail in the first step.

    Args:
      config: of the training.
      transform: of its weights.
      params: pytree of weights, or of their shapes.

    Raises:
      ValueError: for a rule of `full_precision` that no linear layer matches, or of more layers than there are; for
        rules that leave nothing to quantize; for a Hadamard transform whose size doesn't divide its axis.
    """
    recipe = methods.find(config.method).recipe(config)
    if recipe is None:
        return
    text = config.quantization.full_precision
    where = f'config.quantization.full_precision={text!r}' if text else f'full_precision of recipe={recipe.name}'
    try:
        linear_layers = _find(config, recipe, transform, params)
        _check_rules(recipe, linear_layers)
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from None
    tokens = config.batch_size // config.microbatches * config.sequence_length
    for name, quantizer in recipe.operands.items():
        if quantizer.hadamard is not None:
            _check_transform(name, quantizer.hadamard.size, linear_layers, tokens, config)


def describe(experiment: Any) -> list[str]:
    """What is quantized, in lines: the share of the FLOPs; which layers are and which aren't; how each operand is.

    FLOPs are those of GEMMs with an operand that is quantized, while the method quantizes, of the linear layers' and of
    all, which `flops.model_flops` counts. There is nothing to tell of a method without a recipe.

    Args:
      experiment: a `training.Experiment`.
    """
    config = experiment.config
    recipe = methods.find(config.method).recipe(config)
    if recipe is None:
        return []
    linear_layers = _find(config, recipe, experiment.transform, experiment.abstract_state.params)
    operands = {'weights': recipe.weights} if recipe.weights else recipe.operands
    gemms = [{'weights', 'P1', 'P2'}, {'weights', 'P3', 'P4'}, {'P5', 'P6'}]
    share = sum(bool(of & operands.keys()) for of in gemms) / len(gemms)
    of_weight = 6 * config.batch_size * config.sequence_length
    in_all = of_weight * experiment.num_linear_params
    quantized = of_weight * share * sum(of.size * np.mean(~of.is_kept) for of in linear_layers)
    name = f'recipe {config.quantization.recipe}: ' if config.quantization.recipe else ''
    shares = f"{quantized / in_all:.1%} of linear layers' FLOPs, {quantized / flops.model_flops(experiment):.1%} of all"
    lines = itertools.chain([name + shares], _layers(linear_layers), _without_effect(recipe, linear_layers))
    if recipe.arithmetic == 'hardware':
        lines = itertools.chain(lines, [f'multiplied in FP8: on the FP8 units of GPUs with XLA_FLAGS={XLA_FLAG}'])
    wrapped = [part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent='  ')]
    return [*wrapped, *_operands(operands)]


def _find(config: ConfigDict, recipe: Recipe, transform: gq.ParamTransform, params: Any) -> list[LinearLayers]:
    """Those that the recipe is for: of matmuls all that there are, of weights alone those that the transform rounds."""
    rules = models.find_family(config.model.family).rules if recipe.operands else transform.rules
    leaves, found = gq.leaves_by_path(params), []
    for leaf_path, rule in matrix_rules(params, rules, unnamed=transform.unnamed).items():
        shape, path = leaves[leaf_path].shape, leaf_path.rpartition('/')[0]
        *_, inputs, outputs = rule.matrix_shape(shape)
        num_layers = shape[rule.layer_axes[0]] if rule.layer_axes else None
        size = leaves[leaf_path].size
        found.append(LinearLayers(path, inputs, outputs, size, recipe.kept(path, num_layers)))
    return found


def _check_rules(recipe: Recipe, linear_layers: Sequence[LinearLayers]):
    for rule in recipe.full_precision:
        matched = [of for of in linear_layers if rule.matches(of.path)]
        if not matched:
            there_are = ', '.join(of.path for of in linear_layers)
            raise ValueError(f'{rule} matches none of the linear layers that could be quantized, {there_are}')
        for of in matched:
            if of.is_kept.ndim and sum(counts := rule.counts(of.is_kept.size)) > of.is_kept.size:
                raise ValueError(
                    f'{rule} names the {counts[0]} first and the {counts[1]} last layers, of {of.is_kept.size}'
                )
    if all(of.is_kept.all() for of in linear_layers):
        raise ValueError('nothing would be quantized, since all linear layers are kept; that is method=bf16')


def _check_transform(name: str, size: int, linear_layers: Sequence[LinearLayers], tokens: int, config: ConfigDict):
    """ValueError unless the size divides the axis that the operand's GEMM sums over, wherever it is quantized."""
    refused = f'config.quantization.recipe={config.quantization.recipe!r}: the Hadamard transform of {name} takes'
    if name in ('P5', 'P6'):
        if tokens % size:
            raise ValueError(
                f'{refused} a multiple of {size} tokens, not {tokens}: config.sequence_length={config.sequence_length}'
                f' times config.batch_size={config.batch_size} / config.microbatches={config.microbatches}'
            )
        return
    side = 'inputs' if name in ('P1', 'P2') else 'outputs'
    for of in linear_layers:
        if (length := getattr(of, side)) % size and not of.is_kept.all():
            raise ValueError(
                f'{refused} a multiple of {size} {side}, and {of.path} has {length}; choose other sizes in'
                ' config.model, another recipe, or config.quantization.full_precision that keeps this layer'
            )


def _layers(linear_layers: Sequence[LinearLayers]) -> Iterator[str]:
    """A line for linear layers of which the same layers are kept."""
    alike = {}
    for of in linear_layers:
        alike.setdefault((of.is_kept.shape, of.is_kept.tobytes()), []).append(of)
    for group in alike.values():
        what = ', '.join(of.path for of in group) if len(group) <= 3 else f'{len(group)} linear layers'
        is_kept = group[0].is_kept
        if is_kept.all():
            yield f'{what}: full precision'
        elif not is_kept.any():
            yield f'{what}: all {is_kept.size} layers' if is_kept.ndim else f'{what}: quantized'
        else:
            kept = np.flatnonzero(is_kept)
            several = 's' if len(kept) > 1 else ''
            quantized = f'{is_kept.size - len(kept)} of {is_kept.size} layers'
            yield f'{what}: {quantized}; full precision: layer{several} {_runs(kept)}'


def _without_effect(recipe: Recipe, linear_layers: Sequence[LinearLayers]) -> Iterator[str]:
    """Rules that round to no layer at all."""
    for rule in recipe.full_precision:
        sizes = {of.is_kept.size for of in linear_layers if of.is_kept.ndim and rule.matches(of.path)}
        if (rule.first or rule.last) and not any(sum(rule.counts(size)) for size in sizes):
            yield f'full precision: {rule} of {max(sizes)} layers is none'


def _operands(operands: dict[str, gq.Quantizer]) -> Iterator[str]:
    """A line for operands that are quantized alike, in columns."""
    alike = {}
    for name, quantizer in operands.items():
        alike.setdefault(quantizer.summary, []).append(name)
    labels = {
        summary: 'weights' if names == ['weights'] else _runs([int(name[1:]) for name in names], 'P')
        for summary, names in alike.items()
    }
    width = max(map(len, labels.values()))
    return (f'{label:<{width}}  {summary}' for summary, label in labels.items())


def _runs(numbers: Iterable[int], before: str = '') -> str:
    """Ascending numbers in a few characters: [0, 1, 2, 5] -> '0-2, 5'."""
    runs = []
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [f'{before}{number}' for _, number in run]
        runs += ['-'.join([run[0], run[-1]])] if len(run) > 2 else run
    return ', '.join(runs)
