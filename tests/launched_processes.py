"""Programs that are started in several processes of this machine, as by hand: with the flags of experiments.train."""

import contextlib
import dataclasses
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

from compilation import xla_flags

REPOSITORY = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass
class Processes:
    """Started processes, and the files of what they say."""

    processes: list[subprocess.Popen]
    outputs: list[pathlib.Path]

    def text(self, process):
        return self.outputs[process].read_text()

    def wait_for(self, pattern, process=0):
        """Until the process says it."""
        while not re.search(pattern, self.text(process)):
            assert self.processes[process].poll() is None, self.text(process)
            time.sleep(0.01)

    def exit_codes(self, timeout=None):
        return [process.wait(timeout) for process in self.processes]


@contextlib.contextmanager
def launcher(folder):
    """launch(arguments, number of processes) -> Processes; killed at the end, whatever they do."""
    started = []

    def launch(arguments, num_processes, *, devices=2, coordinator=None, **environment):
        with socket.create_server(('', 0)) as server:
            address = coordinator or f'localhost:{server.getsockname()[1]}'
        outputs = [folder / f'{len(started)}.{process}.txt' for process in range(num_processes)]
        environment = {
            **os.environ,
            'XLA_FLAGS': xla_flags(devices),
            **environment,
        }
        flags = [f'--coordinator_address={address}', f'--num_processes={num_processes}']
        processes = []
        for process, output in enumerate(outputs):
            command = [sys.executable, *arguments, *flags, f'--process_id={process}']
            with output.open('w') as file:
                processes.append(
                    subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT)
                )
        started.extend(processes)
        return Processes(processes, outputs)

    try:
        yield launch
    finally:
        for process in started:
            process.kill()
            process.wait()
