"""A new method, in one file: weights are clipped to root mean squares of their matrix, rounded to bfloat16."""

import functools

import jax
import jax.numpy as jnp

import gaussq_jax as gq
from experiments.methods.method import Method
from experiments.methods.settings import layer_rules


def make_transform(config):
    cast = gq.cast_params(jnp.bfloat16, rules=layer_rules(config))
    clip = functools.partial(clipped, config.quantization.sigmas)
    return cast._replace(apply=lambda key, params, state, **where: cast.apply(key, clip(params), state, **where))


def clipped(sigmas, params):
    """Straight through: the gradient is that of the clipped weight."""

    def clip(w):
        limit = sigmas * jnp.sqrt(jnp.mean(jnp.square(w), axis=(-2, -1), keepdims=True))
        return w + jax.lax.stop_gradient(jnp.clip(w, -limit, limit) - w)

    return jax.tree.map(lambda w: clip(w) if w.ndim == 3 else w, params)


CLIPPING = Method(
    name='clipping',
    settings=('parts',),
    make_transform=make_transform,
    describe=lambda config: f'weights clipped at {config.quantization.sigmas:g} root mean squares',
    weights=lambda config: None,
    own_settings={'sigmas': 1.5},
)
