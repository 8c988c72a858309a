"""Plans by every law, where operations are paid for: prices, serving, and what the command trains of it."""

import dataclasses
import json
import re
import shlex

import numpy as np
import pytest
from law_program import grid, run, write

from configs import capybara
from experiments.laws import known_laws
from experiments.laws.answers import plain
from experiments.laws.notation import model_sizes
from experiments.laws.plans import plan_text
from experiments.laws.plans.hardware import HARDWARE
from experiments.laws.plans.serving import Serving
from experiments.laws.plans.training_plans import hardware_rows, make_plan
from gaussq_jax import scaling_laws as laws

RANGES = known_laws.PUBLISHED['capybara'].ranges
QUARTET = dict(n=8.3e4, alpha=0.564, d=4.7e5, beta=0.548, epsilon=1.387, gamma=0.287)
TERMS = dict(n=69.2, alpha=0.237, d=68973.0, beta=0.516, epsilon=1.906)
KUMAR_TERMS = dict(n=4299.0, alpha=0.4965, d=18060.0, beta=0.4965, epsilon=2.7648)


@dataclasses.dataclass(frozen=True)
class RepeatingLaw(laws.PowerLaw):
    """A law of one's own, of epochs."""

    COLUMNS = ('N', 'D', 'epochs')

    def _loss(self, N, D, epochs):
        return self._unquantized(N, D / epochs**0.1)


LAWS = {
    'capybara': laws.PUBLISHED_CAPYBARA,
    'chinchilla': laws.CHINCHILLA_REFIT,
    'kaplan': laws.PUBLISHED_KAPLAN,
    'outer': laws.OuterExponentLaw(**QUARTET),
    'kumar': laws.KumarLaw(**TERMS, gamma=2.0),
    'bitwidth': laws.BitwidthLaw(**TERMS, gamma=1e5, kappa=3.0),
    'kumar-operands': laws.KumarOperandsLaw(**KUMAR_TERMS, gamma_w=2.7, gamma_a=2.2, gamma_kv=1.0),
    'qat': laws.PUBLISHED_QAT['w4a4'],
    'effective': laws.EffectiveLaw(**QUARTET, eff_N={'quest': 0.64, 'mxfp4': 0.59}, eff_D={'mxfp4': 0.9}),
    'own': RepeatingLaw(**TERMS),
}


class Known(known_laws.KnownLaw):
    """Under a name that doesn't have to be in the list."""

    name = 'this'


def known(name, **constants):
    return Known(LAWS[name].replace(**constants), 'a law', RANGES)


def plan_of(name, compute=1e22, hardware='h100', **settings):
    settings |= {'inputs': {'epochs': 4.0}} if name == 'own' else {}
    return make_plan(known(name), compute, HARDWARE[hardware], **settings)


def said(plan):
    data, lines = plan_text.describe(plan)
    plain(data)  # which is JSON-able
    return '\n'.join(lines)


@pytest.mark.parametrize('hardware', ['ideal', 'b200'])
@pytest.mark.parametrize('name', LAWS)
def test_every_law_has_a_plan(name, hardware):
    """Options cost the budget, and are the best N for it, by a grid; those without a price are never chosen."""
    plan = plan_of(name, hardware=hardware)
    law = LAWS[name]
    for option in plan.options:
        if option.price.value is None:
            assert np.isnan([option.N, option.D, option.loss]).all() and option.price.note
            continue
        assert option.cost == pytest.approx(1e22)
        N = option.N * np.exp(np.linspace(-3, 3, 601))
        loss = law.loss(N=N, D=option.N * option.D / N, **option.precision.inputs)
        assert abs(np.argmin(loss) - 300) <= 1 and option.loss <= loss.min() + 1e-9
    priced = [option for option in plan.options if option.price.value is not None]
    assert plan.best.loss == min(option.loss for option in priced)
    assert 'bf16' in [option.precision.name for option in priced]
    assert 'best  ' in said(plan)


