"""The quantization report: its four numbers in float64 NumPy, which weights in which format, table, CSV and picture."""

import collections
import csv
import json
import math
import types

import ml_dtypes
import numpy as np
import numpy_float_formats as oracle
import pytest
from programs import import_program
from small_experiments import ONE_DEVICE, make_experiment, on_mesh, random_state, small_config

import gaussq_jax as gq
from experiments import workdirs
from experiments.checkpoints.checkpointing import Checkpointer
from experiments.reports import quantization as report
from experiments.training import experiment as training
from gaussq_jax import models, param_tree, recipes

evaluate = import_program('evaluate')

KINDS = ('key', 'out', 'query', 'value', 'down', 'gate', 'up')


def expected_of_block(block, fmt, scale='mx', largest=None):
    """Underflowing, saturating, signal and noise of one block in float64, by the list of the format's values."""
    block = block.astype(np.float64)
    quantized, unsure = oracle.fake_quantize(block, fmt, 'tensor', scale)
    assert not unsure.any()
    if largest is None:
        fmt_max = oracle.code_values(*fmt)[0][-1]
        largest = fmt_max * 2.0 ** (oracle.floor_log2(oracle.absmax(block)) - oracle.floor_log2(fmt_max))
    zeros = (quantized == 0) & (block != 0)
    beyond = (np.abs(block) > largest) & ~zeros
    return np.array([zeros.sum(), beyond.sum(), np.sum(block**2), np.sum((quantized - block) ** 2)])


def assert_measured(measurement, bits, sums, size):
    underflowing, saturating, signal, noise = sums
    assert measurement.values == size
    assert measurement.effective_bits == pytest.approx(bits / size, rel=1e-12)
    assert measurement.underflow == underflowing / size
    assert measurement.saturation == saturating / size
    assert measurement.sqnr_db == pytest.approx(10 * math.log10(signal / noise), abs=1e-4)


@pytest.mark.parametrize('block_size', [32, 'channel', 'tensor', (8, 32)])
@pytest.mark.parametrize('scale', ['absmax', 'mx'])
def test_four_numbers_of_a_matrix(block_size, scale):
    """Blocks along the rows, the last one ragged; absmax scales saturate nothing, MX scales do."""
    weights = oracle.heavy_tailed((70, 40), seed=1, spread=0.5)
    weights *= np.float32(1.9) / np.abs(weights).max()  # of the tensor: MX holds up to 1.5
    blocks = [weights.ravel()[positions] for positions in oracle.to_blocks(weights, block_size, axis=-2)]
    largest = math.inf if scale == 'absmax' else None
    sums = sum(expected_of_block(block, (2, 1, 'finite'), scale, largest) for block in blocks)
    bits = 4 * weights.size + {'absmax': 32, 'mx': 8}[scale] * len(blocks)
    assert sums[0] > 0 and (sums[1] > 0) == (scale == 'mx')
    measurement = report.measure(weights, gq.Quantizer('e2m1', block_size=block_size, scale=scale))
    assert_measured(measurement, bits, sums, weights.size)


@pytest.mark.parametrize('fmt', ['e0m7', 'e2m1', 'e3m2', 'e4m3', 'e5m4', 'bfloat16'])
def test_float32_scales_saturate_nothing(fmt):
    """They, too, are rounded: the largest weight of a block may lie an ulp above what the block then holds."""
    weights = oracle.heavy_tailed((64, 64), seed=5)
    assert report.measure(weights, gq.Quantizer(fmt, block_size=2)).saturation == 0


