"""What rules leave to the tree: names, conventions, places, what is kept, and how refusals are told."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from parameter_trees import nest

import gaussq_jax as gq
from gaussq_jax.param_reading import read_params

KEY = jax.random.key(2)


def tree_of(shapes):
    return nest({path: jnp.ones(shape) for path, shape in shapes.items()})


def actions(params, rules=gq.DEFAULT_RULES, **options):
    return {path: reading.action for path, reading in read_params(params, rules, **options).items()}


def why(params, path):
    return read_params(params, gq.DEFAULT_RULES)[path].why


# --- what leaves are for ---------------------------------------------------------------------------


BLOCKS = {f'block_{i}/{name}/kernel': shape for i in range(9) for name, shape in (('up', (8, 16)), ('down', (16, 8)))}


@pytest.mark.parametrize('last', ['fc', 'linear', 'Dense_0'])
def test_the_one_linear_layer_beside_blocks_is_a_head(last):
    params = tree_of({**BLOCKS, f'{last}/kernel': (8, 5), f'{last}/bias': (5,)})
    assert actions(params)[f'{last}/kernel'] == 'cast' and 'a head' in why(params, f'{last}/kernel')
    assert actions({'params': params})[f'params/{last}/kernel'] == 'cast'
    given = (gq.MatrixRule(f'{last}/kernel'), *gq.DEFAULT_RULES)
    assert actions(params, given)[f'{last}/kernel'] == 'sampled', 'what a rule says stands'


@pytest.mark.parametrize(
    'others',
    [
        {'Dense_0/kernel': (5, 8)},  # the first layer, whose outputs the blocks take
        {'Dense_0/kernel': (8, 5), 'Dense_1/kernel': (5, 5)},  # there is another after it
        {'Dense_0/kernel': (8, 5), 'head/kernel': (5, 3)},  # so a hidden one
        {'Dense_0/kernel': (7, 5)},  # it doesn't take what the blocks make
    ],
)
def test_other_linear_layers_at_the_root_are_no_heads(others):
    found = actions(tree_of({**BLOCKS, **others}))
    assert all(found[path] == 'sampled' for path in others if 'Dense' in path)


def test_a_large_layer_at_the_place_of_a_head_is_refused():
    """The latents of an autoencoder, most of its weights, for example."""
    params = tree_of({'encoder/conv/kernel': (3, 3, 3, 64), 'encoder/conv/bias': (64,), 'Dense_0/kernel': (64, 100)})
    assert actions(params)['Dense_0/kernel'] == 'unexplained' and '78%: a head?' in why(params, 'Dense_0/kernel')


@pytest.mark.parametrize(
    ('shapes', 'kept'),
    [
        ({'moe/gate/kernel': (8, 4), 'moe/up/kernel': (4, 8, 16), 'moe/up/bias': (4, 16)}, True),
        ({'mlp/gate/kernel': (8, 4), 'mlp/experts/up/kernel': (4, 8, 16), 'mlp/experts/up/bias': (4, 16)}, True),
        ({'moe/gate/kernel': (8, 16), 'moe/up/kernel': (8, 16), 'moe/down/kernel': (16, 8)}, False),
        ({'moe/shared_expert/gate/kernel': (8, 16), 'moe/shared_expert/up/kernel': (8, 16)}, False),
        ({'mlp/gate/kernel': (8, 16), 'mlp/down/kernel': (16, 8)}, False),
    ],
)
def test_a_gate_is_a_router_or_one_of_a_gated_mlp(shapes, kept):
    found = actions(tree_of(shapes))
    assert next(action for path, action in found.items() if '/gate/' in path) == ('kept' if kept else 'sampled')


@pytest.mark.parametrize(
    ('shapes', 'doubtful'),
    [
        ({'ln/scale': (3, 8), 'rms_norm/kernel': (3, 8), 'up/kernel': (3, 8, 16)}, 'rms_norm/kernel'),
        ({'sae/D': (64, 32), 'up/kernel': (8, 16)}, 'sae/D'),
        (
            {**{f'classifier/Dense_{i}/kernel': (8, 8) for i in range(3)}, 'up/kernel': (8, 16)},
            'classifier/Dense_0/kernel',
        ),
        ({'opt_state/mu/up/kernel': (8, 16), 'up/kernel': (8, 16)}, 'opt_state/mu/up/kernel'),
        ({'conv_1d/w': (4, 8), 'conv_1d/b': (8,), 'up/kernel': (8, 16)}, 'conv_1d/w'),
        ({'conv/kernel': (4, 8), 'conv/bias': (8,), 'up/kernel': (8, 16)}, 'conv/kernel'),
        ({'attn/q_b': (4, 8, 16), 'up/kernel': (8, 16)}, 'attn/q_b'),
        ({'q_einsum/kernel': (8, 16), 'up/kernel': (8, 16)}, 'q_einsum/kernel'),
        ({'upconv/kernel': (3, 3, 8, 8), 'upconv/bias': (8,), 'up/kernel': (8, 16)}, 'upconv/kernel'),
        ({'ConvLocal_0/kernel': (9, 9, 27, 16), 'up/kernel': (8, 16)}, 'ConvLocal_0/kernel'),
    ],
)
def test_what_a_name_does_not_tell_is_refused(shapes, doubtful):
    assert actions(tree_of(shapes))[doubtful] == 'unexplained'


def test_many_small_leaves_alike_are_not_small():
    """Raw weights of many layers, each less than a thousandth of all."""
    params = tree_of({f'layers_{i}/{name}': (8, 8) for i in range(2000) for name in ('wq', 'up/kernel')})
    assert actions(params)['layers_7/wq'] == 'unexplained' and '50.00% of the weights' in why(params, 'layers_7/wq')


def test_heads_of_cross_attention_without_norms_and_biases_are_refused():
    shapes = {'q/kernel': (96, 12, 8), 'k/kernel': (128, 2, 8), 'v/kernel': (128, 2, 8), 'out/kernel': (12, 8, 96)}
    assert set(actions(tree_of(shapes)).values()) == {'unexplained'}


@pytest.mark.parametrize(
    ('path', 'shape'),
    [
        ('router/kernel', (8, 4)),
        ('MoeBlock_0/gate/kernel', (8, 4)),
        ('mixer/A_log', (8, 4)),
        ('batch_stats/bn/mean', (8,)),
    ],
)
def test_what_is_kept_is_not_touched(path, shape):
    """Routers, decay rates and statistics lose more in bfloat16 than they save; the baseline keeps them too."""
    params = nest({path: jnp.full(shape, 1.001), 'up/kernel': jnp.ones((8, 16))})
    for transform in gq.gaussian_weight_sampling(), gq.quantization_aware(gq.Quantizer('e2m1')), gq.cast_params():
        weights = transform.apply(KEY, params, transform.init(params))
        (kept, kernel) = (read_params(weights, gq.DEFAULT_RULES)[name] for name in (path, 'up/kernel'))
        assert (kept.action, kept.dtype, kernel.dtype) == ('kept', jnp.float32, jnp.bfloat16)


def test_kept_leaves_keep_their_dtype_in_packed_files(tmp_path):
    params = {
        'up': {'kernel': jnp.ones((8, 16))},
        'router': {'kernel': jnp.full((8, 4), 1.001)},
        'norm': jnp.full(8, 1.001),
    }
    pqt = gq.gaussian_weight_sampling(block_size=4)
    state = pqt.init(params)
    size = pqt.save_packed(tmp_path / 'weights', params, state)
    weights = gq.load_packed(tmp_path / 'weights', like=params)
    assert weights['router']['kernel'].dtype == np.float32 and weights['norm'].dtype == jnp.bfloat16
    np.testing.assert_array_equal(weights['router']['kernel'], params['router']['kernel'])
    assert size.leaves['router/kernel'].payload_bytes == 4 * 32
    assert pqt.model_size(params, state).mean_bitwidth == 6
    assert pqt.model_size(params, state).payload_bytes == size.payload_bytes


def test_a_leaf_that_no_rule_names(caplog):
    params = tree_of({'up/kernel': (100, 100), 'moe/gate_proj': (4, 100, 100), 'small': (3, 3)})
    with pytest.raises(
        ValueError,
        match=r'1 of 3 leaves are unexplained, 80.0% of the weights.*\n.*moe/gate_proj.*no rule names it, 79.99%',
    ):
        gq.gaussian_weight_sampling().init(params)
    with caplog.at_level(logging.WARNING):
        assert set(gq.gaussian_weight_sampling(unnamed='cast').init(params)) == {'up/kernel'}
        assert not caplog.records
        assert set(gq.gaussian_weight_sampling(unnamed='warn').init(params)) == {'up/kernel'}
    assert 'moe/gate_proj' in caplog.text and 'small' not in caplog.text
    with pytest.raises(ValueError, match="unnamed='ignore'; allowed are error, warn, cast"):
        gq.gaussian_weight_sampling(unnamed='ignore')


def test_a_rule_that_is_optional_may_match_nothing():
    params = tree_of({'up/kernel': (8, 16)})
    for rule in (
        gq.CastOnly('other', optional=True),
        gq.MatrixRule('other', optional=True),
        gq.Keep('other', optional=True),
    ):
        assert set(gq.gaussian_weight_sampling(rules=(rule, *gq.DEFAULT_RULES)).init(params)) == {'up/kernel'}
    with pytest.raises(ValueError, match="Keep\\(path_regex='other'\\) matches no leaf"):
        gq.gaussian_weight_sampling(rules=(gq.Keep('other'), *gq.DEFAULT_RULES)).init(params)


# --- whose leaves they are -------------------------------------------------------------------------


class Tied(nnx.Module):
    """An embedding that is the head too, a normalization with statistics, dropout with a counter."""

    def __init__(self, rngs):
        self.embed = nnx.Linear(4, 8, rngs=rngs)
        self.head = self.embed
        self.up = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)


def test_an_nnx_module_is_refused_with_the_pattern_to_use():
    model, transform = Tied(nnx.Rngs(0)), gq.gaussian_weight_sampling(unnamed='cast')
    with pytest.raises(ValueError, match=r'graph, params, rest = nnx.split\(model, nnx.Param, ...\)'):
        transform.init(model)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    state = transform.init(params)
    assert set(state) == {'embed/kernel', 'up/kernel'}
    sampled = nnx.merge(graph, transform.apply(KEY, params, state), rest)
    assert sampled.embed is sampled.head and sampled.norm.mean.dtype == jnp.float32
    with pytest.raises(ValueError, match='Linear is an NNX module'):
        gq.cast_params().apply(None, {'a': {'b': model.up}}, {})


def test_of_an_nnx_state_only_params_are_touched():
    state = nnx.state(Tied(nnx.Rngs(0)))
    found = actions(state)
    assert {path for path, action in found.items() if action == 'kept'} == {
        *('norm/mean', 'norm/var', 'drop/rngs/count', 'drop/rngs/key')
    }
    applied = gq.cast_params().apply(None, state, {})
    assert applied['norm']['mean'].dtype == jnp.float32 and applied['norm']['scale'].dtype == jnp.bfloat16


def test_a_leaf_that_is_really_called_value_keeps_its_name(tmp_path):
    """Boxes and variables add a 'value' to JAX's paths; a name of the tree's own is not taken for that."""
    kernel = jnp.ones((8, 16))
    plain = {'value': {'kernel': kernel}, 'table': {'value': jnp.ones(3)}, 'value_2': kernel}
    rules = (gq.MatrixRule('value_2', (), (0,), (1,)), *gq.DEFAULT_RULES)
    transform = gq.gaussian_weight_sampling(rules=rules)
    assert list(actions(plain, rules)) == ['table/value', 'value/kernel', 'value_2']
    transform.save_packed(tmp_path / 'file', plain, transform.init(plain))
    assert gq.load_packed(tmp_path / 'file')['table']['value'].shape == (3,)
    boxed = {'value': nn.Partitioned(kernel, (None, None)), 'other': {'kernel': kernel}}
    state = nnx.State({'value': nnx.Param(kernel), 'other': {'kernel': nnx.Param(kernel)}})
    for tree in boxed, state:
        assert set(actions(tree, unnamed='cast')) == {'value', 'other/kernel'}


# --- how axes are read -----------------------------------------------------------------------------


def test_names_and_a_bias_that_disagree_are_told():
    named = lambda names, shape: nn.LogicallyPartitioned(jnp.ones(shape), names)
    params = {'up': {'kernel': named(('embed', 'mlp'), (8, 16)), 'bias': jnp.ones(8)}}
    with pytest.raises(ValueError, match=r'its axes are named embed, mlp, but its bias has the shape \(8,\)'):
        gq.gaussian_weight_sampling().init(params)


@pytest.mark.parametrize(
    'names',
    [('embed',), ('embed', None, 'mlp'), ('data', 'fsdp', 'tensor'), ('embed', 'layers', 'no_such_name')],
    ids=['too few', 'one without', 'of a mesh', 'unknown'],
)
def test_names_that_do_not_say_enough_say_nothing(names):
    params = {'up': {'kernel': nn.LogicallyPartitioned(jnp.ones((8, 3, 16)), names)}}
    assert actions(params) == {'up/kernel': 'unexplained'}


def test_a_kernel_that_is_transposed_casts_doubt_on_all_others():
    """Hugging Face's FlaxConv1D is (out, in): one with a bias shows it, a square one looks like any kernel."""
    shapes = {'fc/kernel': (32, 8), 'fc/bias': (32,), 'proj/kernel': (8, 8), 'proj/bias': (8,)}
    assert set(actions(tree_of(shapes)).values()) == {'unexplained', 'cast'}
    given = (gq.MatrixRule('fc/kernel', (), (1,), (0,)), *gq.DEFAULT_RULES)
    assert actions(tree_of(shapes), given)['proj/kernel'] == 'unexplained'
    stacked = {path: (3, *shape) for path, shape in shapes.items()}
    assert actions(tree_of(stacked))['proj/kernel'] == 'unexplained'
    square = {'dense/kernel': (8, 3, 8), 'dense/bias': (8, 3), 'norm/scale': (8, 3), 'up/kernel': (8, 3, 16)}
    assert set(actions(tree_of({**square, 'up/bias': (16, 3)})).values()) == {'sampled', 'cast'}, 'on axis 1'


