"""Kernels of weight sampling become GPU kernels: lowered for CUDA, which takes no GPU."""

import functools
import importlib
import itertools
import re
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec
from jax_modes import in_mode

import gaussq_jax as gq
from kernels_pallas import implementations
from kernels_pallas.arg_specs import matching
from kernels_pallas.rounding_on_bits import Representable
from kernels_pallas.weight_sampling import NOISES

KEY = jax.random.key(0)
DTYPES = ('float32', 'bfloat16')
E3M2 = Representable(mantissa_bits=2, min_exponent=-2, largest=28.0)
TARGETS = {'triton': '__gpu$xla.gpu.triton', 'mosaic': 'mosaic_gpu'}  # of the kernels' custom calls
STACKED, SINGLE, NARROW = 'llama2-1b/mlp/gate', 'llama-7b/mlp/down', 'capybara-tiny/mlp'


def h100s(sizes=(), names=()):
    """A mesh of them, of one if it has no axes."""
    h100 = AbstractDevice(device_kind='NVIDIA H100', num_cores=None, platform='gpu')
    return AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(names), abstract_device=h100)


def lower(function, *args, mesh=None):
    """The text of a program for CUDA. From JAX 0.11 on, Triton says that it is deprecated, if it is called directly."""
    with jax.sharding.use_abstract_mesh(mesh or h100s()), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*Triton', category=DeprecationWarning)
        return jax.jit(function).trace(*args).lower(lowering_platforms=('cuda',)).as_text()


def kernels_in(program, implementation='triton'):
    """The names of the kernels that a program calls, sorted, each as often as it stands in the program or is called."""
    functions, name = {}, None
    for line in program.splitlines():
        if definition := re.search(r'func\.func \w+ @([\w.]+)\(', line):
            name = definition[1]
            functions[name] = []
        elif f'custom_call @{TARGETS[implementation]}' in line:
            functions[name].append(('kernel', re.search(r'sample_weights_[a-z_]+[a-z]', line)[0]))
        elif call := re.search(r'\bcall @([\w.]+)\(', line):
            functions[name].append(('call', call[1]))

    def called(name):
        return [kernel for kind, x in functions[name] for kernel in ([x] if kind == 'kernel' else called(x))]

    return sorted(called('main'))


