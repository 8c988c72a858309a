"""What is timed moves the bytes that are said, is compared to the reference, and if it fails, the rest is measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import kernel_times, timing
from kernels_pallas import arg_specs, rounding_on_bits
from kernels_pallas import weight_sampling as kernels
from kernels_pallas.weight_sampling import xla

SPEC = arg_specs.ArgSpec('test/ragged', (2, 64, 90))
WEIGHTS, BLOCKS = 2 * 64 * 90, 2 * 2 * 3
KEY_AND_ORIGIN = 20  # bytes
FORWARD = 'forward float32 -> bfloat16, rounded_normal'


@pytest.fixture
def faulty(monkeypatch):
    """Besides the reference: one whose W_hat is `wrong`, one `failing` there, and one `absent`."""

    def forward(key, origin, w, scale, *, implementation, **how):
        if implementation == 'failing':
            raise NotImplementedError('not lowered\nin two lines')
        w_hat, step = xla.forward(key, origin, w, scale, **how)
        return (w_hat.at[0, 0, 0].set(1) if implementation == 'wrong' else w_hat), step

    backward = lambda *arguments, implementation, **how: xla.backward(*arguments, **how)
    monkeypatch.setattr(kernels, 'forward', forward)
    monkeypatch.setattr(kernels, 'backward', backward)
    cast = lambda *arguments, implementation, **options: rounding_on_bits.round_to_representable(*arguments, **options)
    monkeypatch.setattr(kernel_times, 'round_to_representable', cast)
    names = ('xla', 'wrong', 'failing', 'absent')
    monkeypatch.setattr(kernels, 'PREFERENCE', names)
    monkeypatch.setattr(kernels, 'why_not', {**dict.fromkeys(names), 'absent': 'no GPU'}.get)


def test_implementations(faulty):
    """What can't run here is listed with its reason, and not measured."""
    expected = {'xla': None, 'wrong': None, 'failing': None, 'absent': 'no GPU'}
    assert kernel_times.implementations() == expected
    assert {name for _, name in kernel_times.contenders(SPEC)} == {'xla', 'wrong', 'failing'}


def test_kernels_are_called_as_they_want(monkeypatch):
    """The real ones trace, with the floor of the reference."""
    monkeypatch.setattr(kernels, 'PREFERENCE', ('triton_interpret', 'xla'))
    operations = kernel_times.contenders(SPEC)
    of_kernels = {operation: call for (operation, name), call in operations.items() if name == 'triton_interpret'}
    assert len(of_kernels) == 10
    for operation, call in of_kernels.items():
        assert call.bytes == operations[operation, 'xla'].bytes


@pytest.mark.parametrize(
    ('operation', 'bytes'),
    [
        ('copy', 8 * WEIGHTS),
        ('copy to bfloat16', 6 * WEIGHTS),
        (FORWARD, 6 * WEIGHTS + 8 * BLOCKS + KEY_AND_ORIGIN),
        ('forward bfloat16 -> e3m2, rounded_normal', 4 * WEIGHTS + 8 * BLOCKS + KEY_AND_ORIGIN),
        ('backward bfloat16, uniform', 2 * WEIGHTS + 4 * BLOCKS + KEY_AND_ORIGIN),
        ('cast nearest_even', 8 * WEIGHTS),
        ('cast stochastic', 10 * WEIGHTS),
    ],
)
def test_bytes(operation, bytes):
    """Each argument read once, each result written once, steps and sums of the blocks included."""
    assert kernel_times.contenders(SPEC)[operation, 'xla'].bytes == bytes


def test_operations_do_what_they_say():
    """Weights and steps of a real size, results of the dtype, and of the format, that the name says."""
    operations = kernel_times.contenders(SPEC)
    w = np.asarray(operations['copy', 'xla']())
    assert w.shape == SPEC.shape and 0.019 < w.std() < 0.021
    w_hat, step = operations[FORWARD, 'xla']()
    assert w_hat.dtype == jnp.bfloat16 and step.shape == (2, 2, 3)
    changed = np.mean(np.asarray(w_hat, np.float32) != np.asarray(w.astype(jnp.bfloat16), np.float32))
    assert 0.25 < changed < 0.4  # P(R != 0) = .317
    rounded = np.unique(np.asarray(operations['forward float32 -> e3m2, rounded_normal', 'xla']()[0], np.float32))
    assert len(rounded) < 2 * 64 * 2  # of e3m2 by the powers of two of the blocks
    for operation in ('cast nearest_even', 'cast stochastic'):
        assert len(np.unique(operations[operation, 'xla']())) < 64
    assert operations['backward bfloat16, rounded_normal', 'xla']().shape == (2, 2, 3)


def test_rows(faulty):
    """Bandwidths follow from bytes and times, the fraction is to the faster copy; faults are told."""
    rows = {(row['operation'], row['implementation']): row for row in kernel_times.time_shape(SPEC, 1, 'host')}
    assert {row['shape'] for row in rows.values()} == {'test/ragged'}
    failing = rows[FORWARD, 'failing']
    assert failing['error'] == 'NotImplementedError: not lowered' and 'seconds' not in failing
    assert rows[FORWARD, 'xla']['equals_reference'] is None
    assert rows[FORWARD, 'wrong']['equals_reference'] is False
    assert rows['backward bfloat16, uniform', 'wrong']['equals_reference'] is True
    copies = [rows[copy, 'xla'] for copy in ('copy', 'copy to bfloat16')]
    best = max(row['bytes'] / row['seconds'] for row in copies)
    for row in rows.values():
        if 'error' not in row:
            assert row['bytes_per_second'] == pytest.approx(row['bytes'] / row['seconds'])
            assert row['copy_fraction'] == pytest.approx(row['bytes'] / row['seconds'] / best)
    assert max(row['copy_fraction'] for row in copies) == 1


def test_bits_tell_what_values_do_not():
    """Zeros of different sign differ, NaNs of the same bits don't."""
    results = lambda value: (jnp.bfloat16(1), jnp.float32(value))
    same = lambda x, y: bool(kernel_times._same_bits(results(x), results(y)))
    assert same(np.nan, np.nan) and same(0.0, 0.0)
    assert not same(0.0, -0.0)


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_caches_are_overwritten_on_gpus(monkeypatch, backend):
    before = []
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    monkeypatch.setattr(kernel_times, 'CACHE_BYTES', 64)
    monkeypatch.setattr(timing, 'take_turns', lambda works, turns, *, clock, before: take_turns(works, before))

    def take_turns(works, call):
        before.append(call)
        return {name: {'seconds': 1.0, 'clock': 'host'} for name in works}

    kernel_times.time_shape(SPEC, 1, 'host')
    assert (before == [None]) == (backend == 'cpu')
    if backend == 'gpu':
        assert before[0]().nbytes == 64


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_default_shapes(backend):
    """Of any size, and on a GPU of 16M weights and more, where the floor is memory."""
    sizes = [spec.size for spec in arg_specs.matching(kernel_times.DEFAULT_SHAPES[backend])]
    assert len(sizes) >= 5 and min(sizes) < 2**19
    assert (max(sizes) > 2**24) == (backend == 'gpu')
