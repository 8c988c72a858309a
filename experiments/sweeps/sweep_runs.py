"""One run of a sweep: how it is started, how it ends, and what its directory says of it.

The directory alone tells what became of a run, whoever started it: summary.json that it is done, diverged.txt that its
loss or a gradient wasn't finite, error.txt why it failed. While it trains, it holds the lock of its directory.
"""

import contextlib
import functools
import math
import os
import pathlib
import re
import signal
import subprocess
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import traverse_util

from configs import stored as stored_configs
from experiments.checkpoints import contents, workdir_lock
from experiments.data.special_tokens import ASK
from experiments.data.tokenizers import load_tokenizer
from experiments.files import foreign_text, json_files, paths
from experiments.sweeps.plans import SweepRun
from experiments.training import resuming
from gaussq_jax.atomic_files import open_own, replace_file

# In these a finished run may differ from the present config: they change nothing that its summary.json tells.
FREE_FIELDS = set(resuming.FREE_FIELDS) - {
    *('microbatches', 'validation_split', 'eval_batches', 'tokenizer', 'data_dir', 'teacher', 'divergence')
}


class Outcome(NamedTuple):
    """What became of a run."""

    status: str  # 'done' | 'diverged' | 'failed' | 'missing'
    summary: dict[str, Any]  # summary.json, if there is one, else empty
    error: str  # in one line, if diverged or failed

    @property
    def is_final(self) -> bool:
        """Whether the run has its result, and isn't tried again; that it diverged is one."""
        return self.status in ('done', 'diverged')


def start(run: SweepRun, environment: Mapping[str, str]) -> subprocess.Popen | None:
    """Starts a run, or continues it; None if another process trains it, or has this moment ended.

    It has a session of its own, so that a terminal's Ctrl-C reaches it through the sweep, once; and it inherits the
    lock of its directory: should the sweep be killed, no other starts the run beside itself.
    """
    try:
        lock = workdir_lock.acquire(run.workdir)
    except workdir_lock.WorkdirLocked:
        return None
    with lock:
        if look(run).is_final:
            return None
        (run.workdir / 'error.txt').unlink(missing_ok=True)
        with open_own(run.workdir / 'log.txt', 'w') as log:
            return subprocess.Popen(
                run.command,
                env={**os.environ, **environment, workdir_lock.INHERITED: str(lock.fileno())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )


def finish(run: SweepRun, exit_status: int) -> Outcome:
    """The outcome of a run that has ended; why it failed stays in its directory until it is tried again."""
    outcome = look(run)
    if outcome.status == 'diverged' or (outcome.status == 'done' and exit_status == 0):
        return outcome
    output = (run.workdir / 'log.txt').read_text(errors='replace')
    return fail(run, (exit_status == 0 and outcome.error) or describe_failure(exit_status, output))


def fail(run: SweepRun, error: str) -> Outcome:
    """The outcome of a run that failed; its directory tells it, unless another process is trying it again already."""
    with contextlib.suppress(workdir_lock.WorkdirLocked), workdir_lock.acquire(run.workdir):
        replace_file(run.workdir / 'error.txt', error + '\n')
    return Outcome('failed', {}, error)


def describe_failure(exit_status: int, output: str) -> str:
    """Why a run failed, in one line: the last error in its output with what follows it, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ['no output']
    if exit_status < 0:
        return f'ended by {signal.Signals(-exit_status).name}, after: {lines[-1]}'
    if exit_status == 0:
        return f'ended without a summary.json, after: {lines[-1]}'
    errors = [i for i, line in enumerate(lines) if re.match(r'(error|[\w.]*(Error|Exception)): ', line)]
    return ' '.join(lines[errors[-1] if errors else -1 :])


def look(run: SweepRun) -> Outcome:
    """As read_outcome; a run of another config has failed."""
    try:
        return read_outcome(run)
    except (ValueError, OSError) as error:
        return Outcome('failed', {}, ' '.join(str(error).split()))


def read_outcome(run: SweepRun) -> Outcome:
    """What the run's directory says; ValueError if it holds the finished run of another config."""
    if (path := run.workdir / 'error.txt').exists():
        return Outcome('failed', {}, _line(path))
    config = run.workdir / 'config.json'
    try:
        if (path := run.workdir / 'diverged.txt').exists():
            outcome = Outcome('diverged', {}, _line(path))
        elif (path := run.workdir / 'summary.json').exists():
            outcome = _finished(path)
        else:
            return Outcome('missing', {}, '')
        stored = json_files.read(config)
    except ValueError as error:
        raise ValueError(f'{error}; delete its directory to run it again') from None
    stored = stored_configs.read(stored, config)
    present = stored_configs.read(traverse_util.unflatten_dict(run.config, sep='.'))
    present['special_tokens'], stored['special_tokens'] = _special_tokens(present, stored)
    stored, present = (
        traverse_util.flatten_dict({name: value for name, value in one.items() if name not in FREE_FIELDS}, sep='.')
        for one in (stored, present)
    )
    if differences := '\n  '.join(contents.differences(stored, present)):
        raise ValueError(
            f'{run.workdir} holds the finished run of another config:\n  {differences}\n'
            'Use another --workdir for this config, or give the stored values.'
        )
    return outcome


def _special_tokens(present: dict[str, Any], stored: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Those of two configs, in one spelling: as the tokenizer's files say, where they are left to these."""
    settings = [config['special_tokens'] for config in (present, stored)]
    which = present.get('tokenizer', ''), present.get('vocab_size', 0)
    found = [_settings(*which, *(of_config.get(name, '') for name in ASK)) for of_config in settings]
    now, then = settings if None in found else found
    return (then if now == ASK else now), then  # where the tokenizer is no longer there, what it said is not known


@functools.cache
def _settings(tokenizer: str, vocab_size: int, *settings: str) -> dict[str, str] | None:
    """All of them, of a tokenizer; None if it can't be read."""
    try:
        return load_tokenizer(tokenizer, dict(zip(ASK, settings)), vocab_size=vocab_size).special.settings
    except ValueError:
        return None


def _line(path: pathlib.Path) -> str:
    """What a file says in a line."""
    with open(paths.check_file(path), encoding='utf-8', errors='replace') as file:
        return foreign_text.printable(' '.join(file.read(foreign_text.LONGEST).split()))


def _finished(path: pathlib.Path) -> Outcome:
    """What a summary.json says: its loss is a number, or one of the texts that JSON has instead."""
    summary = json_files.read(path, **{'validation/loss': (float, str)})
    loss = summary['validation/loss']
    if isinstance(loss, str) and loss not in ('NaN', 'Infinity', '-Infinity'):
        raise ValueError(f'{path}: validation/loss is {loss!r:.80}')
    if math.isfinite(float(loss)):
        return Outcome('done', summary, '')
    return Outcome('diverged', summary, f'validation/loss is {float(loss)} at the end')
