"""Tables of runs: the same from every kind of file, what a sweep's columns mean, and errors that say where to look."""

import collections
import csv
import json
import math
import os
import pathlib

import numpy as np
import pytest

from experiments.laws.tables import run_tables, table_files
from experiments.laws.tables.reading import Reading
from experiments.laws.tables.run_tables import read_runs, seed_noise, select

PLAIN = [
    {'N': 1000, 'D': 2e6, 'E': 4, 'M': 3, 'B': '32', 'loss': 2.5},
    {'N': 1000, 'D': 4e6, 'E': 4, 'M': 3, 'B': 'channel', 'loss': 2.4},
    {'N': 3000, 'D': 2e6, 'E': 0, 'M': 7, 'B': 'tensor', 'loss': 2.3},
]
SWEEP = {
    'name': '',
    'status': 'done',
    'method': 'fqt',
    'quantization.format': 'e2m1',
    'quantization.block_size': '16',
    'quantization.b_init': 6.0,
    'quantization.b_target': 4.0,
    'seed': 0,
    'seconds': 3.0,
    'N': 1000,
    'D': 2e6,
    'validation/loss': 2.5,
    'bits/mean': '',
    'error': '',
}


def write(path, rows):
    """The rows as CSV, JSONL or Parquet, as the name says."""
    if path.suffix == '.csv':
        with open(path, 'w', newline='') as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == '.jsonl':
        path.write_text('\n'.join(map(json.dumps, rows)) + '\n\n')
    else:
        pyarrow = pytest.importorskip('pyarrow')
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def sweep(tmp_path, *changes):
    return read_runs(write(tmp_path / 'results.csv', [{**SWEEP, **change} for change in changes]))


@pytest.mark.parametrize('ending', ['csv', 'jsonl', 'parquet'])
def test_every_kind_of_file_gives_the_same_columns(tmp_path, ending):
    table = read_runs(write(tmp_path / f'runs.{ending}', PLAIN))
    assert table.num_runs == 3 and table.left_out == {}
    for name in ('N', 'D', 'E', 'M', 'loss'):
        assert table.columns[name].dtype == np.float64
        assert table.columns[name].tolist() == [row[name] for row in PLAIN]
    assert table.columns['B'].tolist() == [32.0, 'channel', 'tensor']
    assert np.isnan(table.columns['b']).all()


def test_a_format_stands_for_exponent_and_mantissa(tmp_path):
    rows = [{'N': 1, 'D': 2, 'format': name, 'B': 1, 'loss': 3} for name in ('e4m3', 'E2M1', 'bf16', 'float8_e5m2')]
    columns = read_runs(write(tmp_path / 'runs.csv', rows)).columns
    assert columns['E'].tolist() == [4, 2, 8, 5] and columns['M'].tolist() == [3, 1, 7, 2]


def test_a_sweep_row_means_what_its_method_does(tmp_path):
    """No method but fqt and qat has a use for the format and the blocks, whatever their columns say."""
    columns = sweep(
        tmp_path,
        {},
        {'quantization.format': '', 'quantization.block_size': 'channel', 'method': 'qat'},
        {'method': 'bf16', 'quantization.format': 'e2m1'},
        {'method': 'gaussws', 'bits/mean': '4.25', 'quantization.block_size': '32'},
        {'method': 'diffq', 'quantization.b_init': 3.0, 'quantization.b_target': 3.0},
        {'method': 'gaussws', 'quantization.format': 'e3m2'},
    ).columns
    assert columns['E'][:3].tolist() == [2, 4, 8] and columns['M'][:3].tolist() == [1, 3, 7]
    assert columns['B'].tolist() == [16.0, 'channel', 1.0, None, None, None]
    assert np.isnan(columns['E'][3:]).all() and np.isnan(columns['M'][3:]).all()
    np.testing.assert_array_equal(columns['b'], [math.nan, math.nan, math.inf, 4.25, 3.0, math.nan])


def test_the_loss_is_that_of_validation_unless_there_is_a_loss(tmp_path):
    assert sweep(tmp_path, {'validation/loss': 2.125}).columns['loss'].tolist() == [2.125]
    assert sweep(tmp_path, {'validation/loss': 2.125, 'loss': 1.5}).columns['loss'].tolist() == [1.5]