def test_nvfp4():
    """A block's scale, rounded down, makes its largest weights saturate; one of zero makes weights underflow only."""
    weights = oracle.heavy_tailed((64, 40), seed=2, spread=0.5)
    weights[:16, 0] *= 1e-7
    quantized, unsure = oracle.fake_quantize(weights, (2, 1, 'finite'), 16, 'nvfp4', axis=0)
    assert not unsure.any()
    wide = weights.astype(np.float64)
    tensor_scale = 2688 / np.abs(wide).max()
    absmax = np.abs(wide).reshape(4, 16, 40).max(1)
    largest = 6 * (absmax / 6 * tensor_scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) / tensor_scale
    largest = largest.repeat(16, 0)
    largest[np.abs(wide) == np.abs(wide).max()] = math.inf  # exactly 6 * 448
    zeros, beyond = (quantized == 0) & (wide != 0), np.abs(wide) > largest
    assert largest[0, 0] == 0 and (beyond & ~zeros).any() and zeros[:16, 0].all()
    sums = (zeros.sum(), (beyond & ~zeros).sum(), np.sum(wide**2), np.sum((quantized - wide) ** 2))
    measurement = report.measure(weights, gq.Quantizer('e2m1', block_size=16, scale='nvfp4'))
    assert_measured(measurement, (4 + 8 / 16) * weights.size + 32, sums, weights.size)


BITWIDTHS = np.float32([[2.5, 3.0], [3.01, 4.0], [5.9, 9.5]])  # of blocks: e2m1 up to 3 bits, e3m2 up to 4, …
FORMATS = [[(2, 1, 'finite')] * 2, [(3, 2, 'finite')] * 2, [(3, 4, 'finite'), (8, 7, 'ieee')]]


def test_each_block_in_its_own_format():
    """Blocks at the edges are smaller; the bits are those of the file, whose blocks name their formats in a byte."""
    weights = oracle.heavy_tailed((70, 40), seed=3)
    sums, num_bytes, numbers = 0, 6 + 6, collections.Counter()
    for i, j in np.ndindex(3, 2):
        block, fmt = weights[32 * i : 32 * (i + 1), 32 * j : 32 * (j + 1)].ravel(), FORMATS[i][j]
        sums = sums + expected_of_block(block, fmt)
        numbers[fmt] += block.size
    num_bytes += sum(math.ceil((1 + e + m) * numbers[e, m, special] / 8) for e, m, special in numbers)
    assert np.all(sums > 0)
    params = {'kernel': weights}
    layout = gq.learned_layout(params, {'kernel': BITWIDTHS})
    (row,) = report.measure_layout(params, layout)
    assert_measured(row.measurement, 8 * num_bytes, sums, weights.size)
    assert row.measurement.bits == 8 * gq.layout_size(params, layout).total_bytes
    assert row.formats == {'e2m1': 32 * 40, 'e3m2': 32 * 40, 'e3m4': 6 * 32, 'bfloat16': 6 * 8}


@pytest.mark.parametrize('layout', ['learned', 'e2m1', 'float8_e4m3fn'])
def test_noise_is_what_the_packed_weights_lack(layout):
    """Of a stack of matrices, each measured as it is packed; together they take what the file does."""
    params = {'layers': {'up': {'kernel': oracle.heavy_tailed((3, 70, 40), seed=6)}}}
    bitwidths = {'layers/up/kernel': np.random.default_rng(0).uniform(2, 11, (3, 3, 2)).astype(np.float32)}
    if layout == 'learned':
        layout = gq.learned_layout(params, bitwidths, rules=models.RULES)
    else:
        layout = gq.uniform_layout(params, layout, rules=models.RULES)
    rows = report.measure_layout(params, layout)
    weights = np.float64(params['layers']['up']['kernel'])
    noise = np.float64(gq.quantize_params(params, layout)['layers']['up']['kernel']) - weights
    assert [(row.path, row.layer) for row in rows] == [('layers/up/kernel', layer) for layer in range(3)]
    for row, of_signal, of_noise in zip(rows, weights, noise, strict=True):
        assert row.measurement.signal == pytest.approx(np.sum(of_signal**2), rel=1e-12)
        assert row.measurement.noise == pytest.approx(np.sum(of_noise**2), rel=1e-12)
    assert report.total(rows).effective_bits == gq.layout_size(params, layout).mean_stored_bits
    assert sum(report.total_formats(rows).values()) == weights.size


