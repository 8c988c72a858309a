"""One run of a sweep: what its directory says of it, and why it failed."""

import fcntl

import pytest
import stub_training

from experiments.sweeps import plans, sweep_runs

pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # of ml_collections


def test_a_failure_is_not_written_over_the_next_try(tmp_path):
    """The lock is free when a training ends; another sweep may have it before the end is noticed."""
    stub_training.write(tmp_path)
    (run,) = plans.make_runs(f'{tmp_path}/base.py', [{'seed': [0]}], tmp_path)
    run.workdir.mkdir()
    with open(run.workdir / '.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sweep_runs.fail(run, 'it failed').status == 'failed'
        assert sweep_runs.look(run).status == 'missing'
    sweep_runs.fail(run, 'it failed')
    assert sweep_runs.look(run) == sweep_runs.Outcome('failed', {}, 'it failed')


@pytest.mark.parametrize(
    ('exit_status', 'output', 'error'),
    [
        (1, 'run\nerror: another config:\n  seed: 0\nUse another.\n\n', 'error: another config: seed: 0 Use another.'),
        (1, 'ValueError: a\nTraceback\njax.errors.JaxRuntimeError: OUT\n---\n', 'jax.errors.JaxRuntimeError: OUT ---'),
        (2, 'no format\n', 'no format'),
        (3, '', 'no output'),
        (-6, 'F0000 check failed\n', 'ended by SIGABRT, after: F0000 check failed'),
    ],
)
def test_why_a_run_failed(exit_status, output, error):
    assert sweep_runs.describe_failure(exit_status, output) == error
