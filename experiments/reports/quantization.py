"""What quantization does to each weight matrix of a run: its bits, and what is lost; table, CSV and picture."""

import dataclasses
import math
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments import methods
from experiments.files import csv_files, json_files
from experiments.methods import settings as method_settings
from experiments.reports import heat_maps, pictures
from experiments.training.experiment import Experiment, TrainState
from gaussq_jax import param_tree
from gaussq_jax.block_scaling import largest_magnitudes, quantize_values
from gaussq_jax.packed import Layout, LeafLayout, format_bytes, packed_bytes, scale_bytes, value_per_weight
from gaussq_jax.packed.layout import kept_matrices
from gaussq_jax.param_reading import matrix_rules
from gaussq_jax.text_table import text_table

SCALE_BITS = {'absmax': 32, 'mx': 8, 'nvfp4': 8}  # of one scale; NVFP4 has a float32 one for the tensor besides
ROUNDING_ERROR = 2.0**-22  # of float32 scales, relative: a block's largest magnitude may seem to exceed itself

LONGEST_PATH = 1000  # of a leaf
LONGEST_TITLE = 150  # letters that a picture has room for
MOST_CELLS = 10**6  # matrices of layers, of a report that is read
PANELS = {
    'effective_bits': 'bits a weight, scales included',
    'underflow': 'weights that underflow to zero (%)',
    'saturation': 'weights that saturate (%)',
    'sqnr_db': 'signal to quantization noise (dB)',
}


class Measurement(NamedTuple):
    """Sums over the weights of a matrix, or of several."""

    values: int
    bits: float  # of the values and of their scales
    underflowing: int  # became zero, and weren't
    saturating: int  # of a larger magnitude than the largest that their block can hold, which they became
    signal: float  # sum of squares
    noise: float  # sum of squares of what quantization changed

    @property
    def effective_bits(self) -> float:
        return self.bits / self.values

    @property
    def underflow(self) -> float:
        return self.underflowing / self.values

    @property
    def saturation(self) -> float:
        return self.saturating / self.values

    @property
    def sqnr_db(self) -> float:
        """10 log10(signal / noise), infinite where nothing changed."""
        return 10 * math.log10(self.signal / self.noise) if self.noise else math.inf


class Row(NamedTuple):
    """What was measured on one matrix of a leaf that is a stack of them."""

    path: str
    layer: int
    measurement: Measurement
    formats: Mapping[str, int]  # how many weights have which format


def choose_quantizer(
    config: ConfigDict, *, fmt: str | None = None, block_size: str | None = None, scale: str | None = None
) -> gq.Quantizer | None:
    """What the run's weights are quantized to, with these changes; None for what each block's bitwidth asks for.

    Raises:
      ValueError: if the run has no format of its own and none is given; for a setting that a Quantizer can't have.
    """
    method = methods.find(config.method)
    rounded = method.weights(config)
    if rounded is None and fmt is None:
        if method.learns_bitwidths:
            if block_size or scale:
                raise ValueError(
                    'this run has a format for each block, that of its bitwidth, in square blocks with MX scales:'
                    ' --block_size and --scale need a --format'
                )
            return None
        reason = ', and P2 is not among its targets' if methods.quantizes_matmuls(config) else ''
        raise ValueError(
            f'the method of this run is {config.method}{reason}: its weights are not quantized; say by --format to'
            ' what they should be, for example --format=e4m3'
        )
    if rounded is None:
        asked = config.copy_and_resolve_references()
        asked.quantization.format = fmt
        rounded = method.weights(asked) if method.learns_bitwidths else None
    quantizer = rounded.quantizer if rounded else method_settings.make_quantizer(asked.quantization)
    changes = dict(fmt=fmt, block_size=block_size and method_settings.parse_block_size(block_size), scale=scale)
    changes = {name: value for name, value in changes.items() if value is not None}
    if 'scale' in changes:  # the run's are chosen by what may be of its own kind alone
        changes |= dict(scale_rounding='floor', fit='absmax')
    return dataclasses.replace(quantizer, **changes).deterministic()


