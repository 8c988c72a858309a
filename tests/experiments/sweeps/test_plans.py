"""The plan of a sweep: which runs there are, under which names, and what of it is an error."""

import re
import urllib.parse

import jax
import jax.numpy as jnp
import pytest
import stub_training

import gaussq_jax as gq
from configs import capybara
from configs.sweeps import capybara as capybara_sweep
from configs.sweeps import wsd_branches
from experiments.sweeps import plans
from experiments.training import steps
from experiments.training.experiment import make_experiment

pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # of ml_collections


@pytest.fixture
def base(tmp_path):
    stub_training.write(tmp_path)
    return str(tmp_path / 'base.py')


def test_runs_of_a_sweep(base, tmp_path):
    """Products in the order of the grids, fields set over the base config, names of the last part where only one."""
    grids = [
        {'quantization.format': ('e4m3', 'e2m1'), 'seed': range(2)},
        {'method': ['fqt'], 'optimizer.learning_rate': [1, 3e-4], 'deterministic': [False]},
    ]
    runs = plans.make_runs(f'{base}:steps=50', grids, tmp_path)
    assert [run.name for run in runs] == [
        'format=e4m3,seed=0',
        'format=e4m3,seed=1',
        'format=e2m1,seed=0',
        'format=e2m1,seed=1',
        'method=fqt,optimizer.learning_rate=1.0,deterministic=False',
        'method=fqt,optimizer.learning_rate=0.0003,deterministic=False',
    ]
    assert [run.workdir for run in runs] == [tmp_path / run.name for run in runs]
    arguments = [f'--config={base}:steps=50', '--config.quantization.format=e2m1', '--config.seed=1']
    assert runs[3].command == [*plans.TRAIN, *arguments, f'--workdir={tmp_path}/format=e2m1,seed=1']
    defaults = plans.resolve([f'--config={base}:steps=50'])
    assert defaults['total_steps'] == 50 and defaults['quantization.format'] == 'e4m3'
    assert runs[3].config == defaults | {'quantization.format': 'e2m1', 'seed': 1}
    assert runs[4].config == defaults | {'method': 'fqt', 'optimizer.learning_rate': 1.0, 'deterministic': False}


def test_arguments_of_the_base_config(base, tmp_path):
    """A name with a colon is given to the base config, whose other fields follow from it; other fields come after."""
    grids = [{':steps': [30, 50], 'seed': [1]}, {'seed': [2], 'total_steps': [7]}]
    runs = plans.make_runs(base, grids, tmp_path)
    assert [run.name for run in runs] == ['steps=30,seed=1', 'steps=50,seed=1', 'seed=2,total_steps=7']
    assert runs[0].command[-3:-1] == [f'--config={base}:steps=30', '--config.seed=1']
    assert [(run.config['total_steps'], run.config['seed']) for run in runs] == [(30, 1), (50, 1), (7, 2)]
    assert runs[0].fields == {':steps': 30, 'seed': 1}

    runs = plans.make_runs(f'{base}:steps=30', [{':method': ['fqt']}], tmp_path)
    assert runs[0].command[-2] == f'--config={base}:steps=30,method=fqt'
    assert (runs[0].config['total_steps'], runs[0].config['method']) == (30, 'fqt')


def test_arguments_that_the_base_config_does_not_have(base, tmp_path):
    with pytest.raises(ValueError, match=r"base.py:sise=1: .*'sise' is unknown; allowed are steps, method"):
        plans.make_runs(base, [{':sise': [1]}], tmp_path)
    with pytest.raises(ValueError, match=r"grids\[0\]\[':steps'\]=\[\] must be a list of values, and not empty"):
        plans.make_runs(base, [{':steps': []}], tmp_path)
    with pytest.raises(ValueError, match=r"grids\[1\]: 'method' and ':method' would be one column; vary one of them"):
        plans.make_runs(base, [{':method': ['bf16']}, {'method': ['fqt']}], tmp_path)
    with pytest.raises(ValueError, match=r'grids\[0\]: steps=10 is the same run as steps=10'):
        plans.make_runs(base, [{':steps': [10, 10]}], tmp_path)


