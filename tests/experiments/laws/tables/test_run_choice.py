"""Which rows of a table are runs to fit: of a value, the last of a history, the best of those that tune."""

import pytest

from experiments.laws.tables.reading import Reading
from experiments.laws.tables.run_tables import read_runs

SETS = 'N,D,loss,set,lr\n1e6,1e9,3,c4,.1\n1e6,1e9,2.9,c4,.2\n2e6,1e9,2.8,c4,.1\n1e6,1e9,2.7,rpj,.1\n'


def read(tmp_path, text, name='runs.csv', **reading):
    (tmp_path / name).write_text(text)
    return read_runs(tmp_path / name, Reading(**reading))


def test_where_keeps_those_of_a_value(tmp_path):
    table = read(tmp_path, SETS, where=(('set', 'c4'),))
    assert table.num_runs == 3 and table.left_out == {'without set=c4': 1}
    table = read(tmp_path, SETS, where=(('set', 'c4'), ('lr', '0.1')))  # the same number
    assert table.columns['loss'].tolist() == [3, 2.8] and table.left_out == {'without set=c4': 1, 'without lr=0.1': 1}


def test_where_takes_our_names_too(tmp_path):
    assert read(tmp_path, SETS, where=(('learning_rate', '.2'),)).num_runs == 1


def test_what_is_wrong_elsewhere_does_not_matter(tmp_path):
    assert read(tmp_path, SETS + '1e6,many,2,rpj,.1\n', where=(('set', 'c4'),)).num_runs == 3


def test_a_value_that_no_run_has(tmp_path):
    error = r"^--where=set=pile: .*runs\.csv has no such run; there are 'c4' \(3\), 'rpj' \(1\)$"
    with pytest.raises(ValueError, match=error):
        read(tmp_path, SETS, where=(('set', 'pile'),))
    many = 'N,D,loss,set\n' + ''.join(f'1e6,1e9,3,{i}\n' for i in range(99))
    with pytest.raises(ValueError, match=r"'9' \(1\) and 89 more$"):
        read(tmp_path, many, where=(('set', 'pile'),))


def test_the_best_of_those_that_tune(tmp_path):
    """One for each N, D, recipe and seed."""
    told = "runs of one N, D and recipe differ in 'lr' ('.1', '.2'): --best_of takes the best"
    assert read(tmp_path, SETS).remarks == (told,)
    table = read(tmp_path, SETS, where=(('set', 'c4'),), best_of=True)
    assert table.columns['loss'].tolist() == [2.9, 2.8] and table.origins.tolist() == ['line 3', 'line 4']
    assert table.left_out == {'without set=c4': 1, 'not the best of its N, D and recipe': 1}
    seeds = 'N,D,loss,format,lr,seed\n' + ''.join(
        f'1e6,1e9,{loss},{form},{rate},{seed}\n'
        for loss, form, rate, seed in ((3, 'e4m3', 1, 0), (2, 'e4m3', 2, 0), (4, 'e4m3', 1, 1), (5, 'e2m1', 1, 0))
    )
    assert read(tmp_path, seeds, best_of=True).columns['loss'].tolist() == [2, 4, 5]


def test_nothing_to_choose_from_is_told(tmp_path):
    table = read(tmp_path, 'N,D,loss\n1e6,1e9,3\n2e6,1e9,3\n', best_of=True)
    assert table.remarks == ('no two runs have one N, D and recipe: --best_of changes nothing',) and table.num_runs == 2


def test_several_corpora_are_told(tmp_path):
    (told,) = read(tmp_path, 'N,D,loss,dataset\n1e6,1e9,3,c4\n1e6,1e9,2,rpj\n').remarks
    assert told == "runs of one N, D and recipe differ in 'dataset' ('c4', 'rpj'): --where takes those of one"


HISTORY = 'run,_step,N,D,loss\na,1,1e6,1e7,5\na,3,1e6,3e7,3\na,2,1e6,2e7,4\na,4,1e6,4e7,\nb,9,1e6,9e7,2\n'


def test_the_last_step_of_a_history(tmp_path):
    table = read(tmp_path, HISTORY)
    assert table.columns['loss'].tolist() == [3, 2] and table.origins.tolist() == ['a', 'b']
    assert table.left_out == {'without a loss': 1, 'before the last step of their run': 2}
    assert table.remarks == ("rows are steps of runs ('_step'): the last of each run that has a loss is taken",)


def test_a_history_may_begin_before_the_first_token(tmp_path):
    table = read(tmp_path, HISTORY + 'c,0,1e6,0,11\nc,1,1e6,1e7,5\n')
    assert table.columns['loss'].tolist() == [3, 2, 5] and table.left_out['at a step before the first token'] == 1
    with pytest.raises(ValueError, match=r"line 7: D='0' must be a positive number"):  # no step of a run, but a run
        read(tmp_path, HISTORY.replace('_step', 'step') + 'c,0,1e6,0,11\n')


def test_steps_of_nobody_knows_which_run(tmp_path):
    with pytest.raises(
        ValueError, match=r"runs\.csv has steps \('_step'\), and no column names their run: --columns=run="
    ):
        read(tmp_path, HISTORY.replace('run,', 'x,'))


def test_recipes_are_read_as_others(tmp_path):
    text = 'N,D,loss,forward,backward\n1e6,1e9,3,QuEST,BF16\n1e6,1e9,3,BF16,QuEST\n'
    table = read(tmp_path, text, recipes={'quest': 'MXFP4'})
    assert table.columns['forward'].tolist() == ['mxfp4', 'bf16'] and table.columns['backward'].tolist() == [
        'bf16',
        'mxfp4',
    ]
    assert table.remarks == ("the recipe 'quest' is read as 'mxfp4'",)
    error = r"^--recipes=eden=mxfp4: .*runs\.csv has no such recipe; there are 'quest', 'bf16'$"
    with pytest.raises(ValueError, match=error):
        read(tmp_path, text, recipes={'eden': 'mxfp4'})
