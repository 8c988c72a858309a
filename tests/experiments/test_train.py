"""The training program: what a run leaves, that it resumes bit for bit, and that every mistake is told at once."""

import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from compilation import xla_flags
from parameter_trees import assert_identical_trees
from small_runs import final_state, records, run_config, start, without_seconds

from configs import stored as stored_configs
from experiments.checkpoints.contents import CONTENTS
from experiments.training import starts, steps
from experiments.training.metrics import read_metrics

REPOSITORY = pathlib.Path(__file__).parents[2]
SHOWN = {
    'train/loss',
    'bits/mean',
    'tokens_per_second',
    'learning_rate',
    'train/gradient_norm',
    'bits/min',
    'bits/max',
    'bits/gradient_norm',
    *('bits/p10', 'bits/p90', 'bits/stored', 'bits/signal_to_noise'),
}
OF_MATRICES = {'bits/matrix/down'}  # of the part that is sampled
TIMES = {f'step_seconds/{name}' for name in ('p50', 'p90', 'max')}
TIMES |= {f'seconds/{name}' for name in ('total', 'data', 'checkpoint', 'metrics')}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """The workdir of a run that was never stopped."""
    workdir = tmp_path_factory.mktemp('finished')
    start(workdir, run_config())
    return workdir


def test_files_of_a_run(finished):
    found = {'bos_token_id': '256', 'eos_token_id': '256', 'add_bos_token': 'true'}  # by the tokenizer
    assert json.loads((finished / 'config.json').read_text()) == stored_configs.write(
        run_config().to_dict() | {'special_tokens': found}
    )
    assert sorted(path.name for path in (finished / 'checkpoints').iterdir()) == ['12', '4', '8']
    assert starts.read(finished) == [starts.Start(0, sys.argv[1:], '1 x cpu')]
    assert list((finished / 'tensorboard').iterdir())
    lines = read_metrics(finished / 'metrics.jsonl')
    validation = {'validation/loss', 'validation/bits_per_byte', 'validation/loss_with_noise'}
    logged, validated = ([line for line in lines if name in line] for name in ('train/loss', 'validation/loss'))
    assert [line['step'] for line in logged] == [3, 6, 9, 12] and [line['step'] for line in validated] == [6, 12]
    names = {'step', *SHOWN, *OF_MATRICES, *TIMES}
    assert all({*line, 'seconds/metrics'} - {'seconds/evaluation'} == names for line in logged)
    assert all(set(line) == {'step', *validation} for line in validated)

    summary = json.loads((finished / 'summary.json').read_text())
    assert set(summary) == {'step', 'seconds', 'parameters', 'N', 'D', *SHOWN, *validation}
    assert summary['step'] == 12 and summary['N'] == 2 * (4 * 80**2 + 3 * 80 * 144)
    assert summary['parameters'] == 257 * 80 * 2 + 5 * 80 + summary['N'] and summary['D'] == 12 * 8 * 24
    for name in (*SHOWN, *validation):
        assert summary[name] == [line[name] for line in lines if name in line][-1]


@pytest.mark.slow
def test_fully_quantized_training_from_the_start_to_the_end(tmp_path):
    """With stochastic rounding: the loss falls, nothing speaks of bitwidths, and N is that of all linear layers."""
    quantization = dict(format='e4m3', parts='all', rounding='stochastic', targets='P2+P4+P5+P6')
    changes = {f'quantization__{name}': value for name, value in quantization.items()}
    start(tmp_path, run_config(method='fqt', **changes))
    losses = [line['train/loss'] for line in records(tmp_path) if 'train/loss' in line]
    assert losses[-1] < losses[0] - 0.2
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['N'] == 2 * (4 * 80**2 + 3 * 80 * 144)
    assert not [name for name in summary if 'bits/' in name or 'noise' in name]


def test_the_loss_falls_from_that_of_a_guess(finished):
    losses = [line['train/loss'] for line in records(finished) if 'train/loss' in line]
    assert losses[0] == pytest.approx(math.log(257), rel=0.05)
    assert losses[-1] < losses[0] - 0.2
    validation = [line for line in records(finished) if 'validation/loss' in line]
    assert validation[-1]['validation/loss'] < validation[0]['validation/loss'] < math.log(257)
    # One token more than bytes a document, at its end.
    bits = validation[-1]['validation/loss'] / math.log(2)
    assert bits <= validation[-1]['validation/bits_per_byte'] < 1.001 * bits


def test_a_finished_run_is_left_alone(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob('*')}
    start(finished, run_config())
    assert capsys.readouterr().out.strip() == (
        f'{finished} is complete, with 12 steps: see summary.json, or give another --workdir.'
    )
    assert {path: path.stat().st_mtime_ns for path in finished.rglob('*')} == before


