"""Kernels of weight sampling as compiled for an H100: NumPy runs their code, and gets the bits of the reference.

Interpreted kernels don't show what the compiler makes of them: which thread does what, what an assembler may fuse, what
instructions do with NaN, infinity and denormal numbers. The packages that compile come with the extra `compile`.
"""

import dataclasses
import functools
import importlib
import itertools
import pathlib
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import numpy_float_formats
import numpy_ptx
import numpy_weight_sampling as oracle
import pytest
from numpy_ptx import Output, Refused

import gaussq_jax as gq
from experiments.devices import compiled_kernels, described_gpus
from kernels_pallas.implementations import KERNELS
from kernels_pallas.weight_sampling import NOISES, xla

pytestmark = pytest.mark.optimized

WORDS = np.array([0xDEADBEEF, 0x01234567], np.uint32)
ORIGIN = (7, 2**31 + 64, 2**31 + 96)
SMALLEST_NORMAL = 2.0**-126
FORMATS = None, 'e3m2'
SHAPES = {'odd': (4, 64, 96), 'wide': (3, 32, 256)}  # rows of three and of eight blocks: 24 blocks each

# implementation, noise, dtype of the weights, dtype of W_hat, format, shape; all others are slow
FORWARD = [
    ('triton', 'rounded_normal', 'float32', 'bfloat16', None, 'wide'),
    ('triton', 'uniform', 'bfloat16', 'float32', None, 'odd'),
    ('triton', 'rounded_normal', 'bfloat16', 'bfloat16', 'e3m2', 'odd'),
    ('mosaic', 'rounded_normal', 'float32', 'bfloat16', None, 'wide'),
    ('mosaic', 'uniform', 'bfloat16', 'float32', None, 'odd'),
    ('mosaic', 'uniform', 'float32', 'float32', None, 'wide'),
    ('mosaic', 'rounded_normal', 'bfloat16', 'bfloat16', 'e3m2', 'odd'),
    ('mosaic', 'uniform', 'float32', 'bfloat16', 'e3m2', 'wide'),
]
# implementation, noise, dtype of dW_hat, shape
BACKWARD = [
    ('triton', 'rounded_normal', 'bfloat16', 'wide'),
    ('triton', 'uniform', 'float32', 'odd'),
    ('mosaic', 'rounded_normal', 'bfloat16', 'wide'),
    ('mosaic', 'uniform', 'float32', 'odd'),
    ('mosaic', 'uniform', 'bfloat16', 'wide'),
]


def with_slow(cases, *values):
    """The given cases, and all others of the given values as slow ones."""
    others = [case for case in itertools.product(KERNELS, *values) if case not in cases]
    return cases + [pytest.param(*case, marks=pytest.mark.slow) for case in others]


DTYPES = 'float32', 'bfloat16'
ALL_FORWARD = with_slow(FORWARD, NOISES, DTYPES, DTYPES, FORMATS, SHAPES)
ALL_BACKWARD = with_slow(BACKWARD, NOISES, DTYPES, SHAPES)


@pytest.mark.parametrize('implementation, noise, w_dtype, dtype, fmt, shape', ALL_FORWARD)
def test_forward(implementation, noise, w_dtype, dtype, fmt, shape):
    w, bitwidths = weights(SHAPES[shape], w_dtype)
    scale = np.exp2(1.0 - bitwidths.astype(np.float64)).astype(np.float32)
    kernel = compiled(implementation, 'forward', noise, w_dtype, dtype, fmt, shape)
    w_hat, step = kernel.run(*place(w.shape), w, scale)

    rule = {'origin': ORIGIN, 'noise': noise}
    with np.errstate(all='ignore'):
        expected = oracle.sample_weights(WORDS, w, bitwidths, dtype='float32' if fmt else dtype, **rule)
        if fmt:
            expected = in_e3m2(expected, w) if dtype == 'float32' else oracle.to_bfloat16(in_e3m2(expected, w))
        expected_step = oracle.block_step(w, bitwidths, noise=noise)
        assert_same_bits(w_hat, expected.astype(w_hat.dtype))
        assert_same_bits(step, expected_step.astype(np.float32))

    options = dict(block_size=32, noise=noise, dtype=jnp.dtype(dtype), representable=representable(fmt))
    reference = xla.forward(tuple(WORDS), tuple(np.array(ORIGIN, np.uint32)), w, scale, **options)
    flushed = is_denormal(w) | is_denormal(expected)  # by XLA on a CPU
    assert np.mean(flushed) < 0.3
    assert_same_bits(np.where(flushed, 0, w_hat), np.where(flushed, 0, reference[0]))
    assert_same_bits(step, reference[1])


