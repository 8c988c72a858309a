"""On Python 3.12, the default tests pass with the newest JAX that setup.py allows, those of kernels with 0.11.2 too."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
OURS = ('PYTEST', 'PYENV', 'XLA', 'JAX')  # of the environment: flags that conftest sets are of this JAX alone


def find_python() -> str | None:
    """A Python 3.12 that runs: on the path, or among pyenv's."""
    pyenv = pathlib.Path(os.environ.get('PYENV_ROOT', pathlib.Path.home() / '.pyenv')) / 'versions'
    candidates = [shutil.which('python3.12'), *map(str, sorted(pyenv.glob('3.12.*/bin/python')))]
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, '--version'], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ('jax', 'tests'), [('jax', 'tests'), ('jax==0.11.2', 'tests/kernels_pallas')], ids=['newest', '0.11.2']
)
def test_the_default_tests_pass_on_python_3_12(tmp_path, jax, tests):
    """0.11.2 is what GPU images come with, and has another Pallas than those before and after it."""
    python = find_python()
    if python is None:
        pytest.skip('no Python 3.12 on the path or in pyenv')
    subprocess.run([python, '-m', 'venv', tmp_path / 'venv'], check=True)
    new_python = tmp_path / 'venv' / 'bin' / 'python'
    subprocess.run([new_python, '-m', 'pip', 'install', '-q', jax, '-e', f'{ROOT}[test]'], check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    command = [new_python, '-m', 'pytest', '-q', '-n', 'auto', tests]
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