def interrupt(monkeypatch, before_step, error=KeyboardInterrupt):
    """Lets the training stop with an error just before this step."""
    make_train_step = steps.make_train_step

    def make_interrupted_step(experiment):
        step = make_train_step(experiment)

        def train_step(state, batch):
            if int(state.step) + 1 == before_step:
                raise error
            return step(state, batch)

        return train_step

    monkeypatch.setattr(steps, 'make_train_step', make_interrupted_step)


@pytest.mark.parametrize('steps', [pytest.param((7,), marks=pytest.mark.slow), (2, 10, 12)])
def test_a_run_that_was_stopped_ends_with_the_same_bits(finished, tmp_path, steps):
    """Before its first checkpoint, between two, and after the last but one; what was logged in between is gone."""
    for step in steps:
        with pytest.MonkeyPatch.context() as monkeypatch:
            interrupt(monkeypatch, step)
            last = 4 * ((step - 1) // 4)
            where = f'step {last}' if last else 'its beginning'
            with pytest.raises(SystemExit, match=f'interrupted; the same command continues from {where}'):
                start(tmp_path, run_config())
        assert not (tmp_path / 'summary.json').exists()
    start(tmp_path, run_config())
    assert_identical_trees(final_state(tmp_path), final_state(finished))
    assert records(tmp_path) == records(finished)
    assert without_seconds(tmp_path) == without_seconds(finished)


def test_a_checkpoint_opens_on_any_mesh_with_the_same_bits(finished):
    assert_identical_trees(final_state(finished, (2, 2, 2)), final_state(finished))


@pytest.mark.slow
def test_training_on_a_mesh(finished, tmp_path):
    start(tmp_path, run_config(), (2, 2, 2))
    for got, expected in zip(records(tmp_path), records(finished), strict=True):
        assert got.keys() == expected.keys()
        for name in got.keys() - {'bits/signal_to_noise'}:  # the difference of two that nearly cancel
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-3, err_msg=name)


def test_divergence_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path):
    """The step is named though the log comes later; the checkpoint before is whole and finite."""
    config = run_config(optimizer__learning_rate=1e30, optimizer__clip_norm=1.0, optimizer__warmup_steps=5)
    config.checkpoint_every, config.log_every = 1, 12
    with pytest.raises(SystemExit) as error:
        start(tmp_path, config)
    message = re.fullmatch(
        r'error: train/(loss|gradient_norm) is (nan|inf) at step (\d+); the newest checkpoint is of step (\d+)',
        error.value.code,
    )
    assert message and int(message[3]) == int(message[4]) + 1
    state = final_state(tmp_path)
    assert int(state.step) == int(message[4])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.transform_state)))
    assert not (tmp_path / 'summary.json').exists()
    reason = (tmp_path / 'diverged.txt').read_text()
    assert error.value.code.startswith(f'error: {reason.strip()};') and reason.endswith(f'at step {message[3]}\n')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(quantization__b_target=6.5), 'b_target=6.5, b_init=6.0: allowed are finite 1 <= b_target <= b_init'),
        (dict(method='gauss'), "config.method='gauss': allowed are 'gaussws', 'diffq', 'qat', 'fqt', 'bf16'"),
        (dict(quantization__parts='layers/mlp/gates/kernel'), "'layers/mlp/gates/kernel'.* matches no leaf"),
        (dict(dataset='no_such_dataset'), "dataset='no_such_dataset' is not prepared in data_dir="),
        (dict(train_split='trian'), "split='trian': python_stdlib/.* has \\['train', 'validation'\\]"),
        (dict(text_feature='txt'), "text_feature='txt': .* has no such feature; it has \\['path', 'text'\\]"),
        (dict(tokenizer='missing.model'), "tokenizer='missing.model' can't be read: No such file"),
        (dict(tokenizer='words'), "tokenizer='words' is unknown; allowed: 'bytes'"),
        (dict(batch_size=6, microbatches=4), 'config.batch_size=6 must be a multiple of config.microbatches=4'),
        (dict(sequence_length=10**8), 'sequence_length=100000000; allowed: 1 to'),
        (
            dict(optimizer__warmup_steps=12),
            'config.optimizer.warmup_steps=12 must be .* less than',
        ),
        (dict(keep_checkpoints=0), 'config.keep_checkpoints=0 must be at least 1'),
        (dict(eval_batches=0), 'max_batches=0; allowed: None or a positive integer'),
        (dict(stall_timeout=-1.0), 'config.stall_timeout=-1: allowed are seconds, or 0 for no limit'),
        (dict(divergence__spike_window=1), 'config.divergence.spike_window=1: allowed are 2 and more steps'),
        (dict(seed=-1), 'config.seed=-1 must be of 0 to 4294967295'),
    ],
)
def test_a_mistake_is_one_error_before_the_first_step(tmp_path, changes, message):
    with pytest.raises(SystemExit) as error:
        start(tmp_path / 'run', run_config(**changes))
    assert re.match(f'error: .*{message}', error.value.code) and '\n' not in error.value.code
    assert not list(tmp_path.rglob('checkpoints')) and not list(tmp_path.rglob('summary.json'))