@pytest.mark.parametrize('name', ['kumar', 'kumar-operands', 'qat'])
def test_where_the_law_knows_no_format_its_price_is_unknown(name):
    plan = plan_of(name)
    assert {option.precision.name for option in plan.options if option.price.value is not None} == {'bf16'}
    assert 'price unknown: ' in said(plan)


def test_bits_alone_are_a_price_of_ideal():
    plan = plan_of('kumar', hardware='ideal')
    assert [option.price.value for option in plan.options] == [4 / 16, 6 / 16, 8 / 16, 1]
    assert plan.best.precision.name == '4 bits' and plan.training.command is None
    assert 'command     none: the law this knows the bits, and no format' in said(plan)


@pytest.mark.parametrize('hardware', sorted(set(HARDWARE) - {'ideal'}))
def test_the_paper_s_law_runs_at_the_rate_of_bf16(hardware):
    """P2, P4 and P6: no format is cheaper, so none is better than BF16. The plan says why; its command is priced."""
    plan = plan_of('capybara', hardware=hardware)
    assert {option.price.value for option in plan.options} == {1}
    assert plan.best.precision.name == plan.training.option.precision.name == 'bf16'
    assert plan.bits is None
    assert 'a GEMM of which one operand stays BF16 runs at the rate of BF16' in said(plan)
    assert 'is simulated' not in said(plan)


def test_what_is_simulated_is_not_sold_as_fast():
    """The ideal E4M3 costs half: the command, in BF16, twice that."""
    text = said(plan_of('capybara', 1e24, 'ideal'))
    assert 'e4m3 is simulated: the command multiplies in BF16, and takes 2 times as long as priced, which' in text


def test_recipes_are_priced_by_both_operands():
    """And trained by the operands of their names; those of other programs have no command."""
    plan = plan_of('effective', hardware='b200')
    prices = {option.precision.name: option.price.value for option in plan.options}
    expected = {'bf16': 1, 'bf16 / mxfp4': (1 + 2 / 4) / 3, 'mxfp4 / bf16': (1 / 4 + 2) / 3, 'mxfp4 / mxfp4': 1 / 4}
    unknown = {'quest / bf16': None, 'quest / mxfp4': None}
    assert prices == pytest.approx(expected | unknown)
    methods = {option.precision.name: option.precision.method for option in plan.options}
    mx = 'method=fqt,format=float4_e2m1fn,block_size=32,scale=mx,targets='
    assert methods['mxfp4 / mxfp4'] == mx + 'P1+P2+P3+P4+P5+P6'
    assert methods['mxfp4 / bf16'] == mx + 'P1+P2' and methods['bf16 / mxfp4'] == mx + 'P3+P4+P5+P6'
    assert "price unknown: quest / bf16, quest / mxfp4: 'quest' is the name of no format" in said(plan)
    mapped = plan_of('effective', 6e22, 'b200', recipes={'QuEST': 'mxfp4'})
    assert mapped.best.precision.name == 'quest / mxfp4' and mapped.best.price.value == 1 / 4
    assert "command     none: this program has no method that is 'quest' / 'mxfp4'" in said(mapped)


def test_recipes_of_our_sweeps():
    """They name the operands of all GEMMs: only the price of foreign ones is left open."""
    names = {'fqt e2m1 16': 0.5, 'fqt e3m2 channel': 0.8, 'gaussws 3': 0.7, 'qat e2m1 32': 0.6, 'mxfp4': 0.5}
    made = Known(laws.EffectiveLaw(**QUARTET, eff_N=names), 'a law', RANGES)
    options = {option.precision.name: option for option in make_plan(made, 1e22, HARDWARE['b300']).options}
    assert {name: option.price.value for name, option in options.items()} == {
        'bf16': 1,
        'fqt e2m1 16': 1,
        'fqt e3m2 channel': 1,
        'gaussws 3': 1,
        'qat e2m1 32': 1,
        'mxfp4': None,
    }
    methods = [option.precision.method for option in options.values()]
    assert methods == [
        'method=bf16',
        'method=fqt,format=e2m1,block_size=16',
        'method=fqt,format=e3m2,block_size=channel',
        'method=gaussws,b_init=3,b_target=3',
        'method=qat,format=e2m1,block_size=32',
        None,
    ]


