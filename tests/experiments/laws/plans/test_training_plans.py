"""Plans: what is best for a budget, the command that trains it, and how long that takes."""

import dataclasses
import json
import pathlib
import re
import shlex

import numpy as np
import pytest
from absl import flags
from law_program import run
from ml_collections import config_flags

import gaussq_jax as gq
from experiments import methods
from experiments.laws import known_laws, notation
from experiments.laws.plans import plan_text, training_plans
from experiments.training import optimizers
from gaussq_jax.scaling_laws import PUBLISHED_CAPYBARA

REPOSITORY = pathlib.Path(__file__).parents[4]
pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # of ml_collections


def resolve(command):
    """The config that train makes of a command."""
    python, dash_m, module, *arguments = shlex.split(command)
    assert (python, dash_m, module) == ('python', '-m', 'experiments.train')
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=arguments)
    values(['train', *arguments])
    return config.value


def fitted(**constants):
    law = dataclasses.replace(PUBLISHED_CAPYBARA, **constants)
    return known_laws.KnownLaw(law, 'a law', known_laws.PUBLISHED['capybara'].ranges)


@pytest.mark.parametrize('fixed', [(), ('--model=7b',), ('--tokens=2T',)])
@pytest.mark.parametrize('compute', [1e18, 1e21, 1e24])
def test_plan_is_the_best_that_the_budget_buys(compute, fixed):
    """Whole bits each cost the budget, and are best among their neighbours in what is free; the best is the best."""
    plan = json.loads(run('plan', f'--compute={compute}', *fixed, '--json'))
    law = PUBLISHED_CAPYBARA
    for option in plan['options']:
        P, N, D, E, M = (option[name] for name in ('bits', 'N', 'D', 'E', 'M'))
        assert P == 1 + E + M
        assert pytest.approx(compute) == 6 / 16 * N * D * P
        B = 1 if (E, M) == (8, 7) else 128  # BF16 is not quantized
        assert option['loss'] == pytest.approx(float(law.loss(N, D, E, M, B)))
        if not fixed:
            near = N * np.array([0.99, 1.01])
            assert np.all(law.loss(near, N * D / near, E, M, B) > option['loss'])
        assert np.all(law.loss(N, D, np.arange(P), P - 1 - np.arange(P), 128) >= option['loss'])
    assert plan['best']['loss'] == min(option['loss'] for option in plan['options'])
    assert abs(plan['bits'] - plan['best']['bits']) < 1 or not 3 <= plan['bits'] <= 16
    assert plan['bits_interval'] is None and plan['best']['interval'] is None  # the published law has no errors
    if fixed:
        column, value = {'--model=7b': ('N', 6973030400), '--tokens=2T': ('D', 2e12)}[fixed[0]]
        assert {option[column] for option in plan['options']} == {value}


def test_the_training_of_a_plan_keeps_to_the_tokens():
    """And to the budget: of the sizes that it has bits for on so many tokens, the nearest."""
    plan = json.loads(run('plan', '--compute=1e22', '--tokens=10B', '--json'))
    option = plan['training']['option']
    assert option['D'] == 1e10 and option['N'] == notation.model_sizes()['70b']
    assert 6 / 16 * option['N'] * option['D'] * option['bits'] <= 1e22
    D = resolve(plan['training']['command']).total_steps * 2**21
    assert pytest.approx(1e10, rel=1e-3) == D


@pytest.mark.parametrize(('delta', 'nu'), [(6.0, 1.0), (1.0, 6.0), (5.0, 2.0)])
def test_plans_are_of_formats_that_can_be_trained(delta, nu):
    """Also where a law would have all bits in the exponent, or in the mantissa."""
    plan = training_plans.make_plan(fitted(delta=delta, nu=nu, gamma=10.0), 1e30)
    for option in plan.options:
        name, bits = option.precision.name, option.precision.bits
        assert name == 'bf16' or gq.parse_format(name).bits == bits


def test_a_plan_where_no_real_number_of_bits_is_best():
    """The whole ones are told none the less."""
    plan = training_plans.make_plan(fitted(delta=0.1, nu=0.1), 1e21)
    assert plan.bits is None and plan.best.precision.bits == 3
    _, lines = plan_text.describe(plan)
    assert any('no real number of bits' in line for line in lines)


