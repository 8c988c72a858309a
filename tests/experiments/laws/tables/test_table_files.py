"""Tables as other programs export them are read without editing; what is damaged is one line that says where."""

import gzip
import json

import numpy as np
import pytest

from experiments.files import csv_files
from experiments.laws.tables import table_files
from experiments.laws.tables.reading import Reading
from experiments.laws.tables.run_tables import read_runs

ROWS = (('a', '1000000', '2e9', '3.5'), ('b', '3000000', '4e9', '3.25'))


def check(path):
    """That it is ROWS."""
    table = read_runs(path)
    assert table.columns['N'].tolist() == [1e6, 3e6] and table.columns['D'].tolist() == [2e9, 4e9]
    assert table.columns['loss'].tolist() == [3.5, 3.25] and table.origins.tolist() == ['a', 'b']
    assert table.left_out == {}


@pytest.mark.parametrize('delimiter', [',', ';', '\t', '|'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
@pytest.mark.parametrize('mark', ['', '\ufeff'])
def test_what_separates_cells_and_lines(tmp_path, delimiter, end, mark):
    text = end.join(delimiter.join(row) for row in [('name', 'N', 'D', 'loss'), *ROWS]) + end
    for name in ('runs.csv', 'runs.CSV', *(['runs.tsv'] if delimiter == '\t' else [])):
        (tmp_path / name).write_text(mark + text, encoding='utf-8', newline='')
        check(tmp_path / name)


def test_a_delimiter_in_quotes_separates_nothing(tmp_path):
    (tmp_path / 'runs.csv').write_text('"a;b;c;d";N|D|e;"x\ny";f;D;loss\n1;2;3;4;5;6\n')
    assert csv_files.find_delimiter(tmp_path / 'runs.csv') == ';'
    (tmp_path / 'runs.csv').write_text('loss\n3\n')
    assert csv_files.find_delimiter(tmp_path / 'runs.csv') == ','


def test_json_as_pandas_writes_it(tmp_path):
    """orient='records', with lines=True or not; names that end as either."""
    rows = [dict(zip(('name', 'N', 'D', 'loss'), (name, *map(float, rest)))) for name, *rest in ROWS]
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    for name, text in {'r.json': json.dumps(rows), 'l.json': lines, 'l.jsonl': '\ufeff' + lines}.items():
        (tmp_path / name).write_text(text, encoding='utf-8')
        check(tmp_path / name)


def test_objects_in_objects_are_columns(tmp_path):
    """As the runs of Weights & Biases are by its API."""
    rows = [
        {
            'name': name,
            'config': {'model': {'layers': 3}, 'N': N, 'tokens': {'value': D}},
            'summary': {'eval/loss': loss},
        }
        for name, N, D, loss in ROWS
    ]
    (tmp_path / 'runs.json').write_text(json.dumps(rows))
    check(tmp_path / 'runs.json')
    assert 'config.model.layers' in read_runs(tmp_path / 'runs.json').names


WANDB = """"Name","State","Notes","Created","Runtime","params","n_tokens","format","lr","eval/loss","train/loss","_step"
"dust-1","finished","-","2025-01-01T00:00:00.000Z","360","30.5M","1.2B","mxfp4","0.001","3.4","3.3","1000"
"dust-2","finished","-","2025-01-01T00:00:00.000Z","360","30.5M","1.2B","mxfp4","0.003","3.3","3.2","1000"
"dust-3","crashed","-","2025-01-01T00:00:00.000Z","36","1.2B","100 B","bf16","0.001","","","10"
"dust-4","running","-","2025-01-01T00:00:00.000Z","36","1.2B","100 B","bf16","0.001","3.1","3.2","10"
"dust-5","finished","-","2025-01-01T00:00:00.000Z","36","1.2B","100 B","nvfp4","0.001","2.6","2.5","9"
"""
MLFLOW = """run_id,experiment_id,status,metrics.loss,metrics.val_loss,params.N,params.D,params.lr,tags.mlflow.runName
2b90b83ac22a4d26,333218463161859822,FINISHED,2.9,3.0,124000000,6000000000.0,0.001,r2
1c90b83ac22a4d27,333218463161859822,FAILED,3.1,3.2,60000000,3000000000.0,0.001,r1
"""
PANDAS = (
    ';params;tokens;eval/loss;status\n0;30482560;1500000000,0;3,482;finished\n1;60000000;3000000000,0;3,25;killed\n'
)


def test_an_export_of_weights_and_biases(tmp_path):
    (tmp_path / 'wandb.csv').write_text(WANDB)
    table = read_runs(tmp_path / 'wandb.csv', Reading(best_of=True))
    assert table.left_out == {
        'with status crashed': 1,
        'with status running': 1,
        'not the best of its N, D and recipe': 1,
    }
    assert table.columns['N'].tolist() == [30.5e6, 1.2e9] and table.columns['D'].tolist() == [1.2e9, 1e11]
    assert table.columns['loss'].tolist() == [3.3, 2.6] and table.columns['B'].tolist() == [32, 16]
    assert table.columns['forward'].tolist() == ['mxfp4', 'nvfp4'] and table.origins.tolist() == ['dust-2', 'dust-5']
    told = [('N', 'params'), ('D', 'n_tokens'), ('loss', 'eval/loss'), ('status', 'State')]
    assert table.remarks == tuple(f'{ours} is the column {theirs!r}' for ours, theirs in told)


def test_an_export_of_mlflow(tmp_path):
    (tmp_path / 'mlflow.csv').write_text(MLFLOW)
    table = read_runs(tmp_path / 'mlflow.csv')
    assert table.columns['loss'].tolist() == [3.0] and table.origins.tolist() == ['r2']
    assert table.columns['run'].tolist() == ['2b90b83ac22a4d26'] and table.left_out == {'with status FAILED': 1}


def test_a_table_of_pandas_with_decimal_commas(tmp_path):
    (tmp_path / 'runs.csv').write_text(PANDAS)
    table = read_runs(tmp_path / 'runs.csv')
    assert table.columns['loss'].tolist() == [3.482] and table.columns['D'].tolist() == [1.5e9]
    assert table.left_out == {'with status killed': 1} and table.origins.tolist() == ['line 2']


def test_columns_that_hold_the_same_are_one(tmp_path):
    (tmp_path / 'runs.csv').write_text('params,n_params,D,loss\n1e6,1e6,1e9,3\n')
    assert read_runs(tmp_path / 'runs.csv').columns['N'].tolist() == [1e6]


@pytest.mark.parametrize(
    ('name', 'text', 'error'),
    [
        ('runs.json', '', r'runs\.json has no runs in it'),
        ('runs.json', '[]', r'runs\.json has no runs in it'),
        (
            'runs.json',
            '{"N": {"0": 1}, "D": {"0": 2}}',
            r"runs\.json must hold an array of objects, as pandas' to_json",
        ),
        ('runs.json', '{\n"N": {"0": 1}}\n', r"runs\.json must hold an array of objects, as pandas' to_json"),
        ('runs.json', '{"N": 1, D}\n{"N": 2}\n', r'runs\.json, line 1 is no JSON: '),
        ('runs.json', '[{"N": 1}, 3]', r'runs\.json, row 2 must hold a JSON object, not an integer'),
        ('runs.json', '[{"N": 1, "N": 2}]', r"runs\.json can't be read: it has a key twice, 'N'"),
        ('runs.json', '[{"N": 1, "D": 2', r'runs\.json is no JSON: '),
        ('runs.json', '[{"a": {"b": 1}, "a.b": 2}]', r"runs\.json, row 1 has more than one column 'a\.b'"),
        ('runs.json', '[{"N": 1e6, "D": 1e9, "loss": "low"}]', r"runs\.json, row 1: loss='low' is not a number"),
        ('runs.json', '[{"N": 1e6, "D": 1e9, "loss": {"min": 3}}]', r"runs\.json: loss may be 'loss\.min'\. Say which"),
        ('runs.tsv', 'N,D,loss\n1,2,3\n', r"runs\.tsv has no column 'N'; its columns are N,D,loss"),
        ('runs.csv', 'N;D;loss\n1;2\n', r'runs\.csv, line 2: it has 2 cells, and the table 3 columns'),
        ('runs.csv', 'N;D;loss\n1e6;1e9;3,482\n', r"runs\.csv, line 2: loss='3,482' may be 3482 or 3\.482"),
        ('runs.csv', 'N;D;loss\n1e6;1e9;3,48\n1.234;1e9;3\n', r"runs\.csv, line 3: N='1\.234' has no decimal comma"),
        ('runs.csv', 'N,D,loss\n1e6,1e9,"3,48"\n', r"runs\.csv, line 2: loss='3,48' is not a number"),
        ('runs.csv', 'N,D,loss\n"614,400",1e9,3\n', r"runs\.csv, line 2: N='614,400' may be 614400 or 614\.400"),
        ('runs.csv', 'N,D,loss\n30M,50%,3\n', r"runs\.csv, line 2: D='50%' is not a number"),
        ('runs.csv', 'N,D,loss\n1e6,1e9,-3\n', r"runs\.csv, line 2: loss='-3' must be a positive number"),
        (
            'runs.csv',
            'N,D,loss,format,B\n1e6,1e9,3,mxfp4,16\n',
            r"runs\.csv, line 2: B='16', and the format 'mxfp4' has",
        ),
        ('runs.csv', 'N,D,loss,E,format\n1e6,1e9,3,4,e2m1\n', r"runs\.csv, line 2: E='4', and the format 'e2m1' has 2"),
        ('runs.csv', 'params,n_params,D,loss\n1,2,2,3\n', r"runs\.csv: N may be 'params' or 'n_params'\. Say which"),
        ('runs.csv', 'N,D,val_loss,test_loss\n1,2,2,3\n', r"runs\.csv: loss may be 'val_loss' or 'test_loss'"),
        ('runs.csv', 'N,D,loss,,\n1,2,3,,\n', r"runs\.csv has more than one column ''"),
        ('runs.csv', 'N,D,loss\n1,2,3\n'.encode('utf-16'), r'runs\.csv is no text in UTF-8'),
        ('runs.csv', gzip.compress(b'N,D,loss\n1,2,3\n', mtime=0), r'runs\.csv is no text in UTF-8'),
        ('runs.csv.gz', b'', r'runs\.csv\.gz: a table of runs ends in \.csv, \.tsv, \.jsonl, \.json, \.parquet'),
        ('runs.xlsx', b'', r'runs\.xlsx: a table of runs ends in \.csv'),
    ],
)
def test_what_is_wrong_is_one_line_that_says_where(tmp_path, name, text, error):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=error) as raised:
        read_runs(tmp_path / name)
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
    ('name', 'value', 'error'),
    [
        ('runs.jsonl', [{str(i): 1 for i in range(10_001)}], 'has 10,001 columns; allowed are 10,000'),
        ('runs.jsonl', [{'x' * 1001: 1}], 'line 1: a column has a name of more than 1,000 letters'),
        ('runs.jsonl', [{'x' * 999: {'a': {'b': 1}}}], 'line 1: a column has a name of more than 1,000 letters'),
        ('runs.jsonl', [{'N': 1}] * 100_001, 'has more than 100,000 rows'),
    ],
    ids=['columns', 'a long name', 'long names in each other', 'rows'],
)
def test_bombs(tmp_path, name, value, error):
    (tmp_path / name).write_text(''.join(json.dumps(row) + '\n' for row in value))
    with pytest.raises(ValueError, match=error):
        read_runs(tmp_path / name)


def test_parquet_reads_what_is_chosen(tmp_path):
    pyarrow, parquet = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    columns = {'params': [1e6], 'D': [1e9], 'val_loss': [3.0], 'set': ['c4'], 'epochs': [2], 'curve': [[1.0] * 9]}
    parquet.write_table(pyarrow.table(columns), tmp_path / 'runs.parquet')
    table = read_runs(tmp_path / 'runs.parquet', Reading(where=(('set', 'c4'),), extra=('epochs',)))
    assert table.num_runs == 1 and table.columns['epochs'].tolist() == [2]
    assert np.isnan(table.columns['P']).all() and table.origins.tolist() == ['row 1']
    file = table_files.read(tmp_path / 'runs.parquet', lambda names: names[:1])
    assert file.lines == [('row 1', {'params': 1e6})] and file.names == tuple(columns)