def measure_run(experiment: Experiment, state: TrainState, quantizer: gq.Quantizer | None) -> list[Row]:
    """Measures each matrix of a run, in the order of layers: its float32 weights, quantized along the contracted axis.

    Raises:
      ValueError: for weights that are infinite or NaN.
    """
    params = state.params
    if quantizer is None:
        return measure_layout(params, experiment.transform.learned_layout(params, state.transform_state))
    matrices = matrix_rules(params, method_settings.layer_rules(experiment.config))
    rounded = methods.find(experiment.config.method).weights(experiment.config)
    rules, leaves = rounded.full_precision if rounded else (), gq.leaves_by_path(params)
    kept_of = lambda path, rule: kept_matrices(rules, path, rule, rule.matrix_shape(leaves[path].shape))
    is_kept = {path: iter(kept_of(path, rule).flat) for path, rule in matrices.items()}

    def of_matrix(path, weights):
        if next(is_kept[path]):
            narrow = weights.astype(jnp.bfloat16).astype(np.float32)
            return _compare(weights, narrow, np.float32(np.inf), 16 * weights.size), {'bfloat16': weights.size}
        return measure(weights, quantizer), {quantizer.fmt.name: weights.size}

    return _measure_matrices(params, matrices, of_matrix)


def measure_layout(params: Any, layout: Layout) -> list[Row]:
    """Measures each matrix that is packed so, in the order of layers; the bits are those of the packed file.

    Raises:
      ValueError: for weights that are infinite or NaN.
    """
    tiles = {path: iter(of_leaf.indices.reshape(-1, *of_leaf.indices.shape[-2:])) for path, of_leaf in layout.items()}
    of_matrix = lambda path, weights: measure_tiles(weights, layout[path], next(tiles[path]))
    return _measure_matrices(params, {path: of_leaf.rule for path, of_leaf in layout.items()}, of_matrix)


def measure(weights: np.ndarray, quantizer: gq.Quantizer) -> Measurement:
    """Measures a matrix (rows, columns), finite float32, quantized along its rows."""
    bits = quantizer.fmt.bits * weights.size + scale_bits(quantizer, weights.shape)
    return _compare(weights, *jax.device_get(_quantize(weights, quantizer, -2)), bits)


def measure_tiles(weights: np.ndarray, layout: LeafLayout, indices: np.ndarray) -> tuple[Measurement, dict[str, int]]:
    """Measures a matrix (rows, columns) of a leaf, of which each tile has its own format; and what has which."""
    quantized, largest = np.zeros_like(weights), np.zeros_like(weights)
    num_bytes, formats = scale_bytes(layout, indices) + format_bytes(layout, indices), {}
    for i, fmt in enumerate(layout.formats):
        quantizer = layout.quantizers[i]
        here = value_per_weight(indices == i, layout.tile, weights.shape)
        for result, of_this in zip((quantized, largest), jax.device_get(_quantize(weights, quantizer, -1))):
            result[here] = of_this[here]
        if number := int(np.count_nonzero(here)):
            formats[fmt.name] = number
            num_bytes += packed_bytes(number, fmt.bits)
    return _compare(weights, quantized, largest, 8 * num_bytes), formats


def scale_bits(quantizer: gq.Quantizer, shape: tuple[int, int]) -> int:
    """The bits of all scales of a matrix (rows, columns) that is quantized along its rows."""
    (rows, columns), size = shape, quantizer.block_size
    of_names = {'tensor': (columns, rows), 'channel': (1, rows)}
    across, along = size if isinstance(size, tuple) else of_names.get(size, (1, size))
    blocks = math.ceil(rows / along) * math.ceil(columns / across)
    return blocks * SCALE_BITS[quantizer.scale] + (32 if quantizer.scale == 'nvfp4' else 0)


def total(rows: Sequence[Row]) -> Measurement:
    """All weights together."""
    return Measurement(*map(sum, zip(*(row.measurement for row in rows))))


def describe(quantizer: gq.Quantizer | None) -> str:
    """What the weights are quantized to, in a few words."""
    if quantizer is None:
        return "the format of each square block's bitwidth, mx scales"
    return dataclasses.replace(quantizer, clips_gradient=False).summary


