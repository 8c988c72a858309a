"""Recipes as plans choose between them: which pairs, at what price, and the command that trains what was priced."""

import json
import shlex

import pytest
from law_program import run, write

import gaussq_jax as gq
from configs import capybara
from experiments import methods
from experiments.laws import known_laws
from experiments.laws.notation import model_sizes
from experiments.laws.plans import plan_text
from experiments.laws.plans.hardware import HARDWARE
from experiments.laws.plans.precisions import precisions
from experiments.laws.plans.training_plans import make_plan
from gaussq_jax import scaling_laws as laws

OUTER = dict(n=8.3e4, alpha=0.564, d=4.7e5, beta=0.548, epsilon=1.387, gamma=0.287)
FASTER_IN_FP8 = [of.name for of in HARDWARE.values() if of.rates.get('fp8', 0) > of.rates.get('bf16', 0)]


def known(of_N, of_D=()):
    """A law of recipes, each worth nearly as much as BF16."""
    law = laws.EffectiveLaw(**OUTER, eff_N=dict.fromkeys(of_N, 0.95), eff_D=dict.fromkeys(of_D, 0.95))
    return known_laws.KnownLaw(law, 'a law', known_laws.PUBLISHED['capybara'].ranges)


def methods_of(*names, **settings):
    return {choice.name: choice.method for choice in precisions(known(*names), **settings)}


@pytest.mark.parametrize('name', [*gq.recipes.RECIPES, 'nvfp4-stochastic', 'nvfp4-tiles-hadamard'])
def test_a_recipe_has_its_name_as_the_command(name):
    """And the config that it makes quantizes these operands."""
    assert methods_of([name], [name]) == {'bf16': 'method=bf16', f'{name} / {name}': f'method=fqt,recipe={name}'}
    config = capybara.get_config(f'size=1.2b,method=fqt,recipe={name}')
    methods.make_dot_general_cls(config, training=True)
    assert (config.method, config.quantization.recipe) == ('fqt', name)


def test_what_names_both_passes_is_not_mixed():
    """Formats are."""
    whole = ['quartet', 'nvfp4', 'gaussws 3', 'gaussws 4.5 mxfp8', 'gaussws mxfp8', 'diffq 4', 'fqt e2m1 16']
    assert methods_of([*whole, 'mxfp4'], ['quartet', 'nvfp4', 'mxfp4']) == {
        'bf16': 'method=bf16',
        'bf16 / mxfp4': 'method=fqt,format=float4_e2m1fn,block_size=32,scale=mx,targets=P3+P4+P5+P6',
        'quartet / quartet': 'method=fqt,recipe=quartet',
        'nvfp4 / nvfp4': 'method=fqt,recipe=nvfp4',
        'gaussws 3': 'method=gaussws,b_init=3,b_target=3',
        'gaussws 4.5 mxfp8': 'method=gaussws,b_init=4.5,b_target=4.5,recipe=mxfp8',
        'gaussws mxfp8': None,  # what is learned is not said
        'diffq 4': 'method=diffq,b_init=4,b_target=4',
        'fqt e2m1 16': 'method=fqt,format=e2m1,block_size=16',
        'mxfp4 / bf16': 'method=fqt,format=float4_e2m1fn,block_size=32,scale=mx,targets=P1+P2',
        'mxfp4 / mxfp4': 'method=fqt,format=float4_e2m1fn,block_size=32,scale=mx,targets=P1+P2+P3+P4+P5+P6',
    }


def test_a_recipe_s_name_of_one_pass_is_a_format():
    """Where it has one; a recipe of both passes has no command for one."""
    assert methods_of(['nvfp4'], ['mxfp8']) == {
        'bf16': 'method=bf16',
        'bf16 / mxfp8': 'method=fqt,format=float8_e4m3fn,block_size=32,scale=mx,targets=P3+P4+P5+P6',
        'nvfp4 / bf16': 'method=fqt,format=e2m1,block_size=16,scale=nvfp4,targets=P1+P2',
        'nvfp4 / mxfp8': None,
    }
    (mixed,) = [choice for choice in precisions(known(['nvfp4'], ['mxfp8'])) if choice.name == 'nvfp4 / mxfp8']
    assert mixed.no_method == 'no recipe has the passes of nvfp4 / mxfp8; one of your own can'
    assert methods_of([], ['quartet'])['bf16 / quartet'] is None


def test_recipes_in_some_layers_or_steps_are_not_mixed():
    """Their names are of both passes, too; 'nvfp4 16' is a format."""
    some, under = 'nvfp4 full_precision none', 'gaussws 3 mxfp8 start_step 5'
    names = [f'{some} / {some}', under, 'nvfp4 16 / bf16', 'nvfp4 16 / nvfp4 16']
    told = methods_of([some, under, 'nvfp4 16'], [some, 'nvfp4 16'])
    assert [*told] == ['bf16', 'bf16 / nvfp4 16', *names]
    assert told[names[0]] is told[names[1]] is None
    assert told[names[3]] == 'method=fqt,format=e2m1,block_size=16,scale=nvfp4,targets=P1+P2+P3+P4+P5+P6'


