"""The baseline: weights rounded to bfloat16."""

import jax.numpy as jnp
from ml_collections import ConfigDict

import gaussq_jax as gq
from experiments.methods.method import Method
from experiments.methods.settings import layer_rules


def make_transform(config: ConfigDict) -> gq.ParamTransform:
    """The cast of all weights to bfloat16."""
    return gq.cast_params(jnp.bfloat16, rules=layer_rules(config))


BF16 = Method(
    name='bf16',
    settings=(),
    make_transform=make_transform,
    describe=lambda config: 'weights rounded to bfloat16',
    weights=lambda config: None,
)
