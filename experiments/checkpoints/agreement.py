"""What processes decide together: they must not disagree about what is on the disk. All have to call, in one order."""

import itertools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.checkpoints.manifests import find_damage
from experiments.checkpoints.process_shares import Share
from experiments.devices import jax_internals

SECONDS_TO_WAIT = 7 * 24 * 3600  # for a process that writes or reads
LONGEST_TEXT = 1000  # in bytes, of damage

_barriers = itertools.count()


def new_barrier() -> Callable[[], None]:
    """A barrier of all processes: calling it waits for the others, in any thread. With one process it does nothing."""
    name = f'gaussq_jax/checkpoints/{next(_barriers)}'

    def wait() -> None:
        if jax.process_count() > 1:
            jax_internals.wait_at_barrier(name, SECONDS_TO_WAIT)

    return wait


def decided_by_first_process(compute: Callable[[], int | None]) -> int | None:
    """compute() of process 0, which is not negative, on every process."""
    value = compute() if jax.process_index() == 0 else None
    decided = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if value is None else value)))
    return None if decided < 0 else decided


def listed_by_first_process(compute: Callable[[], list[int]]) -> list[int]:
    """compute() of process 0, on every process."""
    values = compute() if jax.process_index() == 0 else []
    length = decided_by_first_process(lambda: len(values))
    values = np.array(values or [0] * length, np.int32)
    return np.asarray(multihost_utils.broadcast_one_to_all(values)).tolist() if length else []


def find_damage_together(directory: pathlib.Path) -> str | None:
    """As `find_damage`, but each process reads its share, and all have what the first that finds damage says of it."""
    wait_for_all = new_barrier()
    damage = find_damage(directory, Share(jax.process_index(), jax.process_count()))
    if jax.process_count() == 1:
        return damage
    wait_for_all()  # not in a collective, whose timeouts end a process that waits for long
    text = (damage or '').encode()[:LONGEST_TEXT]
    texts = multihost_utils.process_allgather(np.frombuffer(text.ljust(LONGEST_TEXT, b'\0'), np.uint8))
    told = (bytes(each).rstrip(b'\0').decode(errors='replace') for each in np.asarray(texts))
    return next(filter(None, told), None)