def test_a_refusal_has_all_leaves_and_a_rule_for_each_reading():
    """Layers alike are told as one; each rule, pasted, is taken, and makes of the leaf what stands beside it."""
    shapes = {f'layers_{i}/attn/{name}': (8, 2, 4) for i in range(3) for name in ('q/w', 'o/w')}
    params = tree_of(shapes)
    with pytest.raises(ValueError) as error:
        gq.gaussian_weight_sampling().init(params)
    message = str(error.value)
    assert message.startswith('6 of 6 leaves are unexplained, 100.0% of the weights. Put rules for them before')
    assert message.count('layers_0/attn/q/w and 2 more, (8, 2, 4)') == 1
    rules = re.findall(r'(gq\.(?:MatrixRule|CastOnly)\(.*\))  # (.*)', message)
    assert len(rules) == 2 * 7
    for code, made in rules:
        rule = eval(code)
        others = (gq.CastOnly('.*/(q|o)/w'), gq.CastOnly('.*', optional=True))
        readings = read_params(params, (rule, *others))
        read = [reading for path, reading in readings.items() if re.fullmatch(rule.path_regex, path)]
        assert len(read) == 3
        if isinstance(rule, gq.MatrixRule):
            *batch, rows, cols = rule.matrix_shape((8, 2, 4))
            assert (
                made == f'{batch[0]} matrices of {rows} inputs -> {cols} outputs'
                if batch
                else f'{rows} inputs -> {cols} outputs'
            )


def test_axes_of_roles():
    rule = gq.MatrixRule('w', (1, 0), (2,), (3, 4), expert_axes=(0,), head_axes=(3,))
    assert rule.roles == ('expert', 'layer', 'in', 'head', 'out')
    assert (rule.layer_axes, rule.without_axis(1).roles) == ((1,), ('expert', 'in', 'head', 'out'))
    for options, message in [
        (dict(expert_axes=(1,)), 'must be the last of the batch axes'),
        (dict(expert_axes=(2,)), 'must be the last of the batch axes'),
        (dict(head_axes=(0,)), 'must be among the row and column axes'),
    ]:
        with pytest.raises(ValueError, match=message):
            gq.MatrixRule('w', (1, 0), (2,), (3, 4), **options)
    with pytest.raises(ValueError, match='batch_axes, row_axes and col_axes must name'):
        gq.MatrixRule('w', (0,))
    with pytest.raises(ValueError, match='need batch_axes, row_axes and col_axes beside them'):
        gq.MatrixRule('w', head_axes=(0,))