@pytest.mark.parametrize('implementation, noise, dtype, shape', ALL_BACKWARD)
def test_backward(implementation, noise, dtype, shape):
    dw_hat = cotangents(SHAPES[shape], dtype)
    kernel = compiled(implementation, 'backward', noise, dtype, None, None, shape)
    [sums] = kernel.run(*place(dw_hat.shape), dw_hat)
    reference = xla.backward(tuple(WORDS), tuple(np.array(ORIGIN, np.uint32)), dw_hat, block_size=32, noise=noise)
    assert_same_bits(sums[:, :, 1:], np.asarray(reference)[:, :, 1:])
    # The first block of each row is denormal: its sum is exact in any order, but for what the product with R loses.
    r = oracle.noise_values(WORDS, dw_hat.shape, ORIGIN, noise)
    terms = np.asarray(dw_hat[:, :, :32], np.float64) * r[:, :, :32]
    error = np.abs(sums[:, :, :1] - oracle.block_sum(terms, 32))
    assert np.all(error <= (0 if noise == 'rounded_normal' else 3 * 1024 * 2.0**-150))
    assert np.all(sums[:, :, 0] != 0)


# --- what a changed kernel shows as -------------------------------------------------------------------


def test_another_constant_gives_other_bits():
    """Of Philox, of the noise's probabilities: what the tests above would see."""
    kernel, arguments = kernel_and_arguments()
    w_hat, _ = kernel.run(*arguments)
    for constant, other in (('-766435501', '-766435499'), (str(10397 << 16), str(10497 << 16))):
        assert constant in kernel.ptx
        changed = dataclasses.replace(kernel, ptx=kernel.ptx.replace(constant, other))
        with pytest.raises(AssertionError, match='Mismatched elements'):
            assert_same_bits(changed.run(*arguments)[0], w_hat)


def test_a_kernel_that_goes_astray_is_refused():
    kernel, arguments = kernel_and_arguments()
    store = re.search(r'(st\.(?:global\.)?v2\.b32\s+\[%rd\d+)(\][^;]*;)', kernel.ptx)
    here, rest = store.groups()
    changes = {'': 'not written', f'{here}+4{rest}': 'not aligned', f'{here}+512{rest}': 'different values'}
    for changed, message in (changes | {f'{here}+4096000{rest}': 'writes'}).items():
        with pytest.raises(Refused, match=message):
            dataclasses.replace(kernel, ptx=kernel.ptx.replace(store[0], changed)).run(*arguments)


def kernel_and_arguments():
    w, bitwidths = weights(SHAPES['wide'], 'float32')
    kernel = compiled('mosaic', 'forward', 'rounded_normal', 'float32', 'bfloat16', None, 'wide')
    return kernel, (*place(w.shape), w, np.exp2(1 - bitwidths))


# --- the weights --------------------------------------------------------------------------------------


def weights(shape, dtype):
    """Weights of `shape` and the bitwidths of their blocks, each of which has a trait of its own."""
    generator = np.random.default_rng(0)
    normal = lambda: generator.normal(size=(32, 32))
    with_specials, with_zeros = normal(), normal()
    with_specials[3, :3], with_specials[31, 31] = (np.inf, -np.inf, np.nan), -np.inf
    with_zeros[generator.random((32, 32)) < 0.5] = -0.0
    traits = [
        (normal(), 10.5),
        (normal() * 2.0 ** generator.integers(-9, 9, (32, 1)), 2 + 37 / 1024),
        (0 * normal() ** 2, 4.0),
        (np.full((32, 32), -0.0), 4.0),
        (with_zeros, 3.0),
        (normal() * 1e-40, 4.0),
        (np.where(np.eye(32) > 0, 1.0, normal() * 1e-40), 4.0),
        (np.clip(np.rint(4 * normal()), -8, 8) * SMALLEST_NORMAL, 4.0),
        (np.clip(normal(), -1, 1) * 3e38, 8.0),
        (np.clip(normal(), -1, 1) * 3e38, 1.0),
        (with_specials, 5.0),
        (np.full((32, 32), np.nan), 5.0),
        (np.full((32, 32), -np.inf), 5.0),
        (normal(), np.nan),
        (with_specials, np.nan),
        (0 * normal() ** 2, np.nan),
        (np.where(np.arange(1024).reshape(32, 32) == 77, 2.0**-100, 0.0), 27.0),  # a step of 2^-126; below; of 2^-109
        (np.where(np.arange(1024).reshape(32, 32) == 1023, 2.0**-100, 0.0), 28.0),
        (np.where(np.arange(1024).reshape(32, 32) == 0, 2.0**-100, 0.0), 10.0),
        (normal(), -126.0),
    ]
    l, m, n = shape
    blocks = l, m // 32, n // 32
    turn = np.resize(np.arange(len(traits)), blocks)
    values, bitwidths = (np.array(column, np.float32) for column in zip(*traits))
    return np.asarray(jnp.asarray(values[turn].swapaxes(2, 3).reshape(shape), dtype)), bitwidths[turn]


