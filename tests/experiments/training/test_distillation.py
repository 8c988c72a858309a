"""Distillation: the KL from a teacher's predictions, the step that lowers it, and which teacher a run has."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameter_trees import assert_identical_trees
from programs import import_program, run_program
from scipy import special
from small_checkpoints import GPT2, LLAMA, change_json, write_checkpoint
from small_experiments import (
    ONE_DEVICE,
    VOCABULARY,
    keep_gradients,
    make_experiment,
    on_mesh,
    random_state,
    random_tokens,
    small_config,
)
from small_runs import STEPS, assert_same_run, records, start, stop_after, without_seconds

from configs import from_run
from configs import stored as stored_configs
from experiments import workdirs
from experiments.checkpoints.checkpointing import Checkpointer
from experiments.cost import dry_run, step_costs
from experiments.data import tokenizers
from experiments.devices import device_specs
from experiments.files import huggingface_folder
from experiments.training import distillation, evaluation, flops, meshes, steps
from experiments.training import experiment as training
from gaussq_jax import models

import_hf = import_program('import_hf')
evaluate = import_program('evaluate')
TEACHER = models.GPT2(
    vocab_size=VOCABULARY, max_length=32, num_layers=1, hidden_size=48, num_heads=4, dtype=jnp.float32
)
VERSION_0_1 = pathlib.Path(__file__).parents[2] / 'data' / 'version_0_1'
MASK = np.random.default_rng(1).integers(0, 2, (8, 24)).astype(np.float32)


def kl_in_float64(teacher_logits, student_logits, temperature):
    p, q = (
        special.softmax(np.asarray(logits, np.float64) / temperature, axis=-1)
        for logits in (teacher_logits, student_logits)
    )
    return special.rel_entr(p, q).sum(axis=-1)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_kl_is_scipys_in_float64(dtype, temperature):
    teacher, student = (jnp.asarray(np.random.default_rng(seed).normal(0, 3, (5, 7, 61)), dtype) for seed in (0, 1))
    got = distillation.kl_divergence(teacher, student, temperature)
    assert got.dtype == jnp.float32 and got.shape == (5, 7)
    np.testing.assert_allclose(got, kl_in_float64(teacher, student, temperature), rtol=2e-5)


def test_a_student_like_its_teacher_has_nothing_to_learn():
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 3, (5, 61)), jnp.float32)
    kl, gradient = jax.value_and_grad(lambda x: jnp.sum(distillation.kl_divergence(logits, x)))(logits)
    assert kl == 0
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def student(sizes=ONE_DEVICE, **changes):
    """An experiment whose teacher is of another family and size, with random weights."""
    config = small_config('smoke,method=bf16', dtype='float32', **changes)
    experiment = make_experiment(config, sizes, keep_gradients())
    shapes = jax.eval_shape(TEACHER.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))['params']
    values = jax.tree.map(lambda leaf: np.random.default_rng(3).normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    shapes = distillation._on_mesh(shapes, experiment.mesh, models.family_of(TEACHER))
    load = lambda: jax.device_put(values, jax.tree.map(lambda leaf: leaf.sharding, shapes))
    teacher = distillation.Teacher('gpt2', TEACHER, shapes, {}, config.distillation, None, load)
    return dataclasses.replace(experiment, teacher=teacher)


def step_of(experiment, **arrays):
    """The metrics of one step, and its gradients."""
    batch = meshes.to_devices({'tokens': random_tokens(experiment.config), **arrays}, experiment.mesh)
    step = steps.make_train_step(experiment)
    state, metrics = step(random_state(experiment), batch, experiment.teacher.weights)
    return metrics, jax.tree.map(np.asarray, state.opt_state['params'])


SETTINGS = dict(distillation__temperature=2.0, distillation__weight=0.25)


@functools.cache
def on_one_device(is_masked=False):
    return step_of(student(**SETTINGS), **({'mask': MASK} if is_masked else {}))


def test_the_step_goes_down_the_objective():
    """Cross entropy and KL, each from the logits in one piece; the gradient is that of their sum as Hinton has it."""
    experiment = student(**SETTINGS)
    tokens, state = random_tokens(experiment.config), random_state(experiment)
    weights = jax.jit(experiment.transform.apply)(None, state.params, {})
    of_teacher = jax.jit(TEACHER.apply)({'params': experiment.teacher.weights}, tokens[:, :-1])
    logits, pull_back = jax.vjp(jax.jit(lambda w: experiment.model.apply({'params': w}, tokens[:, :-1])), weights)
    q, q_2, p_2 = (special.softmax(np.asarray(x, np.float64), axis=-1) for x in (logits, logits / 2, of_teacher / 2))
    truth = np.eye(VOCABULARY)[tokens[:, 1:]]
    d_logits = (0.75 * (q - truth) + 0.25 * 2**2 * (q_2 - p_2) / 2) / tokens[:, 1:].size
    (expected,) = pull_back(jnp.asarray(d_logits, jnp.float32))

    metrics, gradients = on_one_device()
    assert float(metrics['train/loss']) == pytest.approx(-np.log(q[truth == 1]).mean(), rel=1e-5)
    assert float(metrics['train/kl']) == pytest.approx(kl_in_float64(of_teacher, logits, 2.0).mean(), rel=1e-5)
    for got, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected)):
        wanted = np.asarray(wanted, np.float32)
        assert np.linalg.norm(got - wanted) < 4e-3 * np.linalg.norm(wanted)  # of weights in bfloat16, as they are


@pytest.mark.parametrize(
    ('sizes', 'changes', 'is_masked'),
    [
        ((2, 2, 2), {}, False),
        (ONE_DEVICE, dict(microbatches=4, remat_policy='full'), True),
        pytest.param((2, 2, 2), dict(microbatches=2), True, marks=pytest.mark.slow),
    ],
)
def test_the_mean_is_that_of_the_whole_batch(sizes, changes, is_masked):
    """On a mesh, in parts, over the tokens that are learned; the teacher's weights are split like a student's."""
    experiment = student(sizes, **SETTINGS, **changes)
    if sizes != ONE_DEVICE:
        kernel = experiment.teacher.weights['layers']['mlp']['up']['kernel']
        assert kernel.sharding.shard_shape(kernel.shape) == (1, 24, 96)
    (metrics, gradients), (wanted, expected) = (
        step_of(experiment, **({'mask': MASK} if is_masked else {})),
        on_one_device(is_masked),
    )
    for name in ('train/loss', 'train/kl'):
        assert float(metrics[name]) == pytest.approx(float(wanted[name]), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected)):
        assert np.linalg.norm(a - b) < 4e-3 * np.linalg.norm(b)


def test_weights_of_a_teacher_are_no_constants():
    """They are an argument of the compiled step, however large."""
    experiment = student()
    traced = step_costs.trace(experiment)
    assert sum(np.size(constant) for constant in traced.jaxpr.consts) < 1000
    assert len(jax.tree.leaves(traced.jaxpr.in_avals)) == len(
        jax.tree.leaves((experiment.abstract_state, {'tokens': 0}, experiment.teacher.abstract_weights))
    )


def test_evaluation_is_at_temperature_one():
    experiment = student(**SETTINGS)
    tokens, state = random_tokens(experiment.config), random_state(experiment)
    weights = jax.jit(experiment.transform.apply)(None, state.params, {})
    of_teacher = jax.jit(TEACHER.apply)({'params': experiment.teacher.weights}, tokens[:, :-1])
    logits = jax.jit(experiment.model.apply)({'params': weights}, tokens[:, :-1])
    got = evaluation.make_evaluation(experiment)(state, [{'tokens': tokens, 'mask': MASK}])
    expected = (kl_in_float64(of_teacher, logits, 1.0) * MASK).sum() / MASK.sum()
    assert got['kl'] == pytest.approx(expected, rel=1e-5) and got['tokens'] == MASK.sum()


def test_what_it_costs(capsys):
    """The memory of its share of the weights, and one more forward pass."""
    experiment = student((2, 2, 2))
    without = dataclasses.replace(experiment, teacher=None)
    local = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(experiment.teacher.weights))
    assert step_costs.known_memory(experiment).teacher == local
    tokens = jax.ShapeDtypeStruct((8, 24), jnp.int32)
    forward = flops.matmul_flops(TEACHER.apply, {'params': experiment.teacher.abstract_weights}, tokens)
    assert flops.model_flops(experiment) - flops.model_flops(without) == forward
    traced = [flops.of_jaxpr(step_costs.trace(which).jaxpr.jaxpr) for which in (experiment, without)]
    assert traced[0] - traced[1] == forward
    dry_run.report(experiment, device_specs.find('h100'), 0.4)
    told = capsys.readouterr().out
    assert 'teacher   gpt2: gpt2, ' in told and 'weights of the teacher' in told


@pytest.fixture(scope='module')
def teachers(tmp_path_factory):
    """Folders of two checkpoints, and runs of their models, whose tokens are bytes."""
    directory = tmp_path_factory.mktemp('teachers')
    with on_mesh(ONE_DEVICE):
        for name, model in (('llama', LLAMA), ('gpt2', GPT2)):
            checkpoint = write_checkpoint(directory / f'{name}-folder', model)
            import_hf.import_checkpoint(checkpoint, directory / name, tokenizer='bytes', sequence_length=24)
    return directory


def config_of(teachers, teacher='gpt2', run='llama', method='qat,format=e2m1,block_size=16', **changes):
    """Of the llama, taught by another run."""
    config = from_run.get_config(f'run={teachers / run},method={method}')
    config.teacher = teacher and str(teachers / teacher)
    changes = {'batch_size': 8, 'microbatches': 1, 'name': 'taught', **changes}
    config.update_from_flattened_dict({**STEPS, 'optimizer.warmup_steps': 1, **changes})
    return config


def find(config, workdir=None):
    with on_mesh(ONE_DEVICE):
        tokenizer = tokenizers.load_tokenizer(config.tokenizer, config.special_tokens, vocab_size=config.vocab_size)
        experiment = training.make_experiment(config, tokenizer.vocab_size)
        return experiment, distillation.find(experiment, tokenizer, workdir)


@pytest.mark.parametrize('name', ['llama', 'gpt2'])
def test_a_folder_teaches_as_the_run_it_is_imported_as(teachers, tmp_path, name):
    with on_mesh(ONE_DEVICE):
        import_hf.import_checkpoint(teachers / f'{name}-folder', tmp_path / 'run', sequence_length=24)
    taught_by = lambda teacher: find(config_of(teachers, teacher, run=tmp_path / 'run'))[1]
    folder, run = taught_by(f'{name}-folder'), taught_by(tmp_path / 'run')
    assert_identical_trees(*(jax.tree.map(np.asarray, teacher.weights) for teacher in (folder, run)))
    assert folder.weights['final_norm']['scale'].dtype == jnp.bfloat16
    for field in (*folder.family.settings, 'vocab_size', 'dtype'):
        assert getattr(folder.model, field) == getattr(run.model, field)
    assert run.source['step'] == 0 and folder.source.keys() == {'sha256'}
    assert folder.describe().startswith(f'{teachers / name}-folder: {name}, ')


def test_a_run_taught_by_itself_begins_without_kl(teachers):
    """Its weights in bfloat16 are the teacher's."""
    experiment, teacher = find(config_of(teachers, 'llama', method='bf16'))
    experiment = dataclasses.replace(experiment, teacher=teacher)
    state = random_state(experiment)._replace(params=jax.tree.map(lambda w: w.astype(jnp.float32), teacher.weights))
    batch = {'tokens': random_tokens(experiment.config), 'mask': MASK}
    assert evaluation.make_evaluation(experiment)(state, [batch])['kl'] == 0


