"""Every config that is offered is one that can be trained: built whole, from shapes alone."""

import importlib
import itertools

import jax
import pytest

from experiments.methods import METHODS
from experiments.methods.settings import SHARED
from experiments.training.experiment import make_experiment

VOCABULARY = 257
# Parameters that are sampled, by hand: layers (4 h^2 + 3 h f), without the gate for GPT-2; and the rest with the
# vocabulary of bytes: embedding, head, norms, positions and biases.
SIZES = {
    ('tiny', ''): (3 * (4 * 128**2 + 3 * 128 * 384), 2 * 257 * 128 + (2 * 3 + 1) * 128),
    ('capybara', 'size=tiny'): (2 * (4 * 128**2 + 3 * 128 * 384), 2 * 257 * 128 + (2 * 2 + 1) * 128),
    ('llama2', 'size=134m'): (12 * (4 * 768**2 + 3 * 768 * 2048), 2 * 257 * 768 + (2 * 12 + 1) * 768),
    ('llama2', 'size=1b'): (20 * (4 * 2048**2 + 3 * 2048 * 5632), 2 * 257 * 2048 + (2 * 20 + 1) * 2048),
    ('gpt2', 'size=124m'): (
        12 * (4 * 768**2 + 2 * 768 * 3072),
        (257 + 1024) * 768 + 12 * (4 * 768 + 3072 + 768 + 2 * 2 * 768) + 2 * 768,
    ),
}


def get_config(name, *arguments):
    return importlib.import_module(f'configs.{name}').get_config(','.join(filter(None, arguments)))


def checked_experiment(config):
    """The experiment of a config on the eight devices of the tests; nothing is allocated for it."""
    allocated = lambda: sum(array.nbytes for array in jax.live_arrays())
    before = allocated()
    experiment = make_experiment(config, VOCABULARY)
    assert allocated() - before < 1000  # a constant or two, and no parameter
    return experiment


@pytest.mark.parametrize(('name', 'size'), SIZES)
def test_parameter_count(name, size):
    """Sizes are what the names say; W_hat's blocks cover the linear layers and nothing else."""
    sampled, others = SIZES[name, size]
    experiment = checked_experiment(get_config(name, size, 'method=gaussws'))
    assert experiment.num_params == sampled + others
    assert experiment.num_linear_params == sampled
    assert experiment.num_blocks * 32 * 32 == sampled  # all sizes are multiples of 32


def test_paper_sizes_with_their_vocabularies():
    """134M with Llama 2's vocabulary of 32,000; 124M with GPT-2's of 50,257."""
    count = lambda *names, vocabulary: make_experiment(get_config(*names), vocabulary).num_params
    assert count('llama2', 'size=134m', vocabulary=32_000) == pytest.approx(134e6, rel=0.01)
    assert count('gpt2', 'size=124m', vocabulary=50_257) == 124_439_808  # of the published model


@pytest.mark.parametrize(('name', 'size'), SIZES)
@pytest.mark.parametrize('smoke', ['', 'smoke'])
@pytest.mark.parametrize('method', METHODS)
def test_every_config_can_be_built(name, size, method, smoke):
    config = get_config(name, size, f'method={method}', smoke)
    experiment = checked_experiment(config)
    assert (experiment.num_blocks > 0) == (method in ('gaussws', 'diffq'))
    assert config.name == '-'.join(filter(None, (name, size.removeprefix('size='), method, smoke)))
    if smoke:
        assert experiment.num_params < 150_000 and config.total_steps <= 20
        assert config.dataset == 'python_stdlib' and config.tokenizer == 'bytes'


# N of the Capybara paper's sizes, layers (4 h^2 + 3 h f), multiplied out by hand; and of the tiny ones.
CAPYBARA_N = {
    'tiny': 425_984,
    'tiny-27k': 26_624,
    'tiny-60k': 59_904,
    'tiny-106k': 106_496,
    'tiny-240k': 239_616,
    '41m': 40_894_464,
    '85m': 84_934_656,
    '154m': 154_140_672,
    '679m': 679_477_248,
    '1.2b': 1_233_125_376,
    '7b': 6_973_030_400,
    '70b': 71_236_059_136,
}


@pytest.mark.parametrize('size', CAPYBARA_N)
def test_capybara_counts_parameters_as_its_paper_does(size):
    """Without embedding, head and norms; fqt is what the paper runs. Heads are of 64, of the largest two 128."""
    config = get_config('capybara', f'size={size}')
    experiment = checked_experiment(config)
    assert experiment.num_linear_params == CAPYBARA_N[size]
    assert config.method == 'fqt' and config.quantization.targets == 'P2+P4+P6'
    if not size.startswith('tiny-'):
        assert config.model.hidden_size == (128 if size in ('7b', '70b') else 64) * config.model.num_heads


def test_capybara_trains_as_in_its_paper():
    """2M tokens a step; by default the least D of the paper's grid, 10,485,760,000."""
    config = get_config('capybara', 'size=41m')
    assert checked_experiment(config).num_tokens == 5_000 * 1024 * 2048 == 10_485_760_000
    optimizer = config.optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.eps, optimizer.weight_decay) == (0.9, 0.95, 1e-8, 0.1)
    assert (optimizer.learning_rate, optimizer.final_learning_rate, optimizer.warmup_steps) == (3e-4, 0.0, 500)
    assert optimizer.clip_norm == 1.0 and config.sequence_length == 2048


def test_tokens_are_steps_times_batch_times_length():
    config = get_config('tiny', 'smoke')
    config.total_steps = 7
    assert checked_experiment(config).num_tokens == 7 * 8 * 64


@pytest.mark.parametrize('name', ['tiny', 'llama2', 'gpt2'])
@pytest.mark.parametrize('parts', SHARED['parts'])
def test_parts_are_the_layers_that_they_name(name, parts):
    leaves = {
        'qkv': ('attention/query', 'attention/key', 'attention/value'),
        'out': ('attention/out',),
        'up': ('mlp/up',) if name == 'gpt2' else ('mlp/gate', 'mlp/up'),
        'down': ('mlp/down',),
    }
    leaves['all'] = tuple(itertools.chain(*leaves.values()))
    bitwidths = checked_experiment(get_config(name, f'parts={parts}', 'smoke')).abstract_state.transform_state
    assert set(bitwidths) == {f'layers/{leaf}/kernel' for leaf in leaves[parts]}


@pytest.mark.parametrize('name', ['tiny', 'llama2', 'gpt2'])
def test_bits_are_those_of_the_argument(name):
    experiment = checked_experiment(get_config(name, 'b_init=7.5', 'b_target=3', 'smoke'))
    for b_i, b_t in ((1.0, 7.5), (0.0, 3.0)):
        assert experiment.transform.bitwidths({'leaf': b_i}) == {'leaf': b_t}


@pytest.mark.parametrize('name', ['tiny', 'llama2', 'gpt2', 'capybara'])
@pytest.mark.parametrize(
    'argument', ['sise=1b', 'method=fp8', 'parts=mlp', 'b_init=six', 'smoke,smoke', 'scale=max', 'rounding=up']
)
def test_refuses_unknown_arguments(name, argument):
    with pytest.raises(ValueError, match='config argument'):
        get_config(name, argument)
