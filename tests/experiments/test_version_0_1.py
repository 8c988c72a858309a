"""What version 0.1.0 wrote opens, evaluates to the same numbers and continues: see tests/data/version_0_1."""

import hashlib
import json
import math
import os
import pathlib
import platform
import re
import shutil

import jax
import numpy as np
import pytest
from parameter_trees import flatten
from programs import import_program, run_program
from small_runs import start, without_seconds

import gaussq_jax as gq
from configs import tiny
from gaussq_jax.packed import read_packed

evaluate = import_program('evaluate')

FILES = pathlib.Path(__file__).parents[1] / 'data' / 'version_0_1'
EVALUATIONS = json.loads((FILES / 'evaluations.json').read_text())
PACKED = ('learned-5.safetensors', 'float6_e3m2fn.safetensors')


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    """The config names the texts from there."""
    monkeypatch.chdir(FILES.parents[2])


def machine() -> str:
    """What compiled programs depend on beside JAX: the CPU's instructions, and how many cores share the work."""
    cpu = pathlib.Path('/proc/cpuinfo')
    flags = re.search(r'^flags\s*: (.*)$', cpu.read_text(), re.M) if cpu.is_file() else None
    instructions = ' '.join(sorted(flags[1].split())) if flags else platform.processor()
    return f'{os.cpu_count()} cores, {hashlib.sha256(instructions.encode()).hexdigest()[:16]}'


def is_where_it_was_made() -> bool:
    return (jax.__version__, machine()) == (EVALUATIONS['jax'], EVALUATIONS['machine'])


def assert_same_numbers(measured, expected):
    """To the last digit where `expected` was measured, elsewhere nearly."""
    assert measured.keys() == expected.keys()
    allowed = 0 if is_where_it_was_made() else 1e-6
    for name, value in expected.items():
        assert math.isclose(measured[name], value, rel_tol=allowed), (name, measured[name], value)


def evaluated(capsys, **flags):
    """What `evaluate` prints as JSON, after its tables."""
    run_program(evaluate, EVAL_BATCHES=-1, **flags)
    return json.loads('{' + capsys.readouterr().out.partition('{')[2])


def sha256_of(weights):
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(weights).items()):
        digest.update(f'{path} {leaf.dtype} {leaf.shape}'.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


@pytest.mark.optimized
def test_a_run_evaluates_to_the_same_numbers(capsys):
    assert_same_numbers(evaluated(capsys, WORKDIR=str(FILES / 'run')), EVALUATIONS['run'])


@pytest.mark.optimized
@pytest.mark.parametrize('name', PACKED)
def test_a_packed_file_evaluates_to_the_same_numbers(name, capsys):
    config = read_packed(FILES / 'packed' / name).info['config']
    where = dict(DATASET=config['dataset'], DATA_DIR=config['data_dir'])
    metrics = evaluated(capsys, WEIGHTS=str(FILES / 'packed' / name), **where)
    assert_same_numbers(metrics, EVALUATIONS[name])


@pytest.mark.parametrize('name', PACKED)
def test_packed_weights_are_the_same_to_the_bit(name):
    """On whatever machine."""
    assert sha256_of(gq.load_packed(FILES / 'packed' / name)) == EVALUATIONS['sha256'][name]


def test_a_run_continues_to_the_end_that_it_had(tmp_path, capsys):
    """By the same command; its config is today's, of which the checkpoint's may lack fields."""
    workdir = tmp_path / 'run'
    shutil.copytree(FILES / 'run', workdir)
    config = tiny.get_config('bitwidths=decay,smoke')
    config.dataset, config.data_dir = 'documents', str(FILES / 'texts')
    start(workdir, config)
    assert 'continuing from step 10' in capsys.readouterr().out
    expected = json.loads((FILES / 'full_run.json').read_text())
    reached = without_seconds(workdir)
    earlier = {'bits/mean', 'bits/min', 'bits/max'}  # were those before the last step
    compared = (expected.keys() & reached.keys()) - earlier
    assert {'step', 'train/loss', 'validation/loss', 'bits/gradient_norm'} <= compared
    for name in compared:
        assert reached[name] == pytest.approx(expected[name], rel=1e-4), name  # ten steps let last digits grow
    assert 0.005 < expected['bits/mean'] - reached['bits/mean'] < 0.01
