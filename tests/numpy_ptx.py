"""What GPU kernels compute, without a GPU: NumPy runs their PTX, by what NVIDIA's manual says of each instruction.

All threads of all programs go through the code together, each an entry of every array: there must be no branches. Of
the instructions are here those that kernels of this repository compile to, and minima and maxima of floats.

Source: NVIDIA, *Parallel Thread Execution ISA*, "Instruction Set".
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

import numpy as np

WARP = 32
CANONICAL_NAN = np.uint32(0x7FFFFFFF)
TYPES = {
    **{f'{kind}{bits}': np.dtype(f'uint{bits}') for kind in 'bu' for bits in (8, 16, 32, 64)},
    **{f's{bits}': np.dtype(f'int{bits}') for bits in (8, 16, 32, 64)},
    **{'f32': np.dtype(np.float32), 'pred': np.dtype(bool)},
}
SHARED_BYTES = 1 << 16  # of a program; the code doesn't say how many it asks for
NO_EFFECT = {  # of threads that go through the code together
    *('bar.sync', 'bar.warp.sync', 'griddepcontrol.wait', 'griddepcontrol.launch_dependents', 'ret'),
    'fence.mbarrier_init.release.cluster',
}


class Refused(Exception):
    """A kernel does what it must not, like reading what isn't there."""


