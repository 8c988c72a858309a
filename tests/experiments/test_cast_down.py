"""Trained weights cast to few bits: what is measured, that it is measured once, and the statistics over seeds."""

import csv
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image
from programs import import_program
from small_experiments import ONE_DEVICE, on_mesh, random_state, small_config

import gaussq_jax as gq
from experiments import workdirs
from experiments.checkpoints.checkpointing import Checkpointer
from experiments.data import loading, token_data
from experiments.reports import cast_losses
from experiments.reports.cast_losses import Cast
from experiments.training import evaluation
from experiments.training.experiment import make_experiment

cast_down = import_program('cast_down')

FORMATS = ['bfloat16', 'float8_e4m3fn', 'float6_e3m2fn', 'float4_e2m1fn']
METHODS = {
    'bf16': 'method=bf16',
    'gaussws': 'method=gaussws,b_init=8,b_target=4,bitwidths=decay',
    'qat': 'method=qat,format=float6_e3m2fn,scale=mx',
}
TOKENS = np.random.default_rng(0).integers(0, 257, 1000).astype(np.uint16)
BY_SEED = {  # cast -> losses of the seeds 0, 1, 2
    'first': {'bfloat16': (2.0, 2.5, 2.2), 'float6_e3m2fn': (2.1, 2.6, 2.3), 'float4_e2m1fn': (2.3, 2.7, 2.6)},
    'second': {
        'bfloat16': (2.05, 2.54, 2.23),
        'float6_e3m2fn': (2.06, 2.53, 2.25),
        'float4_e2m1fn': (2.2, 2.8, 2.4),
        'sensitivity 4.25': (2.2, 2.7, 2.45),
        'learned 6.25': (2.05, 2.55, 2.24),
        'learned 4.25': (2.1, 2.7, 2.3),
    },
}
BITS = {'bfloat16': 16.0, 'float6_e3m2fn': 6.25, 'float4_e2m1fn': 4.25, 'learned 6.25': 6.01, 'learned 4.25': 4.24}
BITS |= {'sensitivity 4.25': 4.24}
BUDGETS = ('6.25', '5.25', '4.75', '4.25')
CHOSEN = [f'{how} {budget}' for how in ('error', 'sensitivity') for budget in BUDGETS]


def config_of(argument):
    """Of a run whose matrices are one block each."""
    return small_config(f'smoke,{argument}', model__hidden_size=32, model__mlp_size=32)


