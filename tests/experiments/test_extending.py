"""A family of models and a method that are not ours: each is one file, and trains, exports and reloads like ours."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from clipping_method import CLIPPING, clipped
from gelu_family import GELU, Gelu
from ml_collections import ConfigDict
from parameter_trees import assert_identical_trees
from programs import import_program, run_program
from small_experiments import ONE_DEVICE, on_mesh
from small_runs import STEPS, final_state, records, start

import gaussq_jax as gq
from configs import tiny
from experiments import methods, workdirs
from experiments.training import meshes
from experiments.training.adam_mini import scale_by_adam_mini
from experiments.training.experiment import make_experiment
from gaussq_jax import models
from gaussq_jax.models import families

export, import_hf = map(import_program, ('export', 'import_hf'))
SIZES = dict(num_layers=2, hidden_size=48, wide_size=96)


@pytest.fixture(scope='module', autouse=True)
def registered():
    models.register_family(GELU)
    methods.register(CLIPPING)
    yield
    del families.FAMILIES['gelu'], methods.METHODS['clipping']


def get_config(argument, **changes):
    config = tiny.get_config(f'smoke,{argument}')
    config.model = ConfigDict(dict(family='gelu', **SIZES))
    config.optimizer.learning_rate = 3e-3
    config.name = 'gelu'
    config.update({**STEPS, **changes})
    return config


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run of both."""
    workdir = tmp_path_factory.mktemp('gelu') / 'run'
    start(workdir, get_config('method=clipping,parts=down'))
    return workdir


def test_they_train(trained, capsys):
    losses = [line['train/loss'] for line in records(trained) if 'train/loss' in line]
    assert losses[-1] < losses[0] - 0.2
    state = final_state(trained)
    assert state.params['blocks']['into']['kernel'].shape == (2, 48, 96) and state.transform_state == {}
    with on_mesh(ONE_DEVICE):
        experiment = workdirs.open_run(trained).experiment
    weights = experiment.transform.apply(None, state.params, {})
    expected = jax.tree.map(lambda w: w.astype(jax.numpy.bfloat16), clipped(1.5, state.params))
    assert_identical_trees(*(jax.tree.map(np.asarray, tree) for tree in (weights, expected)))
    assert experiment.config.quantization.sigmas == 1.5


@pytest.mark.parametrize('argument', ['method=gaussws,parts=up', 'method=fqt,format=e2m1'])
@pytest.mark.parametrize(
    'changes', [dict(optimizer={'name': 'adam_mini'}), dict(resample_weights=True, remat_policy='full')]
)
def test_the_family_by_our_methods_on_a_mesh(tmp_path, argument, changes):
    """Matrices and their moments are split by the names of their axes, and sampled layer by layer."""
    sizes = (1, 4, 2)
    start(tmp_path, get_config(argument, **changes), sizes)
    with on_mesh(sizes):
        experiment = workdirs.open_run(tmp_path).experiment
    spec = experiment.abstract_state.params['blocks']['into']['kernel'].sharding.spec
    assert spec == jax.sharding.PartitionSpec(None, 'fsdp', 'tensor')
    bitwidths = final_state(tmp_path, sizes).transform_state
    assert set(bitwidths) == ({'blocks/into/kernel'} if 'gaussws' in argument else set())


