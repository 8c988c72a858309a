"""Training steps with recipes: when they quantize, in which layers, and the same whatever the mesh."""

import functools

import jax
import numpy as np
import pytest
from parameter_trees import assert_identical_trees
from small_experiments import ONE_DEVICE, keep_gradients, make_experiment, random_batch, random_state, small_config

from experiments import methods
from experiments.training import evaluation, steps
from gaussq_jax import recipes

START, END = 2, 5
SCHEDULE = f'start_step={START},end_step={END}'
SIZES = dict(model__hidden_size=128, model__mlp_size=128, sequence_length=32)  # which all recipes divide


@pytest.fixture(autouse=True)
def of_the_tests(monkeypatch):
    """NVFP4 with a kept layer of two, so that everything there is happens; and parts of it."""
    own = recipes.NVFP4.replace(name='own', full_precision=recipes.parse_kept_layers('first=1'))
    for recipe in (own, own.replace(name='backward', P1=None, P2=None)):
        monkeypatch.setitem(recipes.RECIPES, recipe.name, recipe)


@functools.cache
def training(argument, sizes=ONE_DEVICE, **changes):
    """An experiment that keeps its gradients, and its training step: one program for all steps."""
    experiment = make_experiment(small_config(f'smoke,{argument}', **SIZES, **changes), sizes, keep_gradients())
    return experiment, steps.make_train_step(experiment)


@functools.cache
def gradients_of_the_step(argument, step, **how):
    """Loss and gradients of the step after so many, as the optimizer gets them."""
    experiment, train_step = training(argument, **how)
    state, metrics = train_step(random_state(experiment, step), random_batch(experiment))
    return jax.tree.map(np.asarray, (metrics['train/loss'], state.opt_state['params']))


def distance(got, expected):
    """Of two losses and gradients: the largest of their leaves' relative errors."""
    error = lambda got, expected: np.linalg.norm(got - expected) / np.linalg.norm(expected)
    return max(jax.tree.leaves(jax.tree.map(error, got, expected)))


@pytest.mark.parametrize(
    ('step', 'same', 'other'),
    [
        (START - 1, 'method=bf16', 'method=fqt,recipe=own'),
        (START, 'method=fqt,recipe=own', 'method=bf16'),
        (END - 1, 'method=fqt,recipe=own', 'method=fqt,recipe=backward'),
        (END, 'method=fqt,recipe=backward', 'method=fqt,recipe=own'),
    ],
)
def test_a_step_quantizes_from_the_start_to_the_end(step, same, other):
    """After it NVFP4's forward pass doesn't any more, and its backward pass does."""
    got = gradients_of_the_step(f'method=fqt,recipe=own,{SCHEDULE}', step)
    assert distance(got, gradients_of_the_step(same, step)) < 1e-5
    assert distance(got, gradients_of_the_step(other, step)) > 1e-2


def test_qat_is_the_baseline_until_it_starts():
    argument = f'method=qat,format=e2m1,start_step={START}'
    before, after = (gradients_of_the_step(argument, step) for step in (START - 1, START))
    assert_identical_trees(before, gradients_of_the_step('method=bf16', START - 1))
    assert_identical_trees(after, gradients_of_the_step('method=qat,format=e2m1', START))


def test_qat_starts_where_weights_are_made_layer_by_layer():
    how = dict(remat_policy='full', resample_weights=True)
    argument = 'method=qat,format=e2m1,full_precision=first=1'
    before, after = (gradients_of_the_step(f'{argument},start_step={START}', START + i, **how) for i in (-1, 0))
    assert distance(before, gradients_of_the_step('method=bf16', 0, **how)) < 1e-5
    assert distance(after, gradients_of_the_step(argument, 0, **how)) < 1e-5
    assert distance(before, after) > 1e-2


@pytest.mark.parametrize('argument', ['method=fqt,recipe=own', 'method=qat,format=e2m1'])
def test_evaluation_is_as_the_next_step(argument):
    """Before the start that of the baseline, bit for bit; of NVFP4 also after the end."""
    schedule = SCHEDULE if 'fqt' in argument else f'start_step={START}'
    experiments = {
        name: make_experiment(small_config(f'smoke,{of}', **SIZES))
        for name, of in (('run', f'{argument},{schedule}'), ('always', argument), ('never', 'method=bf16'))
    }
    batch = random_batch(experiments['run'])
    evaluated = {**batch, 'mask': np.ones(batch['tokens'][:, 1:].shape, np.float32)}
    losses = {
        (name, step): evaluation.make_evaluation(of)(random_state(of, step), [evaluated])['loss']
        for name, of in experiments.items()
        for step in (START - 1, START, END)
    }
    assert losses['run', START - 1] == losses['never', START - 1] != losses['always', START]
    assert losses['run', START] == losses['always', START]
    assert losses['run', END] == losses['never' if 'fqt' in argument else 'always', END]


