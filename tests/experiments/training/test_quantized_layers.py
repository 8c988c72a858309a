"""What is told of quantized linear layers before the first step, and what is refused there."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from small_experiments import make_experiment, small_config

from configs import gpt2
from experiments.training import quantized_layers
from gaussq_jax import recipes

LLAMA = ('attention/key', 'attention/out', 'attention/query', 'attention/value', 'mlp/down', 'mlp/gate', 'mlp/up')


def told(argument, num_layers=4, **changes):
    config = small_config(f'smoke,{argument}', model__num_layers=num_layers, **changes)
    return quantized_layers.describe(make_experiment(config))


def shares(argument, **changes):
    """Of the linear layers' FLOPs, and of all."""
    first, *_ = told(argument, **changes)
    return [float(word.removesuffix('%')) / 100 for word in first.split() if word.endswith('%')]


def model_flops_a_token(num_layers=4):
    """In units of 6: weights of the linear layers and of the head, and attention's two products."""
    hidden, mlp, vocabulary, length = 80, 144, 61, 24
    linear = num_layers * (4 * hidden**2 + 3 * hidden * mlp)
    return linear, linear + hidden * vocabulary + 2 * num_layers * hidden * length


def test_what_is_told_of_nvfp4():
    linear, all_ = model_flops_a_token()
    assert told('method=fqt,recipe=nvfp4') == [
        f"recipe nvfp4: 75.0% of linear layers' FLOPs, {0.75 * linear / all_:.1%} of all",
        '7 linear layers: 3 of 4 layers; full precision: layer 3',
        'P1      float4_e2m1fn by 16, nvfp4',
        'P2, P4  float4_e2m1fn by 16x16, nvfp4',
        'P3      float4_e2m1fn by 16, nvfp4, stochastic',
        'P5      float4_e2m1fn by 16, nvfp4, stochastic, Hadamard 16, fixed signs',
        'P6      float4_e2m1fn by 16, nvfp4, Hadamard 16, fixed signs',
    ]


@pytest.mark.parametrize(
    ('argument', 'share'),
    [
        ('method=fqt', 1.0),  # P2+P4+P6: an operand of each of the three GEMMs
        ('method=fqt,targets=P1+P2', 1 / 3),
        ('method=fqt,targets=P5', 1 / 3),
        ('method=fqt,targets=P1+P3', 2 / 3),
        ('method=qat', 2 / 3),
        ('method=gaussws,recipe=mxfp8', 1.0),
        ('method=gaussws,parts=down,recipe=mxfp8', 1.0),  # of which weights are sampled changes no activation
        ('method=qat,parts=down', 2 / 3 * 80 * 144 / (4 * 80**2 + 3 * 80 * 144)),
        ('method=fqt,full_precision=first=1+last=2', 1 / 4),
        ('method=fqt,full_precision=.*/(gate|up|down)', 4 * 80**2 / (4 * 80**2 + 3 * 80 * 144)),
    ],
)
def test_shares_of_the_flops(argument, share):
    """Hadamard transforms are none of the model's FLOPs."""
    linear, all_ = model_flops_a_token()
    np.testing.assert_allclose(shares(argument), [share, share * linear / all_], atol=6e-4)


@pytest.mark.parametrize(
    ('rules', 'lines'),
    [
        ('none', ['7 linear layers: all 4 layers']),
        ('first=2+last=1', ['7 linear layers: 1 of 4 layers; full precision: layers 0, 1, 3']),
        ('.*/down', ['6 linear layers: all 4 layers', 'layers/mlp/down: full precision']),
        (
            '.*/(up|down)@first=1; .*/out',
            [
                '4 linear layers: all 4 layers',
                'layers/attention/out: full precision',
                'layers/mlp/down, layers/mlp/up: 3 of 4 layers; full precision: layer 0',
            ],
        ),
        ('first=10%', ['7 linear layers: all 4 layers', 'full precision: first=10% of 4 layers is none']),
    ],
)
def test_which_layers(rules, lines):
    assert told(f'method=fqt,full_precision={rules}')[1:-1] == lines