@pytest.mark.parametrize('magnitude', [0.0, 1e-30, 3e38])
@pytest.mark.parametrize('scale', ['absmax', 'mx'])
def test_extremes(magnitude, scale):
    """No NaN; where quantization changes nothing, the ratio is infinite."""
    weights = np.full((32, 2), magnitude, np.float32)
    weights[::2] *= 0.7
    measurement = report.measure(weights, gq.Quantizer('e4m3', scale=scale))
    assert measurement.underflow == 0
    assert 20 < measurement.sqnr_db < 50 if magnitude else measurement.sqnr_db == math.inf


def test_all_weights_together():
    """Matrices of different widths count as one matrix of all their columns."""
    weights = oracle.heavy_tailed((64, 50), seed=4)
    quantizer = gq.Quantizer('e2m1', scale='mx')
    parts = [
        report.Row('a', i, report.measure(part, quantizer), {'e2m1': part.size})
        for i, part in enumerate((weights[:, :9], weights[:, 9:]))
    ]
    whole, together = report.measure(weights, quantizer), report.total(parts)
    assert together[:4] == whole[:4]
    np.testing.assert_allclose(together[4:], whole[4:], rtol=1e-12)


# --- of a run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('argument', 'flags', 'expected'),
    [
        ('method=fqt', {}, gq.Quantizer('e4m3')),
        ('method=fqt,format=e2m1,scale=nvfp4,block_size=16', {}, gq.Quantizer('e2m1', block_size=16, scale='nvfp4')),
        ('method=fqt,rounding=stochastic', {}, gq.Quantizer('e4m3')),
        ('method=fqt,targets=P4', dict(fmt='e3m2'), gq.Quantizer('e3m2')),
        ('method=fqt,recipe=mxfp8', {}, recipes.MXFP8.P2),
        ('method=fqt,recipe=mxfp8', dict(fmt='e2m1'), gq.Quantizer('e2m1', scale='mx', scale_rounding='rceil')),
        ('method=fqt,recipe=mxfp8', dict(scale='absmax'), gq.Quantizer('float8_e4m3fn')),
        ('method=fqt,recipe=nvfp4', {}, recipes.NVFP4.P2),
        ('method=fqt,recipe=quartet', {}, recipes.QUARTET.P2),
        ('method=qat,format=e3m2,block_size=8x16', {}, gq.Quantizer('e3m2', block_size=(8, 16))),
        ('method=qat,rounding=toward_zero', dict(scale='mx'), gq.Quantizer('e4m3', scale='mx', rounding='toward_zero')),
        ('method=qat,block_size=channel', dict(fmt='e2m1'), gq.Quantizer('e2m1', block_size='channel')),
        ('method=gaussws', {}, None),
        ('method=gaussws,b_init=4,format=e3m2', {}, gq.Quantizer('e3m2', block_size=(32, 32), scale='mx')),
        ('method=diffq,block_size=16', dict(fmt='e2m1'), gq.Quantizer('e2m1', block_size=(16, 16), scale='mx')),
        ('method=diffq', dict(fmt='e2m1', block_size='tensor'), gq.Quantizer('e2m1', block_size='tensor', scale='mx')),
        ('method=bf16', dict(fmt='e5m2'), gq.Quantizer('e5m2')),
        ('method=bf16', dict(fmt='e5m2', block_size='64', scale='mx'), gq.Quantizer('e5m2', block_size=64, scale='mx')),
    ],
)
def test_what_a_run_is_quantized_to(argument, flags, expected):
    assert report.choose_quantizer(small_config(f'smoke,{argument}'), **flags) == expected