@pytest.mark.parametrize('contents', ['', '{"version": "1.0"', '{}'])
def test_an_unreadable_tokenizer_file(tmp_path, contents):
    tokenizer = tmp_path / 'tokenizer.json'
    tokenizer.write_text(contents)
    with pytest.raises(SystemExit, match=f"error: tokenizer='{tokenizer}' isn't a Hugging Face tokenizers file"):
        start(tmp_path / 'run', run_config(tokenizer=str(tokenizer)))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(model__mlp_size=160), r'saved by a run with another config:\n.*mlp_size.*144.*160'),
        (dict(method='diffq'), r"saved by a run with another config:\n.*method.*'gaussws'.*'diffq'"),
        (dict(seed=1), r'saved by a run with another config:\n.*seed.*0.*1'),
        (dict(quantization__b_target=3.0), r'saved by a run with another config:\n.*b_target.*4.0.*3.0'),
    ],
)
def test_the_workdir_of_another_run(finished, changes, message):
    before = (finished / 'config.json').read_text(), records(finished)
    with pytest.raises(SystemExit, match=message):
        start(finished, run_config(**changes))
    assert ((finished / 'config.json').read_text(), records(finished)) == before


def test_what_a_run_is_watched_by_may_change(finished, tmp_path):
    """Other intervals of logging, evaluation and checkpoints, another mesh: still the same run."""
    free = dict(log_every=1, eval_every=4, eval_batches=2, checkpoint_every=6, keep_checkpoints=1)
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(SystemExit, match='continues from step 4'):
        interrupt(monkeypatch, 7)
        start(tmp_path, run_config())
    start(tmp_path, run_config(**free))
    assert_identical_trees(final_state(tmp_path), final_state(finished))
    assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['12']


def test_more_microbatches_are_the_same_run_but_for_rounding(finished, tmp_path, capsys):
    """As memory may ask for, and it is said."""
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(SystemExit, match='continues from step 4'):
        interrupt(monkeypatch, 7)
        start(tmp_path, run_config())
    assert 'microbatches=' not in capsys.readouterr().out
    start(tmp_path, run_config(microbatches=2))
    assert 'microbatches=2, before 1: the same steps, but for rounding' in capsys.readouterr().out
    ours, theirs = (jax.tree.leaves(final_state(workdir).params) for workdir in (tmp_path, finished))
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=3e-3)  # of steps of 6e-4


def test_a_workdir_that_cannot_be(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit, match=r'error: .*file'):
        start(tmp_path / 'file', run_config())


def test_a_damaged_checkpoint_is_passed_over(finished, tmp_path):
    """The run continues from the one before, and ends as it would have."""
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(SystemExit, match='continues from step 8'):
        interrupt(monkeypatch, 10)
        start(tmp_path, run_config())
    contents = tmp_path / 'checkpoints' / '8' / CONTENTS
    contents.write_text(contents.read_text().replace('corpus', 'korpus'))
    with pytest.warns(UserWarning, match='skipping the damaged checkpoint .*/8: checkpoint.json'):
        start(tmp_path, run_config())
    assert_identical_trees(final_state(tmp_path), final_state(finished))
    assert records(tmp_path) == records(finished)


# The command line itself, in processes of their own.

ENVIRONMENT = {'XLA_FLAGS': xla_flags(devices=1)}  # of one device

# Each (status, output, errors) of `python -m experiments.<program> <argument>…`, for a list of [program, argument, …]:
# the same process up to what takes long, importing the libraries.
RUN_COMMANDS = """
import json, os, runpy, sys, tempfile
import experiments.workdirs, experiments.training.loop
results = []
for program, *arguments in json.loads(sys.argv[1]):
    files = [tempfile.TemporaryFile('w+') for _ in range(2)]
    process = os.fork()
    if process == 0:
        sys.argv = [program, *arguments]
        for number, file in enumerate(files, start=1):
            os.dup2(file.fileno(), number)
        runpy.run_module(f'experiments.{program}', run_name='__main__', alter_sys=True)
        sys.exit()
    _, status = os.waitpid(process, 0)
    for file in files:
        file.seek(0)
    results.append([os.waitstatus_to_exitcode(status), *(file.read() for file in files)])
print(json.dumps(results))
"""

