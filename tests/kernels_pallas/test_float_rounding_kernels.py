"""Kernels of float rounding, interpreted: the bits of the reference and of NumPy, for all numbers and arrays."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy_float_formats as oracle
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gaussq_jax as gq
from experiments.devices import compiled_kernels, described_gpus
from kernels_pallas import implementations, rounding_on_bits
from kernels_pallas.float_rounding import round_to_representable
from kernels_pallas.rounding_on_bits import ROUNDINGS, Representable

MESH = jax.make_mesh((4, 2), ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
E3M2 = {'representable': Representable(mantissa_bits=2, min_exponent=-2, largest=28.0)}
FORMATS = [
    (4, 0, 'finite'),
    (3, 10, 'finite'),
    (4, 3, 'fn'),
    (5, 2, 'ieee'),
    (7, 3, 'finite'),  # ends beyond 2^64
    (8, 2, 'ieee'),  # beyond 2^100, and with float32 subnormals
]
# On both sides of where rounding to nearest goes by other, quicker arithmetic; codes of both parities at the end.
LIMITS = [
    (2, -123, 1.75 * 2.0**99),
    (2, -124, 1.5 * 2.0**-110),
    (1, -5, 2.0**100),
    (0, -3, 2.0**99),
]


@pytest.fixture(params=implementations.INTERPRETED)
def implementation(request):
    if reason := implementations.why_not(request.param):
        pytest.skip(reason)
    return request.param


def every_kind_of_number():
    """All of float16, float32 subnormals and overflow on both sides of what formats have, and NaNs that differ."""
    float16 = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    nans = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFC12345], np.uint32).view(np.float32)
    critical = [oracle.critical_float32(fmt) for fmt in ((5, 2, 'ieee'), (8, 2, 'ieee'))]
    powers = np.ldexp(np.float32(1), np.arange(-149, 128))
    around = np.concatenate([powers * np.float32(scale) for scale in (0.75, 1, 1.25, 1.5, 1.75)])
    return np.concatenate([float16, nans, *critical, around, np.nextafter(around, np.float32(0)), -around])


X = every_kind_of_number()
RANDOM_BITS = np.random.default_rng(0).integers(0, 2**32, X.size, dtype=np.uint32)
RANDOM_BITS[::7], RANDOM_BITS[1::7] = 0, 2**32 - 1


@functools.partial(jax.jit, static_argnames=('cases', 'implementation'))
def round_in_ways(x, random_bits, cases, implementation):
    """x in the ways of `cases`: representable, overflow, rounding."""
    names = ('representable', 'overflow', 'rounding')
    return [
        round_to_representable(
            x,
            random_bits if case[-1] == 'stochastic' else None,
            **dict(zip(names, case)),
            implementation=implementation,
        )
        for case in cases
    ]


def assert_equals_reference(cases, implementation):
    """To the bit, also those of NaN."""
    results = [round_in_ways(X, RANDOM_BITS, tuple(cases), name) for name in (implementation, 'xla')]
    for case, got, expected in zip(cases, *results):
        np.testing.assert_array_equal(*(np.asarray(x).view(np.uint32) for x in (got, expected)), err_msg=str(case))
    return results[0]


@pytest.mark.parametrize('triple', FORMATS, ids=str)
def test_bits_of_every_kind_of_number(implementation, triple):
    """In each rounding, and saturating or not; NumPy says what, stochastic rounding apart, which has its own tests."""
    fmt = gq.FloatFormat(*triple)
    overflow = {'finite': None, 'ieee': math.inf, 'fn': math.nan}[triple[2]]
    cases = [(fmt.representable, None, rounding) for rounding in ROUNDINGS]
    if overflow is not None:
        cases += [(fmt.representable, overflow, rounding) for rounding in ('nearest_even', 'toward_zero')]
    for (*_, beyond, rounding), result in zip(cases, assert_equals_reference(cases, implementation)):
        if rounding != 'stochastic':
            expected = oracle.cast(X, triple, rounding, saturate=beyond is None).astype(np.float32)
            if rounding == 'toward_zero' and beyond is not None:
                expected = np.where(np.isinf(X), np.copysign(np.float32(beyond), X), expected)
            oracle.assert_same_bits(result, expected)


def test_limits_of_the_quick_arithmetic(implementation):
    cases = [(Representable(*limits), overflow, 'nearest_even') for limits in LIMITS for overflow in (None, math.inf)]
    assert_equals_reference(cases, implementation)


@pytest.mark.parametrize('shape', [(), (0,), (1,), (31,), (1000,), (4096,), (4097,), (3, 5, 700)], ids=str)
def test_sizes(implementation, shape):
    """Whole tiles, parts of one, and sizes that no vector of values divides."""
    x = np.resize(X, shape)
    bits = np.resize(RANDOM_BITS, shape)
    for random_bits in (bits, bits.astype(np.uint16), None):
        options = {} if random_bits is None else {'random_bits': random_bits, 'rounding': 'stochastic'}
        function = functools.partial(round_to_representable, x, **options, **E3M2)
        got, expected = (function(implementation=name) for name in (implementation, None))
        oracle.assert_same_bits(got, expected)


@pytest.mark.parametrize('size', [1, 31, 4096, 4099])
def test_no_program_goes_beyond_the_end(implementation, size, monkeypatch):
    """A GPU would read and write there; interpreters move what lies beyond back inside."""
    module, interpret = implementations.load('kernels_pallas.float_rounding', implementation)
    slices, ds = [], pl.ds

    def noted(start, length):
        jax.debug.callback(lambda start: slices.append((int(start), int(start) + length)), start)
        return ds(start, length)

    monkeypatch.setattr(pl, 'ds', noted)
    options = dict(overflow=None, rounding='nearest_even', **interpret)
    module.round_to_representable(X[:size], **E3M2, **options).block_until_ready()
    jax.effects_barrier()
    size = max(size, 128) if implementation == 'mosaic_interpret' else size  # as many as it has threads
    assert min(start for start, _ in slices) == 0 and max(end for _, end in slices) == size


def test_sixteen_bits_are_the_middle_of_their_thirty_two():
    """r / 2^16 and half of 2^-16 more; representable numbers stay, whatever the bits."""
    short = RANDOM_BITS >> 16
    function = functools.partial(round_to_representable, X, **E3M2, rounding='stochastic')
    oracle.assert_same_bits(function(short.astype(np.uint16)), function(short << 16 | 2**15))
    values = np.float32(gq.parse_format('e3m2').values())
    for bits in (0, 2**16 - 1):
        bits = np.full(values.shape, bits, np.uint16)
        oracle.assert_same_bits(round_to_representable(values, bits, **E3M2, rounding='stochastic'), values)


def test_mapped(implementation):
    """Over any axis, of values alone or of random bits too, and twice."""
    x, bits = X[: 4 * 5 * 6].reshape(4, 5, 6), RANDOM_BITS[: 4 * 5 * 6].reshape(4, 5, 6)
    stochastic = functools.partial(round_to_representable, **E3M2, rounding='stochastic')
    alone = functools.partial(stochastic, implementation=implementation)
    oracle.assert_same_bits(jax.vmap(jax.vmap(alone), 2, 2)(x, bits), stochastic(x, bits))
    shared = np.broadcast_to(bits[:, 0], (5, 4, 6)).swapaxes(0, 1)
    oracle.assert_same_bits(jax.vmap(alone, (1, None), 1)(x, bits[:, 0]), stochastic(x, shared))


def test_public_function(implementation):
    """By any implementation `round_to_format` has one result, of x's dtype, and the gradient straight through."""
    x = X[:2000].astype(jnp.bfloat16)
    for options in ({'rounding': 'stochastic', 'key': jax.random.key(0)}, {'saturate': False}):
        round_ = functools.partial(gq.round_to_format, fmt='float8_e4m3fn', **options)
        by_kernel = functools.partial(round_, implementation=implementation)
        oracle.assert_same_bits(by_kernel(x), round_(x))
    tangent = np.arange(2000).astype(jnp.bfloat16)
    oracle.assert_same_bits(jax.vjp(by_kernel, x)[1](tangent)[0], tangent)
    oracle.assert_same_bits(jax.jvp(jax.jit(by_kernel), (x,), (tangent,))[1], tangent)