def test_a_blank_is_left_out_and_counted_whatever_column_it_is_in(tmp_path):
    (tmp_path / 'runs.csv').write_text('N,D,loss\n1,2,3\n,2,3\n1,,3\n1,2,\n')
    table = read_runs(tmp_path / 'runs.csv')
    assert table.num_runs == 1
    assert table.left_out == {'without N': 1, 'without D': 1, 'without a loss': 1}


def test_bfloat16_has_no_block_size(tmp_path):
    """By its name or by its bits; a format that has scales needs one."""
    rows = ['4,3,,e4m3', '8,7,,', ',,,bf16', ',,,bfloat16', '8,7,channel,']
    (tmp_path / 'runs.csv').write_text('\n'.join(['N,D,loss,E,M,B,format', *(f'1,2,3,{row}' for row in rows)]) + '\n')
    table = read_runs(tmp_path / 'runs.csv')
    assert table.columns['B'].tolist() == [None, 1.0, 1.0, 1.0, 'channel']
    assert select(table, ('E', 'M', 'B')).num_runs == 4


def test_what_is_not_done_or_not_finite_is_left_out_and_counted(tmp_path):
    unfinished = {'N': '', 'D': '', 'validation/loss': ''}
    table = sweep(
        tmp_path,
        {'name': 'kept'},
        {'status': 'missing', **unfinished},
        {'status': 'failed', **unfinished},
        {'status': 'missing', **unfinished},
        {'validation/loss': 'NaN'},
        {'validation/loss': 'inf'},
        {'validation/loss': ''},
    )
    assert table.columns['name'].tolist() == ['kept']
    assert table.left_out == {
        'with status missing': 2,
        'with status failed': 1,
        'whose loss is not finite': 2,
        'without a loss': 1,
    }


def test_select_keeps_the_runs_that_a_law_can_use(tmp_path):
    table = sweep(
        tmp_path,
        {'method': 'bf16'},
        {},
        {'method': 'gaussws', 'bits/mean': 4},
        {'quantization.block_size': '32x32'},
        {'status': 'failed'},
    )
    formats = select(table, ('N', 'D', 'E', 'M', 'B'))
    assert formats.columns['method'].tolist() == ['bf16', 'fqt']
    assert formats.left_out == {'with status failed': 1, 'without E (gaussws)': 1, 'without B (fqt)': 1}
    bitwidths = select(table, ('N', 'D', 'b'))
    assert bitwidths.columns['method'].tolist() == ['bf16', 'gaussws']
    assert bitwidths.left_out == {'with status failed': 1, 'without b (fqt)': 2}


def test_a_column_that_only_some_laws_need_is_missed_by_them_alone(tmp_path):
    table = read_runs(write(tmp_path / 'runs.csv', [{'N': 1, 'D': 2, 'loss': 3}]))
    assert select(table, ('N', 'D')).num_runs == 1
    with pytest.raises(
        ValueError, match=r"has no column 'E' or 'format' or .*; its columns are N, D, loss \(--columns=E="
    ):
        select(table, ('N', 'D', 'E'))


def test_no_run_with_a_column_is_an_error_that_tells_what_there_is(tmp_path):
    table = sweep(tmp_path, {}, {'status': 'failed'})
    with pytest.raises(ValueError, match=r'has no run that is done and has b; 1 with status failed$'):
        select(table, ('b',))


def test_the_noise_of_seeds_is_pooled_over_settings(tmp_path):
    losses = {'16': [2.0, 2.2, 2.1], '32': [3.0, 3.1], '64': [9.0]}
    changes = [
        {'quantization.block_size': size, 'seed': seed, 'validation/loss': loss}
        for size, by_seed in losses.items()
        for seed, loss in enumerate(by_seed)
    ]
    noise = seed_noise(sweep(tmp_path, *changes))
    squares = 2 * np.var(losses['16'], ddof=1) + np.var(losses['32'], ddof=1)
    assert noise['standard_deviation'] == pytest.approx(math.sqrt(squares / 3))
    assert (noise['settings'], noise['degrees_of_freedom']) == (2, 3)
    assert seed_noise(sweep(tmp_path, *changes[-2:])) is None


