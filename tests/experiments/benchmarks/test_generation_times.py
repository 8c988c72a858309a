"""Both ways write the same text, and each turn is a token."""

import pytest
from small_experiments import ONE_DEVICE, VOCABULARY, on_mesh, small_config

from experiments.benchmarks import generation_times
from experiments.training.token_writer import TokenWriter


def test_a_turn_is_a_token_in_both_ways(monkeypatch):
    written = {}

    class Recorder(TokenWriter):
        def write(self, prompts, **how):
            tokens = written.setdefault(self._keeps_cache, [])
            for step in super().write(prompts, **how):
                tokens.append(step[0])
                yield step

    monkeypatch.setattr(generation_times, 'TokenWriter', Recorder)
    config = small_config()
    with on_mesh(ONE_DEVICE):
        ((results, text),) = generation_times.benchmark(config, 4, VOCABULARY)
    assert written[False] == written[True] and len(written[True]) == 4 + 2
    assert list(results['ways']) == ['all of the window anew', 'with the cache']
    assert results['ways']['all of the window anew']['ratio'] == 1 and results['ways']['with the cache']['seconds'] > 0
    assert (results['window'], results['turns']) == (24, 4)
    assert text.startswith(f'{config.name}, {results["parameters"]:,} parameters, window 24, ')


def test_more_turns_than_there_is_room():
    with on_mesh(ONE_DEVICE), pytest.raises(ValueError, match='turns=10: allowed are 1 to 9 with a window of 24'):
        generation_times.time_tokens(small_config(), 10, vocab_size=VOCABULARY)