def cotangents(shape, dtype):
    """Of all sizes, with zeros; overflow, and infinity and NaN, in a block each; denormal in all first blocks."""
    generator = np.random.default_rng(1)
    dw_hat = generator.normal(size=shape) * np.exp2(generator.integers(-20, 20, (*shape[:2], 1)))
    dw_hat *= generator.integers(0, 2, shape)
    dw_hat[0, :32, 32:64] = 3e38
    dw_hat[-1, -1, -3:] = np.inf, -np.inf, np.nan
    dw_hat[:, :, :32] = generator.normal(size=(*shape[:2], 32)) * 1e-40
    return np.asarray(jnp.asarray(dw_hat, dtype))


def in_e3m2(total, w):
    """s round(total / s) where w is finite, s = 2^max(floor(log2 max |w|) - 4, -127) by block, as in OCP's MX."""
    absmax = oracle.block_sum(np.where(np.isfinite(w), np.abs(np.asarray(w, np.float64)), 0.0), 32, np.max)
    exponent = oracle.per_weight(np.maximum(np.frexp(absmax)[1] - 5, -127), w.shape, 32)
    rounded = numpy_float_formats.cast(np.ldexp(total, -exponent), (3, 2, 'finite'), dtype=np.float64)
    return np.where(np.isfinite(w), np.ldexp(rounded, exponent), w)