def test_a_cast_compiles_once():
    """Also one that overflows to NaN, which is unlike itself."""
    x = jnp.ones(123)
    gq.round_to_format(x, 'float8_e4m3fn', saturate=False)
    compiled = rounding_on_bits.round_to_representable._cache_size()
    gq.round_to_format(x, 'float8_e4m3fn', saturate=False)
    assert rounding_on_bits.round_to_representable._cache_size() == compiled


@pytest.mark.parametrize('name', ['cuda', 'triton', 'mosaic'])
def test_implementations_that_are_not_here(name):
    message = "'triton', 'mosaic', 'xla'" if name == 'cuda' else "can't run: it needs an NVIDIA GPU"
    with pytest.raises(ValueError, match=f"implementation='{name}'.*{message}"):
        gq.round_to_format(jnp.ones(3), 'e3m2', implementation=name)


# --- several devices ----------------------------------------------------------------------------------

SHARDINGS = [P('data', 'model'), P(('data', 'model')), P(None, None, 'data'), P()]


@pytest.mark.parametrize('spec', SHARDINGS, ids=str)
def test_shards_stay_where_they_are(spec):
    x, bits = (array[: 2**14].reshape(8, 16, 128) for array in (X, RANDOM_BITS))
    function = functools.partial(round_to_representable, **E3M2, rounding='stochastic')
    placed = jax.device_put((x, bits), NamedSharding(MESH, spec))
    compiled = jax.jit(functools.partial(function, implementation='triton_interpret')).lower(*placed).compile()
    assert not any(word in compiled.as_text() for word in ('all-', 'collective', 'permute', 'scatter'))
    rounded = compiled(*placed)
    assert rounded.sharding.is_equivalent_to(placed[0].sharding, 3)
    oracle.assert_same_bits(rounded, function(x, bits))