def test_bitwidths_are_those_of_the_runs(tmp_path):
    """Also of a law that was stored."""
    table = write(tmp_path / 'runs.csv', grid(LAWS['bitwidth'], columns=('b',)))
    run('fit', table, '--law_name=bitwidth', f'--output={tmp_path / "law.json"}')
    for of_law in ([f'--runs={table}', '--law_name=bitwidth'], [f'--law={tmp_path / "law.json"}']):
        options = json.loads(run('plan', '--compute=1e22', *of_law, '--json'))['options']
        assert [option['format'] for option in options] == ['b = 2', 'b = 3', 'b = 4', 'b = 5', 'b = 6', 'bf16']


def test_group_sizes_are_between_those_of_the_runs():
    made = Known(LAWS['qat'], 'a law', {**RANGES, 'B': (16.0, 100.0)})
    names = [option.precision.name for option in make_plan(made, 1e22, HARDWARE['ideal']).options]
    assert names == ['groups of 16', 'groups of 32', 'groups of 64', 'bf16']


@pytest.mark.parametrize('name', ['chinchilla', 'capybara', 'effective', 'outer'])
def test_serving_makes_small_models_best_on_more_tokens(name):
    """Overtraining comes out: the more is served, the more tokens a weight, and the dearer, the more so."""
    ratios = []
    for tokens in (1e9, 1e11, 1e12, 1e13):
        plan = plan_of(name, hardware='h100', serve=Serving.parse(tokens, 'bf16'))
        assert plan.best.cost + 2 * plan.best.N * tokens == pytest.approx(1e22)
        ratios.append(plan.best.D / plan.best.N)
    alone = plan.unserved.D / plan.unserved.N
    assert alone < ratios[0] < ratios[1] < ratios[2] < ratios[3] and ratios[0] == pytest.approx(alone, rel=0.02)
    cheap = plan_of(name, hardware='h100', serve=Serving.parse(1e13, 'fp8'))
    assert ratios[3] > cheap.best.D / cheap.best.N and cheap.best.loss < plan.best.loss
    text = said(plan)
    assert f'{ratios[3]:.3g} tokens a weight are best to train with; without serving, {alone:.3g}' in text


def test_serving_gives_a_published_optimum():
    """23.5B weights on 24.4T tokens for 1e14 served, by Hoffmann's law unrounded (The journey matters, ICLR 2025).

    As good as Chinchilla's 70B on 4.26T, which costs 15.8e24 with its serving.
    """
    law = laws.ChinchillaLaw(n=406.4, alpha=0.3392, d=410.7, beta=0.2849, epsilon=1.6934)
    plan = make_plan(Known(law, 'a law', RANGES), 8.14e24, HARDWARE['h100'], serve=Serving.parse(1e14))
    assert pytest.approx((23.5e9, 24.4e12), rel=0.02) == (plan.best.N, plan.best.D)
    assert plan.best.loss == pytest.approx(float(law.loss(70e9, 4.26e12)), abs=0.003)