def test_they_are_exported_and_come_back(trained, tmp_path, capsys):
    """As a packed file, and as a folder of Hugging Face's form, which is imported to the same weights."""
    run_program(
        export, WORKDIR=str(trained), FORMAT='e3m2', OUTPUT=str(tmp_path / 'packed'), TO_HF=str(tmp_path / 'hf')
    )
    params = final_state(trained).params
    with on_mesh(ONE_DEVICE):
        packed = workdirs.open_packed(tmp_path / 'packed')
    assert isinstance(packed.experiment.model, Gelu)
    layout = packed.packed.layout
    assert set(layout) == {'blocks/back/kernel'}  # the parts of the method
    quantized = jax.tree.map(np.asarray, gq.quantize_params(params, layout))
    assert_identical_trees(jax.tree.map(np.asarray, packed.state.params), quantized)
    run_program(
        import_hf, CHECKPOINT=str(tmp_path / 'hf'), WORKDIR=str(tmp_path / 'imported'), TOKENIZER='bytes',
        bos_token_id='', eos_token_id='', add_bos_token='', BOS='', EOS='', ADD_BOS='',
    )  # fmt: skip
    imported = final_state(tmp_path / 'imported').params
    assert_identical_trees(imported, jax.tree.map(lambda leaf: leaf.astype(np.float32), quantized))
    with on_mesh(ONE_DEVICE):
        assert workdirs.open_run(tmp_path / 'imported').experiment.config.sequence_length == 64  # kept as 'longest'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda config: config.update({'method': 'clipping'}), 'lacks sigmas, of method=clipping: choose it where'),
        (lambda config: config.model.update({'mlp_size': 3}), 'config.model.mlp_size: gelu has no such field; it has'),
        (lambda config: config.model.update({'wide_size': 0}), 'config.model.wide_size=0 must be an integer of 1 to'),
        (lambda config: config.model.update({'family': 'gélu'}), "allowed are 'llama', 'gpt2', .*, 'gelu'"),
        (lambda config: config.update({'method': 'cutting'}), "allowed are 'gaussws', 'diffq', .*, 'clipping'"),
    ],
)
def test_mistakes_are_told_as_of_ours(change, message):
    config = get_config('method=bf16')
    change(config)
    with pytest.raises(ValueError, match=message):
        make_experiment(config, 257)


def test_a_name_is_of_one():
    with pytest.raises(ValueError, match="a family 'llama' is there already"):
        models.register_family(models.ModelFamily(name='llama', module=Gelu, axes=()))
    with pytest.raises(ValueError, match="a method 'qat' is there already"):
        methods.register(methods.Method('qat', (), *3 * [print]))
    with pytest.raises(ValueError, match='parts is a setting that methods share'):
        methods.register(methods.Method('mine', (), *3 * [print], own_settings={'parts': 1}))


def test_what_configs_cannot_say_is_refused():
    class Named(Gelu):
        activation: str = 'gelu'

    with pytest.raises(ValueError, match=r'Named.activation: a setting must be an int, float or bool, not '):
        models.register_family(dataclasses.replace(GELU, name='named', module=Named))
    assert 'named' not in models.FAMILIES


def test_a_family_may_be_wrapped_and_have_heads_of_unknown_size():
    @functools.wraps(Gelu, updated=())
    def wrapped(**fields):
        return Gelu(**fields)

    family = dataclasses.replace(GELU, module=wrapped, axes=(('blocks/into/kernel', ('layer', 'hidden', 'heads')),))
    assert family.settings == GELU.settings and family.required == GELU.required
    params = {'blocks': {'into': {'kernel': jax.numpy.zeros((2, 4, 6))}}}
    with pytest.raises(ValueError, match="'blocks/into/kernel' has heads, and the family gelu no head_size"):
        scale_by_adam_mini(family=family).init(params)
    blocks = scale_by_adam_mini(family=family, head_size=3).init(params).nu
    assert blocks['blocks']['into']['kernel'].shape == (2, 1, 2)


def test_bitwidths_of_an_embedding_lie_whole():
    """What the family's rules don't read as a matrix, another method may."""
    state = {
        'transform_state': {'tokens/embedding': jax.numpy.zeros((8, 2))},
        'params': {'tokens': {'embedding': jax.numpy.zeros((256, 64))}},
    }
    with on_mesh((1, 4, 2)):
        mesh = meshes.make_mesh(None)
    shardings = meshes.state_shardings(mesh, state, GELU)
    assert shardings['transform_state']['tokens/embedding'].is_fully_replicated
    assert shardings['params']['tokens']['embedding'].spec == jax.sharding.PartitionSpec('tensor', 'fsdp')


def test_own_settings_stay_and_are_of_their_type():
    config = get_config('method=clipping')
    config.quantization.sigmas = 3.0
    assert methods.with_method(config, 'clipping').quantization.sigmas == 3.0
    assert 'sigmas' not in methods.with_method(config, 'bf16').quantization
    config.quantization.sigmas = 3  # an int will do
    methods.check_settings(config)
    with config.ignore_type():
        config.quantization.sigmas = '3'
    with pytest.raises(ValueError, match=r"config.quantization.sigmas='3' must be of the type float"):
        methods.check_settings(config)
    with pytest.raises(ValueError, match="parts='qkv': the parts of gelu are all, up, down"):
        make_experiment(get_config('method=gaussws,parts=qkv'), 257)
