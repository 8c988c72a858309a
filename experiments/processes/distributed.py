"""One training in many processes: who takes part, what they decide together, and what happens when one is lost.

    with cli.user_errors():
        distributed.initialize(workdir=workdir)    # before anything that touches a device
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
from jax.experimental import multihost_utils

from experiments.devices import jax_internals
from experiments.processes.exit_codes import DONE, ERROR, LOST_PROCESS
from experiments.processes.launch_secret import LaunchSecret
from experiments.processes.launchers import find_launch
from experiments.processes.meeting import SECONDS_TO_START, OthersMissing
from experiments.processes.peers import SECONDS_TO_SPEAK, Peers

SECONDS_OF_SILENCE = 45  # of a process that is frozen, until JAX aborts the others
SECONDS_TO_WAIT = 7 * 24 * 3600  # for process 0, which tokenises, or writes the last manifest

_peers: Peers | None = None
_barriers = itertools.count()


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    workdir: pathlib.Path,
    coordinator_bind_address: str | None = None,
) -> None:
    """Joins the other processes of this training, if there are any; process 0 prints who is where.

    Process and device counts are right only after it: it comes before all else that touches a device.

    Args:
      coordinator_address: host:port of process 0; None, and so the next two, where a launcher tells it, or nobody.
      num_processes: how many there are.
      process_id: which of them this is: 0, 1, …
      workdir: where the processes find their secret, unless the environment has it; see `LaunchSecret`.
      coordinator_bind_address: the IP address at which process 0 listens; see `meeting.meet`.

    Raises:
      ValueError: arguments or an environment that make no sense.
      ConnectionError: the coordinator's port is in use, say, or its address isn't one of this host.
      SystemExit: LOST_PROCESS, where not all processes came.
    """
    global _peers
    given = dict(coordinator_address=coordinator_address, num_processes=num_processes, process_id=process_id)
    launch = find_launch(given, os.environ)
    if launch is None:
        return
    try:
        peers = Peers(launch, LaunchSecret(workdir, os.environ), coordinator_bind_address)
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
        jax_internals.wait_at_barrier(f'gaussq_jax/first_then_others/{next(_barriers)}', SECONDS_TO_WAIT)
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
