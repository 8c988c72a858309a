"""Blocks to tokens, in their order, by worker processes that no more than a few blocks are on the way to."""

import collections
import contextlib
import os
import queue
import signal
import threading
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import loky

from experiments.data.preparation.encoding import BlockEncoder, Encoded
from experiments.data.sources.source import Block

BLOCKS_AHEAD = 2  # that are read before a worker can have them, and that each worker has been given
SECONDS_OF_READING = 5  # that an end waits for: a process that ends while PyArrow reads may crash
ENVIRONMENT = {'TOKENIZERS_PARALLELISM': 'false', 'OMP_NUM_THREADS': '1'}


class Placed(NamedTuple):
    """A block; split: that its documents are of, or None; ends: where reading goes on after it; read: bytes so far."""

    block: Block
    split: str | None
    ends: tuple[int, int, int]
    read: int


def encoded_blocks(
    encoder: BlockEncoder, blocks: Iterable[Placed], workers: int
) -> Iterator[tuple[Placed, dict[str, Encoded]]]:
    """What `encoder` makes of each block, in their order: block i by worker i modulo their number.

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
    with _started(encoder, workers) as started, _read_ahead(blocks) as read:
        waiting = collections.deque()
        for number, placed in enumerate(read):
            if isinstance(placed, BaseException):  # told after those of the blocks before it
                waiting.append((placed, None))
                break
            if len(waiting) == BLOCKS_AHEAD * workers:
                yield _result(waiting)
            worker = started[number % workers]
            worker.give(placed.block, placed.split)
            waiting.append((placed._replace(block=None), worker))  # it is not needed any more
        while waiting:
            yield _result(waiting)


class _Worker:
    """A process with a pipe of its own, which ends when the process does, whatever it was at.

    Started by loky, whose processes don't import this one's main module again.
    """

    def __init__(self, encoder: BlockEncoder):
        context = loky.backend.get_context('loky')
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(encoder, theirs), env=ENVIRONMENT, daemon=True)
        with _signals_held():
            self._process.start()
        theirs.close()

    def give(self, block: Block, split: str | None) -> None:
        with self._telling_death():
            self._connection.send((block, split))

    def take(self) -> dict[str, Encoded]:
        """What it makes of the oldest block that it was given; raises what encoding has raised."""
        with self._telling_death():
            result = self._connection.recv()
        if isinstance(result, BaseException):
            raise result
        return result

    def kill(self) -> None:
        if self._process.exitcode is None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()
        self._connection.close()

    @contextlib.contextmanager
    def _telling_death(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError):  # the latter within a result
            self._process.join()
            code = self._process.exitcode
            told = signal.Signals(-code).name if code and code < 0 else f'exit code {code}'
            raise OSError(
                f'a worker process died ({told}); if memory ran out, give fewer --workers. What is written stays:'
                ' the same command goes on from there'
            ) from None


@contextlib.contextmanager
def _started(encoder: BlockEncoder, workers: int) -> Iterator[list[_Worker]]:
    resource_tracker.ensure_running()  # here: where a process starts it, it lets signals in again
    started = []
    try:
        for _ in range(workers):
            started.append(_Worker(encoder))
        yield started
    finally:
        for worker in started:
            worker.kill()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """SIGINT and SIGTERM come after it; and never to a process that it starts, which its parent ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _result(waiting: collections.deque) -> tuple[Placed, dict[str, Encoded]]:
    placed, worker = waiting.popleft()
    if worker is None:
        raise placed
    return placed, worker.take()


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


def _work(encoder: BlockEncoder, connection: Connection) -> None:
    """A worker's main function. It receives while it encodes and sends, so that its parent never waits for that."""
    given = queue.Queue()

    def receive() -> None:
        try:
            while True:
                given.put(connection.recv())
        except (EOFError, OSError):  # of a parent that has ended
            os._exit(1)

    threading.Thread(target=receive, daemon=True).start()
    while True:
        block, split = given.get()
        try:
            result = encoder.encode(block, split)
        except Exception as error:
            result = error
        with contextlib.suppress(ConnectionError):
            connection.send(result)
