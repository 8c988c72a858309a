"""Every program, where something that others take for granted isn't there: it works, or says so in one line."""

import os
import pathlib
import shlex
import subprocess
import sys

import pytest
from compilation import xla_flags

REPOSITORY = pathlib.Path(__file__).parents[2]
SMOKE = '--config=configs/tiny.py:smoke,parts=down'
# What every program is called with; the first ones leave what the next ones read.
PROGRAMS = {
    'train': f'{SMOKE} --workdir=RUNS/a',
    'dry_run': f'{SMOKE} --dry_run --devices=1',
    'sweep': '--config=SWEEP --workdir=RUNS/sweep',
    'evaluate': '--workdir=RUNS/a --eval_batches=1',
    'generate': '--workdir=RUNS/a --num_tokens=4 --prompt=é',
    'export': '--workdir=RUNS/a --format=e4m3 --output=RUNS/a.safetensors --to_hf=RUNS/hf',
    'import_hf': '--checkpoint=RUNS/hf --tokenizer=bytes --workdir=RUNS/imported',
    'plot': 'RUNS/a --output=RUNS/a.png',
    'compare': '--workdir=RUNS/sweep',
    'cast_down': '--workdir=RUNS/sweep --formats=e2m1 --eval_batches=1',
    'scaling_law': f'report {REPOSITORY}/benchmarks/tiny_law.csv --held_out=none --output=RUNS/law.html',
    'benchmark': 'cast --shape=128x128 --turns=2 --output=RUNS/cast.json',
}
MODULES = {'dry_run': 'train'}
SWEEP = """
from ml_collections import ConfigDict
def get_config():
    grids = [{'seed': [0]}]
    return ConfigDict({'name': 'sweep', 'config': 'configs/tiny.py:smoke,parts=down', 'grids': grids})
"""
NOBODY = """
import pwd
def getpwuid(number):
    raise KeyError(f'getpwuid(): uid not found: {number}')
pwd.getpwuid = getpwuid
"""
BARE = ('PATH', 'LD_LIBRARY_PATH', 'GAUSSQ_CACHE')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Runs a program in a folder whose name has spaces, far from the checkout."""
    folder = tmp_path_factory.mktemp('a folder')
    (folder / 'sweep config.py').write_text(SWEEP)
    (folder / 'nobody').mkdir()
    (folder / 'nobody' / 'sitecustomize.py').write_text(NOBODY)

    def run(program, runs, *, environment, stdout=subprocess.PIPE):
        (folder / runs).mkdir(exist_ok=True)
        arguments = [
            text.replace('RUNS', str(folder / runs)).replace('SWEEP', str(folder / 'sweep config.py'))
            for text in PROGRAMS[program].split()
        ]
        command = [sys.executable, '-m', f'experiments.{MODULES.get(program, program)}', *arguments]
        if stdout is None:  # closed
            command = ['sh', '-c', 'exec "$0" "$@" >&-', *command]
        path = os.pathsep.join([environment.pop('PYTHONPATH', ''), str(REPOSITORY)])
        environment = {'XLA_FLAGS': xla_flags(devices=1), 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': path, **environment}
        return subprocess.run(
            command, cwd=folder, env=environment, stdout=stdout, stderr=subprocess.PIPE, timeout=600, check=False
        )

    run.folder = folder
    return run


def machine(**changes):
    return {name: value for name, value in {**os.environ, **changes}.items() if value is not None}


@pytest.mark.slow
@pytest.mark.parametrize('program', PROGRAMS)
def test_ascii_and_another_directory(run, program):
    """What can't be written in ASCII is escaped; configs are found in the checkout."""
    process = run(program, 'ascii', environment=machine(PYTHONIOENCODING='ascii', LC_ALL='C', PYTHONUTF8='0'))
    assert process.returncode == 0, process.stderr.decode()[-2000:]
    assert process.stdout.isascii() and process.stderr.isascii()
    for line in process.stdout.decode().splitlines():
        if ' next: ' in line:  # what can be pasted into a shell, though the folder has a space
            workdir = next(text for text in shlex.split(line) if text.startswith('--workdir='))
            assert pathlib.Path(workdir.removeprefix('--workdir=')).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize('program', PROGRAMS)
def test_nobody_without_a_home(run, program):
    """A user whom the machine doesn't know, as in containers; the cache is somewhere, by GAUSSQ_CACHE."""
    cache = os.environ.get('GAUSSQ_CACHE') or str(run.folder / 'cache')
    environment = {name: os.environ[name] for name in BARE if name in os.environ} | {'GAUSSQ_CACHE': cache}
    process = run(program, 'nobody', environment={**environment, 'PYTHONPATH': str(run.folder / 'nobody')})
    assert process.returncode == 0, process.stderr.decode()[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize('program', PROGRAMS)
def test_closed_output(run, program):
    process = run(program, 'closed', environment=machine(), stdout=None)
    assert process.returncode == 0, process.stderr.decode()[-2000:]
    assert b'Traceback' not in process.stderr


@pytest.mark.parametrize(
    ('environment', 'error'),
    [
        (dict(SLURM_STEP_NUM_TASKS='2', SLURM_PROCID='1'), 'SLURM_STEP_NODELIST is not set'),
        (dict(OMPI_COMM_WORLD_SIZE='2'), 'mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT'),
        (dict(JAX_NUM_PROCESSES='2'), 'JAX_COORDINATOR_ADDRESS and JOB_COMPLETION_INDEX not set'),
        (dict(HOME=None, GAUSSQ_CACHE=None, PYTHONPATH='NOBODY'), "'~/.cache/gaussq_jax'"),
    ],
)
def test_what_is_missing_is_said_in_one_line(run, environment, error):
    if 'PYTHONPATH' in environment:
        environment = environment | {'PYTHONPATH': str(run.folder / 'nobody')}
    process = run('train', 'missing', environment=machine(**environment))
    (line,) = process.stderr.decode().splitlines()
    assert process.returncode == 1 and line.startswith('error: ') and error in line
