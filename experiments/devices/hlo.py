"""The text of an HLO module as data: computations, their instructions, and how often a loop runs."""

import dataclasses
import functools
import math
import re

BITS = {'pred': 8, 'bf16': 16}  # of a number; elsewhere the first digits of the dtype's name say it: f32, f8e4m3fn, s4


@dataclasses.dataclass(frozen=True)
class ArrayType:
    """Of dtype 'bf16' or 'f32', as HLO has it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        bits = BITS.get(self.dtype) or int(re.search(r'\d+', self.dtype)[0])
        return -(-math.prod(self.shape) * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: %name = type opcode(operands), attributes. An operand 'name#i' is the i-th element of a tuple."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    text: str

    @property
    def array_types(self) -> list[ArrayType]:
        """Of the result; several if it is a tuple."""
        found = re.findall(r'\b([a-z]+\d*\w*)\[([\d,]*)\]', self.type)
        return [ArrayType(dtype, tuple(map(int, filter(None, sizes.split(','))))) for dtype, sizes in found]

    def attribute(self, name: str) -> str | None:
        """A name or a number that stands behind `name=`."""
        found = re.search(rf'\b{name}=%?([\w.\-]+)', self.text)
        return found and found[1]


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order, the root last in `root`."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that have a name among their operands."""
        users = {name: [] for name in self.instructions}
        for user in self.instructions.values():
            for source in {operand.split('#')[0] for operand in user.operands}:
                users[source].append(user)
        return users

    def resolve(self, operand: str) -> tuple[Instruction, int | None]:
        """The instruction that an operand comes from, behind copies and tuples, and which element of it it is."""
        name, _, index = operand.partition('#')
        instruction, index = self.instructions[name], int(index) if index else None
        if instruction.opcode == 'copy' and index is None:
            return self.resolve(instruction.operands[0])
        if instruction.opcode == 'get-tuple-element':
            return self.resolve(f'{instruction.operands[0]}#{instruction.attribute("index")}')
        if instruction.opcode == 'tuple' and index is not None:
            return self.resolve(instruction.operands[index])
        return instruction, index

    def constant(self, operand: str) -> int | None:
        """The value of an integer constant; None if the operand is none."""
        found = re.search(r' constant\((-?\d+)\)', self.resolve(operand)[0].text)
        return int(found[1]) if found else None

    def parameter_index(self, operand: str) -> int | None:
        """Which element of the computation's tuple of parameters an operand is; None if it isn't one."""
        instruction, index = self.resolve(operand)
        return index if instruction.opcode == 'parameter' else None


class Module:
    """A module of HLO, from its text.

    Attributes:
      computations: by name.
      entry: the one that the program runs.
      num_devices: partitions times replicas.
    """

    def __init__(self, text: str):
        header = re.search(r'HloModule.*', text)[0]
        counts = re.findall(r'\b(?:num_partitions|replica_count)=(\d+)', header)
        self.num_devices = math.prod(map(int, counts))
        self.computations: dict[str, Computation] = {}
        for is_entry, name, body in re.findall(r'^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}$', text, re.M | re.S):
            found = re.findall(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$', body, re.M)
            instructions = {instruction: _parse(instruction, line) for _, instruction, line in found}
            root = next((instructions[instruction] for is_root, instruction, _ in found if is_root), None)
            self.computations[name] = Computation(name, instructions, root)
            if is_entry:
                self.entry = self.computations[name]

    def called(self, instruction: Instruction, attribute: str) -> Computation:
        """The computation that stands behind `attribute=`."""
        return self.computations[instruction.attribute(attribute)]

    def branches(self, conditional: Instruction) -> list[Computation]:
        """Those of which a conditional runs one."""
        listed = re.search(r'branch_computations=\{(.*?)\}', conditional.text)
        pattern = r'(?:true|false)_computation=([^,\s]+)'
        names = listed[1].split(', ') if listed else re.findall(pattern, conditional.text)
        return [self.computations[name.lstrip('%')] for name in names]

    def trip_count(self, computation: Computation, loop: Instruction) -> int:
        """How often a loop of the computation runs: as XLA noted, or for a count that goes up to a constant.

        Raises:
          ValueError: if neither says.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(known[1])
        condition, body = self.called(loop, 'condition'), self.called(loop, 'body')
        if condition.root.opcode == 'compare' and condition.root.attribute('direction') == 'LT':
            count, limit = condition.root.operands
            index = condition.parameter_index(count)
            if index is not None and body.root.opcode == 'tuple':
                start = computation.constant(f'{loop.operands[0]}#{index}')
                limit, step = condition.constant(limit), _step(body, index)
                if None not in (start, limit, step) and step > 0:
                    return max(0, -((start - limit) // step))
        raise ValueError(f'it is unknown how often a loop runs: {loop.text[:200]}')


def _step(body: Computation, index: int) -> int | None:
    """What a loop's body adds to an element of its tuple; None if it does something else with it."""
    added, _ = body.resolve(body.root.operands[index])
    if added.opcode == 'add':
        for count, step in (added.operands, added.operands[::-1]):
            if body.parameter_index(count) == index:
                return body.constant(step)
    return None


def _parse(name: str, text: str) -> Instruction:
    type_end = _closing(text) if text.startswith('(') else text.index(' ')
    opcode, _, rest = text[type_end:].strip().partition('(')
    names = re.findall(r'%([\w.\-]+(?:#\d+)?)', rest[: _closing(f'({rest}') - 1])
    return Instruction(name, text[:type_end], opcode, tuple(names), text)


def _closing(text: str) -> int:
    """Behind the parenthesis that closes the one at the start."""
    depth = 0
    for found in re.finditer(r'[()]', text):
        depth += 1 if found[0] == '(' else -1
        if not depth:
            return found.end()
    raise ValueError(f'HLO that is not understood: {text[:200]}')
