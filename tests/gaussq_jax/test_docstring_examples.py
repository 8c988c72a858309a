"""Every `>>>` example in the docstrings runs and prints what it says."""

import doctest
import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest

import gaussq_jax as gq

ROOT = pathlib.Path(__file__).parents[2]
LIBRARY = [file for package in ('gaussq_jax', 'kernels_pallas') for file in sorted((ROOT / package).rglob('*.py'))]
PACKAGES = 'training', 'laws'
PARTS = [file for name in PACKAGES for file in sorted((ROOT / 'experiments' / name).rglob('*.py'))]
PROGRAMS = [ROOT / 'configs/common.py', *PARTS]
FILES = [file for file in [*LIBRARY, *PROGRAMS] if '>>> ' in file.read_text(encoding='utf-8')]


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_examples_print_what_they_say(file):
    """What a reader copies from the documentation works, and no example is out of the finder's sight."""
    module = importlib.import_module('.'.join(file.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'))
    globs = {'jax': jax, 'jnp': jnp, 'gq': gq} | vars(module)
    report, found = [], 0
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder().find(module, globs=globs):
        found += len(test.examples)
        runner.run(test, out=report.append)
    assert not runner.failures, ''.join(report)
    assert found == file.read_text(encoding='utf-8').count('>>> ')
