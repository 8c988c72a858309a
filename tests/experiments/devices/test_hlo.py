"""The text of a program as data: arrays, where an operand comes from, and how often a loop runs."""

import jax
import jax.numpy as jnp
import pytest

from experiments.devices import hlo

PROGRAM = """
HloModule jit_f, num_partitions=4, replica_count=2

%body (state: (s32[], f32[8,2])) -> (s32[], f32[8,2]) {
  %state = (s32[], /*index=1*/f32[8,2]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %x = f32[8,2]{1,0} get-tuple-element(%state), index=1
  ROOT %pair = (s32[], f32[8,2]{1,0}) tuple(%next, %x)
}

%condition (state: (s32[], f32[8,2])) -> pred[] {
  %state.1 = (s32[], f32[8,2]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(9)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (x: f32[8,2]) -> f32[8,2] {
  %x.1 = f32[8,2]{1,0} parameter(0)
  %four = s32[] constant(4)
  %start = (s32[], f32[8,2]{1,0}) tuple(%four, %x.1)
  %loop = (s32[], f32[8,2]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[8,2]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_that_counts_by_twos_from_four_below_nine_runs_three_times():
    module = hlo.Module(PROGRAM)
    assert module.num_devices == 8 and module.entry.name == 'main'
    loop = module.entry.instructions['loop']
    assert loop.array_types == [hlo.ArrayType('s32', ()), hlo.ArrayType('f32', (8, 2))]
    assert module.trip_count(module.entry, loop) == 3
    assert module.entry.resolve('start#1') == (module.entry.instructions['x.1'], None)
    assert module.entry.users['start'] == [loop]


@pytest.mark.parametrize(('written', 'instead'), [('=LT', '=GT'), ('add(%i, %two)', 'multiply(%i, %two)')])
def test_other_loops_are_of_unknown_length(written, instead):
    module = hlo.Module(PROGRAM.replace(written, instead))
    with pytest.raises(ValueError, match='unknown how often a loop runs'):
        module.trip_count(module.entry, module.entry.instructions['loop'])


@pytest.mark.parametrize(('dtype', 'size'), [('pred', 8), ('bf16', 16), ('f32', 32), ('f8e4m3fn', 8), ('s4', 4)])
def test_bytes_of_arrays(dtype, size):
    assert hlo.ArrayType(dtype, (4, 6)).bytes == 24 * size // 8


def test_what_xla_writes_is_read():
    """Branches of both kinds, by the names that they have there."""
    pick = lambda i, x: jax.lax.switch(i, [jnp.sin, jnp.cos, jnp.tanh], x)
    choose = lambda i, x: jax.lax.cond(i > 0, jnp.sin, jnp.cos, x)
    for function, number in ((pick, 3), (choose, 2)):
        text = jax.jit(function).lower(1, jnp.zeros(8)).compile().as_text()
        module = hlo.Module(text)
        instructions = [i for computation in module.computations.values() for i in computation.instructions.values()]
        [conditional] = [i for i in instructions if i.opcode == 'conditional']
        assert len(module.branches(conditional)) == number