def test_what_differs_in_more_than_the_seed_is_no_noise(tmp_path):
    """A sweep's names tell of fields that the laws don't know; without them, seeds have to differ."""
    names = [
        {'name': f'learning_rate={rate},seed=0', 'validation/loss': loss} for rate, loss in ((1e-3, 2.0), (0.1, 3.0))
    ]
    assert seed_noise(sweep(tmp_path, *names)) is None
    assert seed_noise(sweep(tmp_path, {'validation/loss': 2.0}, {'validation/loss': 3.0})) is None
    seeds = [
        {'name': f'b_target=4.0,seed={i}', 'seed': i, 'bits/mean': 4 + i / 9, 'method': 'gaussws'} for i in range(3)
    ]
    assert seed_noise(sweep(tmp_path, *seeds))['degrees_of_freedom'] == 2


def test_the_noise_of_seeds_whatever_runs_are_called(tmp_path):
    """Others give each run a name of its own; and what a law of one's own takes tells settings apart, too."""
    rows = [
        {'name': f'happy-sun-{i}', 'N': 1e6, 'D': 1e9, 'epochs': epochs, 'seed': seed, 'loss': loss}
        for i, (epochs, seed, loss) in enumerate([(1, 0, 2.0), (1, 1, 2.2), (4, 0, 3.0), (4, 1, 3.2)])
    ]
    path = write(tmp_path / 'runs.csv', rows)
    noise = seed_noise(read_runs(path, Reading(extra=('epochs',))))
    assert noise['standard_deviation'] == pytest.approx(math.sqrt(0.02))
    assert (noise['settings'], noise['degrees_of_freedom']) == (2, 2)


def test_a_format_that_the_table_does_not_tell_is_not_made_up(tmp_path):
    """It was in the base config of the sweep, or is of a method that we don't know."""
    untold = {name: value for name, value in SWEEP.items() if name != 'quantization.format'}
    table = read_runs(write(tmp_path / 'results.csv', [untold]))
    with pytest.raises(ValueError, match=r"has no column 'E' or 'format' or 'quantization\.format'"):
        select(table, 'ND' + 'EMB')
    told = sweep(tmp_path, {'quantization.format': ''}, {'quantization.format': '', 'method': 'other'})
    np.testing.assert_array_equal(told.columns['E'], [4, np.nan])


