"""The oracle that runs PTX does what its manual says, and refuses what no kernel may do."""

import numpy as np
import numpy_ptx
import pytest
from numpy_ptx import Output, Refused

NAN, SNAN, INFINITY, ONE = '7fc00000', '7f800001', '7f800000', '3f800000'
TIE = '3f800020', '337fffc0', '3f800001'  # (1 + 2^-18) (1 - 2^-18) 2^-24 + 1 + 2^-23: just below a tie

# the code from %r1, %r2, %r3 to %r0, these numbers, the result
KNOWN = [
    ('min.f32 %r0, %r1, %r2;', NAN, ONE, '0', ONE),  # the number
    ('max.f32 %r0, %r1, %r2;', ONE, SNAN, '0', ONE),
    ('max.f32 %r0, %r1, %r2;', NAN, SNAN, '0', '7fffffff'),
    ('min.NaN.f32 %r0, %r1, %r2;', NAN, ONE, '0', '7fffffff'),
    ('max.NaN.f32 %r0, %r1, %r2;', ONE, INFINITY, '0', INFINITY),
    ('min.f32 %r0, %r1, %r2;', '0', '80000000', '0', '80000000'),
    ('max.f32 %r0, %r1, %r2;', '80000000', '0', '0', '0'),
    ('add.f32 %r0, %r1, %r2;', '1', '1', '0', '2'),  # denormal
    ('mul.rn.f32 %r0, %r1, %r2;', '800000', '3f000000', '0', '400000'),
    ('sub.f32 %r0, %r1, %r2;', INFINITY, INFINITY, '0', '7fffffff'),
    ('add.rn.f32 %r0, %r1, %r2;', 'ffc12345', ONE, '0', '7fffffff'),
    ('abs.f32 %r0, %r1;', '80000001', '0', '0', '1'),
    ('neg.f32 %r0, %r1;', '0', '0', '0', '80000000'),
    ('fma.rn.f32 %r0, %r1, %r2, %r3;', *TIE, '3f800001'),
    ('mul.rn.f32 %r4, %r1, %r2; add.rn.f32 %r0, %r4, %r3;', *TIE, '3f800002'),
    ('setp.ne.f32 %p1, %r1, %r2; selp.b32 %r0, 1, 0, %p1;', NAN, ONE, '0', '0'),
    ('setp.neu.f32 %p1, %r1, %r2; selp.b32 %r0, 1, 0, %p1;', NAN, ONE, '0', '1'),
    ('setp.num.f32 %p1, %r1, %r2; selp.b32 %r0, 1, 0, %p1;', ONE, ONE, '0', '1'),
    ('setp.lt.s32 %p1, %r1, %r2; @!%p1 mov.b32 %r0, 7; @%p1 mov.b32 %r0, 9;', 'ffffffff', '0', '0', '9'),
    ('cvt.rn.bf16x2.f32 %r0, %r1, %r2;', '3f808000', '3f818000', '0', '3f803f82'),
    ('cvt.rn.bf16x2.f32 %r0, %r1, %r2;', '7f7fffff', 'ffffffff', '0', '7f807fff'),
    ('cvt.rn.bf16.f32 %h1, %r1; cvt.f32.bf16 %r0, %h1;', '80018000', '0', '0', '80020000'),
    ('cvt.rn.f32.u32 %r0, %r1;', 'ffffffff', '0', '0', '4f800000'),
    ('shl.b32 %r0, %r1, %r2;', '1', '20', '0', '0'),
    ('shr.s32 %r0, %r1, %r2;', '80000000', '28', '0', 'ffffffff'),
    ('shr.u32 %r0, %r1, %r2;', '80000000', '1f', '0', '1'),
    ('mul.hi.u32 %r0, %r1, %r2;', 'ffffffff', 'ffffffff', '0', 'fffffffe'),
    ('mul.wide.u32 %d1, %r1, %r2; mov.b64 {%r0, _}, %d1;', 'ffffffff', 'fffffffe', '0', '2'),
    ('mul.wide.s32 %d1, %r1, %r2; mov.b64 {_, %r0}, %d1;', 'ffffffff', '2', '0', 'ffffffff'),
    ('mad.lo.s32 %r0, %r1, %r2, %r3;', 'ffffffff', '3', '5', '2'),
    ('bfe.u32 %r0, %r1, 4, 8;', '12345678', '0', '0', '67'),
    ('shfl.sync.bfly.b32 %r4, %tid.x, 5, 31, -1; xor.b32 %r0, %r4, %tid.x;', '0', '0', '0', '5'),
    ('shfl.sync.idx.b32 %r0, %tid.x, %r1, 31, -1;', '3', '0', '0', '3'),
    ('redux.sync.max.u32 %r0, %tid.x, -1;', '0', '0', '0', '1f'),
]


