"""What GPU kernels compile to, where there is no GPU: registers, spills, instructions a weight, launches.

XLA compiles for a described H100, and writes down each kernel's PTX; NVIDIA's assembler and disassembler, `ptxas` and
`nvdisasm`, say the rest.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
from jax.sharding import SingleDeviceSharding

from experiments.devices import described_gpus, hlo, jax_internals

MOSAIC_SUFFIX = '_mosaic_gpu_kernel'  # that Mosaic gives to the names of its kernels
LAUNCHES_NOTHING = {
    *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'opt-barrier', 'after-all', 'add-dependency'),
    *('partition-id', 'replica-id'),
}


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


def compile_for_h100(function: Callable, *args: Any) -> tuple[list[CompiledKernel], int]:
    """jit(function)(*args), and what its kernels take.

    Args:
      function: of arrays.
      *args: trees of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      The kernels by name, XLA's own among them; and how many kernels, library calls and copies it launches.

    Raises:
      CannotCompile: where a package is missing.
      ValueError: if the assembler refuses the code, or if a loop's length is unknown.
      RuntimeError: if Mosaic, which compiles a kernel once a process, has done so before and left nothing to look at.

    Example:
      >>> [kernel], launches = compile_for_h100(jnp.negative, jax.ShapeDtypeStruct((4096, 4096), jnp.float32))
      >>> kernel.spill_bytes
      0
    """
    with tempfile.TemporaryDirectory() as folder:
        jaxpr, text = compile_to_text(function, args, folder)
        modules = [path.read_text() for path in sorted(pathlib.Path(folder).rglob('*.ptx'))]
    kernels = [kernel for ptx in modules if '.entry' in ptx for kernel in assemble(ptx)]
    if 'mosaic_gpu' in text and not any(kernel.name.endswith(MOSAIC_SUFFIX) for kernel in kernels):
        raise RuntimeError('Mosaic has compiled this kernel in this process before: look at it in another')
    programs = dict(jax_internals.pallas_programs(jaxpr))
    kernels = [dataclasses.replace(k, programs=programs.get(k.name.removesuffix(MOSAIC_SUFFIX))) for k in kernels]
    return sorted(kernels, key=lambda kernel: kernel.name), count_launches(text)


def compile_to_text(
    function: Callable, args: Sequence[Any], dump_folder: str | None = None
) -> tuple[jax.extend.core.Jaxpr, str]:
    """The jaxpr, and the text of the program compiled for an H100; each kernel's PTX goes to `dump_folder`."""
    options = {'xla_dump_to': str(dump_folder), 'xla_dump_emitter_re': '^ptx$'} if dump_folder else {}
    with _mosaic_dumps_to(dump_folder) if dump_folder else contextlib.nullcontext():
        traced, compiled = compile_described(function, args, options=options)
    return traced.jaxpr.jaxpr, compiled.as_text()


def compile_described(
    function: Callable, args: Sequence[Any], *, gpu: str = 'h100', options: dict[str, Any] | None = None
) -> tuple[jax.stages.Traced, jax.stages.Compiled]:
    """jit(function)(*args), traced and compiled for one of `described_gpus.GPUS`, with options of XLA's compiler."""
    sharding = SingleDeviceSharding(described_gpus.devices(gpu=gpu)[0])
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), args)
    with described_gpus.tracing(gpu), warnings.catch_warnings():
        warnings.filterwarnings('ignore', category=DeprecationWarning)  # Triton is
        traced = jax.jit(function).trace(*args)
        return traced, traced.lower().compile(compiler_options=options)


@contextlib.contextmanager
def _mosaic_dumps_to(folder):
    """It writes the machine code down too, with `nvdisasm`, and complains if it finds none."""
    changes = {
        'MOSAIC_GPU_DUMP_TO': str(folder),
        'PATH': f'{described_gpus.find_tool("nvdisasm").parent}{os.pathsep}{os.environ["PATH"]}',
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def assemble(ptx: str) -> list[CompiledKernel]:
    """The kernels of a PTX module, assembled for an H100; ValueError, in the assembler's words, if it can't be."""
    with tempfile.TemporaryDirectory() as folder:
        source, binary = pathlib.Path(folder, 'kernel.ptx'), pathlib.Path(folder, 'kernel.cubin')
        source.write_text(ptx)
        log = run_tool('ptxas', '-v', f'-arch={described_gpus.ARCHITECTURE}', source, '-o', binary).stderr
        listing = run_tool('nvdisasm', '-c', binary).stdout
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


def count_launches(text: str) -> int:
    """How many kernels, library calls and copies an optimised program starts, from its text.

    A loop's body counts as often as it runs, and of branches the longest. ValueError if a loop's length is unknown.
    """
    module = hlo.Module(text)

    def launches(computation: hlo.Computation) -> int:
        return sum(launches_of(computation, instruction) for instruction in computation.instructions.values())

    def launches_of(computation: hlo.Computation, instruction: hlo.Instruction) -> int:
        match instruction.opcode:
            case 'while':
                return module.trip_count(computation, instruction) * launches(module.called(instruction, 'body'))
            case 'call':
                return launches(module.called(instruction, 'to_apply'))
            case 'conditional':
                return max(map(launches, module.branches(instruction)))
            case opcode if opcode in LAUNCHES_NOTHING or opcode.endswith(('-done', '-update')):
                return 0
        return 1

    return launches(module.entry)


def run_tool(name: str, *arguments: str | os.PathLike) -> subprocess.CompletedProcess:
    """What one of NVIDIA's tools prints; ValueError, in its words, if it fails."""
    command = [described_gpus.find_tool(name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f'{name}: {done.stderr.strip()}')
    return done
