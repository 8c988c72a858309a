"""What a config's method means: quantizers, targets and formats as named, and one error for what can't be."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from numpy_weight_sampling import assert_identical, random_weights
from parameter_trees import assert_identical_trees, nest

import gaussq_jax as gq
from configs import capybara, common, tiny
from experiments import methods
from experiments.methods import settings
from experiments.methods.quantization_schedule import when
from gaussq_jax import recipes
from gaussq_jax.models import RULES

KEY = jax.random.key(1)
TARGETS = ('P1', 'P2', 'P3', 'P4', 'P5', 'P6')


def get_config(argument, **changes):
    config = tiny.get_config(argument)
    for field, value in changes.items():
        config.quantization[field] = value
    return config


def make_transform(config):
    return methods.find(config.method).make_transform(config)


def describe(config):
    return methods.find(config.method).describe(config)


def make_params():
    paths = ('layers/attention/query/kernel', 'layers/attention/out/kernel', 'layers/mlp/up/kernel', 'lm_head/kernel')
    shapes = ((2, 40, 40), (2, 40, 40), (2, 40, 72), (40, 33))
    return nest({path: jnp.asarray(random_weights(shape, i)) for i, (path, shape) in enumerate(zip(paths, shapes))})


@pytest.mark.parametrize(
    ('argument', 'transform'),
    [
        ('method=bf16', gq.cast_params()),
        ('method=fqt,format=e2m1', gq.cast_params()),
        ('method=gaussws,b_init=7,b_target=3', gq.gaussian_weight_sampling(7.0, 3.0, rules=RULES)),
        (
            'method=gaussws,block_size=16,format=e3m4,b_init=6',
            gq.gaussian_weight_sampling(6.0, 3.0, rules=RULES, block_size=16, fmt='e3m4'),
        ),
        ('method=diffq,format=e2m1', gq.uniform_weight_sampling(8.0, 3.0, rules=RULES, fmt='e2m1')),
        ('method=qat', gq.quantization_aware(gq.Quantizer('e4m3'), rules=RULES)),
        (
            'method=qat,format=e3m2,block_size=channel,rounding=stochastic',
            gq.quantization_aware(gq.Quantizer('e3m2', block_size='channel', rounding='stochastic'), rules=RULES),
        ),
        (
            'method=qat,format=e2m1,block_size=8x16,scale=mx',
            gq.quantization_aware(gq.Quantizer('e2m1', block_size=(8, 16), scale='mx'), rules=RULES),
        ),
    ],
)
def test_the_transform_of_a_method(argument, transform):
    params = make_params()
    made = make_transform(get_config(argument))
    state = transform.init(params)
    assert_identical_trees(made.init(params), state)
    got, expected = (jax.jit(t.apply)(KEY, params, state) for t in (made, transform))
    assert_identical_trees(got, expected)


def test_qat_of_one_part_leaves_the_others_as_they_are():
    params = make_params()
    applied = make_transform(get_config('method=qat,format=e2m1,parts=up')).apply(KEY, params, {})
    for name in ('query', 'out'):
        kernel = params['layers']['attention'][name]['kernel']
        assert_identical(applied['layers']['attention'][name]['kernel'], kernel.astype(jnp.bfloat16))
    up = params['layers']['mlp']['up']['kernel']
    expected = gq.fake_quantize(up, gq.Quantizer('e2m1'), axis=1).astype(jnp.bfloat16)
    assert_identical(applied['layers']['mlp']['up']['kernel'], expected)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('targets', ['P2+P4+P6', 'P5', '+'.join(TARGETS)])
def test_the_matmul_of_fqt_quantizes_the_operands_that_are_named(targets, training):
    config = get_config(f'method=fqt,format=e3m2,block_size=tensor,targets={targets}')
    recipe = methods.make_dot_general_cls(config, training=training)().recipe
    assert recipe.operands == dict.fromkeys(targets.split('+'), gq.Quantizer('e3m2', block_size='tensor'))


def test_stochastic_rounding_is_for_training_steps():
    config = get_config('method=fqt,rounding=stochastic,targets=P5')
    rounding = lambda training: methods.make_dot_general_cls(config, training=training)().recipe.P5.rounding
    assert (rounding(True), rounding(False)) == ('stochastic', 'nearest_even')
    config = get_config('method=fqt,rounding=toward_zero,targets=P5')
    assert (rounding(True), rounding(False)) == ('toward_zero', 'toward_zero')


@pytest.mark.parametrize('method', ['gaussws', 'diffq', 'qat', 'bf16'])
def test_the_matmul_of_other_methods_quantizes_nothing(method):
    """In training steps, it has the order of dW that is quick on CPUs; outside, it is the usual one."""
    config = get_config(f'method={method}')
    config.dtype = 'bfloat16'
    assert methods.make_dot_general_cls(config, training=False) is None
    module = methods.make_dot_general_cls(config, training=True)()
    assert module.recipe is None
    assert module.weight_gradient_dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ('dtype', 'reduction', 'sums', 'expected'),
    [
        ('bfloat16', 'float32', True, 'float32'),
        ('bfloat16', 'bfloat16', True, 'bfloat16'),
        ('bfloat16', 'float32', False, 'bfloat16'),
        ('float32', 'float32', True, 'float32'),
        ('float32', 'float32', False, 'float32'),
    ],
)
def test_the_dtype_in_which_devices_sum_a_gradient(dtype, reduction, sums, expected):
    config = get_config('method=bf16')
    config.dtype, config.gradient_reduction = dtype, reduction
    module = methods.make_dot_general_cls(config, training=True, sums_gradients=sums)()
    assert module.weight_gradient_dtype == jnp.dtype(expected)


@pytest.mark.parametrize(
    ('text', 'block_size'), [('32', 32), ('1', 1), ('channel', 'channel'), ('tensor', 'tensor'), ('16x128', (16, 128))]
)
def test_parse_block_size(text, block_size):
    assert settings.parse_block_size(text) == block_size
    assert gq.Quantizer('e4m3', block_size=settings.parse_block_size(text)).block_size == block_size


@pytest.mark.parametrize('method', ['qat', 'fqt', 'gaussws'])
@pytest.mark.parametrize('text', ['', '0', '-1', '32.0', '32x', 'x32', '32x32x32', '32X32', 'row', '0x4'])
def test_a_block_size_that_cannot_be_is_named(method, text):
    config = get_config(f'method={method}', block_size=text)
    with pytest.raises(ValueError, match='block_size='):
        make_transform(config)
        methods.make_dot_general_cls(config, training=True)


@pytest.mark.parametrize('text', ['channel', 'tensor', '32x32'])
@pytest.mark.parametrize('method', ['gaussws', 'diffq'])
def test_weight_sampling_has_square_blocks_alone(method, text):
    with pytest.raises(ValueError, match=r'block_size=.*positive integer'):
        make_transform(get_config(f'method={method},block_size={text}'))


@pytest.mark.parametrize('targets', ['', 'P7', 'P0+P1', 'p2', 'P2,P4', 'P2+', 'P2+P2', 'P2 + P4', 'weights'])
def test_targets_that_are_no_operands_are_refused(targets):
    with pytest.raises(ValueError) as error:
        methods.make_dot_general_cls(get_config('method=fqt', targets=targets), training=True)
    assert f'config.quantization.targets={targets!r}: allowed are P1, P2, P3, P4, P5, P6' in str(error.value)


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('method=fqt,format=e9m1', "'e9m1'.*known are"),
        ('method=fqt,scale=nvfp4', "scale='nvfp4' with fmt e4m3 and block_size=32"),
        ('method=qat,format=fp8', "'fp8'.*known are"),
        ('method=gaussws,format=e2m1', "fmt=e2m1 can't hold the noise of b_init=8 bits.*e4m6"),
        ('method=diffq,format=float16', 'fmt=float16 has 10 mantissa bits.*bfloat16'),
    ],
)
def test_settings_that_a_method_cannot_have(argument, message):
    config = get_config(argument)
    with pytest.raises(ValueError, match=message):
        make_transform(config)
        methods.make_dot_general_cls(config, training=True)


@pytest.mark.parametrize('method', methods.METHODS)
def test_the_description_names_what_is_set(method):
    text = describe(get_config(f'method={method}', format='e5m7', block_size='64', b_init=7.5, targets='P3'))
    named = {'bf16': ['bfloat16'], 'qat': ['e5m7', '64'], 'fqt': ['e5m7', '64', 'P3']}.get(method, ['e5m7', '7.5'])
    assert [word for word in named if word not in text] == []


@pytest.mark.parametrize(
    ('argument', 'told'),
    [
        ('method=fqt,recipe=mxfp8,start_step=2', ', from step 3 on'),
        ('method=fqt,recipe=mxfp8,end_step=5', ', up to step 5'),
        ('method=gaussws,recipe=nvfp4,start_step=2,end_step=5', ', from step 3 on, the forward pass up to step 5'),
    ],
)
def test_it_is_told_when_a_method_quantizes(argument, told):
    assert describe(get_config(argument)).endswith(told)


def test_every_rounding_of_the_configs_is_one_that_quantizers_know():
    for rounding in common.ARGUMENTS['rounding']:
        assert gq.Quantizer('e4m3', rounding=rounding).rounding == rounding
    for scale in common.ARGUMENTS['scale']:
        gq.Quantizer('e2m1', block_size=16, scale=scale)


@pytest.mark.parametrize(
    ('method', 'changes', 'message'),
    [
        ('bf16', dict(format='e4m3'), "quantization.format='e4m3' would do nothing with method=bf16, which uses none"),
        (
            'gaussws',
            dict(targets='P1'),
            "targets='P1' would do nothing with method=gaussws, which uses b_init, b_target",
        ),
        ('gaussws', dict(scale='mx'), "scale='mx' would do nothing"),
        ('qat', dict(b_init=5.0), 'b_init=5.0 would do nothing with method=qat.*; leave it at 8.0'),
        ('fqt', dict(parts='out'), "parts='out' would do nothing with method=fqt"),
        ('bf16', dict(recipe='nvfp4'), "recipe='nvfp4' would do nothing with method=bf16"),
        ('bf16', dict(start_step=3), 'start_step=3 would do nothing with method=bf16'),
        ('qat', dict(end_step=3), 'end_step=3 would do nothing with method=qat'),
        (
            'fqt,recipe=nvfp4',
            dict(format='e4m3'),
            "format='e4m3' would do nothing with method=fqt and recipe='nvfp4', which uses recipe, full_precision, ",
        ),
        ('fqt,recipe=nvfp4', dict(targets='P1'), "targets='P1' would do nothing .*; leave it at 'P2\\+P4\\+P6'"),
        (
            'gaussws',
            dict(full_precision='first=1'),
            "full_precision='first=1' would do nothing with method=gaussws and recipe='', which uses .*recipe; leave",
        ),
        ('gaussws,recipe=weights', {}, "recipe='weights' would do nothing with method=gaussws, which samples the"),
    ],
)
def test_a_setting_that_the_method_would_ignore_is_refused(monkeypatch, method, changes, message):
    monkeypatch.setitem(recipes.RECIPES, 'weights', recipes.qat(gq.Quantizer('e2m1')).replace(name='weights'))
    with pytest.raises(ValueError, match=message):
        methods.check_settings(get_config(f'method={method}', **changes))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(start_step=-1), 'start_step=-1 must be at least 0 and less than config.total_steps=20'),
        (dict(start_step=20), 'start_step=20 must be at least 0 and less than config.total_steps=20'),
        (dict(end_step=20), 'end_step=20 must be at least 0 and less than config.total_steps=20'),
        (dict(start_step=5, end_step=5), 'end_step=5 must be after start_step=5; 0 is no end'),
        (dict(recipe='nvfp5'), "recipe='nvfp5': allowed are 'nvfp4', "),
        (dict(full_precision='first=1+first=2'), "'first=1\\+first=2' is no rule .* allowed are PATH, first=N"),
        (dict(full_precision='first=one'), "'first=one' is no rule"),
        (dict(full_precision='first=100%'), 'first=1.0 must be a number of layers, or a share of them, less than 1'),
        (dict(full_precision='.*/(down'), 'is no regular expression'),
    ],
)
def test_what_a_recipe_cannot_be_told(changes, message):
    with pytest.raises(ValueError, match=f'^config.quantization.*{message}'):
        methods.check_settings(get_config('smoke,method=fqt,recipe=mxfp8', **changes))


def test_settings_have_their_types():
    config = get_config('smoke,method=fqt').copy_and_resolve_references()
    config.quantization = {**config.quantization.to_dict(), 'start_step': '5'}
    with pytest.raises(ValueError, match=r"config.quantization.start_step='5' must be of the type int"):
        methods.check_settings(config)


def test_a_named_recipe_of_weights_alone_is_that_of_qat(monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, 'weights', recipes.qat(gq.Quantizer('e2m1')).replace(name='weights'))
    config, params = get_config('method=fqt,recipe=weights'), make_params()
    methods.check_settings(config)
    expected = make_transform(get_config('method=qat,format=e2m1')).apply(KEY, params, {})
    assert_identical_trees(make_transform(config).apply(KEY, params, {}), expected)
    assert not methods.quantizes_matmuls(config)


@pytest.mark.parametrize(
    ('start', 'end', 'expected'),
    [
        (0, 0, [True] * 5),
        (2, 0, [False, False, True, True, True]),
        (0, 3, [(True, True)] * 3 + [(False, True)] * 2),
        (1, 3, [(False, False), (True, True), (True, True), (False, True), (False, True)]),
    ],
)
def test_when_a_recipe_is_on(start, end, expected):
    """NVFP4 ends in the forward pass alone; what is known before a step is no array."""
    config = get_config(f'method=fqt,recipe=nvfp4,start_step={start},end_step={end}')
    assert [when(config, step) for step in range(5)] == expected
    config = get_config(f'method=fqt,recipe=mxfp8,start_step={start},end_step={end}')
    assert [when(config, step) for step in range(5)] == [of[0] if isinstance(of, tuple) else of for of in expected]


@pytest.mark.parametrize('make', [tiny.get_config, capybara.get_config])
def test_the_method_of_a_config_can_be_changed(make):
    """A sweep sets the field alone; with what another method used, `with_method` does it."""
    for first in methods.METHODS:
        for second in methods.METHODS:
            config = make(f'method={first}')
            config.method = second
            methods.check_settings(config)
            make_transform(config)
            methods.make_dot_general_cls(config, training=True)
    changed = methods.with_method(tiny.get_config('method=fqt,format=e2m1,targets=P5,block_size=64'), 'bf16')
    methods.check_settings(changed)
    assert (changed.method, changed.quantization.format, changed.quantization.targets) == ('bf16', '', 'P2+P4+P6')
    for argument, name in (
        ('method=gaussws,recipe=nvfp4,format=e3m4', 'fqt'),
        ('method=qat,full_precision=first=1,start_step=3', 'gaussws'),
        ('method=fqt,recipe=nvfp4,end_step=3', 'qat'),
    ):
        methods.check_settings(methods.with_method(tiny.get_config(argument), name))


@pytest.mark.parametrize(
    ('argument', 'span'),
    [
        ('method=bf16', False),
        ('method=qat,block_size=tensor', False),
        ('method=fqt,block_size=tensor,targets=P1+P2', True),
        ('method=fqt,block_size=2x16,targets=P1+P2', True),
        ('method=fqt,block_size=1x16,targets=P1+P2', False),
        ('method=fqt,block_size=channel,targets=P1+P2', False),
        ('method=fqt,format=e2m1,scale=nvfp4,block_size=16,targets=P1+P2', True),
        ('method=fqt,format=e2m1,scale=mx,block_size=32,targets=P1+P2', False),
        ('method=fqt,block_size=tensor,targets=P2+P3', False),
    ],
)
def test_scales_that_span_tokens(argument, span):
    """It is seen in the logits of a token, where another changes."""
    config = get_config(argument)
    assert methods.scales_span_tokens(config) == span
    assert not methods.scales_span_tokens(config, False) and not methods.scales_span_tokens(config, (False, True))
    dot_general_cls = methods.make_dot_general_cls(config, training=False)
    if dot_general_cls is None:
        return
    x, w = jax.random.normal(KEY, (1, 2, 32)), jax.random.normal(KEY, (32, 4))
    multiply = lambda x: nn.Dense(4, dot_general_cls=dot_general_cls, use_bias=False).apply(
        {'params': {'kernel': w}}, x
    )
    changed = multiply(x.at[0, 1].multiply(37.5))
    assert bool((multiply(x)[0, 0] != changed[0, 0]).any()) == span
