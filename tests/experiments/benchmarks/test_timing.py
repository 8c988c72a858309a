"""Times are taken in turns, of finished results, and compared within a turn; by either clock."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import timing

Event = collections.namedtuple('Event', 'name start_ns end_ns')
Event.duration_ns = property(lambda event: event.end_ns - event.start_ns)


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
        'base': {'clock': 'host', 'seconds': 2, 'base_seconds': 2, 'ratio': 1, 'ratio_quartiles': [1, 1]},
        'other': {'clock': 'host', 'seconds': 4, 'base_seconds': 2, 'ratio': 3, 'ratio_quartiles': [2.5, 3.5]},
    }


def test_the_order_alternates(monkeypatch):
    """Whoever follows a function that disturbs the machine, it isn't always the same one."""
    clock = Clock(monkeypatch)
    timing.take_turns({name: clock.function(name, [1] * 4) for name in 'abc'}, turns=2)
    assert ''.join(clock.calls) == 'cbaabccbaabc'


def test_what_comes_before_a_call_is_not_timed(monkeypatch):
    clock = Clock(monkeypatch)
    before = clock.function('-', [100] * 6)
    rows = timing.take_turns({name: clock.function(name, [1] * 3) for name in 'ab'}, turns=1, before=before)
    assert ''.join(clock.calls) == '-b-a-a-b-b-a'
    assert rows['a']['seconds'] == rows['b']['seconds'] == 1


def test_the_profiler_gives_each_call_its_own_kernels():
    """Of two functions and something in between; on a CPU, XLA's ops stand for kernels."""
    x = jnp.ones((256, 256))
    sine, cosine, tangent = (jax.jit(lambda x, f=f: f(x) @ x) for f in (jnp.sin, jnp.cos, jnp.tan))
    rows = timing.take_turns(
        {'sine': lambda: sine(x), 'twice': lambda: cosine(cosine(x))},
        turns=2,
        clock='profiler',
        before=lambda: tangent(x),
    )
    once, twice = rows['sine'], rows['twice']
    assert twice['launches'] == 2 * once['launches'] >= 4
    assert sum(kernel['launches'] for kernel in once['kernels'].values()) == once['launches']
    assert any('dot' in name or 'fusion' in name for name in once['kernels'])
    for row in rows.values():
        assert row['busy_seconds'] > 0
        assert max(kernel['seconds'] for kernel in row['kernels'].values()) <= row['busy_seconds'] * 1.001
    assert once['ratio'] == 1 and once['ratio_quartiles'] == [1, 1]


def profile_of(monkeypatch, calls, events):
    """Makes the profiler report these spans of calls and events on a device, in milliseconds."""
    in_nanoseconds = lambda events: [Event(name, start * 1e6, end * 1e6) for name, start, end in events]
    monkeypatch.setattr(timing, 'read_trace', lambda directory: (in_nanoseconds(calls), in_nanoseconds(events)))


def test_device_time_is_from_the_first_kernel_to_the_last(monkeypatch):
    """Gaps between kernels count, and what the host does around them doesn't, nor what runs between the calls."""
    calls = [('', 0, 10), ('', 20, 40)]
    events = [('a', 1, 2), ('b', 4, 5), ('between', 11, 19), ('c', 21, 25), ('d', 23, 29), ('c', 31, 32)]
    profile_of(monkeypatch, calls, events)
    rows = timing.take_turns({'first': lambda: 0, 'second': lambda: 0}, turns=2, clock='profiler')
    # Every other turn runs in reverse: the same profile is then of the functions the other way round.
    assert rows['first']['seconds'] == pytest.approx(7.5e-3) and rows['second']['seconds'] == pytest.approx(7.5e-3)
    assert rows['second']['busy_seconds'] == pytest.approx(9e-3)
    assert rows['second']['launches'] == 3
    assert rows['second']['kernels'] == {
        'd': {'launches': 1, 'seconds': pytest.approx(6e-3)},
        'c': {'launches': 2, 'seconds': pytest.approx(5e-3)},
    }
    assert list(rows['second']['kernels']) == ['d', 'c']