def test_a_run(teachers, tmp_path, capsys):
    """Resumes to the same bits, with that teacher wherever it is, and with no other; it is evaluated with it."""
    moved = shutil.copytree(teachers / 'gpt2', tmp_path / 'gpt2')
    config = config_of(teachers)
    start(tmp_path / 'whole', config)
    told = capsys.readouterr().out
    assert f'teacher   {teachers}/gpt2, step 0: gpt2, ' in told and 'KL(teacher || student)' in told

    with pytest.MonkeyPatch.context() as stopped, pytest.raises(SystemExit, match='interrupted'):
        stop_after(stopped, 9)
        start(tmp_path / 'stopped', config)
    with pytest.raises(SystemExit, match=r'llama.* began with another teacher, .*step.: 0.*this one is'):
        start(tmp_path / 'stopped', config_of(teachers, 'llama'))
    with pytest.raises(SystemExit, match=r'teacher_weights: stored .*sha256.*, present .absent'):
        start(tmp_path / 'stopped', config_of(teachers, ''))
    with pytest.raises(SystemExit, match=r'distillation\.weight: stored 1\.0, present 0\.5'):
        start(tmp_path / 'stopped', config_of(teachers, **{'distillation.weight': 0.5}))
    start(tmp_path / 'stopped', config_of(teachers, moved))
    assert_same_run(tmp_path / 'stopped', tmp_path / 'whole')

    kls = [line['validation/kl'] for line in records(tmp_path / 'whole') if 'validation/kl' in line]
    assert kls[-1] < kls[0] and without_seconds(tmp_path / 'whole')['validation/kl'] == kls[-1]
    assert all('train/kl' in line for line in records(tmp_path / 'whole') if 'train/loss' in line)

    capsys.readouterr()
    with on_mesh(ONE_DEVICE):
        run_program(evaluate, WORKDIR=str(tmp_path / 'stopped'), EVAL_BATCHES=1)
        assert json.loads(capsys.readouterr().out)['validation/kl'] == pytest.approx(kls[-1], rel=1e-5)
        shutil.rmtree(moved)
        run_program(evaluate, WORKDIR=str(tmp_path / 'stopped'), EVAL_BATCHES=1)
    told = capsys.readouterr()
    assert 'validation/kl' not in json.loads(told.out)
    assert f"validation/kl is left out: config.teacher='{moved}'" in told.err


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'teacher': 'nowhere'},
            r"config\.teacher='.*nowhere': .*nowhere is neither the workdir of a run, .*, nor a Hugging Face folder",
        ),
        ({'vocab_size': 270}, r"config\.teacher='.*gpt2': its model has a vocabulary of 264, that of the student 270;"),
        (
            {'teacher': 'gpt2-folder'},
            r'its tokenizer is huggingface-\w+, that of the student bytes.*; they must',
        ),
        ({'special_tokens.eos_token_id': '257'}, r"its special tokens are .*'256'.* those of the student .*'257'"),
        ({'sequence_length': 25}, r"config\.teacher='.*gpt2': .*25.*24"),
        ({'distillation.temperature': 0.0}, r'config\.distillation\.temperature=0\.0 must be a positive number'),
        ({'distillation.temperature': float('inf')}, r'distillation\.temperature=inf must be a positive number'),
        ({'distillation.weight': 1.5}, r'config\.distillation\.weight=1\.5 must be of 0 to 1'),
        (
            {'teacher': '', 'distillation.weight': 0.5},
            r"config\.distillation={.*'weight': 0\.5} has a meaning only with",
        ),
    ],
)
def test_what_no_teacher_can_be(teachers, changes, message):
    with pytest.raises(ValueError, match=message):
        find(config_of(teachers, **changes))