@pytest.mark.parametrize(
    ('argument', 'flags', 'message'),
    [
        ('method=bf16', dict(block_size='32'), 'this run is bf16: its weights are not quantized; say by --format'),
        ('method=fqt,targets=P4+P6', {}, 'this run is fqt, and P2 is not among its targets'),
        ('method=gaussws', dict(scale='mx'), '--block_size and --scale need a --format'),
        ('method=diffq', dict(block_size='16'), '--block_size and --scale need a --format'),
        ('method=fqt', dict(fmt='e9m9'), "format 'e9m9'"),
        ('method=fqt', dict(block_size='half'), "block_size='half'"),
        ('method=fqt', dict(scale='max'), "scale='max'"),
        ('method=gaussws', dict(fmt='e2m1', scale='nvfp4'), r'block_size=\(32, 32\)'),
    ],
)
def test_mistakes_are_told(argument, flags, message):
    with pytest.raises(ValueError, match=message):
        report.choose_quantizer(small_config(f'smoke,{argument}'), **flags)


def run_of(argument, **changes):
    experiment = make_experiment(small_config(f'smoke,{argument}', **changes))
    return workdirs.Run(experiment, None, random_state(experiment))


def test_every_matrix_of_every_layer():
    run = run_of('method=fqt')
    quantizer = report.choose_quantizer(run.experiment.config)
    rows = report.measure_run(run.experiment, run.state, quantizer)
    names = param_tree.short_names([row.path for row in rows])
    assert [(row.layer, names[row.path]) for row in rows] == [(layer, kind) for layer in range(2) for kind in KINDS]
    assert sum(row.measurement.values for row in rows) == run.experiment.num_linear_params
    weights = np.asarray(run.state.params['layers']['mlp']['down']['kernel'][1])  # 144 rows: a ragged block
    (row,) = (row for row in rows if row.layer == 1 and row.path == 'layers/mlp/down/kernel')
    assert row.measurement == report.measure(weights, quantizer)
    assert row.measurement.effective_bits == 8 + 32 * 5 / 144
    assert row.formats == {'e4m3': 144 * 80}


def test_kept_layers_lose_what_bfloat16_does():
    run = run_of('method=fqt,recipe=nvfp4', quantization__full_precision='.*/down@last=1')
    quantizer = report.choose_quantizer(run.experiment.config)
    rows = {(row.path, row.layer): row for row in report.measure_run(run.experiment, run.state, quantizer)}
    down = [rows['layers/mlp/down/kernel', layer] for layer in range(2)]
    assert [row.formats for row in down] == [{'float4_e2m1fn': 144 * 80}, {'bfloat16': 144 * 80}]
    assert down[1].measurement.effective_bits == 16 and 50 < down[1].measurement.sqnr_db < 65
    assert sum(row.formats == down[1].formats for row in rows.values()) == 1


def test_transformed_weights():
    """Quartet's: of what saturates, the transformed values count; the noise is of the weights themselves."""
    weights = np.random.default_rng(0).standard_normal((64, 8), np.float32)
    measurement = report.measure(weights, recipes.QUARTET.P2.deterministic())
    assert measurement.effective_bits == 4 + 8 / 32 and measurement.underflow == 0
    assert 0 < measurement.saturation < 0.02  # of normally distributed values, scaled by 2.92 / 6 of their deviation
    assert 15 < measurement.sqnr_db < 20
    assert report.describe(recipes.QUARTET.P2) == ('float4_e2m1fn by 32, mx nearest, rms, Hadamard 32')


@pytest.mark.parametrize('parts', ['down', 'layers/mlp/(up|gate)/kernel'])
def test_parts_that_are_sampled(parts):
    """Each layer's blocks with their own bitwidths, and no other weights."""
    run = run_of('method=gaussws,block_size=16', quantization__parts=parts)
    bitwidths = run.experiment.transform.bitwidths(run.state.transform_state)
    rows = report.measure_run(run.experiment, run.state, None)
    assert {row.path for row in rows} == set(bitwidths)
    for row in rows:
        formats = collections.Counter()
        for bitwidth in bitwidths[row.path][row.layer].ravel():
            formats[gq.format_for_bitwidth(float(bitwidth)).name] += 16 * 16
        assert row.formats == formats
    assert len({row.measurement.bits for row in rows}) > 1