def describe_layout(info: Mapping[str, Any], layout: Layout) -> str:
    """The same of packed weights, by what their file keeps."""
    if info['layout'] in ('learned', 'served'):
        budget = info.get('budget')
        if budget is not None and not json_files.is_a(budget, float):
            raise ValueError(f'its budget is {budget!r:.80}, and no number')
        served = info['layout'] == 'served'
        what = 'a format for each matrix, of those that servers have' if served else describe(None)
        return what + ('' if budget is None else f', at most {budget:g} bits a weight{" there" * served}')
    if not layout:
        return f'{info["layout"]}, nothing quantized'
    size = info.get('block_size', next(iter(layout.values())).tile[0])
    chosen = {name: getattr(next(iter(layout.values())), name) for name in ('scale_rounding', 'fit')}
    return describe(gq.Quantizer(info['layout'], block_size=size, scale=info.get('scale', 'mx'), **chosen))


def table(rows: Sequence[Row]) -> str:
    """A line a matrix, and one for all weights; with the formats that they have, if those differ."""
    names = param_tree.short_names([row.path for row in rows])
    cells = [('layer', 'matrix', 'bits', 'underflow', 'saturating', 'SQNR', 'formats')]
    everything = Row('all', 0, total(rows), total_formats(rows))
    for row in [*rows, everything]:
        labels = ('all', '') if row is everything else (str(row.layer), names[row.path])
        m = row.measurement
        shares = (f'{100 * m.underflow:.3f} %', f'{100 * m.saturation:.3f} %')
        cells.append((*labels, f'{m.effective_bits:.3f}', *shares, f'{m.sqnr_db:.2f} dB', share_formats(row.formats)))
    if len(everything.formats) == 1:
        cells = [line[:-1] for line in cells]
    return text_table(cells, left=(1, 6))


def total_formats(rows: Sequence[Row]) -> dict[str, int]:
    """How many of all weights have which format, the narrowest first."""
    numbers = sum((Counter(row.formats) for row in rows), Counter())
    return dict(sorted(numbers.items(), key=lambda item: (gq.parse_format(item[0]).bits, item[0])))


def share_formats(formats: Mapping[str, int]) -> str:
    """{'e2m1': 96, 'e3m2': 32} -> 'e2m1 75 %, e3m2 25 %'; one format alone without its share."""
    if len(formats) == 1:
        return next(iter(formats))
    return ', '.join(f'{name} {100 * number / sum(formats.values()):.3g} %' for name, number in formats.items())


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as JSON keeps them."""
    return [row._asdict() | {'measurement': row.measurement._asdict()} for row in rows]


def from_json(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The inverse of `to_json`; ValueError for what isn't from there."""
    read = [_row_of_json(row) for row in rows]
    layers, paths = 1 + max((row.layer for row in read), default=0), len({row.path for row in read})
    if layers * paths > MOST_CELLS:
        raise ValueError(f'its report is of {layers} layers of {paths} matrices, more than {MOST_CELLS:,} in all')
    return read


def _row_of_json(row: Any) -> Row:
    kinds = dict(path=str, layer=int, measurement=dict, formats=dict)
    row = json_files.require(row, 'a row of a report on the layers', kinds)
    of_formats = dict.fromkeys(row['formats'], int)
    formats = json_files.require(row['formats'], 'its formats', of_formats)
    sums = json_files.require(row['measurement'], 'its measurement', Measurement.__annotations__)
    if sums['values'] < 1 or not all(map(gq.parse_format, formats)):
        raise ValueError(f'its measurement is of {sums["values"]} values')
    if row['layer'] < 0:
        raise ValueError(f'{row["layer"]} is no layer')
    if not row['path'].isprintable() or len(row['path']) > LONGEST_PATH:
        raise ValueError(f'{row["path"]!r:.80} is no path of a leaf')
    return Row(row['path'], row['layer'], Measurement(*(sums[name] for name in Measurement._fields)), formats)


def write_csv(rows: Sequence[Row], file: pathlib.Path):
    """The table in full: shares as fractions; the last line, whose path is 'all', has no layer."""
    lines = []
    for path, layer, measurement, formats in [*rows, ('all', '', total(rows), total_formats(rows))]:
        numbers = ' '.join(f'{name}:{number}' for name, number in formats.items())
        values = (getattr(measurement, name) for name in PANELS)
        lines.append([path, layer, measurement.values, *values, numbers])
    csv_files.write(file, ['path', 'layer', 'weights', *PANELS, 'formats'], lines)


