"""What GPU kernels compile to, where there is no GPU: registers, spills, instructions a weight, launches.

XLA compiles for the H100 that `h100_target.textproto` describes, and writes down each kernel's PTX; NVIDIA's assembler
and disassembler, `ptxas` and `nvdisasm`, say the rest. The packages come with the extra `compile`.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import itertools
import math
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

from gaussq_jax.formats import parse_format
from gaussq_jax.param_rules import DEFAULT_RULES, MatrixRule
from gaussq_jax.param_transforms import gaussian_weight_sampling
from kernels_pallas.weight_sampling import BLOCK_SIZE, NOISES

TARGET = pathlib.Path(__file__).parent / 'h100_target.textproto'
DEVICE = 'NVIDIA H100'
ARCHITECTURE = 'sm_90a'
MOSAIC_SUFFIX = '_mosaic_gpu_kernel'  # that Mosaic gives to the names of its kernels
LAUNCHES_NOTHING = {
    *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'opt-barrier', 'after-all', 'add-dependency'),
    *('partition-id', 'replica-id'),
}

IMPLEMENTATIONS = ('triton', 'mosaic')  # modules of kernels_pallas.weight_sampling
DIRECTIONS = ('forward', 'backward')
FORMATS = (None, 'e3m2')


class CannotCompile(ImportError):
    """A package that compiling for a GPU takes isn't installed."""


@dataclasses.dataclass(frozen=True)
class CompiledKernel:
    """One GPU kernel.

    Attributes:
      name: its entry point.
      programs: how many programs (thread blocks) a launch has; None if the kernel isn't of Pallas.
      threads: of a program.
      registers: of a thread.
      spill_bytes: that a thread stores and loads for want of registers.
      shared_bytes: of a program, as far as the code says; what a launch asks for isn't in it.
      instructions: of the machine code, without padding.
      loops: how many of them each loop has. Where there is none, a thread runs an instruction once at most.
    """

    name: str
    programs: int | None
    threads: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: int
    loops: tuple[int, ...]

    def instructions_per(self, elements: int) -> float:
        """All threads' instructions, divided by the `elements` of a launch. ValueError if unknown."""
        if self.loops or self.programs is None:
            raise ValueError(f'{self.name}: loops={self.loops} and programs={self.programs} leave open how much runs')
        return self.instructions * self.threads * self.programs / elements


def compile_for_h100(function: Callable, *args: Any) -> list[CompiledKernel]:
    """The GPU kernels of jit(function)(*args), by name; XLA's own are among them.

    Args:
      function: of arrays.
      *args: trees of arrays or of `jax.ShapeDtypeStruct`.

    Raises:
      CannotCompile: where a package is missing.
      ValueError: if the assembler refuses the code.
      RuntimeError: if Mosaic, which compiles a kernel once a process, has done so before and left nothing to look at.

    Example:
      >>> [kernel] = compile_for_h100(jnp.negative, jax.ShapeDtypeStruct((4096, 4096), jnp.float32))
      >>> kernel.spill_bytes
      0
    """
    return _compile_and_inspect(function, args)[0]


def count_launches(function: Callable, *args: Any) -> int:
    """How many kernels, library calls and copies jit(function)(*args) starts on an H100.

    A loop's body counts as often as it runs, and of branches the longest. Arguments as of `compile_for_h100`.

    Raises:
      CannotCompile: where a package is missing.
      ValueError: if a loop's length is unknown.
    """
    return count_launches_in(_compile(function, args)[1])


