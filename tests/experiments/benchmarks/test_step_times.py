"""Every method's step trains the same model; the peer is what its users get."""

import importlib.util
import types

import jax
import numpy as np
import pytest
from small_experiments import ONE_DEVICE, on_mesh

from configs import gpt2, tiny
from experiments.benchmarks import step_times
from experiments.cost import step_costs
from gaussq_jax import models

VOCABULARY = 64


@pytest.fixture(autouse=True)
def one_device():
    known = set(models.FAMILIES)
    with on_mesh(ONE_DEVICE):
        yield
    for name in models.FAMILIES.keys() - known:
        del models.FAMILIES[name]


@pytest.fixture
def uncompiled(monkeypatch):
    program = types.SimpleNamespace(result=lambda: None)
    monkeypatch.setattr(step_times.timing, 'compile_together', lambda programs: dict.fromkeys(programs, program))


def config_of(module):
    config = module.get_config('smoke')
    config.optimizer.warmup_steps = 1
    return config


def test_recipes_are_those_of_fqt_whatever_the_config_is_of():
    """What the config says of one format is not for them."""
    config = tiny.get_config('smoke,method=fqt,format=e2m1,targets=P2')
    for method, recipe in (('mxfp8', 'mxfp8'), ('fqt', '')):
        made = step_times.make_method_experiment(config, method, VOCABULARY).config
        assert (made.method, made.quantization.recipe) == ('fqt', recipe)


def test_naive_trains():
    """The loss of one batch, seen again and again, falls from that of a guess."""
    experiment = step_times.make_method_experiment(config_of(tiny), 'naive', VOCABULARY)
    step = step_times.make_step(experiment, step_costs.trace(experiment).lower().compile())
    losses = [float(step()[1]['train/loss']) for _ in range(4)]
    assert losses[0] == pytest.approx(np.log(VOCABULARY), rel=0.02)
    assert losses[3] < losses[2] < losses[1]


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of flax, which qwix uses
@pytest.mark.parametrize('module', [tiny, gpt2])
@pytest.mark.parametrize('method', step_times.PEERS)
def test_qwix_quantizes_all_linear_layers_and_no_other(module, method):
    """A model of the same parameters, whose compiled step rounds as many weights as there are; and nothing before."""
    pytest.importorskip('qwix')
    config = config_of(module)
    bf16, peer = (step_times.make_method_experiment(config, name, VOCABULARY) for name in ('bf16', method))
    assert jax.tree.structure(peer.abstract_state) == jax.tree.structure(bf16.abstract_state)
    params = bf16.init().params
    tokens = jax.numpy.zeros((1, 8), jax.numpy.int32)
    dtypes = rounded_dtypes(jax.make_jaxpr(lambda params: peer.model.apply({'params': params}, tokens))(params).jaxpr)
    matrices = len(params['layers']['attention']) + len(params['layers']['mlp'])
    assert dtypes.count(step_times.PEERS[method]) == matrices
    plain = rounded_dtypes(jax.make_jaxpr(lambda params: bf16.model.apply({'params': params}, tokens))(params).jaxpr)
    assert step_times.PEERS[method] not in plain
    logits = [experiment.model.apply({'params': params}, tokens) for experiment in (bf16, peer)]
    assert 0 < np.abs(logits[1] - logits[0]).max() < 0.3 * np.abs(logits[0]).max()


def rounded_dtypes(jaxpr):
    """The dtypes that conversions in it, and in what it calls, have for results."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'convert_element_type':
            found.append(equation.outvars[0].aval.dtype.name)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda parameter: hasattr(parameter, 'eqns')):
            if hasattr(inner, 'eqns'):
                found += rounded_dtypes(inner)
    return found


def test_what_is_not_installed_is_listed(uncompiled, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(step_times, 'make_step', lambda experiment, step: lambda: 0)
    *_, results = step_times.time_steps(config_of(tiny), ['qwix-int8'], 1, vocab_size=VOCABULARY, clock='host')
    assert list(results['methods']) == ['bf16', 'qwix-int8']
    assert results['methods']['qwix-int8'] == 'not installed'
    assert results['methods']['bf16']['ratio'] == 1


def test_each_method_takes_turns_with_bf16_alone(uncompiled, monkeypatch):
    """Two training states are in memory at the most; a row says what bf16 took in the same turns."""
    seconds = iter([(2.0, 3.0), (4.0, 5.0)])
    turns = []

    def take_turns(steps, number, *, clock):
        turns.append((list(steps), number, clock))
        base, time = next(seconds)
        return {name: {'seconds': s, 'base_seconds': base} for name, s in zip(steps, (base, time))}

    monkeypatch.setattr(step_times.timing, 'take_turns', take_turns)
    monkeypatch.setattr(step_times, 'make_step', lambda experiment, step: step)
    timed = step_times.time_steps(
        config_of(tiny), ['diffq', 'bf16', 'naive'], 7, vocab_size=VOCABULARY, clock='profiler'
    )
    kept = [dict((results := so_far)['methods']) for so_far in timed]
    assert kept[0]['naive'] == 'not measured yet' and kept[0]['diffq'] == results['methods']['diffq']
    assert kept[1] == results['methods']
    assert turns == [(['bf16', 'diffq'], 7, 'profiler'), (['bf16', 'naive'], 7, 'profiler')]
    assert results['methods'] == {
        'bf16': {'seconds': 2, 'base_seconds': 2},
        'diffq': {'seconds': 3, 'base_seconds': 2},
        'naive': {'seconds': 5, 'base_seconds': 4},
    }
    assert (results['config'], results['clock'], results['tokens']) == ('tiny-smoke', 'profiler', 8 * 64)


def test_what_fails_on_the_device_is_told_and_the_rest_is_timed(uncompiled, monkeypatch):
    def take_turns(steps, turns, *, clock):
        if 'naive' in steps:
            raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory\nand a long report')
        return {name: {'seconds': 1.0} for name in steps}

    monkeypatch.setattr(step_times.timing, 'take_turns', take_turns)
    monkeypatch.setattr(step_times, 'make_step', lambda experiment, step: step)

    def time_steps(methods):
        *_, results = step_times.time_steps(config_of(tiny), methods, 1, vocab_size=VOCABULARY, clock='host')
        return results['methods']

    rows = time_steps(['naive', 'diffq'])
    assert rows['naive'] == 'RESOURCE_EXHAUSTED: Out of memory'
    assert rows['bf16'] == rows['diffq'] == {'seconds': 1}
    assert time_steps(['naive'])['bf16'] == 'nothing was measured beside it'


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r'methods=bf16,qwix-int3: qwix-int3 is not one of gaussws, .*, qwix-int8'):
        next(step_times.time_steps(config_of(tiny), ['bf16', 'qwix-int3'], 1, vocab_size=VOCABULARY, clock='host'))