@pytest.mark.parametrize('unseen', ['copy', 'other'])
def test_what_the_profiler_does_not_see_is_timed_back_to_back(monkeypatch, unseen):
    """By the host's clock, with the first function beside it, and its row says so; the others keep the profiler's."""
    clock = Clock(monkeypatch)
    functions = {'copy': clock.function('copy', [2.0] * 99), 'other': clock.function('other', [6.0] * 99)}
    seen = {'copy': ('copy', 1e9, 2e9), 'other': ('other', 21e9, 24e9)}
    del seen[unseen]
    reverses = iter([False, True, False])  # turns 1, 2 and 3; turn 0 only compiles

    def read_trace(directory):
        """The calls of a turn are the other way round in every other one."""
        spans = [Event('', 0, 10e9), Event('', 20e9, 40e9)]
        return (spans[::-1] if next(reverses) else spans), [Event(*event) for event in seen.values()]

    monkeypatch.setattr(timing, 'read_trace', read_trace)
    monkeypatch.setattr(timing, 'CALLS_IN_A_ROW', 4)
    rows = timing.take_turns(functions, turns=2, clock='profiler')
    # Of four launches, the last one is waited for: in this clock, a launch takes a quarter of its time.
    back_to_back = dict(clock='host, back to back', base_seconds=0.5)
    expected = {name: {**back_to_back, 'seconds': {'copy': 0.5, 'other': 1.5}[name]} for name in functions}
    if unseen == 'other':
        expected['copy'] = dict(clock='profiler', base_seconds=1, seconds=1)
    for name, row in rows.items():
        assert {key: row[key] for key in expected[name]} == expected[name]
        assert row['ratio'] == row['seconds'] / row['base_seconds']
        assert ('launches' in row) == (row['clock'] == 'profiler')


def test_steps_that_are_given_their_own_state_run_back_to_back():
    """As those of a training: what one returns is gone when the next has it."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = jnp.zeros(3)

    def one_more():
        nonlocal state
        state = step(state)
        return state

    (call,) = timing._by_host({'step': one_more}, None, timing.CALLS_IN_A_ROW).values()
    assert call.seconds > 0 and float(state[0]) == timing.CALLS_IN_A_ROW


XSPACE = """
planes {
  id: 1 name: "/host:CPU"
  event_metadata { key: 1 value { id: 1 name: "timed call" } }
  event_metadata { key: 2 value { id: 2 name: "cuLaunchKernel" } }
  lines { id: 1 name: "python" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 9000000 duration_ps: 5000000 }
    events { metadata_id: 1 offset_ps: 1000000 duration_ps: 5000000 }
    events { metadata_id: 2 offset_ps: 1500000 duration_ps: 100000 }
  }
}
planes {
  id: 2 name: "/device:GPU:0"
  event_metadata { key: 7 value { id: 7 name: "loop_convert_fusion" } }
  event_metadata { key: 8 value { id: 8 name: "MemcpyD2D" } }
  event_metadata { key: 9 value { id: 9 name: "jit_f" } }
  lines { id: 13 name: "Stream #13(Compute)" timestamp_ns: 1000
    events { metadata_id: 7 offset_ps: 2000000 duration_ps: 1000000 }
  }
  lines { id: 14 name: "Stream #14(MemcpyD2D)" timestamp_ns: 1000
    events { metadata_id: 8 offset_ps: 10000000 duration_ps: 2000000 }
  }
  lines { id: 99 name: "XLA Modules" timestamp_ns: 1000
    events { metadata_id: 9 offset_ps: 2000000 duration_ps: 1000000 }
  }
}
"""


def test_reading_the_profile_of_a_gpu(monkeypatch, tmp_path):
    """Streams count, of lines derived from them nothing; calls are in order of time. (As XLA writes GPU profiles.)"""
    profile = jax.profiler.ProfileData.text_proto_to_serialized_xspace(XSPACE)
    (tmp_path / 'plugins').mkdir()
    (tmp_path / 'plugins' / 'host.xplane.pb').write_bytes(profile)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    calls, events = timing.read_trace(tmp_path)
    np.testing.assert_allclose([(call.start_ns, call.end_ns) for call in calls], [(2e3, 7e3), (10e3, 15e3)])
    assert [event.name for event in events] == ['loop_convert_fusion', 'MemcpyD2D']
    np.testing.assert_allclose([(event.start_ns, event.end_ns) for event in events], [(3e3, 4e3), (11e3, 13e3)])


def test_overlapping_events_are_busy_once():
    events = [Event('', 5e9, 6e9), Event('', 0, 2e9), Event('', 1e9, 3e9), Event('', 1.5e9, 2.5e9)]
    assert timing.busy_seconds(events) == pytest.approx(4)
    assert timing.busy_seconds([]) == 0


def test_the_clock_is_chosen_by_the_device(monkeypatch):
    assert timing.default_clock() == 'host'
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert timing.default_clock() == 'profiler'


def test_provenance():
    provenance = timing.provenance()
    assert provenance['jax'] == jax.__version__ and provenance['device'].startswith('8 x cpu, ')
    assert all(isinstance(value, str) and '\n' not in value for value in provenance.values())


def test_what_the_profiler_missed_is_told():
    rows = {'a': {'clock': 'profiler'}, 'b': {'clock': timing.BACK_TO_BACK}, 'c': 'not installed'}
    told = 'timed by the host, back to back, because the profiler saw nothing: b\n'
    assert timing.unseen_text(rows) == told
    assert timing.unseen_text({'a': {'clock': 'profiler'}}) == ''