@pytest.mark.parametrize(
    ('name', 'text', 'error'),
    [
        ('runs.csv', '', r'runs\.csv has no header'),
        ('runs.csv', 'N,D,loss\n', r'runs\.csv has no runs in it'),
        ('runs.jsonl', '\n', r'runs\.jsonl has no runs in it'),
        (
            'runs.txt',
            'N,D,loss\n1,2,3\n',
            r'runs\.txt: a table of runs ends in \.csv, \.tsv, \.jsonl, \.json, \.parquet',
        ),
        ('runs.csv', 'N,epochs,loss\n1,2,3\n', r"runs\.csv has no column 'D'; its columns are N, epochs, loss"),
        ('runs.csv', 'N,D\n1,2\n', r"has no column 'loss' or 'validation/loss'; its columns are N, D"),
        ('runs.csv', 'N,D,loss\n1,2,3\n1,many,3\n', r"runs\.csv, line 3: D='many' is not a number"),
        ('runs.csv', 'N,D,E,M,B,loss\n1,2,four,3,1,3\n', r"runs\.csv, line 2: E='four' is not a number"),
        ('runs.csv', 'N,D,loss\n1,2,3\n1,2,low\n', r"runs\.csv, line 3: loss='low' is not a number"),
        ('runs.csv', 'N,D,loss\n-1,2,3\n', r"line 2: N='-1' must be a positive number"),
        ('runs.csv', 'N,D,loss\n1,inf,3\n', r"line 2: D='inf' must be a positive number"),
        ('runs.csv', 'N,D,loss,E\n1,2,3,-1\n', r"line 2: E='-1' must be at least 0"),
        ('runs.csv', 'N,D,loss,b\n1,2,3,0\n', r"line 2: b='0' must be above 0"),
        ('runs.csv', 'N,D,loss,format\n1,2,3,fp7\n', r"line 2: format 'fp7' is unknown; known are .*mxfp4"),
        ('runs.csv', 'N,D,loss,B\n1,2,3,row\n', r"line 2: B='row' is neither a block size"),
        ('runs.csv', 'N,D,loss,B\n1,2,3,0\n', r"line 2: B='0' is neither a block size"),
        ('runs.csv', 'N,D,loss\n1,2,3\n1,2\n', r'runs\.csv, line 3: it has 2 cells, and the table 3 columns'),
        ('runs.csv', 'N,D,loss\n1,2,3,4\n', r'runs\.csv, line 2: it has 4 cells, and the table 3 columns'),
        ('runs.csv', 'N,D,loss\n1,2,"3\n', r'runs\.csv, line 2: it is damaged: '),
        ('runs.csv', 'N,D,D,loss\n1,2,2,3\n', r"runs\.csv has more than one column 'D'"),
        ('runs.csv', b'N,D,loss\n1,2,\xff\n', r'runs\.csv is no text in UTF-8'),
        ('runs.jsonl', '{"N": 1, "D": 2, "loss": 3}\n{"N": 1, "D"\n', r'runs\.jsonl, line 2 is no JSON: '),
        ('runs.jsonl', '[1, 2, 3]\n', r'runs\.jsonl, line 1 must hold a JSON object, not an array'),
        ('runs.jsonl', '{"N": true, "D": 2, "loss": 3}\n', r'line 1: N=True is not a number'),
        ('runs.jsonl', '{"N": [1], "D": 2, "loss": 3}\n', r'line 1: N=\[1\] is not a number'),
        ('runs.parquet', 'PAR1 and no more', r'runs\.parquet is damaged, or not Parquet: '),
        ('runs.parquet', '', r'runs\.parquet is damaged, or not Parquet: '),
    ],
)
def test_what_is_wrong_with_a_table_is_one_error_that_says_where(tmp_path, name, text, error):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=error) as raised:
        read_runs(path)
    assert '\n' not in str(raised.value)


def test_text_in_a_number_of_parquet_names_the_row(tmp_path):
    rows = [{'N': '1', 'D': 2, 'loss': 3}, {'N': 'one', 'D': 2, 'loss': 3}]
    with pytest.raises(ValueError, match=r"runs\.parquet, row 2: N='one' is not a number"):
        read_runs(write(tmp_path / 'runs.parquet', rows))


def test_text_of_parquet_that_is_not_utf8(tmp_path):
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet

    text = pyarrow.array([b'bf\x99'], pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({'N': [1.0], 'D': [1.0], 'loss': [1.0], 'method': text})
    parquet.write_table(table, tmp_path / 'runs.parquet')
    with pytest.raises(ValueError, match=r"runs\.parquet is damaged, or not Parquet: 'utf-8' codec can't decode"):
        read_runs(tmp_path / 'runs.parquet')


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'pyarrow', None)
    (tmp_path / 'runs.parquet').write_text('')
    with pytest.raises(ValueError, match=r'needs pyarrow: pip install "pyarrow>=14\.0\.1"'):
        read_runs(tmp_path / 'runs.parquet')


def test_a_file_that_is_not_there_is_told_as_such(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing'):
        run_tables.read_runs(tmp_path / 'nothing.csv')


def test_parquet_of_too_many_rows_is_not_read(tmp_path):
    """A file of some kB that says a gigabyte."""
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet

    rows = 2_000_000
    parquet.write_table(pyarrow.table({name: np.ones(rows) for name in ('N', 'D', 'loss')}), tmp_path / 'runs.parquet')
    assert (tmp_path / 'runs.parquet').stat().st_size < 100_000
    with pytest.raises(ValueError, match=r'runs\.parquet has 2,000,000 rows; allowed are 100,000'):
        read_runs(tmp_path / 'runs.parquet')


def bomb(*, rows=1, text='', nested=False):
    import pyarrow

    cells = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), pyarrow.array([text]))
    columns = {'N': pyarrow.array([1] * rows), 'D': pyarrow.array([2] * rows), 'loss': pyarrow.array([3.0] * rows)}
    return pyarrow.table({**columns, 'name': pyarrow.array([[1, 2]] * rows) if nested else cells})