def run_code(code, *numbers, contract=False):
    """%r0 of each of 32 threads, from %r1, %r2 and %r3; one of four arrays of 32 words a parameter."""
    declared = ', '.join(f'.param .u64 .ptr .align 4 p{i}' for i in range(4))
    prologue = ''.join(
        f'ld.param.u64 %d{i}, [p{i}]; mul.wide.u32 %d9, %tid.x, 4; add.s64 %d{i}{i}, %d{i}, %d9;\n' for i in range(4)
    )
    loads = ''.join(f'ld.global.b32 %r{i}, [%d{i}{i}];\n' for i in range(1, 4))
    ptx = f'.entry f({declared}) .reqntid 32, 1, 1 {{\n{prologue}{loads}{code}\nst.global.b32 [%d00], %r0; ret;\n}}\n'
    inputs = [np.full(32, int(number, 16), np.uint32) for number in numbers]
    return numpy_ptx.run(ptx, (1, 1, 1), [Output((32,), np.dtype(np.uint32)), *inputs], contract=contract)[0]


@pytest.mark.parametrize('code, a, b, c, result', KNOWN)
def test_instructions_do_what_the_manual_says(code, a, b, c, result):
    assert {f'{word:x}' for word in run_code(code, a, b, c)} == {result}


@pytest.mark.parametrize('rounding, result', [('', '3f800001'), ('.rn', '3f800002')])
def test_an_assembler_fuses_only_what_does_not_say_how_it_is_rounded(rounding, result):
    code = f'mul{rounding}.f32 %r4, %r1, %r2; add{rounding}.f32 %r0, %r3, %r4;'
    assert {f'{word:x}' for word in run_code(code, *TIE, contract=True)} == {result}


@pytest.mark.parametrize(
    'code, error, message',
    [
        ('ld.global.b32 %r0, [%d11+4];', Refused, 'reads 4 bytes'),
        ('ld.global.b32 %r0, [%d11+2];', Refused, 'not aligned'),
        ('ld.global.v2.b32 {%r0, %r4}, [%d1];', Refused, 'not aligned'),  # the parameter is, to 4 bytes
        ('ld.global.b32 %r0, [%d00];', Refused, 'reads 128 bytes'),
        ('st.global.b32 [%d11], %r1;', Refused, 'writes 128 bytes'),
        ('st.global.b32 [%d0], %tid.x;', Refused, 'different values'),
        ('ld.shared.b32 %r0, [0];', Refused, 'reads'),
        ('@%p1 ret;', NotImplementedError, 'ret'),
        ('brev.b32 %r0, %r1;', NotImplementedError, 'brev.b32'),
        ('add.rn.ftz.f32 %r0, %r1, %r2;', NotImplementedError, 'add.rn.ftz.f32'),
        ('bra.uni $L1;', NotImplementedError, 'bra.uni'),
    ],
)
def test_what_no_kernel_may_do_is_refused(code, error, message):
    with pytest.raises(error, match=message):
        run_code(f'setp.eq.u32 %p1, %r1, 0; {code}', '0', '0', '0')