def test_a_folder_without_a_tokenizer_is_refused(teachers, tmp_path):
    write_checkpoint(tmp_path / 'bare', LLAMA, tokenizer=False)
    with pytest.raises(ValueError, match=r'bare has neither .*: import it by experiments\.import_hf with --tokenizer='):
        find(config_of(teachers, tmp_path / 'bare'))


def test_a_folder_is_named_by_all_that_is_read_of_it(teachers, tmp_path):
    copy, source = shutil.copytree(teachers / 'llama-folder', tmp_path / 'copy'), huggingface_folder.sha256
    before = source(teachers / 'llama-folder')
    assert source(copy) == before
    change_json(copy / 'config.json', rope_theta=7.0)
    changed = source(copy)
    file = copy / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:-1] + b'\x01')
    assert len({before, changed, source(copy)}) == 3


def test_a_run_of_version_0_1_teaches(monkeypatch):
    """The state of its transform had another name then; of gaussws, what teaches is rounded, without noise."""
    monkeypatch.chdir(VERSION_0_1.parents[2])
    config = from_run.get_config(f'run={VERSION_0_1 / "run"},method=bf16')
    config.teacher, config.init_from = str(VERSION_0_1 / 'run'), ''
    _, teacher = find(config)
    with on_mesh(ONE_DEVICE):
        run = workdirs.open_run(VERSION_0_1 / 'run')
        expected = jax.jit(run.experiment.transform.apply)(None, run.state.params, run.state.transform_state)
    assert_identical_trees(*(jax.tree.map(np.asarray, weights) for weights in (teacher.weights, expected)))


@pytest.mark.parametrize(
    ('schedule', 'like'),
    [
        ('method=qat,start_step=9', 'method=bf16'),
        ('method=qat,start_step=8', 'method=qat'),
        ('method=fqt,targets=P1+P2,end_step=8', 'method=bf16'),
    ],
)
def test_a_run_teaches_as_it_is_evaluated_at_its_step(tmp_path, schedule, like):
    """Here after eight: quantized, or not yet, or no more."""

    def predictions(argument, name):
        experiment, _ = find(small_config(f'{argument}{"" if "bf16" in argument else ",format=e2m1"},smoke'))
        directory = tmp_path / name / 'checkpoints'
        with Checkpointer(directory) as checkpointer:
            state, config = random_state(experiment, 8), experiment.config.to_dict()
            checkpointer.save(8, state, {}, stored_configs.write(config))
        _, teacher = find(small_config('method=bf16,smoke', teacher=str(directory.parent)))
        return np.asarray(teacher.model.apply({'params': teacher.weights}, random_tokens(experiment.config)[:, 1:]))

    got = predictions(schedule, 'run')
    np.testing.assert_array_equal(got, predictions(like, 'like'))
    assert np.any(got != predictions('method=qat' if 'bf16' in like else 'method=bf16', 'other'))