MISTAKES = {
    ('train', '--config.batch_sise=8'): "the config has no field 'batch_sise'",
    ('train', '--config.optimizer.learning_rat=1'): "the config has no field 'learning_rat'.*learning_rate",
    ('train', '--config.optimiser.learning_rate=1'): "the config has no field 'optimiser'.*optimizer",
    ('train', '--config=configs/tiny.py:method=fp8'): "config argument method='fp8': allowed are gaussws, .*fqt, bf16",
    ('train', '--config=configs/missing.py'): r'(.|\n)*configs/missing.py(.|\n)*No such file',
    ('train', '--config.batch_size=1.5'): 'flag --config.batch_size=1.5: invalid literal for int',
    ('train', '--config.mesh.fsdp=3'): r"config.mesh={.*'fsdp': 3.*} does not fit 1 device\(s\)",
    ('train', 'method=bf16'): "'method=bf16' is not understood; settings are given as --name=value",
    ('train', '--work=runs'): "Unknown command line flag 'work'",
    ('evaluate',): '.*/checkpoints holds no checkpoint',
    ('evaluate', '--weights=learned.safetensors'): "workdir=.*, weights='learned.safetensors': give one of them",
    ('generate', 'def'): "'def' is not understood",
    ('export', '--format=e9m9'): "--format 'e9m9' is unknown; known are .*, or learned",
}


def test_command_line_mistakes(tmp_path):
    """One error that names the mistake, nothing else on the screen or on the disk, and a status that isn't 0."""
    commands = [(*arguments, f'--workdir={tmp_path}') for arguments in MISTAKES]
    process = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', RUN_COMMANDS, json.dumps(commands)],
        cwd=REPOSITORY,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    for (status, output, errors), message in zip(json.loads(process.stdout), MISTAKES.values(), strict=True):
        assert re.match(f'error: {message}', errors), errors
        assert (status, output) == (1, '') and 'Traceback' not in errors
    assert not list(tmp_path.iterdir())


def command(program, *arguments, environment=ENVIRONMENT):
    """A process of `python -m experiments.<program>`."""
    return subprocess.Popen(
        [sys.executable, '-m', f'experiments.{program}', *arguments],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output_of(process):
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output


def test_train_evaluate_and_generate(tmp_path):
    """The three commands of the documentation, each on what the one before left."""
    workdir = f'--workdir={tmp_path}'
    shown = output_of(command('train', '--config=configs/tiny.py:smoke,parts=down', workdir))
    lines = read_metrics(tmp_path / 'metrics.jsonl')
    assert 'model     llama, 115,136 parameters, N = 81,920 in linear layers' in shown
    assert (
        'method    gaussws: bitwidths from 8 down to 3, from step 15 on, where a stored bit a weight has a price of'
        in shown
    )
    assert 'sampled by xla; 16 blocks' in shown and 'starting, 20 steps' in shown
    assert sum(line.startswith('step ') for line in shown.splitlines()) == len(lines)

    evaluation = command('evaluate', workdir, '--eval_batches=2')
    generation = command('generate', workdir, '--prompt=def ', '--num_tokens=8')
    metrics = json.loads(output_of(evaluation))
    final = {name: value for name, value in lines[-1].items() if name.startswith('validation/')}
    assert metrics['step'] == 20 and {name: metrics[name] for name in final} == final
    assert 3 <= metrics['bits/mean'] < 8
    assert re.match('def (.|\n){1,9}', output_of(generation))


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    """SIGKILL, at moments that nobody chose, against a run that was never stopped."""
    settings = ('--config=configs/tiny.py:smoke', '--config.total_steps=400', '--config.checkpoint_every=20')
    start = lambda workdir: command('train', *settings, f'--workdir={workdir}', environment={'XLA_FLAGS': ''})
    output_of(start(tmp_path / 'whole'))
    kills, killed = 0, tmp_path / 'killed'
    while kills < 5:
        process = start(killed)
        began = first = None
        while process.poll() is None:
            steps = [int(path.name) for path in killed.glob('checkpoints/*') if path.name.isdecimal()]
            first = max(steps, default=0) if first is None else first
            if max(steps, default=0) > first:
                began = began or time.monotonic()
                if time.monotonic() - began > 0.13 * kills:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
            time.sleep(0.01)
        process.communicate()
        if process.returncode == 0:
            break
    assert kills >= 3, 'the run was too short to be killed'
    output = output_of(start(killed))
    assert 'continuing from step' in output
    assert_identical_trees(final_state(killed), final_state(tmp_path / 'whole'))
    assert records(killed) == records(tmp_path / 'whole')
    assert without_seconds(killed) == without_seconds(tmp_path / 'whole')