def test_what_is_added_to_a_sweep_renames_nothing(base, tmp_path):
    names = lambda *grids: [run.name for run in plans.make_runs(base, grids, tmp_path)]
    before = names({'seed': [0]}, {'quantization.format': ['e3m2'], 'optimizer.learning_rate': [1e-3]})
    after = names(
        {'seed': [0, 1]},
        {'quantization.format': ['e3m2', 'e2m1'], 'optimizer.learning_rate': [1e-2, 1e-3]},
        {'quantization.learning_rate': [1e-4], 'parts': ['down']},
    )
    assert len(after) == len(set(after)) == 7 and set(before) < set(after)


def test_names_are_of_one_directory_and_keep_every_value_apart(base, tmp_path):
    values = ['all', '', 'mlp/(gate|up)', 'mlp%2F(gate|up)', 'a,seed=1', 'ü', 'P2+P4', 'p2 P4', '..', "'"]
    runs = plans.make_runs(base, [{'parts': values}], tmp_path)
    assert [urllib.parse.unquote(run.name).removeprefix('parts=') for run in runs] == values
    assert len({run.name for run in runs}) == len(values)
    assert all(re.fullmatch(r'[\w=%.+~-]+', run.name, re.ASCII) for run in runs)
    assert [run.config['parts'] for run in runs] == values


@pytest.mark.parametrize(
    ('grids', 'message'),
    [
        ([{'seed': [0]}, {'sead': [0]}], r"grids\[1\]: the base config has no field 'sead' to vary; it has .*, seed,"),
        ([{'quantization': [{}]}], r"has no field 'quantization' to vary; .*quantization.format"),
        ([{'name': ['a', 'b']}], "has no field 'name' to vary"),
        ([{'seed': []}], r"grids\[0\]\['seed'\]=\[\] must be a list of values, and not empty"),
        ([{'method': 'fqt'}], r"grids\[0\]\['method'\]='fqt' must be a list of values"),
        ([{'seed': 0}], r"grids\[0\]\['seed'\]=0 must be a list"),
        ([{'seed': [0, 1.0]}], r"grids\[0\]\['seed'\]: 1.0 must be of type int, as 0"),
        ([{'seed': [True]}], r"grids\[0\]\['seed'\]: True must be of type int"),
        ([{'quantization.block_size': [32]}], r"block_size'\]: 32 must be of type str, as '32'"),
        ([{'optimizer.learning_rate': ['1e-3']}], "'1e-3' must be of type float, as 0.0006"),
        ([{'deterministic': [0]}], '0 must be of type bool, as True'),
        ([{'seed': [0, 1, 0]}], r'grids\[0\]: seed=0 is the same run as seed=0'),
        ([{'seed': [1]}, {'method': ['bf16', 'fqt'], 'seed': [1]}], r'grids\[1\]: method=bf16,seed=1 is the same run'),
        ([{'parts': ['a' * 300]}], r'grids\[0\]: parts=a+ is too long for a directory'),
        ([], r'grids=\[\] must be a list'),
        ([{}], r'grids\[0\]=\{\} must map fields to lists'),
        ([[('seed', [0])]], r'grids\[0\]=.* must map fields to lists'),
    ],
)
def test_a_sweep_that_cannot_be(base, tmp_path, grids, message):
    with pytest.raises(ValueError, match=message):
        plans.make_runs(base, grids, tmp_path / 'sweep')
    assert not (tmp_path / 'sweep').exists()


def test_a_base_config_that_cannot_be(base, tmp_path):
    with pytest.raises(ValueError, match=r"base.py:steps=ten: .*steps='ten' is no int"):
        plans.make_runs(f'{base}:steps=ten', [{'seed': [0]}], tmp_path)
    with pytest.raises(OSError, match=r'missing\.py'):
        plans.make_runs(str(tmp_path / 'missing.py'), [{'seed': [0]}], tmp_path)


# Branches.