def arguments(shape, dtype):
    l, m, n = (1, *shape)[-3:]
    of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    places = of('uint32', l, 5), of('uint32', m // 32), of('uint32', n)
    return *places, of(dtype, l, m, n), of('float32', l, m // 32, n // 32)


FORWARD = [
    ('rounded_normal', 'float32', 'bfloat16', None, STACKED),
    ('rounded_normal', 'bfloat16', 'bfloat16', E3M2, STACKED),
    ('uniform', 'bfloat16', 'bfloat16', None, STACKED),
    ('uniform', 'float32', 'float32', E3M2, SINGLE),
    ('rounded_normal', 'float32', 'bfloat16', None, NARROW),
]
EVERY_FORWARD = itertools.product(NOISES, DTYPES, ['bfloat16'], [None, E3M2], [STACKED])
FORWARD += [pytest.param(*case, marks=pytest.mark.slow) for case in EVERY_FORWARD if case not in FORWARD]


@pytest.mark.parametrize('implementation', implementations.KERNELS)
@pytest.mark.parametrize(('noise', 'w_dtype', 'dtype', 'representable', 'spec'), FORWARD)
def test_forward(implementation, noise, w_dtype, dtype, representable, spec):
    module = importlib.import_module(f'kernels_pallas.weight_sampling.{implementation}')
    forward = functools.partial(module.forward, noise=noise, dtype=jnp.dtype(dtype), representable=representable)
    program = lower(forward, *arguments(matching(spec)[0].shape, w_dtype))
    assert kernels_in(program, implementation) == [f'sample_weights_{noise}']


@pytest.mark.parametrize('implementation', implementations.KERNELS)
@pytest.mark.parametrize(
    ('noise', 'dtype', 'spec'), [*itertools.product(NOISES, DTYPES, [STACKED]), ('uniform', 'float32', NARROW)]
)
def test_backward(implementation, noise, dtype, spec):
    module = importlib.import_module(f'kernels_pallas.weight_sampling.{implementation}')
    *arrays, _ = arguments(matching(spec)[0].shape, dtype)
    program = lower(functools.partial(module.backward, noise=noise), *arrays)
    assert kernels_in(program, implementation) == [f'sample_weights_{noise}_backward']


@pytest.mark.parametrize('implementation', implementations.KERNELS)
def test_with_64_bit_numbers_and_without_promotion(implementation):
    module = importlib.import_module(f'kernels_pallas.weight_sampling.{implementation}')
    arrays = arguments(matching(NARROW)[0].shape, 'float32')
    with in_mode('all'):
        options = dict(noise='rounded_normal', dtype=jnp.dtype('bfloat16'), representable=E3M2)
        program = lower(functools.partial(module.forward, **options), *arrays)
        backward = lower(functools.partial(module.backward, noise='rounded_normal'), *arrays[:-1])
    assert kernels_in(program, implementation) + kernels_in(backward, implementation) == ONE_EACH_WAY


# --- what users call ----------------------------------------------------------------------------------

ONE_EACH_WAY = ['sample_weights_rounded_normal', 'sample_weights_rounded_normal_backward']


def loss(w, bitwidths, key=KEY, origin=(0, 0, 0)):
    w_hat = gq.sample_weights(key, w, bitwidths, origin=origin, implementation='triton')
    return jnp.sum(w_hat.astype(jnp.float32) ** 2)


value_and_grad = jax.value_and_grad(loss, (0, 1))
W, BITWIDTHS = jax.ShapeDtypeStruct((3, 256, 128), jnp.float32), jax.ShapeDtypeStruct((3, 8, 4), jnp.float32)


def mapped(w, bitwidths):
    keys = jax.random.split(KEY, 3)
    return jax.vmap(value_and_grad)(w, bitwidths, keys)


def mapped_over_origins(w, bitwidths):
    return jax.vmap(lambda w, b, i: value_and_grad(w, b, KEY, (i, 0, 0)))(w, bitwidths, jnp.arange(3))


def scanned(w, bitwidths):
    """Layer by layer; the backward pass samples again."""

    def sum_over_layers(w, bitwidths):
        @jax.checkpoint
        def layer(total, inputs):
            w, b, i = inputs
            return total + loss(w, b, KEY, (i, 0, 0)), None

        return jax.lax.scan(layer, 0.0, (w, bitwidths, jnp.arange(3)))[0]

    return jax.value_and_grad(sum_over_layers, (0, 1))(w, bitwidths)


def ragged(w, bitwidths):
    return value_and_grad(w[:, :-1, :-31], bitwidths)


@pytest.mark.parametrize('function', [value_and_grad, mapped, mapped_over_origins, ragged])
def test_sampling_with_its_gradient_is_one_kernel_each_way(function):
    assert kernels_in(lower(function, W, BITWIDTHS)) == ONE_EACH_WAY


def test_sampling_alone_is_one_kernel():
    assert kernels_in(lower(loss, W, BITWIDTHS)) == ONE_EACH_WAY[:1]


def test_a_rematerialised_scan_has_one_kernel_more():
    """Forward in the loop; in that of the backward pass forward again, and backward."""
    program = lower(scanned, W, BITWIDTHS)
    assert kernels_in(program) == ONE_EACH_WAY[:1] * 2 + ONE_EACH_WAY[1:]


def test_inside_shard_map():
    """With its check of what varies over which axes: the key is the same everywhere, the origin is not."""
    mesh = h100s((8,), ('data',))
    layout = PartitionSpec(None, 'data')

    def local(w, bitwidths):
        row = jax.lax.axis_index('data') * w.shape[1]
        _, gradients = value_and_grad(w, bitwidths, KEY, (0, row, 0))
        return gradients

    run = jax.shard_map(local, mesh=mesh, in_specs=(layout,) * 2, out_specs=(layout,) * 2, check_vma=True)
    assert kernels_in(lower(run, W, BITWIDTHS, mesh=mesh)) == ONE_EACH_WAY


def test_which_kernel_runs_is_no_warning_to_the_user():
    """From JAX 0.11 on, Triton says at each lowering that it is deprecated; `implementation=None` picks it."""
    with jax.sharding.use_abstract_mesh(h100s()), warnings.catch_warnings(action='error'):
        sample = functools.partial(gq.sample_weights, KEY)
        program = jax.jit(sample).trace(W, BITWIDTHS).lower(lowering_platforms=('cuda',)).as_text()
    assert kernels_in(program) == ONE_EACH_WAY[:1]


def test_programs_that_run_together_have_neighbouring_columns():
    """The first axis of Pallas's grid is the fastest, that of columns; then rows, then matrices."""
    sample = functools.partial(gq.sample_weights, KEY, implementation='triton_interpret')
    program = str(jax.make_jaxpr(sample)(jnp.ones((5, 96, 256)), jnp.ones((5, 3, 8))))
    assert re.findall(r'grid=\((.*?)\)', program) == ['2, 3, 5']


@pytest.mark.parametrize('shape', [(65536, 32, 32), (1, 32 * 65536, 32)])
def test_more_than_a_launch_can_have_is_an_error(shape):
    """The reference takes them."""
    w = jax.ShapeDtypeStruct(shape, jnp.float32)
    bitwidths = jax.ShapeDtypeStruct((shape[0], shape[1] // 32, 1), jnp.float32)
    sample = lambda name: jax.eval_shape(functools.partial(gq.sample_weights, KEY, implementation=name), w, bitwidths)
    with jax.sharding.use_abstract_mesh(h100s()):
        assert sample('xla').shape == sample(None).shape == shape
    with pytest.raises(ValueError, match=r"a kernel samples at most 65,535 matrices of at most 2,097,120 rows .*'xla'"):
        sample('triton_interpret')


# --- that the checks above can fail -------------------------------------------------------------------


def test_what_triton_cannot_lower_is_an_error():
    def kernel(x_ref, y_ref):
        y_ref[...] = jnp.cumsum(jax.lax.reduce_precision(x_ref[...], 8, 7)[::-1])

    x = jax.ShapeDtypeStruct((1024,), jnp.float32)
    call = lambda kernel: pl.pallas_call(kernel, out_shape=x, compiler_params=plgpu.CompilerParams())
    with pytest.raises(NotImplementedError, match=r'(?i)unimplemented primitive'):
        lower(call(kernel), x)


def test_kernels_are_counted_as_often_as_they_are_called():
    def twice(w, bitwidths):
        return loss(w, bitwidths) + loss(2 * w, bitwidths)

    assert kernels_in(lower(twice, W, BITWIDTHS)) == ONE_EACH_WAY[:1] * 2


@pytest.mark.parametrize('implementation', ['xla', 'triton_interpret'])
def test_other_implementations_have_no_kernels(implementation):
    sample = functools.partial(gq.sample_weights, KEY, implementation=implementation)
    assert kernels_in(lower(sample, W, BITWIDTHS)) == []