def place(shape):
    """What says where the weights lie: ORIGIN, part of it in each argument."""
    l, m, n = shape
    leading, row, column = ORIGIN
    of_matrices = np.array([[*WORDS, leading + i, row // 32 - 2, column - 5] for i in range(l)], np.uint32)
    return of_matrices, np.arange(2, 2 + m // 32, dtype=np.uint32), np.arange(5, 5 + n, dtype=np.uint32)


def representable(fmt):
    return gq.parse_format(fmt).representable if fmt else None


def is_denormal(x):
    x = np.asarray(x, np.float64)
    return (np.abs(x) < SMALLEST_NORMAL) & (x != 0)


def assert_same_bits(got, expected):
    """Of floats of one dtype, 0 and -0 told apart, whatever kind of NaN."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    bits = lambda x: np.where(np.isnan(x), 1, x.view(f'uint{8 * x.itemsize}'))
    np.testing.assert_array_equal(bits(got), bits(expected))


# --- compiling and running ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A kernel: its code, how many programs it has along x, y and z, and which argument or result a parameter is."""

    ptx: str
    grid: tuple[int, int, int]
    parameters: tuple[int, ...]
    outputs: tuple[Output, ...]

    def run(self, *arguments):
        """Its results; they don't depend on what an assembler fuses."""
        buffers = [*arguments, *self.outputs]
        in_order = [buffers[i] for i in self.parameters]
        results = {}
        for contract in (False, True):
            filled = iter(numpy_ptx.run(self.ptx, self.grid, in_order, contract=contract))
            results[contract] = {i: next(filled) for i in self.parameters if i >= len(arguments)}
        for i, result in results[False].items():
            assert_same_bits(results[True][i], result)
        return [results[False][i] for i in sorted(results[False])]


@functools.cache  # Mosaic compiles a kernel once a process
def compiled(implementation, direction, noise, w_dtype, dtype, fmt, shape):
    try:
        described_gpus.devices()
    except described_gpus.CannotCompile as error:
        pytest.skip(str(error))
    module = importlib.import_module(f'kernels_pallas.weight_sampling.{implementation}')
    shape = SHAPES[shape]
    blocks = (shape[0], shape[1] // 32, shape[2] // 32)
    arguments = [*place(shape), jax.ShapeDtypeStruct(shape, w_dtype)]
    if direction == 'forward':
        arguments.append(jax.ShapeDtypeStruct(blocks, np.float32))
        options = dict(noise=noise, dtype=jnp.dtype(dtype), representable=representable(fmt))
        function = functools.partial(module.forward, **options)
        outputs = Output(shape, jnp.dtype(dtype)), Output(blocks, np.dtype(np.float32))
    else:
        function = functools.partial(module.backward, noise=noise)
        outputs = (Output(blocks, np.dtype(np.float32)),)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv('MOSAIC_GPU_DUMP_HOST_LLVM', '1')
        _, program = compiled_kernels.compile_to_text(function, arguments, folder)
        [ptx] = [text for path in pathlib.Path(folder).rglob('*.ptx') if '.entry' in (text := path.read_text())]
        launches = [text for path in pathlib.Path(folder).rglob('*.ll') if '@mosaic_gpu_' in (text := path.read_text())]
    buffers = buffers_of_call(program)
    if implementation == 'triton':
        grid = tuple(int(re.search(rf'grid_{axis} = (\d+)', program)[1]) for axis in 'xyz')
        return Compiled(ptx, grid, tuple(buffers), outputs)
    grid, order = read_launch(*launches)
    return Compiled(ptx, grid, tuple(buffers[i] for i in order), outputs)


def buffers_of_call(program):
    """Of the operands and results of the one kernel: which argument each is, or which result after these."""
    entry = program[program.index('\nENTRY ') :]
    found = re.findall(r'^\s+(ROOT )?%([\w.]+) = .*? ([a-z][a-z-]*)\(([^)]*)\)(.*)$', entry, re.M)
    lines = {
        name: (opcode, re.findall(r'%([\w.]+)', operands), operands + rest) for _, name, opcode, operands, rest in found
    }

    def behind(name):
        opcode, operands, _ = lines[name]
        return behind(operands[0]) if opcode == 'bitcast' else name

    [call] = [name for name, (opcode, *_) in lines.items() if opcode == 'custom-call']
    arguments = [lines[behind(operand)] for operand in lines[call][1]]
    assert all(opcode == 'parameter' for opcode, *_ in arguments)
    arguments = [int(line.split(',')[0]) for _, _, line in arguments]
    [root] = [name for is_root, name, *_ in found if is_root]
    results = lines[root][1] if lines[root][0] == 'tuple' else [root]
    results = [behind(result) for result in results]
    index = lambda name: 0 if name == call else int(re.search(r'index=(\d+)', lines[name][2])[1])
    assert all(name == call or lines[name][:2] == ('get-tuple-element', [call]) for name in results)
    of_results = sorted(range(len(results)), key=lambda i: index(results[i]))
    return arguments + [len(arguments) + i for i in of_results]


def read_launch(llvm):
    """How Mosaic's host code starts the kernel: the programs along x, y and z, and for each parameter its buffer."""
    pattern = r'define [^\n]*ptr (%\d+)\) \{\n((?:(?!\n\}).)*)@mosaic_gpu_\w+\(ptr %0' + r', i32 (\d+)' * 3
    buffers, code, *grid = re.search(pattern, llvm, re.S).groups()
    pairs = lambda pattern: re.findall(pattern, code)
    pointers = {buffers: 0} | {
        name: int(i) for name, i in pairs(rf'(%\d+) = getelementptr ptr, ptr {buffers}, i32 (\d+)')
    }
    loaded = {name: pointers[pointer] for name, pointer in pairs(r'(%\d+) = load ptr, ptr (%\d+)')}
    slots = {name: int(i) for name, i in pairs(r'(%\d+) = getelementptr \{[ptr, ]*\}, ptr %\d+, i32 0, i32 (\d+)')}
    of_slot = {slots[slot]: loaded[name] for name, slot in pairs(r'store ptr (%\d+), ptr (%\d+)') if slot in slots}
    return tuple(map(int, grid)), [of_slot[i] for i in range(len(slots))]
