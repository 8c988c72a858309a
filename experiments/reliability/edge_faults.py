"""What can befall a training from outside, by strangers, hostile files and odd machines; one function a fault.

As in faults.py.
Whatever it is, the training ends as one that nothing disturbed, or says in one line why it doesn't begin.
"""

import contextlib
import json
import pathlib
import re
import shutil
import signal
import socket
import time

import numpy as np
import tokenizers

from experiments.data.datasets import python_stdlib
from experiments.processes.exit_codes import DONE, ERROR
from experiments.reliability.faults import RUN_TRAIN, Observation, continued, steps_lost
from experiments.reliability.trial_results import Unexpected, check_same_result, last_step, learned_metrics, newest_step
from experiments.reliability.trial_runs import Laboratory

NOBODY = f"""
import pwd
def getpwuid(number):
    raise KeyError(f'getpwuid(): uid not found: {{number}}')
pwd.getpwuid = getpwuid
{RUN_TRAIN}
"""
MODES = dict(JAX_ENABLE_X64='1', JAX_NUMPY_RANK_PROMOTION='raise', JAX_NUMPY_DTYPE_PROMOTION='strict')
HALF_A_LAUNCHER = dict(SLURM_STEP_NUM_TASKS='2', SLURM_PROCID='1')
STRANGERS = (b'GET / HTTP/1.1\r\n\r\n', b'\0\0\0\1\1', b'gaussq_jax 1 2 host\n', b'x' * 100_000, b'')
HOSTILE = {'pythonClassName': 'hostile.Features', 'featuresDict': {'features': {}}}


def visit_the_port(laboratory: Laboratory) -> Observation:
    workdir = laboratory.new_workdir()
    first_flags, second_flags = laboratory.flags_of_two()
    with contextlib.ExitStack() as strangers, laboratory.start(workdir, *first_flags) as first:
        port = int(re.search(r'localhost:(\d+)', first_flags[0])[1])
        for sent in STRANGERS:
            stranger = strangers.enter_context(_connect(port))
            with contextlib.suppress(OSError):
                stranger.sendall(sent)
        with laboratory.start(workdir, *second_flags) as second:
            for trial in (first, second):
                trial.wait().expect(DONE)
    check_same_result(workdir, laboratory.reference_of_two)
    return Observation('both processes meet and train on: exit code 0', steps_lost(0))


def come_without_the_secret(laboratory: Laboratory) -> Observation:
    """A process of the same command, on the same machine, that was told another secret."""
    workdir = laboratory.new_workdir()
    first_flags, second_flags = laboratory.flags_of_two()
    ours = {'GAUSSQ_SECRET': 'the secret of this training'}
    with laboratory.start(workdir, *first_flags, environment=ours) as first:
        with laboratory.start(
            workdir, *second_flags, environment={'GAUSSQ_SECRET': 'what a stranger guesses'}
        ) as other:
            time.sleep(10)
            if (first.text() + other.text()).count('\nprocesses '):
                raise Unexpected('they met')
        with laboratory.start(workdir, *second_flags, environment=ours) as second:
            for trial in (first, second):
                trial.wait().expect(DONE)
    check_same_result(workdir, laboratory.reference_of_two)
    return Observation('it is turned away; the one that knows the secret takes its place: exit code 0', steps_lost(0))


def name_a_class(laboratory: Laboratory) -> Observation:
    workdir = shutil.copytree(laboratory.killed, laboratory.new_workdir())
    data = laboratory.new_workdir()
    version = data / python_stdlib.NAME / python_stdlib.CONFIG / '1.0.0'
    version.mkdir(parents=True)
    (version / 'features.json').write_text(json.dumps(HOSTILE))
    with laboratory.start(workdir, f'--config.data_dir={data}') as trial:
        ended = trial.wait().expect(ERROR, "error: .*names the class 'hostile.Features'")
    ended = ended._replace(text=ended.text.replace(str(data), 'DATA'))
    return continued(laboratory, workdir, ended)


