"""Random orders in which any place can be asked for: the shuffle of Grain, for many places at once."""

import functools
import math

import numpy as np

ROUNDS = 4
LEAST_BITS = 16
MOST_IN_A_TABLE = 2**14


def shuffled(positions: np.ndarray, size: int, seed: int) -> np.ndarray:
    """What comes at positions of an endless stream: all of 0 .. size - 1 in random order, and again, in another one.

    In epoch e, positions e * size + i, i = 0 .. size - 1, hold a permutation of the numbers below `size`: four rounds
    of the Simon block cipher on ceil(log2(size - 1)) bits, at least 16, made even, repeated until the result is below
    `size`. Their keys are those of C++'s seed_seq of seed + e. It is what `grain.MapDataset.range(size).shuffle(seed)`
    has there, to the number. As there, if size is 2^16 + 1, 2^18 + 1, 2^20 + 1, ..., the last position of an epoch
    holds the same number as its first, and the number size - 1 is left out.

    Args:
      positions: (n,) int64, not negative.
      size: of how many things there are; 1 to 2^62.
      seed: 0 to 2^32 - 1.

    Returns:
      (n,) int64, below `size`.

    Example:
      >>> shuffled(np.arange(6), 3, seed=1).tolist()
      [1, 2, 0, 0, 2, 1]

    Source: Beaulieu et al., The Simon and Speck Families of Lightweight Block Ciphers, https://eprint.iacr.org/2013/404;
      Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002, for the repetition.
    """
    epochs, places = np.divmod(np.asarray(positions, np.int64), size)
    seeds, which = np.unique((seed + epochs) % 2**32, return_inverse=True)
    if size <= MOST_IN_A_TABLE:
        for i, of_epoch in enumerate(seeds.tolist()):
            places[which == i] = _permutation(size, of_epoch)[places[which == i]]
        return places
    keys = np.array([_keys(of_epoch) for of_epoch in seeds.tolist()], np.uint64)[which].T
    numbers, left = places.astype(np.uint64), np.arange(len(places))  # those that are not below `size` yet
    while len(left):
        numbers[left] = _encrypted(numbers[left], keys[:, left], size)
        left = left[numbers[left] >= size]
    return numbers.astype(np.int64)


@functools.lru_cache(16)
def _permutation(size: int, seed: int) -> np.ndarray:
    """Of a size that is so far below the cipher's 2^16 numbers that one is seldom reached from another: all at once."""
    if size == 1:
        return np.zeros(1, np.int64)
    everything = np.arange(2**LEAST_BITS)
    following = _encrypted(everything.astype(np.uint64), np.array(_keys(seed), np.uint64), size).astype(np.int64)
    reached = np.where(everything < size, everything, following)
    for _ in range(LEAST_BITS):  # after as many times twice as many repetitions
        reached = reached[reached]
    return reached[following[:size]]


def _encrypted(numbers: np.ndarray, keys: np.ndarray, size: int) -> np.ndarray:
    """Numbers of two words each -> others, one to one; ROUNDS keys."""
    bits = max(LEAST_BITS, math.ceil(math.log2(size - 1)))
    word = np.uint64((bits + bits % 2) // 2)
    mask = np.uint64(2 ** int(word) - 1)
    turned = lambda x, by: (x << np.uint64(by) | x >> word - np.uint64(by)) & mask
    mixed = lambda x: turned(x, 1) & turned(x, 8) ^ turned(x, 2)
    high, low = numbers >> word & mask, numbers & mask
    for i in range(0, ROUNDS, 2):
        high = (high ^ mixed(low) ^ keys[i]) & mask
        low = (low ^ mixed(high) ^ keys[i + 1]) & mask
    return high << word | low


@functools.lru_cache(4096)
def _keys(seed: int) -> tuple[int, ...]:
    """ROUNDS 32-bit numbers, as std::seed_seq{seed}.generate makes them (ISO C++, [rand.util.seedseq])."""
    n, ones, p, q = ROUNDS, 2**32 - 1, 1, 2  # p and q of n = 4
    keys = [0x8B8B8B8B] * n
    spread = lambda x: x ^ x >> 27
    for k in range(n):
        r1 = 1664525 * spread(keys[k % n] ^ keys[(k + p) % n] ^ keys[(k - 1) % n]) & ones
        r2 = r1 + (1 if k == 0 else k % n + seed if k == 1 else k % n) & ones
        keys[(k + p) % n] = keys[(k + p) % n] + r1 & ones
        keys[(k + q) % n] = keys[(k + q) % n] + r2 & ones
        keys[k % n] = r2
    for k in range(n, 2 * n):
        r3 = 1566083941 * spread(keys[k % n] + keys[(k + p) % n] + keys[(k - 1) % n] & ones) & ones
        r4 = r3 - k % n & ones
        keys[(k + p) % n] ^= r3
        keys[(k + q) % n] ^= r4
        keys[k % n] = r4
    return tuple(keys)
