"""The benchmark of packed files writes those that it says it does, and holds them to what was promised."""

import functools
import types

import jax
import jax.numpy as jnp
import pytest
from small_experiments import VOCABULARY, small_config

from experiments.benchmarks import export_times


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    params = {'up': {'kernel': jax.random.normal(jax.random.key(1), (64, 32))}, 'bias': jnp.full(3, 1.001)}
    monkeypatch.setattr(export_times, 'random_weights', lambda config, vocab_size: params)
    trim = lambda _: 0  # what other tests left, gigabytes by now, isn't given back to the system
    monkeypatch.setattr(export_times.ctypes, 'CDLL', lambda _: types.SimpleNamespace(malloc_trim=trim))


def test_each_format_is_written_and_read(monkeypatch):
    time_exports = functools.partial(export_times.time_exports, formats=['float4_e2m1fn', 'bfloat16'])
    monkeypatch.setattr(export_times, 'time_exports', time_exports)
    [(_, text)] = export_times.benchmark(small_config(), vocab_size=VOCABULARY)
    title, _, *rows = text.splitlines()
    assert title.startswith(f'packed files of {small_config().name}, 2,051 parameters, ')
    assert [row.split()[0] for row in rows] == ['float4_e2m1fn', 'bfloat16']
    assert '4.25 bits' in rows[0] and 'nan bits' in rows[1]
    assert all(row.count(' s ') == 2 for row in rows)


def test_a_file_of_another_size_than_promised_is_an_error(monkeypatch):
    monkeypatch.setattr(export_times, 'header_bytes', lambda path: 0)
    with pytest.raises(RuntimeError, match='bytes, not a header and the'):
        export_times.time_exports(small_config(), vocab_size=VOCABULARY, formats=['bfloat16'])


def test_wrong_weights_are_an_error(monkeypatch):
    monkeypatch.setattr(export_times.gq, 'quantize_params', lambda params, layout: params)  # not rounded
    with pytest.raises(RuntimeError, match='not those that were to be written'):
        export_times.time_exports(small_config(), vocab_size=VOCABULARY, formats=['bfloat16'])


@pytest.mark.slow
def test_learned_formats_are_of_random_bitwidths():
    results = export_times.time_exports(small_config(), vocab_size=VOCABULARY)
    assert list(results['formats']) == list(export_times.DEFAULT_FORMATS)
    assert 4 < results['formats']['learned']['mean_stored_bits'] < 12
    assert results['parameters'] == 2051


@pytest.mark.slow
def test_the_weights_are_of_the_configs_model(monkeypatch):
    monkeypatch.undo()
    params = export_times.random_weights(small_config(), VOCABULARY)
    assert params['embed']['embedding'].shape[0] == VOCABULARY
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}
