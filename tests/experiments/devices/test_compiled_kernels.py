"""What kernels compile to: the counts, and that bad kernels are seen as such."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from experiments.devices import compiled_kernels
from experiments.devices.compiled_kernels import assemble, compile_for_h100, compile_to_text, count_launches

pytestmark = pytest.mark.optimized

MATRIX = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)

LISTING = """
//--------------------- .text.other --------------------------
.text.other:
        /*0000*/                   EXIT ;
//--------------------- .text.sample --------------------------
sample:
.text.sample:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   FADD R2, R2, R3 ;
        /*0020*/              @!P0 BRA `(.L_x_3) ;
.L_x_2:
        /*0030*/               @P1 BRA `(.L_x_1) ;
        /*0040*/                   EXIT ;
.L_x_3:
        /*0050*/                   FMUL R2, R2, R3 ;
        /*0060*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*0070*/                   BRA `(.L_x_4);
        /*0080*/                   NOP;
        /*0090*/                   NOP;
.L_x_5:
"""

PROGRAM = """
HloModule jit_f, is_scheduled=true

%fused_add (param_0: f32[8]) -> f32[8] {
  %param_0 = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%param_0, %param_0)
}

%body (state: (s32[], /*index=1*/f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], /*index=1*/f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%state), index=1
  %fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_add
  %copy-start.1 = (f32[8]{0}, f32[8]{0}, u32[]) copy-start(%fusion.1)
  %copy-done.1 = f32[8]{0} copy-done(%copy-start.1)
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %tuple.1 = (s32[], f32[8]{0}) tuple(%i, %copy-done.1)
}

%condition (state: (s32[], f32[8])) -> pred[] {
  %state.1 = (s32[], f32[8]{0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  %kernel = (f32[8]{0}, /*index=1*/f32[8]{0}) custom-call(%x.1), custom_call_target="__gpu$xla.gpu.triton"
  %zero = s32[] constant(0)
  %y = f32[8]{0} get-tuple-element(%kernel), index=0
  %start = (s32[], f32[8]{0}) tuple(%zero, %y)
  %loop = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body, backend_config=LENGTH
  ROOT %z = f32[8]{0} get-tuple-element(%loop), index=1
}
"""
FIVE_TIMES = '{"known_trip_count":{"n":"5"}}'


def test_instructions_are_counted_without_padding_and_loops_without_slow_paths():
    assert compiled_kernels.count_instructions('sample', LISTING) == (7, (3,))
    assert compiled_kernels.count_instructions('other', LISTING) == (1, ())


def test_launches_are_counted_as_often_as_they_happen():
    assert (
        count_launches(PROGRAM.replace('LENGTH', FIVE_TIMES)) == 1 + 5 * 2
    )  # the kernel; five times a fusion and a copy


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match='loop'):
        count_launches(PROGRAM.replace('LENGTH', '{}'))


def test_a_compiled_function_says_how_often_it_launches(h100):
    two_kernels = lambda x: (jnp.sum(x), jnp.cumsum(x, 1))
    launches = lambda function: count_launches(compile_to_text(function, [MATRIX])[1])
    assert launches(lambda x: jnp.tanh(x) + 1) == 1
    assert launches(lambda x: x) == 1  # a copy
    assert launches(two_kernels) >= 2
    kernels, number = compile_for_h100(lambda x: jnp.tanh(x) + 1, MATRIX)
    assert len(kernels) == number == 1 and kernels[0].instructions > 0 and kernels[0].spill_bytes == 0


@pytest.mark.parametrize('registers, spills', [(32, True), (255, False)])
def test_spills_are_seen_in_a_module(h100, registers, spills):
    [kernel] = assemble(hold_at_once(100, registers))
    assert (kernel.spill_bytes > 0) == spills
    assert kernel.registers <= registers and kernel.threads == 32 and kernel.loops == ()
    assert kernel.instructions >= 200  # as many loads, as many stores


def test_spills_are_seen_in_a_pallas_kernel(h100):
    def kernel(x_ref, y_ref):
        x = x_ref[...]
        y_ref[...] = x - jnp.sum(x)

    for size, spills in ((1024, False), (8192, True)):  # 32 or 256 numbers a thread, which has 255 registers
        [compiled], _ = compile_for_h100(triton_kernel(kernel, size), jax.ShapeDtypeStruct((4 * size,), jnp.float32))
        assert (compiled.spill_bytes > 0) == spills
        assert compiled.programs == 4 and compiled.threads == 32


def test_broken_code_is_refused(h100):
    with pytest.raises(ValueError, match='ptxas'):
        assemble(hold_at_once(4, 32).replace('ld.volatile', 'lod.volatile'))

    def kernel(x_ref, y_ref):
        how = {'constraints': '=r,r', 'pack': 1, 'result_shape_dtypes': [jax.ShapeDtypeStruct((1024,), jnp.float32)]}
        [y_ref[...]] = plgpu.elementwise_inline_asm('no_such_instruction $0, $1;', args=[x_ref[...]], **how)

    with pytest.raises(jax.errors.JaxRuntimeError, match='no_such_instruction'):
        compile_for_h100(triton_kernel(kernel, 1024), jax.ShapeDtypeStruct((4096,), jnp.float32))


def triton_kernel(kernel, size):
    """Four programs of one warp, `size` numbers each."""
    spec = pl.BlockSpec((size,), lambda i: (i,))
    return lambda x: pl.pallas_call(
        kernel,
        grid=4,
        in_specs=[spec],
        out_specs=spec,
        out_shape=x,
        compiler_params=plgpu.CompilerParams(num_warps=1),
        name='one_warp',
    )(x)


def hold_at_once(numbers, registers):
    """PTX of a kernel that loads `numbers`, then stores them in reverse, with so many registers."""
    loads = ''.join(f'ld.volatile.global.f32 %f{i}, [%rd1+{4 * i}];\n' for i in range(numbers))
    stores = ''.join(f'st.volatile.global.f32 [%rd1+{4 * i}], %f{numbers - 1 - i};\n' for i in range(numbers))
    return (
        '.version 8.0\n.target sm_90a\n.address_size 64\n'
        f'.visible .entry hold(.param .u64 address) .reqntid 32, 1, 1 .maxnreg {registers} {{\n'
        f'.reg .f32 %f<{numbers}>;\n.reg .b64 %rd<2>;\nld.param.u64 %rd1, [address];\n{loads}{stores}ret;\n}}\n'
    )
