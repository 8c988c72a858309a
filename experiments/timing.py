"""Times of functions as ratios within one process, and what they were measured on."""

import datetime
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import numpy as np


def take_turns(functions: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, dict[str, Any]]:
    """Times the functions, which take turns, one call each, until their results are there.

    Whatever else the machine does falls on all of them alike. Two turns go before the timed ones: the first compiles,
    the second warms up; every other turn runs in reverse.

    Returns:
      For each name 'seconds', the median of a call; 'ratio', the median over the turns of the ratio to the first
      function's time in the same turn; and its 'ratio_quartiles'.
    """
    seconds = {name: [] for name in functions}
    for turn in range(turns + 2):
        for name in functions if turn % 2 else reversed(functions):
            start = time.perf_counter()
            result = jax.block_until_ready(functions[name]())
            elapsed = time.perf_counter() - start
            del result  # its memory is freed outside of the measured time, and before the next call
            if turn > 1:
                seconds[name].append(elapsed)
    base = np.array(next(iter(seconds.values())))
    return {
        name: {
            'seconds': float(np.median(times)),
            'ratio': float(np.median(times / base)),
            'ratio_quartiles': [float(quartile) for quartile in np.quantile(times / base, [0.25, 0.75])],
        }
        for name, times in seconds.items()
    }


def environment() -> dict[str, str]:
    """On what, with what and when something was measured."""
    device = jax.devices()[0]
    git = shutil.which('git')
    commit = git and subprocess.run([git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=False).stdout
    return {
        'device': f'{jax.device_count()} x {device.device_kind}, {os.cpu_count()} CPU cores',
        'jax': jax.__version__,
        'flax': flax.__version__,
        'date': datetime.date.today().isoformat(),
        'commit': (commit or 'unknown').strip(),
    }
