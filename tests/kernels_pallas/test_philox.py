"""Philox-4x32: the published answers, and an independent 64-bit version on many counters."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_weight_sampling as oracle
import pytest

from kernels_pallas.philox import philox_4x32

ONES = 0xFFFFFFFF
PI_COUNTER = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
PI_KEY = (0xA4093822, 0x299F31D0)

# Random123's kat_vectors: key, counter, rounds, answer.
KNOWN_ANSWERS = [
    ((0, 0), (0, 0, 0, 0), 7, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    ((0, 0), (0, 0, 0, 0), 10, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES), (ONES,) * 4, 10, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI_KEY, PI_COUNTER, 7, (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
    (PI_KEY, PI_COUNTER, 10, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


def as_words(values):
    return tuple(jnp.asarray(value, jnp.uint32) for value in values)


@pytest.mark.parametrize(('key', 'counter', 'rounds', 'answer'), KNOWN_ANSWERS)
def test_known_answers_of_random123(key, counter, rounds, answer):
    words = philox_4x32(as_words(key), as_words(counter), rounds)
    assert tuple(int(word) for word in words) == answer
    assert all(word.dtype == jnp.uint32 for word in words)


@pytest.mark.parametrize(('key', 'counter', 'rounds', 'answer'), KNOWN_ANSWERS)
def test_the_oracle_of_the_other_tests_gives_the_known_answers(key, counter, rounds, answer):
    assert tuple(int(word) for word in oracle.philox_4x32(key, counter, rounds)) == answer


def test_ten_rounds_by_default():
    words = philox_4x32(as_words(PI_KEY), as_words(PI_COUNTER))
    assert tuple(int(word) for word in words) == KNOWN_ANSWERS[-1][-1]


@pytest.mark.parametrize('rounds', [7, 10])
def test_equals_the_oracle_on_random_counters_and_keys(rounds):
    """Random words reach every carry of the 64-bit products, which the few known answers may not."""
    generator = np.random.default_rng(rounds)
    counter = generator.integers(0, 2**32, (4, 50_000), np.uint32)
    run = jax.jit(philox_4x32, static_argnums=2)
    for key in generator.integers(0, 2**32, (3, 2), np.uint32):
        got = run(tuple(jnp.asarray(key)), tuple(jnp.asarray(counter)), rounds)
        np.testing.assert_array_equal(np.stack(got), np.stack(oracle.philox_4x32(key, counter, rounds)))


def test_counter_words_broadcast():
    """The caller passes a row, a column and scalars; the answer has their common shape."""
    column = np.arange(5, dtype=np.uint32)[None, :]
    row = np.arange(3, dtype=np.uint32)[:, None]
    counter = (column, row, 7, 0)
    got = philox_4x32(as_words(PI_KEY), as_words(counter))
    expected = oracle.philox_4x32(PI_KEY, counter)
    assert all(word.shape == (3, 5) and word.dtype == jnp.uint32 for word in got)
    np.testing.assert_array_equal(np.stack(got), np.stack(expected))


def test_vmap_over_keys_equals_one_key_at_a_time():
    keys = np.random.default_rng(0).integers(0, 2**32, (3, 2), np.uint32)
    counter = (np.arange(40, dtype=np.uint32), 1, 2, 3)
    words = jax.vmap(lambda key: philox_4x32((key[0], key[1]), as_words(counter)))(jnp.asarray(keys))
    for i, key in enumerate(keys):
        expected = oracle.philox_4x32(key, counter)
        np.testing.assert_array_equal(np.stack([word[i] for word in words]), np.stack(expected))