def test_the_longest_run_is_the_stem_of_those_that_differ_in_how_they_end(tmp_path):
    """Each branch is trained as by itself but for where it begins, and finds a checkpoint of the stem's there."""
    config = wsd_branches.get_config()
    runs = plans.make_runs(config.config, config.grids, tmp_path)
    branches = plans.with_branches(runs)
    assert len(runs) == len({run.name for run in runs}) == 8
    of = lambda run: (run.config['optimizer.name'], run.config['total_steps'])
    longest = {run.config['optimizer.name']: run for run in runs if run.config['total_steps'] == 2400}
    for run, branch in zip(runs, branches, strict=True):
        optimizer, total_steps = of(run)
        if total_steps == 2400:
            assert branch == run
            continue
        stem = longest[optimizer]
        assert branch.stem == stem.name and branch[:2] == run[:2]
        assert branch.config == run.config | {'branch_from': str(stem.workdir)}
        arguments = {*branch.command} - {*run.command}
        assert arguments == {f'--config.branch_from={stem.workdir}'} and branch.command[-1] == run.command[-1]
        start = total_steps * 4 // 5
        assert start % run.config['keep_period'] == start % run.config['checkpoint_every'] == 0


@pytest.mark.parametrize(
    ('grid', 'message'),
    [
        (
            {'total_steps': [100], 'keep_period': [20]},
            'branches=True would do nothing: no two runs differ in total_steps',
        ),
        ({'total_steps': [100, 200]}, 'the decay of .*total_steps=100 begins at step 80, and with keep_period=0 no'),
        ({'total_steps': [100, 200], 'keep_period': [100]}, 'with keep_period=100 no .*; allowed are 1 to 80'),
        ({'total_steps': [100, 200], 'optimizer.schedule': ['cosine']}, "takes config.optimizer.schedule='wsd'"),
    ],
)
def test_branches_that_cannot_be(base, tmp_path, grid, message):
    runs = plans.make_runs(base, [{'optimizer.schedule': ['wsd'], **grid}], tmp_path)
    with pytest.raises(ValueError, match=message):
        plans.with_branches(runs)


# The published grid.


def test_the_capybara_sweep_is_the_papers_grid(tmp_path):
    """N, D, E, M and B of the 368 trainings, written out again; formats and block sizes are what our layers take."""
    config = capybara_sweep.get_config()
    runs = plans.make_runs(config.config, config.grids, tmp_path)
    found = []
    for run in runs:
        fields = run.config
        fmt = re.fullmatch(r'e(\d)m(\d)', fields['quantization.format'])
        num_layers, hidden, mlp = (fields[f'model.{name}'] for name in ('num_layers', 'hidden_size', 'mlp_size'))
        weights = num_layers * (4 * hidden**2 + 3 * hidden * mlp)
        tokens = fields['total_steps'] * fields['batch_size'] * fields['sequence_length']
        found.append((weights, tokens, int(fmt[1]), int(fmt[2]), fields['quantization.block_size']))
        assert (fields['method'], fields['quantization.targets']) == ('fqt', 'P2+P4+P6')
        parsed = gq.parse_format(fields['quantization.format'])
        assert (parsed.exponent_bits, parsed.mantissa_bits) == found[-1][2:4]
    channel = [(0, 7), *((1, m) for m in range(1, 7)), (2, 1), (2, 3), (3, 1), (3, 2)]
    channel += [(4, 1), (4, 3), (4, 5), (5, 1), (5, 2), (6, 1)]
    settings = [(*em, 'channel') for em in channel]
    settings += [(1, 1, block_size) for block_size in ('32', '64', '128', '256', '512', 'tensor')]
    expected = {
        (weights, 10_485_760_000 * times, *setting)
        for weights in (40_894_464, 84_934_656, 154_140_672, 679_477_248)
        for times in (1, 2, 5, 10)
        for setting in settings
    }
    assert len(found) == len(expected) == 368 and set(found) == expected


@pytest.mark.parametrize(
    ('fmt', 'block_size'), [('e0m7', 'channel'), ('e6m1', 'channel'), ('e1m1', '512'), ('e1m1', 'tensor')]
)
def test_settings_of_the_capybara_sweep_can_be_trained(fmt, block_size):
    """By shapes alone; blocks of 512 leave a part over in layers of 768."""
    config = capybara.get_config(f'size=85m,format={fmt},block_size={block_size}')
    config.model.num_layers, config.batch_size, config.microbatches = 1, 8, 1
    experiment = make_experiment(config, 257)
    batch = {'tokens': jax.ShapeDtypeStruct((8, config.sequence_length + 1), jnp.int32)}
    _, metrics = jax.eval_shape(steps.make_train_step(experiment), experiment.abstract_state, batch)
    assert metrics['train/loss'].shape == ()