def test_weights_that_are_not_finite():
    run = run_of('method=fqt')
    kernel = run.state.params['layers']['mlp']['up']['kernel']
    run.state.params['layers']['mlp']['up']['kernel'] = kernel.at[1, 0, 0].set(math.nan)
    with pytest.raises(ValueError, match="'layers/mlp/up/kernel' has infinite or NaN weights in layer 1"):
        report.measure_run(run.experiment, run.state, gq.Quantizer('e4m3'))


# --- how it is shown --------------------------------------------------------------------------------


E2M1 = {'e2m1': 1000}


def rows_of(num_layers, formats=E2M1):
    """Numbers that tell layers and kinds apart; the first matrix loses nothing."""
    paths = [f'layers/{"attention" if kind in KINDS[:4] else "mlp"}/{kind}/kernel' for kind in KINDS]
    return [
        report.Row(path, layer, report.Measurement(1000, 4500 + 10 * i, layer, i, 1.0, 0.001 * (layer + i)), formats)
        for layer in range(num_layers)
        for i, path in enumerate(paths)
    ]


def test_table():
    lines = report.table(rows_of(12)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ['layer', 'matrix', 'bits', 'underflow', 'saturating', 'SQNR']
    assert lines[1].split() == ['0', 'key', '4.500', '0.000', '%', '0.000', '%', 'inf', 'dB']
    assert lines[1 + 7 * 11 + 2].split() == ['11', 'query', '4.520', '1.100', '%', '0.200', '%', '18.86', 'dB']
    assert lines[-1].split() == ['all', '4.530', '0.550', '%', '0.300', '%', '20.71', 'dB']


def test_table_of_several_formats():
    """The shares of each matrix, and of all."""
    mixed = rows_of(1, {'e3m2': 750, 'e2m1': 250})[:2]
    lines = report.table([*mixed, *rows_of(1)[2:4]]).splitlines()
    shares = [line[lines[0].index('formats') :] for line in lines]
    assert shares == ['formats', *['e3m2 75 %, e2m1 25 %'] * 2, 'e2m1', 'e2m1', 'e2m1 62.5 %, e3m2 37.5 %']


def test_rows_through_json():
    rows = rows_of(2, {'e3m2': 750, 'e2m1': 250})
    assert report.from_json(json.loads(json.dumps(report.to_json(rows)))) == rows


def test_csv(tmp_path):
    rows = rows_of(2)
    report.write_csv(rows, tmp_path / 'table.csv')
    with (tmp_path / 'table.csv').open(newline='') as file:
        lines = list(csv.DictReader(file))
    assert [(line['path'], line['layer']) for line in lines[:-1]] == [(row.path, str(row.layer)) for row in rows]
    assert (lines[-1]['path'], lines[-1]['layer'], lines[-1]['weights']) == ('all', '', '14000')
    for line, m in zip(lines, [*(row.measurement for row in rows), report.total(rows)], strict=True):
        shown = [float(line[name]) for name in ('effective_bits', 'underflow', 'saturation', 'sqnr_db')]
        assert shown == [m.effective_bits, m.underflow, m.saturation, m.sqnr_db]
    assert [line['formats'] for line in lines] == ['e2m1:1000'] * 14 + ['e2m1:14000']


@pytest.mark.parametrize('num_layers', [1, 2, 12, 88])
def test_picture(tmp_path, monkeypatch, num_layers):
    """A heat map a quantity, a cell a matrix of a layer, within its colours; digits in cells of few layers only."""
    figures, close = [], report.plt.close
    monkeypatch.setattr(report.plt, 'close', figures.append)
    report.draw(rows_of(num_layers), 'title', tmp_path / 'picture.png')
    (figure,) = figures
    close(figure)
    assert (tmp_path / 'picture.png').read_bytes().startswith(b'\x89PNG')
    factors = [('effective_bits', 1), ('underflow', 100), ('saturation', 100), ('sqnr_db', 1)]
    for panel, (quantity, factor) in zip(figure.axes, factors):  # colour bars follow
        (mesh,) = panel.collections
        values = [[factor * getattr(row.measurement, quantity) for row in rows_of(num_layers)[i::7]] for i in range(7)]
        finite = np.isfinite(values)
        np.testing.assert_array_equal(mesh.get_array().mask, ~finite)
        np.testing.assert_array_equal(mesh.get_array()[finite], np.array(values)[finite])
        assert mesh.norm.vmin <= np.min(values) and mesh.norm.vmax >= np.max(np.array(values)[finite])
        assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(KINDS)
        assert len(panel.texts) == (7 * num_layers if num_layers <= 12 else 0)
    if num_layers == 2:
        assert [text.get_text() for text in figure.axes[1].texts[:2]] == ['0', '0.100']
        assert figure.axes[3].texts[0].get_text() == '∞'


def test_a_report_of_another_file_is_no_reason_for_a_huge_picture():
    """Layers that a file claims are cells of memory."""
    (row,) = rows_of(1)[:1]
    for layer, message in ((-1, '-1 is no layer'), (10**7, '10000001 layers of 1 matrices, more than 1,000,000')):
        with pytest.raises(ValueError, match=message):
            report.from_json(report.to_json([row._replace(layer=layer)]))


# --- the program ------------------------------------------------------------------------------------


def run_evaluate(monkeypatch, workdir, **given):
    names = 'EVAL_BATCHES', 'QUANTIZATION', 'FORMAT', 'BLOCK_SIZE', 'SCALE'
    names += 'WEIGHTS', 'TOKENIZER', 'DATASET', 'DATA_DIR'
    for name in names:
        flag = types.SimpleNamespace(name=name.lower(), value=given.get(name), present=int(name in given))
        monkeypatch.setattr(evaluate, name, flag)
    monkeypatch.setattr(evaluate, 'WORKDIR', types.SimpleNamespace(value=str(workdir)))
    evaluate.main(['evaluate'])


@pytest.mark.parametrize('sizes', [ONE_DEVICE, (1, 8, 1)])
def test_the_program(tmp_path, monkeypatch, capsys, sizes):
    """From a checkpoint to the files, without a text; the weights whole or in shards, the numbers are the same."""
    config = small_config('smoke,method=bf16', data_dir='nowhere', cache_dir='nowhere')
    with on_mesh(ONE_DEVICE):
        experiment = training.make_experiment(config, 257)
    state = random_state(experiment, step=7)
    with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
        checkpointer.save(7, state, {}, {**config.to_dict(), 'corpus': 'text'})
    with on_mesh(sizes):
        run_evaluate(monkeypatch, tmp_path, QUANTIZATION=True, FORMAT='e2m1', BLOCK_SIZE='16')
    title, *table, written = capsys.readouterr().out.splitlines()
    assert title == f'{tmp_path.name}, step 7: e2m1 by 16, absmax'
    expected = report.measure_run(experiment, state, gq.Quantizer('e2m1', block_size=16))
    assert '\n'.join(table) == report.table(expected)
    assert written == f'written to {tmp_path}/quantization.csv and {tmp_path}/quantization.png'
    assert {path.name for path in tmp_path.iterdir()} == {'checkpoints', 'quantization.csv', 'quantization.png'}


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (dict(FORMAT='e2m1'), '--format has a meaning only with --quantization'),
        (dict(BLOCK_SIZE='16'), '--block_size has a meaning only with --quantization'),
        (dict(SCALE='mx'), '--scale has a meaning only with --quantization'),
        (dict(QUANTIZATION=True, EVAL_BATCHES=2), '--eval_batches has a meaning only without --quantization'),
        (dict(QUANTIZATION=True), 'holds no checkpoint'),
    ],
)
def test_command_line_mistakes(tmp_path, monkeypatch, flags, message):
    """One line, and nothing is written."""
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        run_evaluate(monkeypatch, tmp_path, **flags)
    assert not list(tmp_path.iterdir())
