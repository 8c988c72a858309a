"""The connections between process 0 and each other one: by them each says how it ends, and none waits for a lost one.

A process that ends says on its connection with which exit code. One that is killed, or crashes, says nothing, and the
kernel closes its connection: process 0 tells all, and each ends itself, with one line, as LOST_PROCESS. How these
connections come about is in meeting.py.

JAX does without: where others don't come it aborts, a port in use crashes it, and that a process is gone it knows after
its heartbeat's timeout, and aborts the others, which wait until then in a collective for one that doesn't come.
"""

import contextlib
import os
import selectors
import socket
import struct
import sys
import threading

from experiments.processes.exit_codes import DONE, LOST_PROCESS, PREEMPTED
from experiments.processes.launch_secret import LaunchSecret
from experiments.processes.launchers import Launch
from experiments.processes.meeting import meet

SECONDS_TO_SPEAK = 5  # in which a process may end with an error of its own after another one did

END = struct.Struct('!iB')  # which process ends, and its exit code
LARGEST_EXIT_CODE = 127  # above are those of signals, of which a process says nothing


class Peers:
    """Meets the other processes, at the coordinator's address; from then on this one ends if another one ends badly.

    jax_coordinator_address, jax_bind_address: for JAX's own service, as `meeting.Meeting` has them.

    Args and errors are those of `meeting.meet`.
    """

    def __init__(self, launch: Launch, secret: LaunchSecret, bind_address: str | None = None):
        self.process_id = launch.process_id
        self._num_processes = launch.num_processes
        self._is_ending = threading.Event()
        self._all_others_ended = threading.Event()
        self._connections, self.jax_coordinator_address, self.jax_bind_address = meet(launch, secret, bind_address)
        for connection in self._connections:
            connection.settimeout(SECONDS_TO_SPEAK)  # for the rest of a message that has begun
        threading.Thread(target=self._watch, name='peers', daemon=True).start()

    def end(self, code: int) -> None:
        """Says how this process ends. Returns if it ends well, which JAX lets all processes do together."""
        self._is_ending.set()
        self._tell(self.process_id, code)
        if code not in (DONE, PREEMPTED):
            sys.stdout.flush()
            self._exit(code)

    def _tell(self, process: int, code: int) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.sendall(END.pack(process, code))

    def _watch(self) -> None:
        """Listens to all connections until they are closed."""
        ended, is_ending_with_another = set(), False
        with selectors.DefaultSelector() as selector:
            for connection in self._connections:
                selector.register(connection, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    end = self._receive_end(key.fileobj)
                    if end is None:
                        selector.unregister(key.fileobj)
                    process, code = end or (self._connections[key.fileobj], LOST_PROCESS)
                    if code not in (DONE, PREEMPTED) and process not in ended and not is_ending_with_another:
                        is_ending_with_another = True
                        if self.process_id == 0:
                            self._tell(process, code)
                        threading.Thread(target=self._end_with, args=(process, code), daemon=True).start()
                    ended.add(process)
        self._all_others_ended.set()

    def _receive_end(self, connection: socket.socket) -> tuple[int, int] | None:
        """Which process ends with which exit code; None if that can't be known any more: it is closed, or garbled."""
        message = b''
        try:
            while len(message) < END.size and (part := connection.recv(END.size - len(message))):
                message += part
            process, code = END.unpack(message)
        except (OSError, struct.error):
            return None
        can_speak_of = [self._connections[connection]] if self.process_id == 0 else range(self._num_processes)
        return (process, code) if process in can_speak_of and code <= LARGEST_EXIT_CODE else None

    def _end_with(self, process: int, code: int) -> None:
        """Ends this process, because another one ended."""
        if self._is_ending.wait(0 if code == LOST_PROCESS else SECONDS_TO_SPEAK):
            return
        if code == LOST_PROCESS:
            what = 'was lost (killed, crashed, or its host is gone)'
            remedy = 'start all again with the same command: they continue from the newest checkpoint'
        else:
            what, remedy = f'ended with exit code {code}', 'it says why'
        text = (
            f'error: process {process} of {self._num_processes} {what}; process {self.process_id} ends, too; {remedy}'
        )
        os.write(sys.stderr.fileno(), f'{text}\n'.encode())  # whatever the main thread is doing
        self._exit(code)

    def _exit(self, code: int) -> None:
        if self.process_id == 0:  # the others abort when JAX' service in process 0 is gone
            self._all_others_ended.wait(2 * SECONDS_TO_SPEAK)
        os._exit(code)
