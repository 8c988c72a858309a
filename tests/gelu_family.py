"""A third family of models, in one file: no norms but the last, one linear layer in its MLP's place, names of its own.

Its checkpoints, of a Hugging Face that never was, hold the matrices as they are.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from gaussq_jax.models import HuggingFaceFormat, HuggingFaceTensor, ModelFamily, layers
from gaussq_jax.models.huggingface_config import positive, size


class Gelu(nn.Module):
    """x + out(gelu(into(x))), num_layers times, between an embedding and a head."""

    vocab_size: int
    num_layers: int
    hidden_size: int
    wide_size: int
    norm_epsilon: float = 1e-5
    dtype: Any = 'float32'
    dot_general: Callable | None = None
    dot_general_cls: Callable | None = None
    layer_transform: layers.LayerTransform | None = None
    remat_policy: str | None = None
    scan_unroll: int = 1
    constrain: layers.Constrain = layers.unconstrained

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(self.vocab_size, self.hidden_size, dtype=self.dtype, name='tokens')
        x = self.constrain(layers.look_up(embed, tokens), layers.RESIDUAL)
        layer = GeluLayer(self.wide_size, self.dtype, layers.dot_general_cls(self), name='blocks')
        x = layers.scan_layers(
            layer,
            x,
            num_layers=self.num_layers,
            layer_transform=self.layer_transform,
            remat_policy=self.remat_policy,
            scan_unroll=self.scan_unroll,
        )
        x = layers.normalize(nn.RMSNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name='last_norm'), x)
        head = nn.Dense(self.vocab_size, use_bias=False, dot_general=layers.float32_dot_general, name='unembed')
        return self.constrain(head(x), layers.LOGITS)


class GeluLayer(nn.Module):
    wide_size: int
    dtype: Any
    dot_general_cls: Callable | None

    @nn.compact
    def __call__(self, x):
        linear = lambda size, name: nn.Dense(
            size, use_bias=False, dtype=self.dtype, dot_general_cls=self.dot_general_cls, name=name
        )
        return x + linear(x.shape[-1], 'back')(nn.gelu(linear(self.wide_size, 'into')(x)))


def build(config):
    return Gelu(
        vocab_size=size(config, 'vocab_size'),
        num_layers=size(config, 'depth'),
        hidden_size=size(config, 'width'),
        wide_size=size(config, 'wide'),
        norm_epsilon=positive(config, 'epsilon'),
    )


def describe(model):
    sizes = dict(vocab_size=model.vocab_size, depth=model.num_layers, width=model.hidden_size, wide=model.wide_size)
    return dict(model_type='gelu', architectures=['Gelu'], epsilon=model.norm_epsilon, **sizes)


GELU = ModelFamily(
    name='gelu',
    module=Gelu,
    axes=(
        ('tokens/embedding', ('vocab', 'hidden')),
        ('blocks/into/kernel', ('layer', 'hidden', 'mlp')),
        ('blocks/back/kernel', ('layer', 'mlp', 'hidden')),
        ('unembed/kernel', ('hidden', 'vocab')),
    ),
    parts={'up': 'into', 'down': 'back'},
    layers='blocks',
    head_size=lambda settings: None,
    huggingface=HuggingFaceFormat(
        prefix='gelu.',
        layers='b',
        tensors={
            'tokens/embedding': HuggingFaceTensor('tokens'),
            'blocks/into/kernel': HuggingFaceTensor('into', is_transposed=True),
            'blocks/back/kernel': HuggingFaceTensor('back'),
            'last_norm/scale': HuggingFaceTensor('norm'),
            'unembed/kernel': HuggingFaceTensor('lm_head.weight', is_transposed=True),
        },
        build=build,
        describe=describe,
        longest='longest',
    ),
)
