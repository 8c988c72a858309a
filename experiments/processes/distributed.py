"""One training in many processes: who takes part, what they decide together, and what happens when one is lost.

    with cli.user_errors():
        distributed.initialize(workdir)            # before anything that touches a device
    with distributed.lost_process_errors():
        ...                                        # all the rest of main

With one process, all of it does nothing.
"""

import contextlib
import hashlib
import itertools
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from absl import flags
from jax._src.distributed import global_state  # its client's barriers can wait for hours; Orbax uses it, too
from jax.experimental import multihost_utils

from experiments.processes.exit_codes import DONE, ERROR, LOST_PROCESS
from experiments.processes.launch_secret import LaunchSecret
from experiments.processes.launchers import find_launch
from experiments.processes.meeting import SECONDS_TO_START, OthersMissing
from experiments.processes.peers import SECONDS_TO_SPEAK, Peers

flags.DEFINE_string('coordinator_address', None, 'HOST:PORT of process 0, of several processes started by hand.')
flags.DEFINE_integer('num_processes', None, 'How many processes there are, started by hand.')
flags.DEFINE_integer('process_id', None, 'Which of them this is: 0, 1, …')
BIND_ADDRESS = flags.DEFINE_string(
    'coordinator_bind_address',
    None,
    'IP address at which process 0 listens, 0.0.0.0 or :: for all of its host; that of the coordinator if not given.',
)
FLAGS = tuple(flags.FLAGS[name] for name in ('coordinator_address', 'num_processes', 'process_id'))

SECONDS_OF_SILENCE = 45  # of a process that is frozen, until JAX aborts the others
SECONDS_TO_WAIT = 7 * 24 * 3600  # for process 0, which tokenises, or writes the last manifest

_peers: Peers | None = None
_barriers = itertools.count()


def initialize(workdir: pathlib.Path) -> None:
    """Joins the other processes of this training, if there are any; process 0 prints who is where.

    Process and device counts are right only after it: it comes before all else that touches a device.

    Args:
      workdir: where the processes find their secret, unless the environment has it; see `LaunchSecret`.

    Raises:
      ValueError: flags or environment that make no sense.
      ConnectionError: the coordinator's port is in use, say, or its address isn't one of this host.
      SystemExit: LOST_PROCESS, where not all processes came.
    """
    global _peers
    launch = find_launch({flag.name: flag.value for flag in FLAGS}, os.environ)
    if launch is None:
        return
    try:
        peers = Peers(launch, LaunchSecret(workdir, os.environ), BIND_ADDRESS.value)
    except OthersMissing as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(LOST_PROCESS)
    jax.distributed.initialize(
        peers.jax_coordinator_address,
        launch.num_processes,
        launch.process_id,
        launch.local_device_ids,
        cluster_detection_method='deactivate',
        initialization_timeout=SECONDS_TO_START,
        heartbeat_timeout_seconds=SECONDS_OF_SILENCE,
        shutdown_timeout_seconds=SECONDS_TO_WAIT,
        coordinator_bind_address=peers.jax_bind_address,
    )
    _peers = peers
    # The first collective is here, where all have just met: it has a deadline, and what comes next may take long.
    multihost_utils.sync_global_devices('gaussq_jax')


def is_main_process() -> bool:
    """Whether this process is the one that writes logs; known without touching a device."""
    return _peers is None or _peers.process_id == 0


@contextlib.contextmanager
def first_then_others() -> Iterator[None]:
    """The body runs in process 0, and only then in all others, at the same time: what it left on disk is there."""
    if is_main_process():
        yield
    if _peers:  # not a collective, whose timeouts end a process that waits for long
        name = f'gaussq_jax/first_then_others/{next(_barriers)}'
        global_state.client.wait_at_barrier(name, timeout_in_ms=1000 * SECONDS_TO_WAIT)
    if not is_main_process():
        yield


def check_same(what: str, text: str) -> None:
    """ValueError, in every process, if `text` isn't the same in all: a config, a digest. All have to ask.

    Example:
      >>> check_same('the text', 'f3a5')  # one process
    """
    if _peers is None:
        return
    digests = multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
    if others := [str(process) for process, digest in enumerate(digests) if np.any(digest != digests[0])]:
        raise ValueError(
            f'{what} is not the same in all processes: process {", ".join(others)} has another than process 0'
        )


@contextlib.contextmanager
def lost_process_errors() -> Iterator[None]:
    """Around all that several processes do: none is left waiting for one that has ended.

    If one is lost, the others end with one line and the exit code LOST_PROCESS. If one ends with an error of its own,
    the others end with its exit code, unless they come to an error by themselves within some seconds.
    """
    if _peers is None:
        yield
        return
    try:
        yield
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        _peers.end(ERROR if isinstance(error.code, str) else error.code or DONE)
        raise
    except BaseException as error:
        if isinstance(error, Exception):
            time.sleep(SECONDS_TO_SPEAK)  # a lost process makes collectives and barriers fail, too, and is told by then
        traceback.print_exception(error)
        _peers.end(ERROR)
    else:
        _peers.end(DONE)