def test_what_is_read_as_another_has_no_command():
    """A name may be ours, and what it stands for in a table is said to be something else."""
    assert methods_of(['quartet'], ['quartet'], formats={'quartet': 'mxfp4'})['quartet / quartet'] is None


def test_the_command_trains_what_was_priced():
    """The layers that this size keeps are in the price, and the budget is spent at it."""
    plan = make_plan(known(['nvfp4'], ['nvfp4']), 1e22, HARDWARE['b200'])
    training, (_, of_any_size) = plan.training, plan.options
    num_layers = capybara.SIZES[training.size][0]
    share = gq.recipes.NVFP4.kept('layers/mlp/up', num_layers).mean()
    assert share > 0 and training.option.price.value == pytest.approx(share + (1 - share) / 4)
    assert of_any_size.price.value == pytest.approx(10 / 62 + 52 / 62 / 4, rel=1e-4)
    assert training.option.cost == pytest.approx(1e22)
    assert shlex.split(training.command)[3].endswith(f'size={training.size},method=fqt,recipe=nvfp4')
    _, lines = plan_text.describe(plan)
    said = '\n'.join(lines)
    assert 'nvfp4 / nvfp4 is simulated: the command multiplies in BF16' in said
    assert f'{training.size} in nvfp4 / nvfp4: {share:.0%} of the linear layers stay BF16' in said


@pytest.mark.parametrize('name', ['fp8_rowwise', 'fp8_tensorwise', 'fp8 channel'])
@pytest.mark.parametrize('hardware', FASTER_IN_FP8)
def test_fp8_runs_on_fp8_units(name, hardware):
    """NVIDIA's, with the flag of XLA: as fast as priced. On others it is simulated."""
    plan = make_plan(known([name], [name]), 1e22, HARDWARE[hardware])
    training, (_, lines) = plan.training, plan_text.describe(plan)
    times, said = plan_text.training_time(plan, 0.4, None), '\n'.join(lines)
    assert training.option.precision.name == f'{name} / {name}'
    on_units = hardware in ('h100', 'h200', 'b200', 'b300')
    assert training.command.startswith('XLA_FLAGS=--xla_gpu_enable_triton_gemm=false python') == on_units
    assert ('is simulated' in said) == (times['command'] != times['priced']) == (not on_units)
    [argument] = [word for word in shlex.split(training.command) if word.startswith('--config=')]
    config = capybara.get_config(argument.partition(':')[2])
    assert methods.matmul_recipe(config).arithmetic == ('hardware' if on_units else 'simulated')


@pytest.mark.parametrize('name', ['deepseek_fp8', 'mxfp8', 'e4m3 channel'])
def test_what_fp8_units_do_not_take_is_simulated(name):
    """Scales within the contracted axis, and the 480 of E4M3."""
    plan = make_plan(known([name], [name]), 1e22, HARDWARE['h100'])
    assert 'hardware' not in plan.training.command and plan.training.command_price == 1
    assert 'is simulated: the command multiplies in BF16' in '\n'.join(plan_text.describe(plan)[1])


def test_widths_that_a_recipe_cannot_transform():
    """Quartet II transforms blocks of 128: the plan says so, and prints no command that fails."""
    law = known(['quartet2'], ['quartet2'])
    plan_of = lambda size, C: make_plan(law, C, HARDWARE['b200'], N=model_sizes()[size])
    small, large = plan_of('tiny-106k', 1e13), plan_of('41m', 1e18)
    assert small.training.command is None
    assert small.training.no_command == 'quartet2 transforms blocks of 128, and tiny-106k has widths of 64 and 192'
    assert 'recipe=quartet2' in large.training.command


def test_from_a_sweep_to_a_command(tmp_path):
    """Runs of recipes, in a table as sweeps write it: fitted, priced, and trained by the printed command."""
    law = laws.EffectiveLaw(**OUTER, eff_N={'nvfp4': 0.9, 'mxfp8': 0.98}, eff_D={'nvfp4': 0.95, 'mxfp8': 0.99})
    rows = [
        {
            'status': 'done',
            'method': 'fqt' if recipe else 'bf16',
            'quantization.recipe': recipe,
            'quantization.format': '',
            'quantization.block_size': '32',
            'N': N,
            'D': D,
            'validation/loss': float(law.loss(N, D, recipe or 'bf16', recipe or 'bf16')),
        }
        for recipe in ('', 'nvfp4', 'mxfp8')
        for N in (3e7, 1e8, 3e8)
        for D in (1e9, 5e9, 2e10)
    ]
    table = write(tmp_path / 'results.csv', rows)
    ask = 'plan', '--compute=1e22', '--hardware=b200', f'--runs={table}', '--law_name=effective', '--json'
    plan = json.loads(run(*ask))
    assert [option['format'] for option in plan['options']] == ['bf16', 'nvfp4 / nvfp4', 'mxfp8 / mxfp8']
    assert plan['best']['format'] == 'nvfp4 / nvfp4'
    assert 'method=fqt,recipe=nvfp4 ' in plan['training']['command']