@pytest.mark.parametrize(
    ('table', 'error'),
    [
        (dict(rows=200_000), 'has 200,000 rows; allowed are 100,000'),
        (dict(rows=50_000, text='x' * 100_000), 'has a text of more than 10,000 letters'),
        (dict(text='x' * 2**23), 'would take 8,'),
        (dict(nested=True), "the column 'name' has several values in a cell"),
    ],
    ids=['rows', 'one text in many rows', 'a long text', 'nested'],
)
def test_parquet_bombs(tmp_path, monkeypatch, table, error):
    """Files of some kilobytes that would be gigabytes in memory."""
    parquet = pytest.importorskip('pyarrow.parquet')
    monkeypatch.setattr(table_files, 'MOST_PARQUET_BYTES', 2**22)  # for a test of no gigabytes
    parquet.write_table(bomb(**table), tmp_path / 'runs.parquet', compression='zstd')
    assert (tmp_path / 'runs.parquet').stat().st_size < 200_000
    with pytest.raises(ValueError, match=rf'runs\.parquet.*{error}'):
        read_runs(tmp_path / 'runs.parquet')


def test_columns_of_parquet_that_no_law_needs_are_not_read(tmp_path):
    pyarrow, parquet = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    columns = {'N': [1.0], 'D': [2.0], 'loss': [3.0], 'curve': [[1.0] * 1000], 'name': ['a']}
    parquet.write_table(pyarrow.table(columns), tmp_path / 'runs.parquet')
    table = read_runs(tmp_path / 'runs.parquet')
    assert table.num_runs == 1 and 'curve' in table.names and list(table.columns['name']) == ['a']


FOLDER = os.environ.get('GAUSSQ_PUBLIC_RUNS')


@pytest.mark.skipif(not FOLDER, reason='GAUSSQ_PUBLIC_RUNS names no folder with the tables')
def test_public_tables():
    """As their authors have written them."""
    chinchilla, quartet = (read_runs(f'{FOLDER}/{name}.csv') for name in ('chinchilla_epoch_240', 'quartet_174'))
    assert (chinchilla.num_runs, chinchilla.remarks, quartet.num_runs, quartet.remarks) == (240, (), 174, ())
    is_bf16 = (quartet.columns['forward'] == 'bf16') & (quartet.columns['backward'] == 'bf16')
    assert np.sum(is_bf16) == 24 and np.sum(quartet.columns['forward'] == 'quest') == 42
    overtraining = f'{FOLDER}/overtraining_gadre_104.csv'
    with pytest.raises(
        ValueError, match=r"N may be 'params' or 'params_no_embed'; loss may be 'loss_openlm', 'loss_c4_val',"
    ):
        read_runs(overtraining)
    columns = {'N': 'params_no_embed', 'D': 'tokens', 'loss': 'loss_c4_val'}
    assert "differ in 'dataset'" in read_runs(overtraining, Reading(columns)).remarks[0]
    table = read_runs(overtraining, Reading(columns, where=(('dataset', 'c4_original'),)))
    assert (table.num_runs, table.left_out, table.remarks) == (34, {'without dataset=c4_original': 70}, ())
    assert table.origins[0] == 'c4_original-d=96_l=8_h=4-0.25'


def test_our_own_table():
    """Read as it is, with a recipe for each kind of run and nothing to tell."""
    table = read_runs(pathlib.Path(__file__).parents[4] / 'benchmarks/tiny_law.csv')
    assert (table.num_runs, table.left_out, table.remarks) == (212, {}, ())
    recipes = collections.Counter(table.columns['forward'].tolist())
    assert len(recipes) == 1 + 8 + 4 and recipes['bf16'] == 20 and recipes['fqt e2m1 channel'] == 12
    assert recipes['gaussws 2'] == 20 and set(table.columns['backward']) == {''}
    assert table.where(table.columns['N'] < 3e4, 'large').origins.shape == (67,)