def compile_report(
    shape: tuple[int, int, int] = (1, 4096, 4096),
    implementations: Sequence[str] = IMPLEMENTATIONS,
    **settings: str | None,
) -> dict[str, Any]:
    """Compiles the kernels of weight sampling for an H100, and says what `CompiledKernel` does, and how much a weight.

    Args:
      shape: (l, m, n) of the weights, m and n multiples of 32.
      implementations: of `IMPLEMENTATIONS`.
      **settings: those of a row, to compile only the kernels that have them.

    Returns:
      A dict for JSON: 'architecture', 'versions', 'shape' and 'rows'. A row has 'implementation', 'direction', 'dtype'
      (of the master weights; backward, of dW_hat), 'noise', 'format' (None: bfloat16), 'launches' (1, unless XLA adds
      some), what a `CompiledKernel` has, and 'instructions_per_weight'; or, if the kernel can't be compiled, 'error'.

    Raises:
      CannotCompile: where a package is missing.
    """
    find_h100()
    rows = []
    for implementation, direction, dtype, noise, fmt in itertools.product(
        implementations, DIRECTIONS, ('float32', 'bfloat16'), NOISES, FORMATS
    ):
        row = {'implementation': implementation, 'direction': direction, 'dtype': dtype, 'noise': noise, 'format': fmt}
        if (direction == 'backward' and fmt) or any(row[name] != value for name, value in settings.items()):
            continue
        try:
            rows.append(row | _measure(*_kernel(shape, **row), shape))
        except Exception as error:  # of whatever kind: of lowering, of XLA, of the assembler
            rows.append(row | {'error': f'{type(error).__name__}: {str(error).strip().splitlines()[0]}'})
    versions = {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib')}
    versions['ptxas'] = re.search(r'V[\d.]+', _run('ptxas', '--version').stdout)[0]
    return {'architecture': ARCHITECTURE, 'versions': versions, 'shape': list(shape), 'rows': rows}


def sampling_launches(layers: int, stacked: bool, implementation: str) -> dict[str, int]:
    """What sampling the weights of a Llama of 1B parameters' width starts on an H100: the kernels, and all around them.

    Returns:
      'leaves'; 'forward', the launches of W_hat of all of them; and 'with_gradients', those and dW and db.
    """
    matrix = lambda m, n: {'kernel': jax.ShapeDtypeStruct((layers, m, n) if stacked else (m, n), jnp.float32)}
    attention = {name: matrix(2048, 2048) for name in ('query', 'key', 'value', 'out')}
    mlp = {'gate': matrix(2048, 5632), 'up': matrix(2048, 5632), 'down': matrix(5632, 2048)}
    layer = {'attention': attention, 'mlp': mlp}
    params = {'layers': layer} if stacked else {f'layer_{i}': layer for i in range(layers)}
    with _described_h100():
        stack = MatrixRule('layers/.*', (0,), (1,), (2,), optional=True)
        transform = gaussian_weight_sampling(rules=(stack, *DEFAULT_RULES), implementation=implementation)
    state = jax.eval_shape(transform.init, params)
    key = jax.eval_shape(lambda: jax.random.key(0))
    d_samples = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)

    def with_gradients(key, params, state, d_samples):
        samples, pullback = jax.vjp(functools.partial(transform.apply, key), params, state)
        return samples, pullback(d_samples)

    return {
        'leaves': len(jax.tree.leaves(params)),
        'forward': count_launches(transform.apply, key, params, state),
        'with_gradients': count_launches(with_gradients, key, params, state, d_samples),
    }


