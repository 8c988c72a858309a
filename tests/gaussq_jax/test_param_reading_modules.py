"""Trees of real modules: Equinox, haliax and Haiku say by their classes what the axes of weights are."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameter_trees import nest

import gaussq_jax as gq
from gaussq_jax.param_reading import read_params

KEY = jax.random.key(2)


def test_equinox():
    eqx = pytest.importorskip('equinox')
    keys = jax.random.split(KEY, 3)
    params = {
        'mlp': eqx.nn.MLP(8, 4, 16, 2, key=KEY),
        'attention': eqx.nn.MultiheadAttention(2, 8, key=KEY),
        'conv': eqx.nn.Conv2d(3, 8, 3, key=KEY),
        'depthwise': eqx.nn.Conv1d(8, 8, 3, groups=8, key=KEY),
        'tokens': eqx.nn.Embedding(50, 8, key=KEY),
        'norm': eqx.nn.LayerNorm((4, 8)),
        'stack': eqx.filter_vmap(lambda key: eqx.nn.Linear(8, 16, key=key))(keys),
        'cell': eqx.nn.GRUCell(8, 4, key=KEY),
    }
    readings = read_params(params, gq.DEFAULT_RULES)
    roles = {path: reading.matrices[0].roles for path, reading in readings.items() if reading.action == 'sampled'}
    linear = [f'mlp/layers/{i}/weight' for i in range(3)]
    linear += [f'attention/{name}_proj/weight' for name in ('query', 'key', 'value', 'output')]
    assert roles == {
        **dict.fromkeys(linear, ('out', 'in')),
        'cell/weight_ih': ('out', 'in'),
        'cell/weight_hh': ('out', 'in'),
        'conv/weight': ('out', 'in', 'in', 'in'),
        'stack/weight': ('layer', 'out', 'in'),
    }
    assert {readings[path].action for path in ('tokens/weight', 'norm/weight', 'depthwise/weight')} == {'cast'}
    pqt = gq.gaussian_weight_sampling(block_size=4)
    arrays, rest = eqx.partition(params, eqx.is_array)
    model = eqx.combine(jax.jit(pqt.apply)(KEY, arrays, pqt.init(arrays)), rest)
    assert model['mlp'](jnp.ones(8, jnp.bfloat16)).shape == (4,)


def test_scales_of_equinox_run_along_the_inputs():
    """A weight (out, in) is quantized as its transpose, (in, out), is: block by block of its inputs."""
    eqx = pytest.importorskip('equinox')
    linear = eqx.nn.Linear(64, 8, use_bias=False, key=KEY)
    qat = gq.quantization_aware(gq.Quantizer('e2m1', scale='mx'))
    kernel = qat.apply(None, {'up': {'kernel': linear.weight.T}}, {})['up']['kernel']
    np.testing.assert_array_equal(qat.apply(None, {'up': linear}, {})['up'].weight, kernel.T)
    assert gq.uniform_layout({'up': linear}, 'e2m1')['up/weight'].indices.shape == (2, 8)


class Axis(NamedTuple):
    name: str
    size: int


@jax.tree_util.register_pytree_node_class
class NamedArray:
    """As haliax has it."""

    def __init__(self, array, axes):
        self.array, self.axes = array, axes

    def tree_flatten(self):
        return (self.array,), self.axes

    @classmethod
    def tree_unflatten(cls, axes, children):
        return cls(*children, axes)


@functools.partial(jax.tree_util.register_dataclass, data_fields=['weight', 'bias'], meta_fields=['In', 'Out'])
@dataclasses.dataclass
class Linear:
    """As haliax has it: it knows which of its axes are inputs and outputs."""

    weight: NamedArray
    bias: NamedArray | None
    In: Axis | tuple[Axis, ...]
    Out: Axis | tuple[Axis, ...]


def test_haliax(monkeypatch):
    """Its classes are told by their names, since not all of its versions can be imported with every JAX."""
    for cls in NamedArray, Linear:
        monkeypatch.setattr(cls, '__module__', 'haliax.nn.linear')
    layers, d, heads, head_dim = (Axis(*of) for of in (('layers', 3), ('embed', 8), ('heads', 2), ('head_size', 4)))
    named = lambda *axes: NamedArray(jnp.ones([axis.size for axis in axes]), axes)
    params = {
        'q': Linear(named(layers, heads, head_dim, d), named(layers, heads, head_dim), In=d, Out=(heads, head_dim)),
        'o': Linear(named(layers, d, heads, head_dim), None, In=(heads, head_dim), Out=d),
        'experts': Linear(named(Axis('experts', 2), d, Axis('mlp', 8)), None, In=d, Out=Axis('mlp', 8)),
    }
    readings = read_params(params, gq.DEFAULT_RULES)
    roles = {path: reading.matrices[0].roles for path, reading in readings.items() if reading.action == 'sampled'}
    assert roles == {
        'q/weight': ('layer', 'head', 'out', 'in'),
        'o/weight': ('layer', 'out', 'head', 'in'),
        'experts/weight': ('expert', 'in', 'out'),
    }
    transform = gq.gaussian_weight_sampling().resolve(params)
    applied = transform.apply(None, params, transform.init(params))
    assert isinstance(applied['q'].weight, NamedArray) and applied['q'].weight.array.dtype == jnp.bfloat16


def test_haiku_nets():
    """Convolutions under names of their own, batch normalization over all axes."""
    hk = pytest.importorskip('haiku')
    for net, convolutions in (hk.nets.ResNet50, 53), (hk.nets.MobileNetV1, 14):
        init = hk.transform_with_state(lambda x, net=net: net(num_classes=10)(x, is_training=True)).init
        params, _ = jax.eval_shape(init, KEY, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
        readings = read_params(params, gq.DEFAULT_RULES)
        roles = [reading.matrices[0].roles for reading in readings.values() if reading.action == 'sampled']
        assert roles.count(('in', 'in', 'in', 'out')) == convolutions and 'layer' not in str(roles)
        assert not any(reading.action == 'unexplained' for reading in readings.values())


def test_haiku():
    hk = pytest.importorskip('haiku')

    def network(x):
        x = hk.Linear(16, with_bias=False)(hk.Embed(50, 16)(x))
        x = hk.experimental.layer_stack(3)(lambda x: x + hk.Linear(16)(hk.LayerNorm(-1, True, True)(x)))(x)
        w_init = hk.initializers.Constant(1)
        return hk.MultiHeadAttention(2, 8, w_init=w_init, model_size=16)(x, x, x)

    params = hk.transform(network).init(KEY, jnp.ones((2, 4), jnp.int32))
    readings = read_params(params, gq.DEFAULT_RULES)
    roles = {path: reading.matrices[0].roles for path, reading in readings.items() if reading.action == 'sampled'}
    attention = [f'multi_head_attention/{name}/w' for name in ('query', 'key', 'value', 'linear')]
    assert roles == {
        **dict.fromkeys(['linear/w', *attention], ('in', 'out')),
        '__layer_stack_no_per_layer/linear/w': ('layer', 'in', 'out'),
    }
    pqt = gq.gaussian_weight_sampling()
    state = pqt.init(params)
    applied = pqt.apply(KEY, params, nest(state))  # as a checkpoint that splits paths returns it
    jax.tree.map(np.testing.assert_array_equal, applied, pqt.apply(KEY, params, state))