@dataclasses.dataclass(frozen=True)
class Output:
    """A parameter of a kernel that it fills; an array is one that it reads."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


def run(ptx: str, grid: tuple[int, int, int], parameters: Sequence[np.ndarray | Output], *, contract: bool = False):
    """The outputs of a launch of the one kernel in `ptx`.

    Args:
      ptx: a module; its kernel's parameters are pointers, and lie as it says that they are aligned, and no better.
      grid: programs along x, y and z.
      parameters: of the kernel, in its order.
      contract: an assembler may make one rounding of a product and a sum that don't say `.rn`. Whether this one does.

    Raises:
      Refused: if an address is outside of all parameters or isn't aligned, if an input is written or an output is read
        or isn't filled, or if two threads write different values in one place.
      NotImplementedError: naming an instruction that isn't known.
    """
    header = re.search(r'\.entry (\w+)\((.*?)\)\s*(.*?)\{', ptx, re.S)
    threads = [int(n) for n in re.search(r'\.(?:reqntid|maxntid) (\d+), (\d+), (\d+)', header[3]).groups()]
    declared = re.findall(r'\.param \.u64 \.ptr (?:\.global )?\.align (\d+) (\w+)', header[2])
    if threads[1:] != [1, 1] or len(declared) != header[2].count('.param') or len(declared) != len(parameters):
        raise NotImplementedError(f'{threads} threads, parameters {header[2]}')
    memory = _Memory.of(parameters, [int(alignment) for alignment, _ in declared])
    program = _Programs(grid, threads[0], memory, dict(zip([name for _, name in declared], memory.starts)), contract)
    with np.errstate(all='ignore'):
        for instruction in instructions(ptx):
            program.execute(instruction)
    return [memory.read_output(i) for i, parameter in enumerate(parameters) if isinstance(parameter, Output)]


def instructions(ptx: str) -> list[str]:
    """Those of the one kernel of a module."""
    body = re.search(r'\.entry [^{]*\{\n(.*?)\n\}', ptx, re.S)[1]
    body = re.sub(r'//.*|^\s*\..*|^\s*\$\w+:', '', body, flags=re.M)  # comments, directives, labels
    return [' '.join(instruction.split()) for instruction in body.split(';') if instruction.strip()]


class _Memory:
    """The bytes of arrays, some of which may be read, others written, and the others neither."""

    def __init__(self, size: int):
        self.bytes = np.zeros(size, np.uint8)
        self.readable, self.writable, self.written = (np.zeros(size, bool) for _ in range(3))

    @classmethod
    def of(cls, parameters, alignments) -> '_Memory':
        starts, end = [], 0
        for parameter, alignment in zip(parameters, alignments):
            starts.append((-(-(end + 256) // (2 * alignment)) * 2 + 1) * alignment)  # an odd multiple of it
            end = starts[-1] + parameter.nbytes
        memory = cls(end + 256)
        memory.starts, memory.parameters = starts, parameters
        for start, parameter in zip(starts, parameters):
            here = slice(start, start + parameter.nbytes)
            if isinstance(parameter, Output):
                memory.writable[here] = True
            else:
                memory.readable[here] = True
                memory.bytes[here] = np.frombuffer(parameter.tobytes(), np.uint8)
        return memory

    def read_output(self, i: int) -> np.ndarray:
        here = slice(self.starts[i], self.starts[i] + self.parameters[i].nbytes)
        if missing := np.count_nonzero(~self.written[here]):
            raise Refused(f'{missing} bytes of output {i} are not written')
        return self.bytes[here].view(self.parameters[i].dtype).reshape(self.parameters[i].shape)

    def load(self, address: np.ndarray, dtype: np.dtype) -> np.ndarray:
        where = self._where(address, dtype, self.readable, 'reads')
        return self.bytes[where].view(dtype)[..., 0]

    def store(self, address: np.ndarray, values: np.ndarray, again: bool):
        where = self._where(address, values.dtype, self.writable, 'writes')
        values = np.ascontiguousarray(values)[..., None].view(np.uint8)
        different = self.written[where] & (self.bytes[where] != values)
        self.bytes[where], self.written[where] = values, True
        if (different.any() and not again) or (self.bytes[where] != values).any():
            raise Refused('two threads write different values in one place')

    def _where(self, address, dtype, allowed, verb):
        where = address.astype(np.int64)[..., None] + np.arange(dtype.itemsize)
        outside = (where < 0) | (where >= len(allowed))
        outside |= ~allowed[np.where(outside, 0, where)]
        if outside.any():
            raise Refused(f'{verb} {np.count_nonzero(outside)} bytes that it must not')
        return where


class _Programs:
    """The registers of all threads: by name an array of unsigned integers, or of booleans."""

    def __init__(self, grid, threads, memory, pointers, contract):
        x, y, z, thread = np.unravel_index(np.arange(int(np.prod(grid)) * threads), (*grid, threads))
        self.lane, self.first_lane = thread % WARP, np.arange(len(thread)) // WARP * WARP
        special = {'%tid.x': thread, '%ctaid.x': x, '%ctaid.y': y, '%ctaid.z': z, '%laneid': self.lane}
        self.registers = {name: value.astype(np.uint32) for name, value in special.items()}
        self.symbols, self.memory, self.contract = pointers | {'global_smem': 0}, memory, contract
        self.products = {}  # of registers, the factors
        self.shared = _Memory(int(np.prod(grid)) * SHARED_BYTES)
        self.shared.writable[:] = True
        self.shared.readable = self.shared.written
        self.first_shared = np.arange(len(thread)) // threads * SHARED_BYTES

    def execute(self, instruction: str):
        guard, opcode, operands = re.fullmatch(r'(?:@(!?%p\d+) )?([\w.:]+) ?(.*)', instruction).groups()
        operands = re.findall(r'\{.*?\}|\[.*?\]|[^\s,]+', operands)
        self.active = np.ones(len(self.lane), bool)
        if guard:
            self.active = self.value(guard.lstrip('!'), 'pred') ^ guard.startswith('!')
        if opcode in NO_EFFECT and not guard:
            return
        name, _, of_type = opcode.rpartition('.')
        for method in (self.move, self.access, self.between_threads, self.convert, self.compute):
            if method(name, of_type, operands):
                return
        raise NotImplementedError(f'the PTX instruction {instruction!r}')

    def value(self, operand: str, of_type: str) -> np.ndarray:
        """An operand, of a type that has its register's size."""
        dtype = TYPES[of_type]
        if operand.startswith('%'):
            value = self.registers[operand]
        else:
            number = self.symbols[operand] if operand in self.symbols else _number(operand)
            value = np.full(len(self.lane), number % 2 ** (8 * dtype.itemsize), f'uint{8 * dtype.itemsize}')
        if value.dtype.itemsize != dtype.itemsize:
            raise Refused(f'{operand} is not of type {of_type}')
        return value.view(dtype)

    def set(self, register: str, value: np.ndarray):
        if value.dtype == np.float32:
            value = np.where(np.isnan(value), CANONICAL_NAN, value.view(np.uint32))
        self.set_bits(register, value)

    def set_bits(self, register: str, value: np.ndarray):
        value = value if value.dtype == bool else value.view(f'uint{8 * value.dtype.itemsize}')
        self.products.pop(register, None)
        if register != '_':
            old = self.registers.get(register, np.zeros_like(value))
            self.registers[register] = np.where(self.active, value, old)

    def move(self, name: str, of_type: str, operands: list[str]) -> bool:
        """Between registers, packed and unpacked ones among them, and from what is the same for all threads."""
        if name in ('ld.param', 'ld.param::entry'):
            self.set_bits(operands[0], self.value(operands[1].strip('[]'), of_type))
        elif name == 'mov' and operands[0].startswith('{'):
            parts = _names(operands[0])
            whole = np.ascontiguousarray(self.value(operands[1], of_type))[:, None]
            for part, value in zip(parts, whole.view(f'uint{8 * whole.itemsize // len(parts)}').T):
                self.set_bits(part, value)
        elif name == 'mov' and operands[1].startswith('{'):
            parts = _names(operands[1])
            whole = np.stack([self.value(part, f'b{8 * TYPES[of_type].itemsize // len(parts)}') for part in parts], 1)
            self.set_bits(operands[0], whole.view(TYPES[of_type])[:, 0])
        elif name in ('mov', 'cvta.to.global'):
            self.set_bits(operands[0], self.value(operands[1], of_type))
        elif name == 'selp':
            a, b = (self.value(operand, of_type) for operand in operands[1:3])
            self.set_bits(operands[0], np.where(self.value(operands[3], 'pred'), a, b))
        else:
            return False
        return True

    def access(self, name: str, of_type: str, operands: list[str]) -> bool:
        """Memory: the arrays, and what the threads of a program share."""
        found = re.fullmatch(r'(ld|st|stmatrix\.sync\.aligned\.m8n8)(\.global|\.shared)?(\.[vx]\d)?(\.shared)?', name)
        here, registers = (operands[::-1] if name.startswith('ld') else operands) if found else ('', '')
        registers = _names(registers)
        if not found or len(registers) != int((found[3] or '.v1')[2:]):
            return False
        shared = '.shared' in found.groups()
        memory = self.shared if shared else self.memory
        base, offset = re.fullmatch(r'\[ ?([%\w]+) ?(?:\+ ?(-?\d+) ?)?\]', here).groups()
        address = self.value(base, 'b64').astype(np.int64) + int(offset or 0)
        if found[1].startswith('stmatrix'):  # eight lanes have the addresses of a matrix's rows, four the words of each
            starts = [address[self.first_lane + 8 * i + self.lane // 4] for i in range(len(registers))]
            addresses, of_type, width = [start + 4 * (self.lane % 4) for start in starts], 'b32', 16
        else:
            size = TYPES[of_type].itemsize
            starts, addresses = [address], [address + size * i for i in range(len(registers))]
            width = size * len(registers)
        if any((start[self.active] % width).any() for start in starts):
            raise Refused(f'{name} at addresses that are not aligned to {width} bytes')
        for register, address in zip(registers, addresses):
            address = (address + self.first_shared * shared)[self.active]
            if name.startswith('ld'):
                loaded = np.zeros(len(self.lane), TYPES[of_type])
                loaded[self.active] = memory.load(address, TYPES[of_type])
                self.set_bits(register, loaded)
            else:
                memory.store(address, self.value(register, of_type)[self.active], again=shared)
        return True

    def between_threads(self, name: str, of_type: str, operands: list[str]) -> bool:
        """The lanes of a warp, all of which take part."""
        if not self.active.all():
            return False
        if name == 'elect':  # a lane; which one, is open
            register, predicate = operands[0].split('|')
            self.set_bits(register, np.zeros(len(self.lane), np.uint32))
            self.set_bits(predicate, self.lane == 0)
        elif name in ('shfl.sync.bfly', 'shfl.sync.idx') and operands[3:] == ['31', '-1']:  # among all lanes
            by = self.value(operands[2], 'u32').astype(int)
            other = self.lane ^ by if name == 'shfl.sync.bfly' else by
            if (other >= WARP).any():
                raise Refused(f'{name} with lanes {other}')
            self.set_bits(operands[0], self.value(operands[1], of_type)[self.first_lane + other])
        elif name in ('redux.sync.max', 'redux.sync.min') and (self.value(operands[2], 'b32') == 2**WARP - 1).all():
            values = self.value(operands[1], of_type).reshape(-1, WARP)
            self.set_bits(operands[0], (values.max(1) if name.endswith('max') else values.min(1)).repeat(WARP))
        else:
            return False
        return True

    def convert(self, name: str, of_type: str, operands: list[str]) -> bool:
        of = lambda i: self.value(operands[i], of_type)
        if name == 'cvt.rn.bf16' and of_type == 'f32':
            self.set_bits(operands[0], _bfloat16(of(1)))
        elif name == 'cvt.rn.bf16x2' and of_type == 'f32':  # the first operand is the upper half
            self.set_bits(operands[0], _bfloat16(of(1)).astype(np.uint32) << np.uint32(16) | _bfloat16(of(2)))
        elif name == 'cvt.f32' and of_type == 'bf16':
            self.set(operands[0], (self.value(operands[1], 'b16').astype(np.uint32) << np.uint32(16)).view(np.float32))
        elif name == 'cvt.rn.f32' and of_type[0] in 'us':
            self.set(operands[0], of(1).astype(np.float32))
        elif (found := re.fullmatch(r'cvt\.([us]\d+)', name)) and of_type[0] in 'us':
            self.set_bits(operands[0], of(1).astype(TYPES[found[1]]))
        else:
            return False
        return True

    def compute(self, name: str, of_type: str, operands: list[str]) -> bool:
        if of_type not in TYPES:
            return False
        result, *operands = operands
        types = [of_type, 'u32'] if name in ('shl', 'shr') else [of_type] * len(operands)
        values = [self.value(operand, its_type) for operand, its_type in zip(operands, types)]
        kind = values[0].dtype.kind
        if kind == 'f' and name in FLOAT:
            fused = self.fuse(name, operands, values) if self.contract else None
            self.set(result, FLOAT[name](*values) if fused is None else fused)
            if name == 'mul':
                self.products[result] = values
        elif name in BITWISE or (kind in 'iu' and name in INTEGER):
            self.set_bits(result, (BITWISE | INTEGER)[name](*values))
        elif f'{name}.{of_type}' in WORDS:
            self.set_bits(result, WORDS[f'{name}.{of_type}'](*values))
        elif name.startswith('setp.') and (compared := _compare(name[5:], *values)) is not None:
            self.set_bits(result, compared)
        else:
            return False
        return True

    def fuse(self, name: str, operands: list[str], values: list[np.ndarray]) -> np.ndarray | None:
        """A sum of which one is a product, neither of which says how it is rounded."""
        first, second = values if name in ('add', 'sub') else (None, None)
        sign = np.float32(-1 if name == 'sub' else 1)
        if second is not None and operands[0] in self.products:
            return fused_multiply_add(*self.products[operands[0]], sign * second)
        if second is not None and operands[1] in self.products:
            a, b = self.products[operands[1]]
            return fused_multiply_add(sign * a, b, first)
        return None


def fused_multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c of float32, rounded once: rounded to odd in float64, which leaves nothing to be rounded twice."""
    product, c = a.astype(np.float64) * b, c.astype(np.float64)  # exact
    total = product + c
    of_c = total - product
    error = (product - (total - of_c)) + (c - of_c)
    even = total.view(np.int64) & 1 == 0
    odd = np.nextafter(total, np.copysign(np.inf, error))
    return np.where(np.isfinite(total) & (error != 0) & even, odd, total).astype(np.float32)


def _extreme(function: Callable, of_signs: Callable, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """-0 counts as less than 0."""
    zero = of_signs(a.view(np.uint32), b.view(np.uint32)).view(np.float32)
    return np.where((a == 0) & (b == 0), zero, function(a, b))


ROUNDED = {'add': np.add, 'sub': np.subtract, 'mul': np.multiply}
FLOAT = ROUNDED | {
    **{f'{name}.rn': function for name, function in ROUNDED.items()},
    'fma.rn': fused_multiply_add,
    'neg': np.negative,
    'abs': np.abs,
    'min': functools.partial(_extreme, np.fmin, np.bitwise_or),  # of NaN and a number, the number
    'max': functools.partial(_extreme, np.fmax, np.bitwise_and),
    'min.NaN': functools.partial(_extreme, np.minimum, np.bitwise_or),
    'max.NaN': functools.partial(_extreme, np.maximum, np.bitwise_and),
}


def _shift(a: np.ndarray, by: np.ndarray, left: bool) -> np.ndarray:
    """By more than all bits, none is left, or copies of the sign."""
    bits = 8 * a.itemsize
    within = np.minimum(by, bits - 1).astype(a.dtype)
    nothing = (by >= bits) & (left or a.dtype.kind == 'u')
    return np.where(nothing, 0, a << within if left else a >> within).astype(a.dtype)


def _wide_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.multiply(a, b, dtype=f'{a.dtype.kind}{2 * a.itemsize}')


def _extract_bits(a: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << np.minimum(length & 255, 32).astype(np.uint64)) - np.uint64(1)
    return (_shift(a, start & 255, left=False) & mask).astype(np.uint32)


BITWISE = {'and': np.bitwise_and, 'or': np.bitwise_or, 'xor': np.bitwise_xor, 'not': np.invert}
INTEGER = {
    'add': np.add,
    'sub': np.subtract,
    'min': np.minimum,
    'max': np.maximum,
    'mul.lo': np.multiply,
    'mad.lo': lambda a, b, c: a * b + c,
    'shl': functools.partial(_shift, left=True),
    'shr': functools.partial(_shift, left=False),
}
WORDS = {
    'mul.wide.u32': _wide_product,
    'mul.wide.s32': _wide_product,
    'mul.hi.u32': lambda a, b: (_wide_product(a, b) >> 32).astype(np.uint32),
    'bfe.u32': _extract_bits,
}


def _compare(comparison: str, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """With NaN no comparison is true, and all whose name ends in u are."""
    number = (a == a) & (b == b)
    if comparison in ('num', 'nan'):
        return number if comparison == 'num' else ~number
    ordered = {'eq': a == b, 'ne': a != b, 'lt': a < b, 'le': a <= b, 'gt': a > b, 'ge': a >= b}
    if comparison in ordered:
        return number & ordered[comparison]
    return ordered[comparison[:-1]] | ~number if comparison[:-1] in ordered and comparison.endswith('u') else None


def _bfloat16(x: np.ndarray) -> np.ndarray:
    """uint16 bits, to nearest even."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def _names(operand: str) -> list[str]:
    return re.findall(r'[%\w.]+', operand)


def _number(operand: str) -> int:
    is_float = operand[:2] in ('0f', '0F')
    return int(operand[2:], 16) if is_float else int(operand, 0)