@pytest.mark.parametrize(('compute', 'size'), [(1e12, 'tiny-27k'), (1e20, '1.2b'), (1e24, '70b'), (1e33, '70b')])
def test_the_command_of_a_plan_trains_the_budget(compute, size):
    """It resolves, to the size nearest in N and a format and steps that cost the budget; its optimizer can be made."""
    plan = json.loads(run('plan', f'--compute={compute}', '--json'))
    training, config = plan['training'], resolve(plan['training']['command'])
    assert training['size'] == size
    shape = config.model
    N = shape.num_layers * (4 * shape.hidden_size**2 + 3 * shape.hidden_size * shape.mlp_size)
    assert training['option']['N'] == N
    distance = lambda N: abs(np.log(plan['best']['N'] / N))
    assert distance(N) == min(map(distance, notation.model_sizes().values()))
    D = config.total_steps * config.batch_size * config.sequence_length
    within_half_a_step = pytest.approx(training['option']['D'], rel=0.5 / config.total_steps + 1e-9)
    assert within_half_a_step == D
    if training['option']['bits'] == 16:
        assert config.method == 'bf16'
    else:
        assert (config.method, config.quantization.format) == ('fqt', training['option']['format'])
        assert config.quantization.block_size == '128'
    optimizers.make_optimizer(config, methods.find(config.method).make_transform(config))


def test_the_time_of_a_plan():
    """6 N D operations at a part of the peak, over the price; the command's are of BF16."""
    arguments = ('plan', '--compute=1e20', '--mfu=0.5', '--json')
    one = json.loads(run(*arguments, '--hardware=h100'))
    N, D, price = (one['training']['option'][name] for name in ('N', 'D', 'price'))
    assert price == 1 and pytest.approx(1e20) == 6 * N * D
    days = 1e20 / (0.5 * 989.4e12) / 86400
    for_command = {'peak': 989.4e12, 'devices': 1, 'days': pytest.approx(days)}
    assert one['hardware']['training_time'] == {'priced': for_command, 'command': for_command}
    several = json.loads(run(*arguments, '--hardware=h100', '--days=2'))['hardware']['training_time']['command']
    assert several['devices'] == np.ceil(days / 2) and several['days'] <= 2
    assert several['devices'] * several['days'] == pytest.approx(days)
    printed = run('plan', '--compute=1e20', '--hardware=b200', '--days=30')
    assert 'b200 at 40% of 2,250 TFLOP/s, as priced, and as the command trains' in printed and 'NVIDIA' in printed


def test_a_plan_for_people():
    printed = run('plan', '--compute=1e24')
    assert 'best        5.005 bits' in printed
    assert re.search(r'^5 +e2m2 +802B +665B +2\.0698 +<- best$', printed, re.MULTILINE)
    assert 'whose authors give no errors of its constants: no intervals' in printed
    assert '    python -m experiments.train --config=configs/capybara.py:size=70b,method=fqt,format=e4m3' in printed
    assert 'extrapolated: N is ' in printed


@pytest.mark.slow
def test_the_readme_says_what_the_plan_does(no_comparison, tmp_path):
    """The plan of the tiny law, with its intervals: whoever changes a fit or its draws, changes the README."""
    as_users_do = dict(num_starts=known_laws.NUM_STARTS, num_draws=known_laws.NUM_DRAWS)
    run('fit', f'{REPOSITORY}/benchmarks/tiny_law.csv', f'--output={tmp_path / "law.json"}', **as_users_do)
    told = json.loads(run('plan', '--compute=4e11', '--block_size=16', f'--law={tmp_path / "law.json"}', '--json'))
    option = told['training']['option']
    ends = ' to '.join(f'{end:.3f}' for end in option['interval'])
    ends += '; of a run ' + ' to '.join(f'{end:.3f}' for end in option['prediction_interval'])
    readme = ' '.join((REPOSITORY / 'README.md').read_text().split())
    assert f'with a loss of {option["loss"]:.3f} (95 %: {ends})' in readme