def test_random_bits_follow_x():
    """Also where they lie otherwise, and on a mesh whose axes are explicit."""
    x, bits = (array[: 2**14].reshape(128, 128) for array in (X, RANDOM_BITS))
    function = functools.partial(round_to_representable, **E3M2, rounding='stochastic')
    by_kernel = functools.partial(function, implementation='triton_interpret')
    place = lambda array, *spec: jax.device_put(array, NamedSharding(MESH, P(*spec)))
    oracle.assert_same_bits(jax.jit(by_kernel)(place(x, 'data', None), place(bits, 'model', 'data')), function(x, bits))

    mesh = jax.make_mesh((4, 2), ('data', 'model'), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    placed = jax.device_put(x, NamedSharding(mesh, P('data', 'model')))
    rounded = jax.jit(functools.partial(gq.round_to_format, fmt='e3m2', implementation='triton_interpret'))(placed)
    assert jax.typeof(rounded).sharding.spec == P('data', 'model')
    oracle.assert_same_bits(rounded, gq.round_to_format(x, 'e3m2'))


def test_inside_shard_map():
    """Random bits that don't vary over an axis over which x does. (Interpreted, vma can't be checked.)"""
    x, bits = X[: 2**14].reshape(128, 128), RANDOM_BITS[: 2**13].reshape(128, 64)
    function = functools.partial(round_to_representable, **E3M2, rounding='stochastic')
    by_kernel = functools.partial(function, implementation='triton_interpret')
    specs = {'mesh': MESH, 'in_specs': (P('data', 'model'), P('data')), 'out_specs': P('data', 'model')}
    rounded = jax.jit(jax.shard_map(by_kernel, **specs, check_vma=False))(x, bits)
    oracle.assert_same_bits(rounded, function(x, np.tile(bits, 2)))


def test_an_interpreter_for_one_device_refuses_others():
    if reason := implementations.why_not('mosaic_interpret'):
        pytest.skip(reason)
    placed = jax.device_put(X[: 2**14], NamedSharding(MESH, P('data')))
    with pytest.raises(jax.errors.JaxRuntimeError, match='several devices'):
        round_to_representable(placed, **E3M2, implementation='mosaic_interpret')


def test_more_values_than_an_index_counts_are_an_error():
    """The reference takes them."""
    x = jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)
    round_all = lambda name: jax.eval_shape(functools.partial(round_to_representable, **E3M2, implementation=name), x)
    assert round_all('xla').shape == round_all(None).shape == x.shape
    with pytest.raises(ValueError, match=r'a kernel rounds at most 2,147,483,647 values.*x has 2,147,483,648; leave'):
        round_all('triton_interpret')


# --- GPUs that are not here ---------------------------------------------------------------------------


def described_gpu():
    device = AbstractDevice(device_kind='NVIDIA H100', num_cores=None, platform='gpu')
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


WITH_BITS = [*((rounding, 'uint32') for rounding in ROUNDINGS), ('stochastic', 'uint16')]


@pytest.mark.parametrize(('rounding', 'bits_dtype'), WITH_BITS)
@pytest.mark.parametrize('name', [None, *implementations.KERNELS])
def test_lowers_for_cuda(name, rounding, bits_dtype):
    """Each kernel to a call of its own; by default there is none, so that XLA can fuse the cast."""
    shapes = [jax.ShapeDtypeStruct((33, 129), dtype) for dtype in ('float32', bits_dtype)]
    subnormal = {'representable': E3M2['representable']._replace(min_exponent=-126)}
    for options in (E3M2, E3M2 | {'overflow': math.nan}, subnormal):
        function = jax.jit(functools.partial(round_to_representable, **options, rounding=rounding, implementation=name))
        with described_gpu():
            traced = function.trace(*shapes[: 1 + (rounding == 'stochastic')])
            text = traced.lower(lowering_platforms=('cuda',)).as_text()
        assert text.count('custom_call @') == (name is not None)


@pytest.mark.optimized
@pytest.mark.parametrize(('rounding', 'bits_dtype'), [WITH_BITS[0], *WITH_BITS[-2:]])
@pytest.mark.parametrize('name', implementations.KERNELS)
def test_compiled_for_a_gpu_it_is_one_kernel_at_the_floor_of_memory(name, rounding, bits_dtype):
    """An H100 has time for some 68 instructions while it reads and writes 8 bytes, 34 of them of integers.

    With two bytes of random bits, for some 42 of integers.
    """
    shapes = [jax.ShapeDtypeStruct((1024, 1024), dtype) for dtype in ('float32', bits_dtype)]
    function = functools.partial(round_to_representable, **E3M2, rounding=rounding, implementation=name)
    try:
        [kernel], _ = compiled_kernels.compile_for_h100(function, *shapes[: 1 + (rounding == 'stochastic')])
    except described_gpus.CannotCompile as error:
        pytest.skip(str(error))
    assert kernel.spill_bytes == 0
    most = {'nearest_even': 12, 'stochastic': 34 if bits_dtype == 'uint32' else 36}[rounding]
    assert kernel.instructions_per(1024 * 1024) <= most
