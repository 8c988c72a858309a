"""Times of functions as ratios within one process, by the host's or the profiler's clock; on what, with what."""

import collections
import datetime
import functools
import math
import operator
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, NotRequired, TypedDict

import flax
import jax
import numpy as np
from jax.profiler import ProfileEvent

CLOCKS = ('host', 'profiler')
DEFAULT_TURNS = 40
BACK_TO_BACK = 'host, back to back'  # the clock of what the profiler doesn't see
CALLS_IN_A_ROW = 20  # of which that is the mean
MOST_KERNELS = 10  # that are named of a call

Functions = Mapping[str, Callable[[], Any]]

_CALL = 'timed call'


class Timing(TypedDict):
    """What was measured of a function; times in seconds."""

    clock: str  # of CLOCKS, or BACK_TO_BACK
    seconds: float  # of a call, the median
    base_seconds: float  # of the first function's calls in the same turns, the median
    ratio: float  # to that in the same turn, the median
    ratio_quartiles: list[float]
    # With the profiler's clock, of the last call:
    busy_seconds: NotRequired[float]  # without the gaps between kernels
    launches: NotRequired[int]  # kernels and copies
    kernels: NotRequired[dict[str, dict[str, Any]]]  # by name: launches and seconds, longest first


class Call(NamedTuple):
    """How long a call took, and what ran on the device meanwhile if the profiler watched."""

    seconds: float
    events: Sequence[ProfileEvent] = ()


def default_clock() -> str:
    """The profiler's on GPUs, of which it knows when they work; else the host's."""
    return 'profiler' if jax.default_backend() == 'gpu' else 'host'


def take_turns(
    functions: Functions, turns: int, *, clock: str = 'host', before: Callable[[], Any] | None = None
) -> dict[str, Timing]:
    """Times the functions, which take turns, one call each, until their results are there.

    Whatever else the machine does falls on all of them alike. Two turns go before the timed ones: the first compiles,
    the second warms up; every other turn runs in reverse.

    Args:
      functions: by name; ratios are to the first.
      turns: how many are timed.
      clock: 'host', from the call to its result on the host's clock; or 'profiler', from the start of the first kernel
        on a device to the end of the last, without what the host does before and after. A function of which the
        profiler sees nothing is timed again, in turns with the first one, by the host's clock: the mean of
        CALLS_IN_A_ROW, which hides the host's overhead, without `before`. Its timing says so.
      before: called, untimed, before each call.
    """
    calls = _measure(functions, turns, {'host': _by_host, 'profiler': _by_profiler}[clock], before)
    first = next(iter(functions))
    unseen = [name for name in functions if clock == 'profiler' and not all(call.events for call in calls[name])]
    if first in unseen:
        unseen = list(functions)
    timings = {name: _timing(clock, calls[name], calls[first]) for name in functions}
    if unseen:
        again = {name: functions[name] for name in dict.fromkeys([first, *unseen])}
        calls = _measure(again, turns, functools.partial(_by_host, in_a_row=CALLS_IN_A_ROW), None)
        timings |= {name: _timing(BACK_TO_BACK, calls[name], calls[first]) for name in unseen}
    return timings


def compile_together(programs: Mapping[Any, Callable[[], jax.stages.Lowered]]) -> dict[Any, Future]:
    """Compiles the programs in parallel, a thread a core.

    Args:
      programs: by name, functions that lower them, which are called one after the other.

    Returns:
      Futures that are done: `result()` is the compiled program, or raises why there is none.
    """
    futures = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for name, lower in programs.items():
            try:
                futures[name] = threads.submit(lower().compile)
            except Exception as error:  # of whatever kind: of tracing, of lowering
                futures[name] = Future()
                futures[name].set_exception(error)
    return futures


