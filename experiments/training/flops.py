"""How many floating-point operations matrix multiplications take: of a function, and of a training step."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

from experiments.devices import jax_internals

_UNCOUNTED = ('conv_general_dilated', 'ragged_dot_general', 'pallas_call')  # none of ours multiplies matrices in these


def matmul_flops(function: Callable, *args: Any) -> int:
    """Multiplications and additions of all matrix products that function(*args) asks for, from its jaxpr.

        2 batch m n k    for each dot_general (batch, m, k) x (batch, k, n)

    A scan's count as often as it runs, of a cond's branches those of the largest; under `shard_map`, those of all
    devices. What nothing uses doesn't count, nor do element-wise operations.

    Args:
      function: of arrays; jitted or not.
      *args: trees of arrays or of `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: for a product in a while loop of unknown length, and for operations that aren't counted here.

    Example:
      >>> matmul_flops(lambda x, w: x @ w, jnp.ones((4, 8)), jnp.ones((8, 16)))
      1024
    """
    return of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def of_jaxpr(jaxpr: jax.extend.core.Jaxpr) -> int:
    """`matmul_flops` of what has been traced."""
    return _count(jax_internals.without_unused(jaxpr))


def model_flops(experiment: Any) -> int:
    """Those of a training step's forward and backward pass over the global batch, as if nothing were computed twice.

        3 x (forward)    the backward pass multiplies twice for each product: for dX and for dW

    and with a teacher its forward pass.

    A Llama's forward pass takes 2 N + 4 layers heads head_dim length for each token, where N counts the weights of the
    linear layers and the head, and the second term is attention's, the masked half included: the convention of PaLM
    (arXiv 2204.02311, appendix B). This is what MFU, the model FLOPs utilization, is a fraction of.

    Args:
      experiment: a `training.Experiment`.
    """
    config, teacher = experiment.config, experiment.teacher
    tokens = jax.ShapeDtypeStruct((1, config.sequence_length), jnp.int32)

    def forward(model, params):
        model = model.clone(dot_general_cls=None)  # without Hadamard transforms
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        return matmul_flops(lambda params, tokens: model.apply({'params': params}, tokens), shapes, tokens)

    of_teacher = forward(teacher.model, teacher.abstract_weights) if teacher else 0
    return config.batch_size * (3 * forward(experiment.model, experiment.abstract_state.params) + of_teacher)


def _count(jaxpr) -> int:
    return sum(map(_count_equation, jaxpr.eqns))


def _count_equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    counts = [_count(inner) for inner in jax_internals.jaxprs_among(params)]
    if name == 'cond':
        return max(counts)
    if name == 'scan':
        return params['length'] * sum(counts)
    if name == 'shard_map':
        axes = params['newly_manual_axes']
        return math.prod(params['mesh'].shape[axis] for axis in axes) * sum(counts)
    if name in _UNCOUNTED and (name != 'pallas_call' or sum(counts)):
        raise ValueError(f'the FLOPs of {name} are not counted')
    if name == 'while' and sum(counts):
        raise ValueError('the FLOPs of a while loop are unknown, since its length is; a scan says its length')
    return sum(counts)
