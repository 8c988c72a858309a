"""Why bitwidths are stored as they are: of blocks laid out by hand, and by what the budget that is told does."""

import doctest
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gaussq_jax as gq
from experiments.reports import stored_formats

RULES = (gq.MatrixRule('.*', batch_axes=(), row_axes=(0,), col_axes=(1,)),)


def laid_out(bitwidths, shape, block_size=32):
    """A transform, params of one matrix, and a state whose bitwidths are these."""
    transform = gq.gaussian_weight_sampling(10.0, 1.0, rules=RULES, block_size=block_size)
    b_i = (jnp.array(bitwidths, jnp.float32) - 1) / 9
    return transform, {'up': jax.ShapeDtypeStruct(shape, jnp.float32)}, {'up': b_i}


def reasons(bitwidths, shape, **how):
    return stored_formats.reasons(*laid_out(bitwidths, shape, **how))


def test_bitwidths_just_above_a_format():
    """The usual case: all of them ask for a format whose narrower one would nearly do."""
    (line,) = reasons([[4.07, 4.25], [4.23, 4.45]], (64, 64))
    assert line == (
        'e3m3, 7 bits: 100 % of the weights, with bitwidths of 4.070 to 4.450. Their mean, 4.250, is 0.250 above 4, the'
        ' most that e3m2, 6 bits, holds; --budget=6.01 stores them in e3m2 or narrower, and 6.008 bits'
        ' a weight in all, as bits that cost no more go, too'
    )


def test_several_formats_of_ragged_blocks():
    """Shares and means count weights: blocks at the edges have less of them."""
    lines = reasons([[2.5, 3.0], [9.5, 3.5]], (40, 48))  # of 1024, 512, 256 and 128 weights
    assert len(lines) == 3
    mean = (2.5 * 1024 + 3.0 * 512) / 1536
    assert lines[0].startswith('e2m1, 4 bits: 80 % of the weights, with bitwidths of 2.500 to 3.000. Up to 3 have it')
    assert f'{mean:.3f}' not in lines[0] and lines[0].endswith('none is narrower')
    assert lines[1].startswith('e3m2, 6 bits: 6.67 % of the weights, with bitwidths of 3.500 to 3.500. Their mean')
    assert 'is 0.500 above 3, the most that e2m1, 4 bits, holds; --budget=' in lines[1]
    assert lines[2].startswith('bfloat16, 16 bits: 13.3 % of the weights, with bitwidths of 9.500 to 9.500. Their mean')
    assert 'is 0.500 above 9, the most that e4m7, 12 bits, holds; --budget=' in lines[2]


def test_means_count_weights():
    (line,) = reasons([[4.2, 4.8]], (32, 40))  # of 1024 and 256 weights
    assert 'Their mean, 4.320, is 0.320 above 4' in line


def test_a_bitwidth_at_a_limit_is_held():
    """To a multiple of 2^-10, as bitwidths act."""
    assert reasons([[4.0004]], (32, 32))[0].startswith('e3m2, 6 bits: 100 %')
    assert reasons([[4.001]], (32, 32))[0].startswith('e3m3, 7 bits: 100 %')


@pytest.mark.parametrize('seed', range(4))
def test_the_budget_does_what_is_told(seed):
    """Within it, every block of the format has a narrower one; within any that takes less away, not every one."""
    generator = np.random.default_rng(seed)
    shape = (int(generator.integers(30, 200)), int(generator.integers(30, 200)))
    blocks = tuple(-(-side // 16) for side in shape)
    bitwidths = generator.uniform(2, 11, blocks) if seed % 2 else generator.choice([3.0, 3.5, 4.25, 4.5, 9.75], blocks)
    transform, params, state = laid_out(bitwidths, shape, block_size=16)
    acting = np.asarray(transform.bitwidths(state)['up'], np.float64)
    for line in stored_formats.reasons(transform, params, state):
        if 'none is narrower' in line:
            continue
        fmt = gq.parse_format(line.split(',')[0])
        budget = float(re.search(r'--budget=([\d.]+) stores', line)[1])
        of_format = [level for level in acting.ravel() if gq.format_for_bitwidth(level) == fmt]
        within = transform.formats_within_budget(params, state, budget)
        assert all(within(level).bits < fmt.bits for level in of_format), line
        stored = lambda formats: transform.model_size(params, state, formats=formats).mean_stored_bits
        assert budget - 0.01 < stored(within) <= budget
        assert f' or narrower, and {stored(within):.3f} bits a weight in all' in line
        for larger in np.arange(budget, 17, 0.25):
            formats = transform.formats_within_budget(params, state, larger)
            assert stored(formats) == stored(within) or any(formats(level) == fmt for level in of_format), line


def test_sizes():
    """Learned formats first, then uniform ones; the bits are those of the quantized weights, the bytes of all."""
    transform, params, state = laid_out([[4.5, 4.0]], (32, 64))
    params['norm'] = jax.ShapeDtypeStruct((5,), jnp.float32)
    transform = transform._replace(rules=(gq.Keep('norm'), *RULES))
    assert stored_formats.sizes(transform, params, state) == [
        ('learned', 6.5 + 8 * 4 / 2048, 1024 * 13 // 8 + 4 + 20),
        ('bfloat16', 16.0, 4096 + 20),
        ('float8_e4m3fn', 8.25, 2048 + 64 + 20),
        ('float6_e3m2fn', 6.25, 1536 + 64 + 20),
        ('float4_e2m1fn', 4.25, 1024 + 64 + 20),
    ]


def test_examples():
    assert doctest.testmod(stored_formats).failed == 0