def test_methods_without_a_recipe_have_nothing_to_tell():
    assert told('method=bf16') == told('method=gaussws') == []


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('method=fqt,full_precision=.*/gates', r"full_precision='.*/gates': .*/gates matches none .* layers/mlp/gate"),
        ('method=fqt,full_precision=lm_head', 'lm_head matches none of the linear layers that could be quantized'),
        ('method=qat,parts=up,full_precision=.*/down', 'down matches none .*, layers/mlp/gate, layers/mlp/up$'),
        ('method=fqt,full_precision=first=2+last=3', 'names the 2 first and the 3 last layers, of 4'),
        ('method=fqt,full_precision=.*', 'nothing would be quantized, .* method=bf16'),
        ('method=gaussws,recipe=mxfp8,full_precision=first=2+last=2', 'nothing would be quantized'),
        ('method=gaussws,parts=up,recipe=quartet2', 'the Hadamard transform of P3 .* layers/attention/key has 80;'),
        ('method=fqt,recipe=quartet2', "recipe='quartet2': the Hadamard transform of P3 .* 128 outputs, .* has 80;"),
        ('method=fqt,recipe=quartet', 'the Hadamard transform of P1 takes a multiple of 32 inputs, and .* has 80;'),
    ],
)
def test_what_cannot_be_is_refused(argument, message):
    with pytest.raises(ValueError, match=message) as error:
        told(argument)
    assert str(error.value).startswith('config.quantization.') and '\n' not in str(error.value)


def test_a_transform_of_tokens_takes_a_multiple_of_its_size():
    sizes = dict(model__hidden_size=128, model__mlp_size=128)
    with pytest.raises(ValueError, match=r'P5 takes a multiple of 128 tokens, not 96: config.sequence_length=24 times'):
        told('method=fqt,recipe=quartet2', **sizes, microbatches=2)
    assert told('method=fqt,recipe=quartet2', **sizes, sequence_length=16)


def test_what_fp8_units_take():
    """Without the flag, XLA multiplies in bfloat16, and says nothing of it."""
    simulated, hardware = (told(f'method=fqt,recipe=fp8_rowwise{more}') for more in ('', ',arithmetic=hardware'))
    (line,) = [' '.join(hardware[2:4])]
    assert [*hardware[:2], *hardware[4:]] == simulated
    assert line == ('multiplied in FP8: on the FP8 units of GPUs with   XLA_FLAGS=--xla_gpu_enable_triton_gemm=false')


def test_what_is_kept_altogether_is_not_transformed():
    (first, *_) = told('method=fqt,recipe=quartet,full_precision=.*/(gate|up|down)', model__hidden_size=64)
    assert first.startswith('recipe quartet')


class Spy(nn.Module):
    """Notes the path of each linear layer, and the shape of its kernel."""

    note: Callable

    @nn.compact
    def __call__(self, lhs, rhs, *arguments, **options):
        self.note('/'.join(self.path[:-1]), rhs.shape)
        return jax.lax.dot_general(lhs, rhs, *arguments, **options)


@pytest.mark.parametrize(
    'make', [lambda: small_config('smoke,method=fqt'), lambda: gpt2.get_config('smoke,method=fqt')]
)
def test_the_linear_layers_are_those_of_the_model(make):
    """By their paths, of which rules speak, and by their sizes."""
    experiment, seen = make_experiment(make()), {}
    model = experiment.model.clone(dot_general_cls=lambda: Spy(seen.__setitem__))
    params = experiment.abstract_state.params
    jax.eval_shape(lambda params: model.apply({'params': params}, jnp.zeros((1, 8), jnp.int32)), params)
    found = quantized_layers._find(experiment.config, recipes.MXFP8, experiment.transform, params)
    assert {of.path: (of.inputs, of.outputs) for of in found} == seen
    assert all(of.is_kept.shape == (2,) for of in found)
