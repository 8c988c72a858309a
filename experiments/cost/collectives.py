"""What a program moves between devices: each collective with its dtype, its bytes and how often it runs.

Read from the HLO after SPMD partitioning, in which every collective has the dtype that the program asks for: later, CPU
compilers gather bfloat16 as float32. GPU and TPU compilers, later, merge and overlap them.
"""

import collections
import dataclasses
import math
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from experiments.devices import hlo
from experiments.devices.compilation_cache import without_cache

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute', 'collective-broadcast')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One array that devices send to each other.

    Attributes:
      kind: of `KINDS`. An all-reduce of which each device of the group uses but its own part is what GPU and TPU
        compilers make a reduce-scatter of, and is called one.
      dtype: in HLO's words, such as 'bf16' and 'f32'.
      shape: of the whole array: what an all-gather ends with, what the others start from.
      group_size: devices that take part together.
      count: how often it runs.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    group_size: int
    count: int

    @property
    def bytes(self) -> int:
        """Of the whole array, each time."""
        return hlo.ArrayType(self.dtype, self.shape).bytes

    @property
    def sent_bytes(self) -> float:
        """That a device sends each time, in a ring: all but its own part, and for an all-reduce twice."""
        if self.kind in ('collective-permute', 'collective-broadcast'):
            return self.bytes
        rounds = 2 if self.kind == 'all-reduce' else 1
        return rounds * self.bytes * (self.group_size - 1) / self.group_size


def compile_partitioned(lowered: jax.stages.Lowered, **options: Any) -> tuple[jax.stages.Compiled, str]:
    """The program, compiled with these options of XLA, and the text of its HLO after SPMD partitioning."""
    with tempfile.TemporaryDirectory() as folder, without_cache():  # what comes from there leaves nothing to read
        dump = {'xla_dump_to': folder, 'xla_dump_hlo_pass_re': '^spmd-partitioning$'}
        compiled = lowered.compile(compiler_options={**options, **dump})
        texts = [path.read_text() for path in pathlib.Path(folder).glob('*.after_spmd-partitioning.*')]
        return compiled, ''.join(texts)  # of one program; of one for one device, which isn't partitioned, none


def read(text: str) -> list[Collective]:
    """The collectives of a program, from the text of its HLO, in the order in which they stand in it.

    That of an optimised program for GPUs is understood, too. Empty text, of a program for one device, has none.

    Raises:
      ValueError: if it can't be told how often a loop with collectives runs.

    Example:
      >>> sharding = jax.NamedSharding(jax.make_mesh((jax.device_count(),), ('data',)), jax.P('data'))
      >>> x = jax.ShapeDtypeStruct((1024, 8), 'float32', sharding=sharding)
      >>> _, text = compile_partitioned(jax.jit(lambda x: x.sum(0)).lower(x))
      >>> [(one.kind, one.dtype, one.shape) for one in read(text)]
      [('all-reduce', 'f32', (8,))]
    """
    if not text:
        return []
    module = hlo.Module(text)
    return list(_collectives(module, module.entry))


def summary(moved: Iterable[Collective]) -> list[dict[str, Any]]:
    """For each kind and dtype the number that runs in all, and their bytes, most first.

    Returns:
      Rows with 'kind', 'dtype', 'number', 'bytes' (of the whole arrays) and 'sent_bytes' (by each device).
    """
    rows = collections.defaultdict(lambda: {'number': 0, 'bytes': 0, 'sent_bytes': 0})
    for one in moved:
        row = rows[one.kind, one.dtype]
        row['number'] += one.count
        row['bytes'] += one.count * one.bytes
        row['sent_bytes'] += round(one.count * one.sent_bytes)
    rows = [{'kind': kind, 'dtype': dtype, **row} for (kind, dtype), row in rows.items()]
    return sorted(rows, key=lambda row: -row['sent_bytes'])


def _collectives(module: hlo.Module, computation: hlo.Computation) -> Iterator[Collective]:
    """Those that one run of a computation starts; of branches, those of the one that moves most."""
    for instruction in computation.instructions.values():
        opcode = instruction.opcode
        if opcode.removesuffix('-start') in KINDS:
            yield from _read_collective(module, computation, instruction)
        elif opcode == 'while':
            if inside := list(_collectives(module, module.called(instruction, 'body'))):
                length = module.trip_count(computation, instruction)
                yield from (dataclasses.replace(one, count=one.count * length) for one in inside)
        elif opcode == 'conditional':
            branches = [list(_collectives(module, branch)) for branch in module.branches(instruction)]
            yield from max(branches, key=lambda branch: sum(one.count * one.sent_bytes for one in branch))
        elif opcode in ('call', 'async-start'):
            yield from _collectives(module, module.called(instruction, '(?:to_apply|calls)'))


def _read_collective(module, computation, instruction) -> Iterator[Collective]:
    kind = instruction.opcode.removesuffix('-start')
    group_size = _group_size(module, instruction)
    if kind == 'all-reduce' and _is_cut(computation, instruction, group_size):
        kind = 'reduce-scatter'
    for operand in instruction.operands:
        name, _, index = operand.partition('#')
        array = computation.instructions[name].array_types[int(index or 0)]
        shape = array.shape
        if kind == 'all-gather':
            axis = int(re.search(r' dimensions=\{(\d+)\}', instruction.text)[1])
            shape = (*shape[:axis], shape[axis] * group_size, *shape[axis + 1 :])
        yield Collective(kind, array.dtype, shape, group_size, count=1)


def _group_size(module, instruction) -> int:
    """How many devices of {{0,1},{2,3}} or [2,2]<=[4] or mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}: 2."""
    if instruction.opcode.startswith(('collective-permute', 'collective-broadcast')):
        return 2
    groups = re.search(r'replica_groups=(.*)', instruction.text)[1]
    if mesh := re.match(r"mesh\[(.*?)\].*?\{((?:'.*?)?)\}", groups):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])  # 'a':(1)2 is a part of the axis, two devices long
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if tiles := re.match(r'\[\d+,(\d+)\]<=', groups):
        return int(tiles[1])
    if listed := re.match(r'\{\{([\d,]+)\}', groups):
        return len(listed[1].split(','))
    if groups.startswith('{}'):
        return module.num_devices
    raise ValueError(f'the groups of a collective are not understood: {instruction.text[:300]}')


def _is_cut(computation, reduction, group_size) -> bool:
    """Whether all that uses an all-reduce are slices of one part for each device of its group."""
    if len(reduction.operands) > 1:
        return False
    part = math.prod(reduction.array_types[0].shape) / group_size

    def is_cut(instruction):
        users = computation.users[instruction.name]
        if instruction is computation.root or not users:
            return False
        return all(
            math.prod(user.array_types[0].shape) == part
            if user.opcode == 'dynamic-slice'
            else user.opcode in ('convert', 'reshape', 'transpose', 'copy', 'bitcast') and is_cut(user)
            for user in users
        )

    return is_cut(reduction)
