"""Which leaves are sampled, along which axes: real modules of linen and NNX, own rules, and what is refused."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from parameter_trees import nest

import gaussq_jax as gq

DENSE = {'dense': {'kernel': jnp.ones((40, 70))}}


def tree_of(shapes):
    """A nested dict of arrays from {'a/b/kernel': shape}."""
    return nest({path: jnp.ones(shape) for path, shape in shapes.items()})


def sampled_blocks(params, **options):
    """{path: shape of its block grid} of the leaves that are sampled."""
    state = gq.gaussian_weight_sampling(**options).init(params)
    return {path: b_i.shape for path, b_i in state.items()}


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name='attention')(nn.RMSNorm()(x))
        return x + nn.Dense(40, name='down')(nn.gelu(nn.Dense(70, name='up')(nn.LayerNorm()(x)))), None


class LinenModel(nn.Module):
    """Embeddings, a convolution, one block on its own, three scanned ones, and a head."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(50, 40)(tokens)
        x = x + nn.Conv(40, (3,))(x)
        x, _ = LinenBlock(name='first')(x, None)
        stack = nn.scan(LinenBlock, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
        x, _ = stack()(x, None)
        return nn.Dense(50, name='lm_head')(nn.RMSNorm()(x))


def test_the_default_rules_know_linen():
    params = jax.eval_shape(LinenModel().init, jax.random.key(0), jnp.zeros((2, 6), jnp.int32))['params']
    attention = {'query': (2, 2), 'key': (2, 2), 'value': (2, 2), 'out': (2, 2)}
    block = {f'attention/{name}/kernel': blocks for name, blocks in attention.items()}
    block |= {'up/kernel': (2, 3), 'down/kernel': (3, 2)}
    expected = {'Conv_0/kernel': (4, 2)}
    expected |= {f'first/{path}': blocks for path, blocks in block.items()}
    expected |= {f'ScanLinenBlock_0/{path}': (3, *blocks) for path, blocks in block.items()}
    assert sampled_blocks(params) == expected


class NNXModel(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(50, 40, rngs=rngs)
        self.conv = nnx.Conv(40, 40, (3, 3), rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 40, rngs=rngs, decode=False)
        self.layers = nnx.List([nnx.Linear(40, 70, rngs=rngs), nnx.Linear(70, 40, rngs=rngs)])
        self.norm = nnx.LayerNorm(40, rngs=rngs)


def test_the_default_rules_know_nnx():
    """The path of `attention.value.kernel` keeps its 'value'; only the trailing one, of the variable, is dropped."""
    params = nnx.state(nnx.eval_shape(lambda: NNXModel(nnx.Rngs(0))), nnx.Param)
    expected = {f'attention/{name}/kernel': (2, 2) for name in ('query', 'key', 'value', 'out')}
    expected |= {'conv/kernel': (12, 2), 'layers/0/kernel': (2, 3), 'layers/1/kernel': (3, 2)}
    assert sampled_blocks(params) == expected


def test_the_default_rules_know_layers_that_nnx_vmapped():
    @nnx.vmap
    def create(key):
        return nnx.Linear(40, 70, rngs=nnx.Rngs(params=key))

    class Model(nnx.Module):
        def __init__(self):
            self.layers = nnx.Dict(linear=create(jax.random.split(jax.random.key(0), 3)))

    assert sampled_blocks(nnx.state(nnx.eval_shape(Model), nnx.Param)) == {'layers/linear/kernel': (3, 2, 3)}


# --- own rules -------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_wins():
    params = tree_of({'a/kernel': (40, 70), 'a/bias': (70,), 'b/kernel': (40, 70)})
    rules = (gq.CastOnly('b/kernel'), *gq.DEFAULT_RULES)
    assert sampled_blocks(params, rules=rules) == {'a/kernel': (2, 3)}
    transposed = gq.MatrixRule('b/kernel', (), (1,), (0,))
    assert sampled_blocks(params, rules=(transposed, *rules[1:]))['b/kernel'] == (3, 2)


def test_a_rule_matches_the_whole_path():
    params = tree_of({'a/w': (40, 70), 'a/w2': (40, 70)})
    rules = (gq.MatrixRule('.*/w', (), (0,), (1,)), gq.CastOnly('.*'))
    assert sampled_blocks(params, rules=rules) == {'a/w': (2, 3)}
    with pytest.raises(ValueError, match="'w'"):
        sampled_blocks(params, rules=(gq.MatrixRule('w', (), (0,), (1,)), *rules))


def test_a_rule_serves_the_leaves_with_its_number_of_axes():
    """The same name scanned and not: two rules, each for its own."""
    params = tree_of({'a/w': (40, 70), 'b/w': (5, 40, 70)})
    rules = (gq.MatrixRule('.*/w', (), (0,), (1,)), gq.MatrixRule('.*/w', (0,), (1,), (2,)))
    assert sampled_blocks(params, rules=rules) == {'a/w': (2, 3), 'b/w': (5, 2, 3)}


@pytest.mark.parametrize(
    ('axes', 'shape', 'blocks'),
    [
        (((0, 1), (2,), (3,)), (2, 3, 40, 70), (2, 3, 2, 3)),
        (((1,), (0,), (2,)), (40, 5, 70), (5, 2, 3)),
        (((), (1,), (0,)), (40, 70), (3, 2)),
        (((), (0, 1), (2,)), (7, 10, 40), (3, 2)),
        (((2,), (3, 0), (1,)), (7, 40, 5, 10), (5, 3, 2)),
    ],
)
def test_rows_columns_and_batches_may_be_any_axes(axes, shape, blocks):
    assert sampled_blocks(tree_of({'w': shape}), rules=(gq.MatrixRule('w', *axes),)) == {'w': blocks}


def test_rules_are_values():
    rule = gq.MatrixRule('.*/w', (), (0,), (1,))
    assert rule == gq.MatrixRule(path_regex='.*/w', batch_axes=(), row_axes=(0,), col_axes=(1,))
    assert gq.CastOnly('a') == gq.CastOnly(path_regex='a') != gq.CastOnly('b')
    assert len({rule, rule, gq.CastOnly('a')}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.path_regex = 'b'
    assert isinstance(gq.DEFAULT_RULES, tuple)
    assert all(isinstance(rule, gq.MatrixRule | gq.CastOnly) and rule.optional for rule in gq.DEFAULT_RULES)
    assert gq.Keep('a') == gq.Keep(path_regex='a') != gq.CastOnly('a')


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'axes',
    [
        ((0,), (0,), (1,)),
        ((), (0, 1), (1,)),
        ((), (0,), (2,)),
        ((1,), (2,), (3,)),
        ((), (0,), (-1,)),
        ((-3,), (-2,), (-1,)),
        ((), (0,), (1.0,)),
    ],
)
def test_axes_must_be_disjoint_and_cover_the_leaf(axes):
    with pytest.raises(ValueError, match='axes'):
        gq.MatrixRule('.*/w', *axes)


@pytest.mark.parametrize('rule', [gq.CastOnly('no_such_leaf'), gq.MatrixRule('no_such_leaf', (), (0,), (1,))])
def test_an_own_rule_that_matches_no_leaf_is_an_error(rule):
    with pytest.raises(ValueError, match='no_such_leaf'):
        sampled_blocks(DENSE, rules=(rule, *gq.DEFAULT_RULES))


@pytest.mark.parametrize(
    'params',
    [
        {},
        {'embed': {'embedding': jnp.ones((40, 70))}},
        {'dense': {'kernel': jnp.ones((40, 70), jnp.int8)}},
    ],
)
def test_a_tree_in_which_nothing_is_sampled_is_an_error(params):
    with pytest.raises(ValueError):
        sampled_blocks(params)


@pytest.mark.parametrize('shape', [(3, 40, 70), (2, 3, 40, 70)])
def test_a_kernel_with_more_axes_that_no_rule_explains_is_an_error(shape):
    """Never a guess which of its axes are which; a rule settles it."""
    params = DENSE | {'strange': {'kernel': jnp.ones(shape)}}
    with pytest.raises(ValueError, match='strange/kernel'):
        sampled_blocks(params)
    assert set(sampled_blocks(params, rules=(gq.CastOnly('strange/kernel'), *gq.DEFAULT_RULES))) == {'dense/kernel'}
    batch = tuple(range(len(shape) - 2))
    own = gq.MatrixRule('strange/kernel', batch, (len(shape) - 2,), (len(shape) - 1,))
    assert sampled_blocks(params, rules=(own, *gq.DEFAULT_RULES))['strange/kernel'] == (*shape[:-2], 2, 3)


@pytest.mark.parametrize('shape', [(40,), (40, 70), (2, 2, 40, 70)])
def test_a_leaf_that_a_rule_means_by_name_with_other_axes_is_an_error(shape):
    rule = gq.MatrixRule('experts/[a-z]+', (0,), (1,), (2,))
    params = DENSE | {'experts': {'up': jnp.ones((4, 40, 70)), 'down': jnp.ones(shape)}}
    with pytest.raises(ValueError) as error:
        sampled_blocks(params, rules=(rule, *gq.DEFAULT_RULES))
    assert 'experts/down' in str(error.value) and 'experts/[a-z]+' in str(error.value)
    settled = (rule, gq.CastOnly('experts/down'), *gq.DEFAULT_RULES)
    assert set(sampled_blocks(params, rules=settled)) == {'dense/kernel', 'experts/up'}
