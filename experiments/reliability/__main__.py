"""Make every fault that a long training meets, see what becomes of it, and write the table of docs/reliability.md.

    python -m experiments.reliability --output=docs/reliability.md

Each fault of FAULTS befalls a small training on the CPU, in processes of its own. The exit code is 1 if one has
another outcome than it should have; the table says which.
"""

import os
import pathlib
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
from absl import flags

from experiments import cli
from experiments.files import paths
from experiments.reliability import edge_faults, faults, storage_faults
from experiments.reliability.faults import NotTried, Observation
from experiments.reliability.trial_runs import CHECKPOINT_EVERY, STEPS, Laboratory
from experiments.reports.markdown import markdown_table
from gaussq_jax.atomic_files import replace_file

OUTPUT = flags.DEFINE_string('output', None, 'A Markdown file for the table.')

PASSED, FAILED, NOT_TRIED = 'yes', '**NO**', 'not tried'
COLUMNS = ('Fault', 'How it was made', 'What happened', 'What was lost', 'As it should be')
FAULTS = {  # how each is made is the docstring of what makes it
    'SIGKILL at random moments': faults.kill_at_random_moments,
    'SIGTERM (preemption)': faults.terminate,
    'SIGTERM to one of two processes': faults.terminate_one_of_two,
    'SIGKILL of one of two processes': faults.kill_one_of_two,
    'a truncated checkpoint file': storage_faults.truncate_a_file,
    'a flipped bit': storage_faults.flip_a_bit,
    'a link in a checkpoint': storage_faults.link_elsewhere,
    'a full disk': storage_faults.fill_the_disk,
    'a read-only workdir': storage_faults.make_read_only,
    'a second run in the same workdir': faults.start_twice,
    'a jumping clock': faults.let_the_clock_jump,
    'resuming on another mesh': faults.change_the_mesh,
    'a loss that is NaN': faults.diverge,
    'a spike of the loss': faults.spike,
    'a stalled step': faults.stall,
    'strangers at the port': edge_faults.visit_the_port,
    'a process with another secret': edge_faults.come_without_the_secret,
    'a data folder that names a class': edge_faults.name_a_class,
    'a tokenizer that is gone': edge_faults.take_the_tokenizer_away,
    'a user without a home': edge_faults.forget_the_user,
    "half of a launcher's variables": edge_faults.set_half_a_launcher,
    "JAX's other modes": edge_faults.change_modes,
    'other microbatches': edge_faults.change_microbatches,
}


def main(argv):
    del argv
    jax.config.update('jax_platforms', 'cpu')  # the trainings are there, too
    rows, started = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        laboratory = Laboratory(pathlib.Path(folder))
        for name, make in FAULTS.items():
            outcome, observation = observe(make, laboratory)
            rows.append((name, make.__doc__, *observation, outcome))
            print(f'{outcome:10}{name}: {observation.happened}', flush=True)
    if OUTPUT.value:
        with cli.user_errors():
            replace_file(paths.parse(OUTPUT.value, '--output'), page(rows, time.perf_counter() - started))
    if any(outcome == FAILED for *_, outcome in rows):
        sys.exit('error: a fault had another outcome than it should have')


def observe(make: Callable[[Laboratory], Observation], laboratory: Laboratory) -> tuple[str, Observation]:
    """Makes one fault: if all was as it should be, and what was seen."""
    try:
        return PASSED, make(laboratory)
    except NotTried as error:
        return NOT_TRIED, Observation(str(error), 'unknown')
    except Exception as error:  # Unexpected, or what comes of a file that should be there and isn't
        return FAILED, Observation(f'{type(error).__name__}: {error}', 'unknown')


def page(rows: Sequence[Sequence[str]], seconds: float) -> str:
    """The table in Markdown, with what it needs to be read."""
    return f"""# What a training survives

Written by `python -m experiments.reliability --output=docs/reliability.md`, in {seconds / 60:.0f} minutes on
{machine()}.

Each fault befalls a training of {STEPS} steps of `configs/tiny.py:method=gaussws,parts=down,smoke`, with a line of
metrics every step and a checkpoint every {CHECKPOINT_EVERY}. Afterwards the same command is given again until the
training is complete. All is as it should be if the exit code and what is printed are the expected ones, and the result
is that of a training that nothing disturbed: every leaf of the final checkpoint to the bit, the data iterator's state,
each line of `metrics.jsonl`, and `summary.json`, but for what a clock says. `WORKDIR` stands for the workdir.
Files of others that are damaged or hostile, thousands of each kind, are what tests/test_hostile_files.py reads.

{markdown_table(COLUMNS, rows)}
"""


def machine() -> str:
    """The hardware and the versions."""
    try:
        found = re.search(r'^model name\s*:\s*(.+)$', pathlib.Path('/proc/cpuinfo').read_text(), re.MULTILINE)
    except OSError:
        found = None
    processor = found[1] if found else platform.machine()
    return f'{os.cpu_count()} cores ({processor}), with Python {platform.python_version()} and jax {jax.__version__}'


if __name__ == '__main__':
    cli.start(main)