def draw(rows: Sequence[Row], title: str, file: pathlib.Path):
    """A heat map a quantity: layers from left to right, matrices from top to bottom, in digits where there is room."""
    with plt.rc_context(pictures.STYLE):
        figure = heat_maps_of(rows)
        figure.suptitle(pictures.plain(title, LONGEST_TITLE), fontsize=10)
        pictures.save(figure, file)
        plt.close(figure)


def heat_maps_of(rows: Sequence[Row]) -> Figure:
    """The figure that `draw` writes, without its title."""
    names = param_tree.short_names([row.path for row in rows])
    num_layers = 1 + max(row.layer for row in rows)
    height = 1.2 + 0.24 * min(len(names), 40)
    figure, axes = plt.subplots(2, 2, figsize=(11, 2 * height), sharey=True, layout='constrained')
    for panel, (quantity, label) in zip(axes.flat, PANELS.items()):
        is_share = label.endswith('(%)')
        values = np.full((len(names), num_layers), math.nan)
        for row in rows:
            value = getattr(row.measurement, quantity)
            values[list(names).index(row.path), row.layer] = 100 * value if is_share else value
        norm = heat_maps.scale(values.flat, least_span=1.0, from_zero=is_share)
        mesh = heat_maps.draw_layers(panel, values, list(names.values()), norm, number=_cell)
        heat_maps.color_bar(mesh, panel, '')
        panel.set_title(label, fontsize=10)
    for panel in axes[0]:
        panel.set_xlabel('')
    return figure


def _cell(value: float) -> str:
    """Three digits, as far as they tell something: 4.01, 21.3, 0.004."""
    return '0' if value == 0 else f'{value:.3f}' if abs(value) < 0.1 else f'{value:#.3g}'.rstrip('.')


def _measure_matrices(params: Any, rules: Mapping[str, gq.MatrixRule], of_matrix: Callable) -> list[Row]:
    """The rows of `of_matrix(path, weights)`, a Measurement and the formats, over the leaves' matrices in order."""
    leaves = gq.leaves_by_path(params)
    rows = []
    for path, rule in rules.items():
        stack = rule.to_matrices(leaves[path])
        stack = stack.reshape(-1, *stack.shape[-2:])
        for layer, weights in enumerate(map(np.asarray, stack)):
            if not np.all(np.isfinite(weights)):
                raise ValueError(f'{path!r} has infinite or NaN weights in layer {layer}: there is nothing to measure')
            rows.append(Row(path, layer, *of_matrix(path, weights)))
    return sorted(rows, key=lambda row: row.layer)


@jax.jit(static_argnums=(1, 2))
def _quantize(weights: np.ndarray, quantizer: gq.Quantizer, axis: int) -> tuple[jax.Array, jax.Array]:
    """Quantized weights, and the largest magnitudes that they can have: of transformed ones 0 where they saturate."""
    quantized = gq.fake_quantize(weights, quantizer, axis=axis)
    if quantizer.hadamard is None and quantizer.prescale == 1:
        return quantized, largest_magnitudes(weights, quantizer, axis=axis)
    matrix = quantizer.hadamard and quantizer.hadamard.matrix(None)
    clipping = dataclasses.replace(quantizer, clips_gradient=True)
    _, is_held = quantize_values(weights, clipping, (axis % weights.ndim,), None, matrix)
    return quantized, jnp.where(is_held, jnp.inf, 0)


def _compare(weights, quantized, largest, bits) -> Measurement:
    became_zero = (quantized == 0) & (weights != 0)
    beyond = np.abs(weights) > largest * (1 + ROUNDING_ERROR)
    squares = lambda x: float(np.sum(np.square(x)))
    return Measurement(
        values=weights.size,
        bits=bits,
        underflowing=int(np.count_nonzero(became_zero)),
        saturating=int(np.count_nonzero(beyond & ~became_zero)),
        signal=squares(weights.astype(np.float64)),
        noise=squares(np.subtract(quantized, weights, dtype=np.float64)),
    )
