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
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
from absl import flags

from experiments import cli
from experiments.files import paths
from experiments.reliability import edge_faults, faults, storage_faults
from experiments.reliability.faults import NotTried, Observation
from experiments.reliability.trial_runs import CHECKPOINT_EVERY, Laboratory
from experiments.reports.markdown import markdown_table
from gaussq_jax.atomic_files import replace_file

OUTPUT = flags.DEFINE_string('output', None, 'A Markdown file for the table.')

STEPS = 200
MOMENTS = 20
PASSED, FAILED, NOT_TRIED = 'yes', '**NO**', 'not tried'
COLUMNS = ('Fault', 'How it was made', 'What happened', 'What was lost', 'As it should be')


class Fault(NamedTuple):
    """A fault: its name, how it is made, and the function that makes it, and looks."""

    name: str
    how: str
    observe: Callable[[Laboratory], Observation]


FAULTS = (
    Fault(
        'SIGKILL at random moments',
        'half of them while a checkpoint is being written, the others at a random time after the start or first step',
        faults.kill_at_random_moments,
    ),
    Fault('SIGTERM (preemption)', 'sent in the middle of the training', faults.terminate),
    Fault('SIGTERM to one of two processes', 'sent to the second', faults.terminate_one_of_two),
    Fault('SIGKILL of one of two processes', 'first of the second, later of the first', faults.kill_one_of_two),
    Fault(
        'a truncated checkpoint file',
        "the newest checkpoint's largest file is cut to half its size",
        storage_faults.truncate_a_file,
    ),
    Fault(
        'a flipped bit', "one random bit of the newest checkpoint's largest file is changed", storage_faults.flip_a_bit
    ),
    Fault(
        'a link in a checkpoint',
        "the newest checkpoint's folder of arrays is elsewhere, and a link to it in its place",
        storage_faults.link_elsewhere,
    ),
    Fault(
        'a full disk',
        'the workdir is on a tmpfs of 4 MiB, which is enlarged after the end',
        storage_faults.fill_the_disk,
    ),
    Fault(
        'a read-only workdir',
        'its tmpfs is mounted read-only before a killed training goes on, and writable again after',
        storage_faults.make_read_only,
    ),
    Fault(
        'a second run in the same workdir',
        'started while the first, held by SIGSTOP, is in its middle',
        faults.start_twice,
    ),
    Fault(
        'a jumping clock',
        'twice a second, `time.time()` changes by hours, forth or back (5, -3, 11, -20, 0 from the true time): the'
        ' function is replaced in the process',
        faults.let_the_clock_jump,
    ),
    Fault(
        'resuming on another mesh',
        'saved on 8x1x1 (data, fsdp, tensor), resumed on 8x1x1 and on 2x4x1; with 60 steps and a learning rate of'
        ' 6e-4, since the rounding errors of another order of summation grow with both',
        faults.change_the_mesh,
    ),
    Fault(
        'a loss that is NaN',
        'every 20,000th token of the text is one that the vocabulary does not have, as if memory were faulty',
        faults.diverge,
    ),
    Fault(
        'a spike of the loss',
        '`spike_sigmas=2` over 20 steps, which the noise of small batches exceeds now and then',
        faults.spike,
    ),
    Fault(
        'a stalled step',
        '`stall_timeout=10`; metrics.jsonl becomes a pipe that nobody reads, as on a file system that does not answer',
        faults.stall,
    ),
    Fault(
        'strangers at the port',
        'five connect while process 0 of two waits for the other: a web browser, five bytes, a claim to be process 1,'
        ' a line without an end, and one that says nothing',
        edge_faults.visit_the_port,
    ),
    Fault(
        'a process with another secret',
        'it comes with the same command as process 1 of two, for ten seconds, but with another `GAUSSQ_SECRET`',
        edge_faults.come_without_the_secret,
    ),
    Fault(
        'a data folder that names a class',
        '`features.json` in a `data_dir` names `hostile.Features`, which TFDS would import',
        edge_faults.name_a_class,
    ),
    Fault(
        'a tokenizer that is gone',
        'after a SIGKILL the workdir is moved, and the file of `config.tokenizer` deleted',
        edge_faults.take_the_tokenizer_away,
    ),
    Fault(
        'a user without a home',
        'a killed training goes on without HOME, as a user whom the machine does not know, and prints in ASCII',
        edge_faults.forget_the_user,
    ),
    Fault(
        "half of a launcher's variables",
        'SLURM_STEP_NUM_TASKS and SLURM_PROCID are set, and no other, when a killed training goes on',
        edge_faults.set_half_a_launcher,
    ),
    Fault(
        "JAX's other modes",
        'a killed training goes on with JAX_ENABLE_X64=1, JAX_NUMPY_RANK_PROMOTION=raise and'
        ' JAX_NUMPY_DTYPE_PROMOTION=strict',
        edge_faults.change_modes,
    ),
    Fault(
        'other microbatches',
        'a killed training goes on with `microbatches=2`',
        edge_faults.change_microbatches,
    ),
)


class Result(NamedTuple):
    """A fault, if all was as it should be, and what was seen."""

    fault: Fault
    outcome: str
    observation: Observation


def main(argv):
    del argv
    jax.config.update('jax_platforms', 'cpu')  # the trainings are there, too
    results, started = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        laboratory = Laboratory(pathlib.Path(folder), steps=STEPS, moments=MOMENTS)
        for fault in FAULTS:
            results.append(result := observe(fault, laboratory))
            print(f'{result.outcome:10}{fault.name}: {result.observation.happened}', flush=True)
    if OUTPUT.value:
        with cli.user_errors():
            replace_file(paths.parse(OUTPUT.value, '--output'), page(results, time.perf_counter() - started))
    if any(result.outcome == FAILED for result in results):
        sys.exit('error: a fault had another outcome than it should have')


def observe(fault: Fault, laboratory: Laboratory) -> Result:
    """Makes one fault."""
    try:
        return Result(fault, PASSED, fault.observe(laboratory))
    except NotTried as error:
        return Result(fault, NOT_TRIED, Observation(str(error), 'unknown'))
    except Exception as error:  # Unexpected, or what comes of a file that should be there and isn't
        return Result(fault, FAILED, Observation(f'{type(error).__name__}: {error}', 'unknown'))


def page(results: Iterable[Result], seconds: float) -> str:
    """The table in Markdown, with what it needs to be read."""
    rows = [(result.fault.name, result.fault.how, *result.observation, result.outcome) for result in results]
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