def save_run(workdir, argument):
    """A workdir with the checkpoint of a run in the middle of its training, each leaf of it with a bitwidth."""
    experiment = make_experiment(config_of(argument), 257)
    state = random_state(experiment)
    bitwidths = {path: jnp.full_like(leaf, i / 6) for i, (path, leaf) in enumerate(state.transform_state.items())}
    with Checkpointer(workdir / 'checkpoints') as checkpointer:
        checkpointer.save(
            7, state._replace(transform_state=bitwidths), {}, {**experiment.config.to_dict(), 'corpus': ''}
        )


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
    """A finished run of each method, and one that isn't."""
    workdir = tmp_path_factory.mktemp('sweep')
    with on_mesh(ONE_DEVICE):
        for name, argument in METHODS.items():
            save_run(workdir / name, argument)
    rows = [{'name': name, 'status': 'done'} for name in METHODS] + [{'name': 'late', 'status': 'missing'}]
    with open(workdir / 'results.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, ['name', 'status'])
        writer.writeheader()
        writer.writerows(rows)
    return workdir


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    data = token_data.in_memory(TOKENS)
    monkeypatch.setattr(loading, 'load_data', lambda *_: loading.one_source(data, data))
    with on_mesh(ONE_DEVICE):
        yield


@pytest.fixture(scope='module')
def casts(sweep):
    """All casts of the sweep, and how many evaluations were made for them."""
    made = []
    with pytest.MonkeyPatch.context() as monkeypatch, on_mesh(ONE_DEVICE):
        data = token_data.in_memory(TOKENS)
        make_validation = evaluation.make_validation
        monkeypatch.setattr(loading, 'load_data', lambda *_: loading.one_source(data, data))
        monkeypatch.setattr(evaluation, 'make_validation', lambda *_: made.append(1) or make_validation(*_))
        return cast_down.cast_runs(sweep, list(METHODS), FORMATS, 2), len(made)


def made_up_casts(N=1000):
    return [
        Cast(f'{method}-{seed}', N, method, '', '', '', seed, 9, 'f00', -1, cast, loss, 2 * loss, BITS[cast], 100)
        for method, by_cast in BY_SEED.items()
        for cast, losses in by_cast.items()
        for seed, loss in enumerate(losses)
    ]


def test_weights_are_evaluated_as_their_training_evaluates_them(sweep, casts):
    """qat evaluates weights in its own format: to cast them to that changes nothing, and to any other something."""
    losses = {row.cast: (row.loss, row.bits_per_byte) for row in casts[0] if row.run == 'qat'}
    run = workdirs.open_run(sweep / 'qat', eval_batches=2)
    expected = evaluation.make_validation(run.experiment, loading.load_data())(run.state)
    assert losses['float6_e3m2fn'] == (expected['validation/loss'], expected['validation/bits_per_byte'])
    assert len({losses[name] for name in FORMATS}) == len(FORMATS)


def test_each_cast_is_as_large_as_it_says(sweep, casts, tmp_path):
    """Learned formats keep their budgets; the bytes are those of a file that anyone can write."""
    rows, made = casts
    assert made == 1  # one compiled evaluation for all methods
    by_run = {name: [row.cast for row in rows if row.run == name] for name in METHODS}
    learned = ['learned', *(f'learned {budget}' for budget in BUDGETS)]
    assert by_run['bf16'] == by_run['qat'] == [*FORMATS, *CHOSEN]
    assert by_run['gaussws'] == [*FORMATS, *CHOSEN, *learned]
    of_gaussws = {row.cast: row for row in rows if row.run == 'gaussws'}
    for how in ('learned', 'error', 'sensitivity'):
        for budget in map(float, BUDGETS):
            assert budget - 1.1 < of_gaussws[f'{how} {budget:g}'].stored_bits <= budget
    run = workdirs.open_run(sweep / 'gaussws')
    gq.save_packed(
        tmp_path / 'file', run.state.params, run.experiment.transform.uniform_layout(run.state.params, 'float6_e3m2fn')
    )
    assert of_gaussws['float6_e3m2fn'].file_bytes == (tmp_path / 'file').stat().st_size


def test_what_was_measured_is_not_measured_again(sweep, casts, monkeypatch):
    """A cast belongs to a checkpoint and to so many batches."""
    measured = []
    monkeypatch.setattr(cast_down, 'cast_run', lambda workdir, *_: measured.append(workdir.name) or [])
    monkeypatch.setattr(cast_down.csv_files, 'write', lambda *_: None)
    assert cast_down.cast_runs(sweep, list(METHODS), FORMATS, 2) == casts[0]
    assert measured == []
    assert cast_down.read_casts(sweep / 'cast_down.csv') == casts[0]
    load_contents = cast_down.load_contents
    newer = lambda path: {'sha256': 'newer'} if 'qat' in str(path) else load_contents(path)
    monkeypatch.setattr(cast_down, 'load_contents', newer)
    cast_down.cast_runs(sweep, list(METHODS), FORMATS, 2)
    assert measured == ['qat']
    cast_down.cast_runs(sweep, list(METHODS), FORMATS, -1)
    assert measured == ['qat', *METHODS]


def test_the_program_leaves_out_what_is_not_done(sweep, casts, monkeypatch, capsys):
    for name, value in dict(WORKDIR=sweep, OUTPUT=None, EVAL_BATCHES=2, FORMATS=FORMATS[1:]).items():
        monkeypatch.setattr(cast_down, name, types.SimpleNamespace(value=value))
    with pytest.raises(SystemExit, match='not done, and left out: late'):
        cast_down.main(['cast_down'])
    assert '| gaussws decay 4 | 1 | ' in capsys.readouterr().out
    assert min(image.imread(sweep / 'cast_down.png').shape[:2]) > 500


@pytest.mark.parametrize(
    'text, error',
    [('name,status\na,missing\n', 'no run that is done; its columns are name, status'), ('', 'has no header')],
)
def test_a_table_without_finished_runs_is_an_error(tmp_path, text, error):
    (tmp_path / 'results.csv').write_text(text)
    with pytest.raises(ValueError, match=error):
        cast_down.read_sweep(tmp_path / 'results.csv')


@pytest.mark.parametrize('text', ['', 'run,loss\na,2\n', ','.join(Cast._fields) + '\na,b\n'])
def test_a_table_of_others_is_not_taken_for_ours(tmp_path, text):
    (tmp_path / 'cast_down.csv').write_text(text)
    with pytest.raises(ValueError, match='is not of this program, or damaged; delete it'):
        cast_down.read_casts(tmp_path / 'cast_down.csv')


def rows_of(table):
    header, _, *lines = ([cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines())
    return {line[0]: dict(zip(header, line)) for line in lines}


def test_differences_are_taken_seed_by_seed_at_equal_size():
    """The seeds differ by more than the casts do; what they share cancels, and only what is separated is bold."""
    text = cast_losses.markdown(cast_losses.group(made_up_casts()))
    assert text.startswith('N = 1,000\n\n')
    losses, rises, to_first, to_uniform, to_uniform_of_first, to_sensitivity = (
        rows_of(part) for part in text.split('\n\n')[2::2]
    )

    def cell(differences, bold=False):
        mean, half = np.mean(differences), 4.302652729911275 * np.std(differences, ddof=1) / math.sqrt(3)
        assert bold == (abs(mean) > half)
        return f'**{mean:+.4f} ± {half:.4f}**' if bold else f'{mean:+.4f} ± {half:.4f}'

    assert losses['first']['BF16 (16)'].startswith('2.2333 ± ') and losses['first']['learned ≤ 6.25 (6.01)'] == ''
    assert rises['first']['E3M2'] == '**+0.1000 ± 0.0000**'
    assert rises['second']['E3M2'] == cell([0.01, -0.01, 0.02])
    assert to_first['second']['BF16'] == cell([0.05, 0.04, 0.03], bold=True)
    assert to_uniform_of_first['second']['learned ≤ 6.25'] == cell([-0.05, -0.05, -0.06], bold=True)
    assert to_uniform_of_first['second']['learned ≤ 4.25'] == cell([-0.2, 0.0, -0.3])
    assert to_sensitivity['second']['learned ≤ 4.25'] == cell([-0.1, 0.0, -0.15])
    assert 'first' not in to_first and 'first' not in to_uniform
    assert to_uniform['second']['learned ≤ 4.25'] == cell([-0.1, -0.1, -0.1], bold=True)


def test_one_seed_separates_nothing():
    text = cast_losses.markdown(cast_losses.group([cast for cast in made_up_casts() if cast.seed == 0]))
    assert '±' not in text.replace(text.splitlines()[2], '') and '**' not in text
    assert '| +0.1000 (one seed) |' in text


def test_runs_that_differ_in_something_else_are_an_error():
    casts = made_up_casts()
    with pytest.raises(ValueError, match='first-0 and other differ in something else than N, method, bitwidths'):
        cast_losses.group([*casts, casts[0]._replace(run='other')])


def test_one_evaluation_serves_runs_that_differ_in_their_training_only():
    """But not those whose matmuls are quantized in their own way."""
    key = lambda argument: cast_down.what_evaluation_depends_on(config_of(argument), 7, True)
    assert len({key(argument) for argument in METHODS.values()}) == 1
    assert key('method=fqt') != key('method=fqt,format=e2m1') != key('method=bf16')


def test_learned_formats_without_the_uniform_one_of_their_size():
    """The tables leave out what would need it."""
    casts = [cast for cast in made_up_casts() if cast.cast not in cast_losses.EQUAL_SIZE.values()]
    assert 'learned' in cast_losses.markdown(cast_losses.group(casts))


def test_model_sizes_have_tables_and_panels_of_their_own(tmp_path):
    sizes = cast_losses.group(made_up_casts() + made_up_casts(2000))
    assert list(sizes) == [1000, 2000] and sizes[1000] == sizes[2000]
    assert cast_losses.markdown(sizes).count('| second | 3 |') == 2
    one, both = tmp_path / 'one.png', tmp_path / 'both.png'
    cast_losses.draw({1000: sizes[1000]}, one)
    cast_losses.draw(sizes, both)
    assert image.imread(both).shape[1] > 1.5 * image.imread(one).shape[1]
