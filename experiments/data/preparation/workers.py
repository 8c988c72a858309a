"""Blocks to tokens, in their order, by worker processes that no more than a few blocks are on the way to."""

import collections
import concurrent.futures
import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import loky
from loky.process_executor import BrokenProcessPool

from experiments.data.preparation.encoding import BlockEncoder, Encoded
from experiments.data.sources.source import Block

BLOCKS_AHEAD = 2  # that are read before a worker can have them; of each worker, as many are encoded or on the way
SECONDS_OF_READING = 5  # that an end waits for: a process that ends while PyArrow reads may crash
ENVIRONMENT = {
    **{'TOKENIZERS_PARALLELISM': 'false', 'OMP_NUM_THREADS': '1'},
    'LOKY_MAX_MEMORY_LEAK_SIZE': '1e15',  # blocks of large documents take more than what loky takes for a leak
}


class Placed(NamedTuple):
    """A block; split: that its documents are of, or None; ends: where reading goes on after it; read: bytes so far."""

    block: Block
    split: str | None
    ends: tuple[int, int, int]
    read: int


def encoded_blocks(
    encoder: BlockEncoder, blocks: Iterable[Placed], workers: int
) -> Iterator[tuple[Placed, dict[str, Encoded]]]:
    """What `encoder` makes of each block, in their order.

    Args:
      encoder: picklable.
      blocks: read by a thread, but for one worker.
      workers: how many processes; one is this process. They import no JAX, and end with this process.

    Raises:
      OSError: a worker died.
      Exception: of reading, or of encoding, that of the first block that has one.
    """
    if workers == 1:
        for placed in blocks:
            yield placed, encoder.encode(placed.block, placed.split)
        return
    arguments = dict(initializer=_start, initargs=(encoder, os.getpid()), env=ENVIRONMENT)
    resource_tracker.ensure_running()  # here: where `submit` starts it, it lets signals in again
    pool = loky.ProcessPoolExecutor(workers, **arguments)
    waiting = collections.deque()
    try:
        with _read_ahead(blocks) as read:
            for placed in read:
                if isinstance(placed, BaseException):  # told after those of the blocks before it
                    future = concurrent.futures.Future()
                    future.set_exception(placed)
                else:
                    with _signals_held():
                        future = pool.submit(_encode, placed.block, placed.split)
                    placed = placed._replace(block=None)  # it is not needed any more
                waiting.append((placed, future))
                while len(waiting) > BLOCKS_AHEAD * workers:
                    yield _result(waiting)
            while waiting:
                yield _result(waiting)
    except BrokenProcessPool as error:
        raise OSError(
            f'a worker process died ({_reason(error)}); if memory ran out, give fewer --workers. What is written stays:'
            ' the same command goes on from there'
        ) from None
    finally:
        pool.shutdown(wait=True, kill_workers=True)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """SIGINT and SIGTERM come after it; and never to a process that it starts, which its parent ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _result(waiting: collections.deque) -> tuple[Placed, dict[str, Encoded]]:
    placed, future = waiting.popleft()
    return placed, future.result()


def _reason(error: BaseException) -> str:
    text = ' '.join(str(error).split())
    return text.partition('exit codes of the workers are ')[2][:80].rstrip('. ') or text[:80]


@contextlib.contextmanager
def _read_ahead(items: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """The items, each read before it is asked for; last an exception, if reading ends with one."""
    ready, has_ended = queue.Queue(BLOCKS_AHEAD), threading.Event()

    def put(item: Any) -> bool:
        while not has_ended.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def read() -> None:
        try:
            if all(map(put, items)):
                put(None)
        except BaseException as error:
            put(error)
            put(None)

    reader = threading.Thread(target=read, name='reading blocks', daemon=True)
    reader.start()
    try:
        yield iter(ready.get, None)
    finally:
        has_ended.set()
        reader.join(SECONDS_OF_READING)


_encoder: BlockEncoder | None = None  # of a worker process


def _start(encoder: BlockEncoder, parent: int) -> None:
    """Readies a worker process, which doesn't outlive its parent."""
    global _encoder
    _encoder = encoder
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _encode(block: Block, split: str | None) -> dict[str, Encoded]:
    return _encoder.encode(block, split)