def test_what_rounding_to_the_served_format_costs_is_known_by_few_laws():
    rounded = lambda plan: re.findall(r'what rounding (.*) adds to the loss is not known', said(plan))
    served = lambda name, format: rounded(plan_of(name, serve=Serving.parse(1e12, format)))
    assert served('chinchilla', 'mxfp4') == ['activations and weights to mxfp4']
    assert served('chinchilla', 'int4-weights') == ['weights to int4']
    assert served('chinchilla', 'bf16') == []
    post = dict(post=0.5, post_D=0.4, post_N=0.3, post_gamma=0.7, post_w=1.0, post_a=1.0, post_kv=1.0)
    law = LAWS['kumar-operands'].replace(**post)
    with_post = lambda **settings: make_plan(Known(law, 'a law', RANGES), 1e22, HARDWARE['h100'], **settings)
    plan, of_weights = (with_post(serve=Serving.parse(1e12, name)) for name in ('mxfp4', 'mxfp4-weights'))
    best = plan.best
    assert (rounded(plan), rounded(of_weights)) == (['activations to mxfp4'], [])
    with pytest.raises(ValueError, match='--input=P_post is what weights are served in: --serve_format=bf16 says it'):
        with_post(serve=Serving.parse(1e12), inputs={'P_post': 4.0})
    assert best.precision.inputs['P_post'] == 4
    assert best.loss == law.loss(best.N, best.D, 16, 16, 16, 4) > law.loss(best.N, best.D, 16, 16, 16)


def test_the_memory_of_what_is_served():
    plan = plan_of('chinchilla', serve=Serving.parse(1e12, 'mxfp4'))
    data, lines = plan_text.describe(plan)
    assert data['serve']['memory']['weights_bytes'] == model_sizes()[plan.training.size] * 4.25 / 8
    assert any(line.startswith('served ') and '4.25 bits' in line for line in lines)
    assert any('both fit into 1 h100' in line for line in lines)


def test_what_is_served_as_it_is_trained_is_not_rounded():
    """By operand: the paper's law quantizes the weights of X W alone."""
    plan = plan_of('capybara', 1e24, 'ideal', serve=Serving.parse(1e10, 'e4m3 128'))
    assert plan.training.option.precision.name == 'e4m3'
    assert 'what rounding activations to e4m3 128 adds' in said(plan)
    assert 'what rounding' not in said(
        plan_of('capybara', 1e24, 'ideal', serve=Serving.parse(1e10, 'e4m3 128-weights'))
    )


def test_the_price_of_serving_is_explained():
    text = said(plan_of('chinchilla', hardware='tpu-7x', serve=Serving.parse(1e12, 'int8')))
    assert 'served in int8: e0m7 runs in BF16 on tpu-7x, which has no faster unit for it' in text


def test_the_command_s_steps_are_within_the_budget():
    """A size whose first step costs more is not the nearest."""
    plan = plan_of('chinchilla', 1e15, N=model_sizes()['70b'])
    training = plan.training
    config = capybara.get_config(f'size={training.size},method=bf16')
    tokens = training.total_steps * config.batch_size * config.sequence_length
    assert training.size == '41m' and tokens == pytest.approx(training.option.D, rel=0.2)


@pytest.mark.parametrize('given', [{'N': 7e9}, {'D': 1e11}])
def test_what_is_given_is_kept(given):
    plan = plan_of('effective', hardware='b200', serve=Serving.parse(1e11), **given)
    ((column, value),) = given.items()
    for option in plan.options:
        if option.price.value is not None:
            assert getattr(option, column) == value
            assert option.cost + 2 * 1e11 * option.N == pytest.approx(1e22)
    option = plan.training.option
    assert option.cost + 2 * 1e11 * option.N <= 1e22 * (1 + 1e-9)