def take_the_tokenizer_away(laboratory: Laboratory) -> Observation:
    folder = laboratory.new_workdir()
    folder.mkdir()
    flag = f'--config.tokenizer={_write_tokenizer(folder)}'
    reference, workdir = folder / 'reference', folder / 'run'
    laboratory.complete(reference, flag)
    with laboratory.start(workdir, flag) as trial:
        trial.wait_for_step(laboratory.middle)
        trial.send(signal.SIGKILL)
        trial.wait()
    trained, saved = last_step(workdir), newest_step(workdir)
    (folder / 'tokenizer.json').unlink()
    ended = laboratory.complete(workdir.rename(folder / 'moved'), flag)
    check_same_result(folder / 'moved', reference)
    return Observation(f'exit code 0; it continues from step {ended.continued_from}', steps_lost(trained - saved))


def forget_the_user(laboratory: Laboratory) -> Observation:
    workdir = shutil.copytree(laboratory.killed, laboratory.new_workdir(), symlinks=True)
    trained, saved = last_step(workdir), newest_step(workdir)
    environment = {'HOME': None, 'PYTHONIOENCODING': 'ascii', 'GAUSSQ_CACHE': str(laboratory.folder / 'cache')}
    laboratory.complete(workdir, program=('-c', NOBODY), environment=environment)
    check_same_result(workdir, laboratory.reference)
    return Observation(f'exit code 0; it continues from step {saved}', steps_lost(trained - saved))


def set_half_a_launcher(laboratory: Laboratory) -> Observation:
    workdir = shutil.copytree(laboratory.killed, laboratory.new_workdir())
    with laboratory.start(workdir, environment=HALF_A_LAUNCHER) as trial:
        ended = trial.wait().expect(ERROR, 'error: SLURM_STEP_NODELIST is not set')
    return continued(laboratory, workdir, ended)


def change_modes(laboratory: Laboratory) -> Observation:
    workdir = shutil.copytree(laboratory.killed, laboratory.new_workdir())
    trained, saved = last_step(workdir), newest_step(workdir)
    laboratory.complete(workdir, environment=MODES)
    check_same_result(workdir, laboratory.reference)
    return Observation(f'exit code 0; it continues from step {saved} with the same bits', steps_lost(trained - saved))


def change_microbatches(laboratory: Laboratory) -> Observation:
    workdir = shutil.copytree(laboratory.killed, laboratory.new_workdir())
    trained, saved = last_step(workdir), newest_step(workdir)
    ended = laboratory.complete(workdir, '--config.microbatches=2')
    said = re.search(r'microbatches=2, before 1: .*', ended.text)
    if not said:
        raise Unexpected('it does not say that sums are rounded otherwise')
    lines = zip(learned_metrics(workdir), learned_metrics(laboratory.reference), strict=True)
    pairs = [(line['train/loss'], other['train/loss']) for line, other in lines if 'train/loss' in line]
    error = max(abs(loss / expected - 1) for loss, expected in pairs)
    if not error <= 1e-2 or np.array_equal(*zip(*pairs)):
        raise Unexpected(f'losses differ by up to {error:.1e}, relatively')
    happened = f'exit code 0: `{said[0]}`; losses are the same to {error:.1e}, relatively'
    return Observation(happened, steps_lost(trained - saved))


def _connect(port: int) -> socket.socket:
    """A connection to the port, when somebody listens there."""
    until = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(('localhost', port))
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise Unexpected('nobody listens at the port') from None
            time.sleep(0.05)


def _write_tokenizer(folder: pathlib.Path) -> pathlib.Path:
    """Of the bytes, an end, and nothing that would have to be learned."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({token: number for number, token in enumerate([*alphabet, '</s>'])}, [])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(['</s>'])
    tokenizer.save(str(folder / 'tokenizer.json'))
    return folder / 'tokenizer.json'
