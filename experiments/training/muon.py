"""Muon: the momentum of a weight matrix, made nearly orthogonal; and another optimizer for all that is no matrix."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from gaussq_jax import models
from gaussq_jax.param_reading import matrix_rules
from gaussq_jax.param_rules import MatrixRule
from gaussq_jax.param_tree import map_leaves

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Newton-Schulz: a, b, c
ITERATIONS = 5
RMS = 0.2  # of updates, about that of Adam's


def scale_by_muon(others: optax.GradientTransformation, *, family: models.ModelFamily) -> optax.GradientTransformation:
    """Rescales the gradients of a model: of the linear layers' matrices by Muon, of all else by another optimizer.

        m = 0.95 m + 0.05 g                                      of each matrix, (rows, cols)
        X = 0.95 m / (1 - 0.95^(t + 1)) + 0.05 g / (1 - 0.95^t)   Nesterov's momentum
        X = X / |X|, five times X = a X + (b A + c A A) X         A = X X^T; |X| is Frobenius' norm
        update = 0.2 sqrt(max(rows, cols)) X

    X comes to have singular values of about 0.7 to 1.2. With the last factor, updates have the root mean square of
    Adam's, so that both parts share learning rate and weight decay. Which leaves are matrices, and which of their axes
    are rows and columns, the family's rules say; along other axes, such as the layers', each matrix is by itself. So
    it is however the leaf is sharded. Embeddings, head, norms and biases go to `others`.

    Args:
      others: of these, such as `optax.scale_by_adam()`.
      family: of the model.

    Returns:
      An optimizer of a tree {'params': weights, …}; a matrix has one moment, of its shape and dtype.

    Raises:
      ValueError: from `init`, for weights that the family's rules can't read.

    Example:
      >>> params = {'layers': {'mlp': {'up': {'kernel': jnp.ones((2, 8, 16))}}}, 'final_norm': {'scale': jnp.ones(8)}}
      >>> muon = scale_by_muon(optax.scale_by_adam(), family=models.find_family('llama'))
      >>> updates, _ = muon.update({'params': params}, muon.init({'params': params}))
      >>> jnp.linalg.norm(updates['params']['layers']['mlp']['up']['kernel'][0], 2) < 1.3 * 0.2 * 16**0.5
      Array(True, dtype=bool)

    Source: Jordan et al., Muon (github.com/KellerJordan/Muon); Liu et al., Muon is Scalable for LLM Training (arXiv
    2502.16982), section 2.2, for the factor and the shared settings; `optax.contrib.scale_by_muon` iterates.
    """

    def parts(tree):
        rules = {f'params/{path}': rule for path, rule in matrix_rules(tree['params'], family.rules).items()}
        labels = map_leaves(lambda path, _: 'muon' if path in rules else 'others', tree)
        axes = map_leaves(lambda path, _: _axes(rules[path]) if path in rules else optax.MaskedNode(), tree)
        return optax.partition({'muon': _of_matrices(axes), 'others': others}, labels)

    def init(params):
        return parts(params).init(params)

    def update(gradients, state, params=None):
        return parts(gradients).update(gradients, state, params)

    return optax.GradientTransformation(init, update)


def _axes(rule: MatrixRule) -> optax.contrib.MuonDimensionNumbers:
    return optax.contrib.MuonDimensionNumbers(rule.row_axes, rule.col_axes)


def _of_matrices(axes: Any) -> optax.GradientTransformation:
    """Of the matrices with these axes; its state has no coefficients, which are no moments to be rounded."""
    muon = optax.contrib.scale_by_muon(
        COEFFICIENTS, ITERATIONS, beta=MOMENTUM, nesterov=True, weight_dimension_numbers=axes
    )

    def factor(update, of_leaf):
        sizes = [math.prod(update.shape[axis] for axis in some) for some in of_leaf]
        return RMS * math.sqrt(max(sizes)) * update

    def init(params):
        return muon.init(params)._replace(ns_coeffs=())

    def update(gradients, state, params=None):
        updates, state = muon.update(gradients, state._replace(ns_coeffs=jnp.asarray(COEFFICIENTS)), params)
        return jax.tree.map(factor, updates, axes), state._replace(ns_coeffs=())

    return optax.GradientTransformation(init, update)
