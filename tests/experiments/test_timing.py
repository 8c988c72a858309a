"""Times are taken in turns, of finished results, and compared within a turn."""

import types

from experiments import timing


class Clock:
    """A clock that advances while functions run, and more slowly in every later turn."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.calls = []
        monkeypatch.setattr(timing, 'time', types.SimpleNamespace(perf_counter=lambda: self.now))

    def function(self, name, seconds):
        """Takes the next of `seconds` to have its result ready, not to be called."""
        remaining = iter(seconds)

        class Result:
            def block_until_ready(result):
                self.now += next(remaining)
                return result

        def call():
            self.calls.append(name)
            return Result()

        return call


def test_medians_and_ratios_are_of_turns_after_the_first_two(monkeypatch):
    """The ratio is 3, the median of 4, 2 and 3; not 2, the ratio of the medians."""
    clock = Clock(monkeypatch)
    base = clock.function('base', [900, 70, 1, 2, 4])
    other = clock.function('other', [5000, 1, 4, 4, 12])
    rows = timing.take_turns({'base': base, 'other': other}, turns=3)
    assert rows == {
        'base': {'seconds': 2, 'ratio': 1, 'ratio_quartiles': [1, 1]},
        'other': {'seconds': 4, 'ratio': 3, 'ratio_quartiles': [2.5, 3.5]},
    }


def test_the_order_alternates(monkeypatch):
    """Whoever follows a function that disturbs the machine, it isn't always the same one."""
    clock = Clock(monkeypatch)
    timing.take_turns({name: clock.function(name, [1] * 4) for name in 'abc'}, turns=2)
    assert ''.join(clock.calls) == 'cbaabccbaabc'