def provenance() -> dict[str, str]:
    """On what, with what and when something was measured."""
    device = jax.devices()[0]
    git = shutil.which('git')
    commit = git and subprocess.run([git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=False).stdout
    return {
        'device': f'{jax.device_count()} x {device.device_kind}, {os.cpu_count()} CPU cores',
        'platform': ' '.join(device.client.platform_version.split()),
        'python': platform.python_version(),
        'jax': jax.__version__,
        'flax': flax.__version__,
        'date': datetime.date.today().isoformat(),
        'commit': (commit or 'unknown').strip(),
    }


def quartiles_text(timing: Timing, digits: int) -> str:
    """Of the ratio: '0.98 .. 1.03'."""
    return ' .. '.join(f'{quartile:.{digits}f}' for quartile in timing['ratio_quartiles'])


def unseen_text(rows: Mapping[str, Any]) -> str:
    """A line, with its end, that says which rows the profiler saw nothing of; none if there are none."""
    names = [name for name, row in rows.items() if isinstance(row, dict) and row.get('clock') == BACK_TO_BACK]
    return f'timed by the host, back to back, because the profiler saw nothing: {"; ".join(names)}\n' if names else ''


def read_trace(directory: str | os.PathLike) -> tuple[list[ProfileEvent], list[ProfileEvent]]:
    """The timed calls, in order, and what ran on the devices, from the one profile in `directory`.

    On a device's streams these are kernels and copies; a CPU has no streams, and XLA's ops stand for them.
    """
    (path,) = pathlib.Path(directory).rglob('*.xplane.pb')
    profile = jax.profiler.ProfileData.from_file(str(path))
    of_host = [event for line in profile.find_plane_with_name('/host:CPU').lines for event in line.events]
    calls = sorted((event for event in of_host if event.name == _CALL), key=operator.attrgetter('start_ns'))
    if jax.default_backend() == 'cpu':
        return calls, [event for event in of_host if _is_op(event)]
    return calls, [
        event
        for plane in profile.planes
        if plane.name.startswith('/device:')
        for line in plane.lines
        if line.name.startswith('Stream')  # other lines say the same again by HLO op and module
        for event in line.events
    ]


def busy_seconds(events: Iterable[ProfileEvent]) -> float:
    """How long at least one of the events went on."""
    busy, until = 0.0, -np.inf
    for event in sorted(events, key=operator.attrgetter('start_ns')):
        busy += max(event.end_ns - max(event.start_ns, until), 0.0)
        until = max(until, event.end_ns)
    return busy * 1e-9


def _measure(
    functions: Functions, turns: int, measure: Callable, before: Callable[[], Any] | None
) -> dict[str, list[Call]]:
    calls = {name: [] for name in functions}
    for turn in range(turns + 2):
        names = functions if turn % 2 else reversed(functions)
        measured = (measure if turn else _by_host)({name: functions[name] for name in names}, before)
        if turn > 1:
            for name, call in measured.items():
                calls[name].append(call)
    return calls


def _by_host(functions: Functions, before: Callable[[], Any] | None, in_a_row: int = 1) -> dict[str, Call]:
    """The mean of calls in a row: the device has the next launch while it works; the host waits for the last alone."""
    calls = {}
    for name, function in functions.items():
        if before:
            jax.block_until_ready(before())
        with jax.profiler.TraceAnnotation(_CALL):
            start = time.perf_counter()
            for _ in range(in_a_row):
                result = function()
            jax.block_until_ready(result)
            calls[name] = Call((time.perf_counter() - start) / in_a_row)
        del result  # its memory is freed outside of the measured time, and before the next call
    return calls


def _by_profiler(functions: Functions, before: Callable[[], Any] | None) -> dict[str, Call]:
    """A kernel belongs to the call during which it started: each call waits for its own."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory, profiler_options=options):
            _by_host(functions, before)
        spans, events = read_trace(directory)
    calls = {}
    for name, span in zip(functions, spans, strict=True):
        during = [event for event in events if span.start_ns <= event.start_ns < span.end_ns]
        first = min((event.start_ns for event in during), default=math.nan)
        last = max((event.end_ns for event in during), default=math.nan)
        calls[name] = Call((last - first) * 1e-9, during)
    return calls


def _timing(clock: str, calls: list[Call], base_calls: list[Call]) -> Timing:
    times, base = (np.array([call.seconds for call in of_one]) for of_one in (calls, base_calls))
    timing = Timing(
        clock=clock,
        seconds=float(np.median(times)),
        base_seconds=float(np.median(base)),
        ratio=float(np.median(times / base)),
        ratio_quartiles=[float(quartile) for quartile in np.quantile(times / base, [0.25, 0.75])],
    )
    if events := calls[-1].events:
        kernels = collections.defaultdict(lambda: {'launches': 0, 'seconds': 0.0})
        for event in events:
            kernels[event.name]['launches'] += 1
            kernels[event.name]['seconds'] += event.duration_ns * 1e-9
        longest = sorted(kernels.items(), key=lambda item: -item[1]['seconds'])[:MOST_KERNELS]
        timing |= Timing(busy_seconds=busy_seconds(events), launches=len(events), kernels=dict(longest))
    return timing


def _is_op(event) -> bool:
    with warnings.catch_warnings():  # jaxlib's type of an event's stats has no __module__, which Python 3.12 deprecates
        warnings.simplefilter('ignore', DeprecationWarning)
        return any(name == 'hlo_op' for name, _ in event.stats)
