"""What can befall a training from outside, by strangers, hostile files and odd machines; one function a fault.

As in faults.py. Whatever it is, the training ends as one that nothing disturbed, or says in one line why it doesn't
begin.
"""

import contextlib
import json
import pathlib
import re
import signal
import socket
import time

import numpy as np
import tokenizers

from experiments.data.datasets import python_stdlib
from experiments.processes.exit_codes import DONE, ERROR
from experiments.reliability.faults import RUN_TRAIN, Observation, continued, steps_lost, told
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
    """five connect while process 0 of two waits for the other: a web browser, five bytes, a claim to be process 1, a
    line without an end, and one that says nothing
    """
    workdir = laboratory.new_workdir()
    first_flags, second_flags = laboratory.flags_of_two()
    with contextlib.ExitStack() as strangers, laboratory.start(workdir, *first_flags) as first:
        port = int(re.search(r'localhost:(\d+)', first_flags[0])[1])
        for sent in STRANGERS:
            stranger = strangers.enter_context(socket.socket())
            first.wait_for(lambda here=stranger: here.connect_ex(('localhost', port)) == 0)
            with contextlib.suppress(OSError):
                stranger.sendall(sent)
        with laboratory.start(workdir, *second_flags) as second:
            for trial in (first, second):
                trial.wait().expect(DONE)
    check_same_result(workdir, laboratory.reference_of_two)
    return Observation('both processes meet and train on: exit code 0', steps_lost(0))


def come_without_the_secret(laboratory: Laboratory) -> Observation:
    """it comes with the same command as process 1 of two, for ten seconds, but with another `GAUSSQ_SECRET`"""
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
    """`features.json` in a `data_dir` names `hostile.Features`, which TFDS would import"""
    workdir, data = laboratory.killed(), laboratory.new_workdir()
    version = data / python_stdlib.NAME / python_stdlib.CONFIG / '1.0.0'
    version.mkdir(parents=True)
    (version / 'features.json').write_text(json.dumps(HOSTILE))
    ended = laboratory.run(workdir, f'--config.data_dir={data}')
    ended.expect(ERROR, "error: .*names the class 'hostile.Features'")
    return Observation(told(ended).replace(str(data), 'DATA'), continued(laboratory, workdir).lost)


def take_the_tokenizer_away(laboratory: Laboratory) -> Observation:
    """after a SIGKILL the workdir is moved, and the file of `config.tokenizer` deleted"""
    folder = laboratory.new_workdir()
    folder.mkdir()
    tokenizer, reference, workdir = folder / 'tokenizer.json', folder / 'reference', folder / 'run'
    _write_tokenizer(tokenizer)
    flag = f'--config.tokenizer={tokenizer}'
    laboratory.run(reference, flag).expect(DONE)
    laboratory.stop(workdir, signal.SIGKILL, flag)
    tokenizer.unlink()
    return continued(laboratory, workdir.rename(folder / 'moved'), flag, reference=reference)


def forget_the_user(laboratory: Laboratory) -> Observation:
    """a killed training goes on without HOME, as a user whom the machine does not know, and prints in ASCII"""
    environment = {'HOME': None, 'PYTHONIOENCODING': 'ascii', 'GAUSSQ_CACHE': str(laboratory.folder / 'cache')}
    return continued(laboratory, laboratory.killed(), program=('-c', NOBODY), environment=environment)


def set_half_a_launcher(laboratory: Laboratory) -> Observation:
    """SLURM_STEP_NUM_TASKS and SLURM_PROCID are set, and no other, when a killed training goes on"""
    workdir = laboratory.killed()
    ended = laboratory.run(workdir, environment=HALF_A_LAUNCHER).expect(ERROR, 'error: SLURM_STEP_NODELIST is not set')
    return Observation(told(ended), continued(laboratory, workdir).lost)


def change_modes(laboratory: Laboratory) -> Observation:
    """a killed training goes on with JAX_ENABLE_X64=1, JAX_NUMPY_RANK_PROMOTION=raise and
    JAX_NUMPY_DTYPE_PROMOTION=strict
    """
    happened, lost = continued(laboratory, laboratory.killed(), environment=MODES)
    return Observation(f'{happened} with the same bits', lost)


def change_microbatches(laboratory: Laboratory) -> Observation:
    """a killed training goes on with `microbatches=2`"""
    workdir = laboratory.killed()
    trained, saved = last_step(workdir), newest_step(workdir)
    ended = laboratory.run(workdir, '--config.microbatches=2').expect(DONE)
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


def _write_tokenizer(path: pathlib.Path) -> None:
    """Of the bytes, an end, and nothing that would have to be learned."""
    tokens = [*sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), '</s>']
    tokenizer = tokenizers.ByteLevelBPETokenizer({token: number for number, token in enumerate(tokens)}, [])
    tokenizer.add_special_tokens(['</s>'])
    tokenizer.save(str(path))