def _kernel(shape, *, implementation, direction, dtype, noise, format):
    """The function that a row is about, and the shapes of its arguments."""
    module = importlib.import_module(f'kernels_pallas.weight_sampling.{implementation}')
    l, m, n = shape
    of_shape = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    places = of_shape('uint32', l, 5), of_shape('uint32', m // BLOCK_SIZE), of_shape('uint32', n)
    if direction == 'backward':
        return functools.partial(module.backward, noise=noise), (*places, of_shape(dtype, *shape))
    representable = parse_format(format).representable if format else None
    function = functools.partial(module.forward, noise=noise, dtype=jnp.bfloat16, representable=representable)
    scale = of_shape('float32', l, m // BLOCK_SIZE, n // BLOCK_SIZE)
    return function, (*places, of_shape(dtype, *shape), scale)


def _measure(function, args, shape):
    kernels, program = _compile_and_inspect(function, args)
    [kernel] = [kernel for kernel in kernels if kernel.programs is not None]
    l, m, n = shape
    per_weight = {'instructions_per_weight': None if kernel.loops else kernel.instructions_per(l * m * n)}
    return {'launches': count_launches_in(program), **dataclasses.asdict(kernel), **per_weight}


def _compile_and_inspect(function, args):
    """The kernels, and the text of the compiled program."""
    with tempfile.TemporaryDirectory() as folder:
        jaxpr, program = _compile(function, args, folder)
        modules = [path.read_text() for path in sorted(pathlib.Path(folder).rglob('*.ptx'))]
    kernels = [kernel for ptx in modules if '.entry' in ptx for kernel in assemble(ptx)]
    if 'mosaic_gpu' in program and not any(kernel.name.endswith(MOSAIC_SUFFIX) for kernel in kernels):
        raise RuntimeError('Mosaic has compiled this kernel in this process before: look at it in another')
    programs = dict(_programs(jaxpr))
    kernels = [dataclasses.replace(k, programs=programs.get(k.name.removesuffix(MOSAIC_SUFFIX))) for k in kernels]
    return sorted(kernels, key=lambda kernel: kernel.name), program


def _compile(function, args, dump_folder=None):
    """The jaxpr, and the text of the program compiled for an H100; each kernel's PTX goes to `dump_folder`."""
    sharding = SingleDeviceSharding(find_h100())
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), args)
    options = {'xla_dump_to': str(dump_folder), 'xla_dump_emitter_re': '^ptx$'} if dump_folder else {}
    dumps = _mosaic_dumps_to(dump_folder) if dump_folder else contextlib.nullcontext()
    with _described_h100(), dumps, warnings.catch_warnings():
        warnings.filterwarnings('ignore', category=DeprecationWarning)  # Triton is
        traced = jax.jit(function).trace(*args)
        return traced.jaxpr, traced.lower().compile(compiler_options=options).as_text()


def _described_h100():
    """In which the kernels for GPUs can be chosen and lowered."""
    device = AbstractDevice(device_kind=DEVICE, num_cores=None, platform='gpu')
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


