"""The report of a dry run: its numbers add up, errors are one line, and nothing large is ever allocated."""

import dataclasses
import os
import re
import resource
import subprocess
import sys

import pytest
from compilation import xla_flags
from small_experiments import VOCABULARY, small_config

from experiments.cost import dry_run, step_costs
from experiments.devices import described_gpus, device_specs
from experiments.training.experiment import make_experiment

LARGE = device_specs.DeviceSpec('large', 1e15, 80e9, 'its maker')
UNITS = {'GB': 1e9, 'MB': 1e6, 'kB': 1e3}


@pytest.fixture(scope='module')
def experiment():
    config = small_config('smoke,method=bf16', mesh__data=1, mesh__fsdp=8, batch_size=32, microbatches=2)
    return make_experiment(config, VOCABULARY)


@pytest.fixture(scope='module')
def costs(experiment):
    return step_costs.step_costs(experiment)


@pytest.fixture
def compiled_once(monkeypatch, costs):
    """Compilations of the experiment are those of `costs`, of others half of its temporaries."""
    memory = costs.memory

    def stub(changed, *, compile_for):
        if compile_for == 'gpu':
            raise described_gpus.CannotCompile('no compiler')
        halved = dataclasses.replace(memory, rest=memory.rest * 2 // changed.config.microbatches)
        return dataclasses.replace(costs, memory=halved)

    monkeypatch.setattr(step_costs, 'step_costs', stub)


def sizes(text):
    """The bytes in each line that has some."""
    return [float(number.replace(',', '')) * UNITS[unit] for number, unit in re.findall(r'([\d.,]+) ([GMk]B)\b', text)]


def test_the_report_adds_up(experiment, costs, compiled_once, capsys):
    dry_run.report(experiment, LARGE, mfu=0.5)
    text = capsys.readouterr().out
    print(text)
    assert f'{experiment.num_params:,} parameters' in text
    assert 'fsdp 8' in text and '8 x large' in text
    assert 'compiled for CPUs, which stand in for large' in text
    memory = text[text.index('memory') : text.index('sent')]
    *parts, total, capacity = sizes(memory)
    assert sum(parts) == pytest.approx(total, rel=0.01) and capacity == 80e9
    assert total == pytest.approx(costs.memory.total, rel=0.01) and 'fits' in memory
    step = costs.model_flops / (8 * 1e15 * 0.5)
    assert f'at an MFU of 50%: {step:,.3g} s a step' in text
    assert f'{costs.hardware_flops / costs.model_flops:.2f} times as many' in text
    for one in costs.collectives:
        assert re.search(rf'{one.kind} +{one.dtype} ', text)


def test_what_does_not_fit_is_told_how_it_would(experiment, costs, compiled_once, capsys):
    limit = costs.memory.total - costs.memory.rest // 3
    dry_run.report(experiment, LARGE._replace(memory_bytes=limit / dry_run.USABLE), mfu=0.4)
    text = capsys.readouterr().out
    assert 'DOES NOT FIT' in text
    assert '--config.microbatches=4' in text[: text.index('together')]
    together = re.search(r'together, compiled.*\n +([\d.]+ .B)  (.*)', text)
    assert '--config.microbatches=4' in together[2]
    assert sizes(together[1])[0] <= limit


def test_what_fits_only_if_jax_takes_more_says_so(experiment, costs, compiled_once, capsys):
    dry_run.report(experiment, LARGE._replace(memory_bytes=costs.memory.total / 0.8), mfu=0.4)
    assert 'XLA_PYTHON_CLIENT_MEM_FRACTION=0.92' in capsys.readouterr().out


def test_what_cannot_fit_is_told_so(experiment, compiled_once, capsys):
    dry_run.report(experiment, LARGE._replace(memory_bytes=1.0), mfu=0.4)
    assert 'nothing that is known here makes it fit' in capsys.readouterr().out


def test_gpus_are_compiled_for_by_their_compiler(experiment, costs, monkeypatch, capsys):
    asked = []

    def stub(changed, *, compile_for):
        asked.append(compile_for)
        return dataclasses.replace(costs, compiled_for=compile_for)

    monkeypatch.setattr(step_costs, 'step_costs', stub)
    for name in ('h100', 'tpu-v5p'):
        dry_run.report(experiment, device_specs.find(name), mfu=0.4)
    text = capsys.readouterr().out
    assert asked == ['gpu', 'cpu']
    assert 'compiled for 8 described H100s' in text and 'compiled for CPUs, which stand in for tpu-v5p' in text


def run(*arguments):
    """The program's output, what it says of errors, and the most memory that it took, in bytes."""
    environment = {**os.environ, 'JAX_PLATFORMS': '', 'XLA_FLAGS': xla_flags(devices=1)}
    done = subprocess.run(
        [sys.executable, '-m', 'experiments.train', '--dry_run', *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    return done.stdout, done.stderr, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def test_the_program_trains_nothing(tmp_path):
    text, _, _ = run(
        '--config=configs/tiny.py:smoke,method=bf16', '--devices=2', '--device=l4', f'--workdir={tmp_path / "run"}'
    )
    assert '2 x l4' in text and 'fits' in text
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'argument, message',
    [
        ('--device=abacus', "error: device='abacus' is unknown; allowed are"),
        ('--config.mesh.fsdp=3', 'does not fit 8 device(s)'),
    ],
)
def test_errors_are_one_line(argument, message):
    text, errors, _ = run('--config=configs/tiny.py:smoke', argument)
    assert text == '' and message in errors
    assert errors.count('\n') == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    'arguments, weights, optimizer',
    [
        (('--config=configs/llama2.py:size=1b', '--config.mesh.fsdp=8'), 579.7e6, 1.16e9),
        (
            ('--config=configs/capybara.py:size=70b,method=gaussws', '--config.mesh.fsdp=64', '--devices=64')
            + ('--config.microbatches=16',),
            4.49e9,
            8.98e9,
        ),
        (
            ('--config=configs/capybara.py:size=70b,method=gaussws', '--config.mesh.fsdp=64', '--devices=512')
            + ('--config.mesh.tensor=8', '--config.microbatches=16', '--config.resample_weights=true'),
            566.4e6,  # on each device all the scales of the norms, too
            1.133e9,
        ),
    ],
)
def test_large_models_take_little_memory_here(arguments, weights, optimizer):
    """The most that any test's subprocess has taken is less than 4 GB."""
    text, errors, host_memory = run(*arguments, '--vocab_size=32000')
    assert not errors.startswith('error')
    lines = {line.split(',')[0].strip(): line for line in text.splitlines()}
    assert sizes(lines['weights'])[0] == pytest.approx(weights, rel=0.01)
    assert sizes(lines["optimizer's state"])[0] == pytest.approx(optimizer, rel=0.01)
    assert host_memory < 4e9