def test_rows_for_all_hardware():
    """The same as the plans, one hardware after another."""
    rows = hardware_rows(known('effective'), 1e22)
    assert [row['hardware'] for row in rows[:: len(rows) // len(HARDWARE)]] == list(HARDWARE)
    plan = plan_of('effective', hardware='b300')
    mine = [row for row in rows if row['hardware'] == 'b300']
    for row, option in zip(mine, plan.options, strict=True):
        values = option.precision.name, option.price.value, option.price.note
        assert (row['option'], row['price'], row['note']) == values
        assert row['loss'] is None if row['price'] is None else row['loss'] == option.loss


@pytest.mark.parametrize(
    ('name', 'settings', 'error'),
    [
        ('chinchilla', {'inputs': {'epochs': 2}}, '--input=epochs has no meaning for a plan of the law this'),
        ('capybara', {'inputs': {'E': 2}}, '--input=E has no meaning for a plan of the law this; it takes none'),
        ('capybara', {'block_size': 1}, 'B=1 must be above 1'),
        ('effective', {'recipes': {'quest': 'fp3'}}, '--recipes=quest=fp3: a format must be'),
        (
            'effective',
            {'recipes': {'QuETS': 'mxfp4'}},
            '=mxfp4: the recipes that the law this knows are mxfp4, quest',
        ),
        ('capybara', {'recipes': {'quest': 'mxfp4'}}, 'the recipes that the law this knows are none'),
        ('chinchilla', {'D': 1e20}, 'is too little: the least model takes 1.6e\\+25 for 1e\\+20 tokens'),
        ('chinchilla', {'D': 1000}, '1K tokens are fewer than one step has: 1,024'),
        ('chinchilla', {'compute': 1e7}, r'C=1e\+07 is too little: the least model takes 1.64e\+08 for one step'),
        ('chinchilla', {'serve': Serving.parse(1e25)}, 'for one step and the tokens to serve'),
        (
            'chinchilla',
            {'N': 1e11, 'serve': Serving.parse(1e15)},
            r'no token for N=1e\+11 weights, and to serve them costs',
        ),
    ],
)
def test_what_makes_no_plan_is_one_error(name, settings, error):
    with pytest.raises(ValueError, match=error) as raised:
        plan_of(name, **settings)
    assert '\n' not in str(raised.value)


def test_a_law_of_one_s_own_needs_what_it_takes():
    with pytest.raises(ValueError, match='the law this needs --input=epochs=VALUE for a plan'):
        make_plan(known('own'), 1e22)
    assert shlex.split(plan_of('own').training.command)[3].endswith('method=bf16')


def test_a_precision_that_is_given_has_no_price():
    """A law of one's own may take bits in ways that nothing here knows the operands of."""

    @dataclasses.dataclass(frozen=True)
    class OfWeights(laws.PowerLaw):
        COLUMNS = ('N', 'D', 'P_w')

        def _loss(self, N, D, P_w):
            return self._unquantized(N * P_w, D)

    with pytest.raises(ValueError, match='no price is known: nothing says the operands of P_w'):
        make_plan(Known(OfWeights(**TERMS), 'a law', RANGES), 1e22, inputs={'P_w': 4.0})


def test_a_plan_asks_for_what_it_does_not_choose(tmp_path):
    """Of Kumar's law with an operand each the bits are chosen, and --input=P_post is one value."""
    law = LAWS['kumar-operands'].replace(gamma_w=2.5)
    bits = [dict(P_w=w, P_a=a, P_kv=kv) for w, a, kv in ((16, 16, 16), (4, 16, 16), (16, 4, 16), (16, 16, 4))]
    points = [{'N': N, 'D': D, **of} for N in (3e7, 1e8, 3e8) for D in (1e9, 5e9, 2e10) for of in bits]
    table = write(tmp_path / 'runs.csv', [{**point, 'loss': float(law.loss(**point))} for point in points])
    ask = 'plan', f'--runs={table}', '--law_name=kumar-operands', '--compute=1e20'
    options = json.loads(run(*ask, '--json'))['options']
    assert [option['format'] for option in options] == ['W4 A4 KV4', 'W8 A8 KV8', 'bf16']
    with pytest.raises(SystemExit, match='--input=P_post=4,3: plan takes one'):
        run(*ask, '--input=P_post=4,3')
    with pytest.raises(SystemExit, match='--input=P_w has no meaning for a plan of the law kumar-operands; it takes P'):
        run(*ask, '--input=P_w=4')