@contextlib.contextmanager
def _mosaic_dumps_to(folder):
    """It writes the machine code down too, with `nvdisasm`, and complains if it finds none."""
    changes = {
        'MOSAIC_GPU_DUMP_TO': str(folder),
        'PATH': f'{find_tool("nvdisasm").parent}{os.pathsep}{os.environ["PATH"]}',
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _programs(jaxpr) -> Iterator[tuple[str, int]]:
    """The name of each Pallas kernel in a jaxpr, and how many programs it has."""
    is_jaxpr = lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
    for equation in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
        params = equation.params
        if 'grid_mapping' in params:
            yield params['name'], math.prod(params['grid_mapping'].grid)
        elif 'meshes' in params:
            yield params['name'], math.prod(params['meshes'][0].grid)
        for inner in filter(is_jaxpr, jax.tree.leaves(params, is_leaf=is_jaxpr)):
            yield from _programs(inner)


def assemble(ptx: str) -> list[CompiledKernel]:
    """The kernels of a PTX module, assembled for an H100; ValueError, in the assembler's words, if it can't be."""
    with tempfile.TemporaryDirectory() as folder:
        source, binary = pathlib.Path(folder, 'kernel.ptx'), pathlib.Path(folder, 'kernel.cubin')
        source.write_text(ptx)
        log = _run('ptxas', '-v', f'-arch={ARCHITECTURE}', source, '-o', binary).stderr
        listing = _run('nvdisasm', '-c', binary).stdout
    found = re.findall(r"entry function '(\w+)'(.*?Used \d+ registers[^\n]*)", log, re.S)
    return [_read_kernel(name, resources, ptx, listing) for name, resources in found]


def _read_kernel(name, resources, ptx, listing):
    number = lambda pattern: sum(int(n) for n in re.findall(pattern, resources))
    threads = re.search(rf'\.entry {name}\([^{{]*\.(?:reqntid|maxntid) (\d+), (\d+), (\d+)', ptx)
    instructions, loops = count_instructions(name, listing)
    return CompiledKernel(
        name=name,
        programs=None,
        threads=int(threads[1]) * int(threads[2]) * int(threads[3]),
        registers=number(r'Used (\d+) registers'),
        spill_bytes=number(r'(\d+) bytes spill'),
        shared_bytes=number(r'(\d+) bytes smem'),
        instructions=instructions,
        loops=loops,
    )


def count_instructions(name: str, listing: str) -> tuple[int, tuple[int, ...]]:
    """The instructions of a kernel in a listing of `nvdisasm -c`, and those of each of its loops."""
    code = re.search(rf'^\.text\.{name}:\n(.*?)(?=^//---|\Z)', listing, re.M | re.S)[1]
    labels, instructions = {}, []
    for line in code.splitlines():
        if label := re.match(r'\s*(\.L_x_\d+):', line):
            labels[label[1]] = len(instructions)
        elif (found := re.match(r'\s*/\*[\da-f]+\*/\s+(.*?)\s*;', line)) and found[1] != 'NOP':
            instructions.append(found[1])
    loops, padding = [], 0
    for i, instruction in enumerate(instructions):
        if not (target := re.search(r'\bBRA\b.*`\((\.L_x_\d+)\)', instruction)):
            continue
        start = labels.get(target[1], len(instructions))
        if start == i:
            padding += 1  # it branches to itself, behind the end
        elif start < i and 'EXIT' not in instructions[start:i]:  # else it returns from what was moved behind the end
            loops.append(i + 1 - start)
    return len(instructions) - padding, tuple(loops)


def count_launches_in(text: str) -> int:
    """`count_launches` of an optimised program's text."""
    computations, entry = {}, None
    for line in text.splitlines():
        if header := re.match(r'(ENTRY )?%?([\w.\-]+) .*\{$', line):
            name = header[2]
            computations[name] = []
            entry = name if header[1] else entry
        elif instruction := re.match(r'\s+(?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([a-z][a-z\d\-]*)\(', line):
            computations[name].append((instruction[1], line))

    called = lambda attribute, line: re.search(rf'\b{attribute}=%?([\w.\-]+)', line)[1]

    def launches(opcode, line):
        if opcode == 'while':
            length = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            if length is None:
                raise ValueError(f'the length of a loop is unknown: {line.strip()[:200]}')
            return int(length[1]) * total(called('body', line))
        if opcode == 'call':
            return total(called('to_apply', line))
        if opcode == 'conditional':
            branches = re.search(r'branch_computations=\{(.*?)\}', line)
            names = branches[1] if branches else ', '.join(re.findall(r'(?:true|false)_computation=([^,\s]+)', line))
            return max(total(name.lstrip('%')) for name in names.split(', '))
        return 0 if opcode in LAUNCHES_NOTHING or opcode.endswith(('-done', '-update')) else 1

    total = lambda name: sum(launches(*instruction) for instruction in computations[name])
    return total(entry)


@functools.cache
def find_h100() -> jax.Device:
    """A device to compile for; CannotCompile where a package is missing. To be found before JAX looks for devices."""
    find_tool('ptxas'), find_tool('nvdisasm')
    if not any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13)):
        raise _cannot_compile("JAX's CUDA plugin")
    os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')  # of a driver and libraries, which nothing here runs
    target = TARGET.read_text()
    try:
        return topologies.get_topology_desc(platform='cuda', target_config=target, topology='1x1x1').devices[0]
    except NotImplementedError:  # JAX has looked for devices before, found no driver, and put its plugin away
        raise CannotCompile('JAX has given up its CUDA plugin, for it found no GPU; set JAX_PLATFORMS=cpu') from None


@functools.cache
def find_tool(name: str) -> pathlib.Path:
    """One of NVIDIA's tools, from a package of theirs or else from the PATH."""
    nvidia = importlib.util.find_spec('nvidia')
    roots = nvidia.submodule_search_locations if nvidia else []
    found = [path for root in roots for path in sorted(pathlib.Path(root).glob(f'cu*/bin/{name}'))]  # cu13 comes first
    if not found and (path := shutil.which(name)):
        found = [pathlib.Path(path)]
    if not found:
        raise _cannot_compile(name)
    return found[0]


def _cannot_compile(missing):
    return CannotCompile(
        f'{missing} is missing: compiling for a GPU needs jax-cuda12-plugin=={jax.__version__} (or cuda13),'
        ' nvidia-cuda-nvcc and nvidia-cuda-nvdisasm; pip install -e .[compile]'
    )


def _run(tool, *arguments):
    command = [str(part) for part in (find_tool(tool), *arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f'{tool}: {done.stderr.strip()}')
    return done