@pytest.mark.parametrize('name', ['mxfp8', pytest.param('own', marks=pytest.mark.slow)])
def test_sampled_weights_go_on_under_a_recipe(name):
    """P2 and P4 are None; the step's loss is that of sampled weights and activations that P1 quantizes."""
    argument = f'smoke,method=gaussws,recipe={name}'
    experiment = make_experiment(small_config(argument, **SIZES))
    recipe = methods.matmul_recipe(experiment.config)
    assert recipe.operands.keys() == {'P1', 'P3', 'P5', 'P6'}
    batch, state = random_batch(experiment), random_state(experiment)
    evaluated = {**batch, 'mask': np.ones(batch['tokens'][:, 1:].shape, np.float32)}
    loss = evaluation.make_evaluation(experiment)(state, [evaluated], noise=True)['loss']
    _, metrics = steps.make_train_step(experiment)(state, batch)
    assert float(metrics['train/loss']) == pytest.approx(loss, rel=1e-6)
    plain = make_experiment(small_config('smoke,method=gaussws', **SIZES))
    without = evaluation.make_evaluation(plain)(random_state(plain), [evaluated], noise=True)['loss']
    assert abs(loss - without) > 1e-6


# --- programs -------------------------------------------------------------------------------------------

ROUNDING = 'bitcast_convert_type'  # a primitive of all simulated casts


def subjaxprs(equation):
    return [part for part in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr) if is_jaxpr(part)]


def is_jaxpr(value):
    return hasattr(value, 'eqns') or hasattr(value, 'jaxpr')


def equations(jaxpr):
    """All of them, those of its parts included."""
    for equation in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
        yield equation
        for part in subjaxprs(equation):
            yield from equations(part)


def number_of_roundings(jaxpr):
    return sum(equation.primitive.name == ROUNDING for equation in equations(jaxpr))


def loops_over_layers(argument):
    """The bodies of the scans of a step's program, forward and backward."""
    experiment = make_experiment(small_config(f'smoke,{argument}', **SIZES))
    step = steps.make_train_step(experiment).trace(experiment.abstract_state, random_batch(experiment))
    bodies = [e.params['jaxpr'] for e in equations(step.jaxpr) if e.primitive.name == 'scan']
    assert len(bodies) == 2
    return bodies


@pytest.mark.parametrize('argument', ['recipe=own', 'recipe=mxfp8,start_step=1', f'recipe=own,{SCHEDULE}'])
def test_what_is_not_quantized_pays_a_branch_and_no_more(argument):
    """Every rounding of the layers is in one branch of a condition, whose other branch rounds nothing."""
    for body in loops_over_layers(f'method=fqt,{argument}'):
        conditions = [e.params['branches'] for e in equations(body) if e.primitive.name == 'cond']
        number = [[number_of_roundings(branch) for branch in branches] for branches in conditions]
        assert all(min(of_branches) == 0 for of_branches in number)
        assert sum(map(sum, number)) == number_of_roundings(body) > 0


# --- the same, whatever the program ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ('how', 'plain'),
    [
        (dict(sizes=(2, 2, 2)), {}),
        pytest.param(dict(remat_policy='full', scan_unroll=2), {}, marks=pytest.mark.slow),
        pytest.param(dict(microbatches=2, sizes=(2, 2, 1)), dict(microbatches=2), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    'name',
    ['nvfp4', *(pytest.param(name, marks=pytest.mark.slow) for name in recipes.RECIPES if name != 'nvfp4')],
)
def test_recipes_draw_the_same_bits_in_other_programs(name, how, plain):
    """Sums in another order turn the rounding of a few values, and these of more; other random bits, that of half."""
    argument = f'method=fqt,recipe={name}'
    got, expected = gradients_of_the_step(argument, 7, **how), gradients_of_the_step(argument, 7, **plain)
    limit = 2**-3
    if recipes.find(name).needs_key:
        limit = distance(gradients_of_the_step(argument, 8, **plain), expected) / 3
        assert limit > 2**-4
    assert distance(got, expected) < limit
