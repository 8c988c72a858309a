"""What is private to JAX, or differs between its versions, is in one file, where it is found when JAX changes."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
INTERNAL = re.compile(
    r'jax\._src|jax\.interpreters|jax\.extend|__version_info__|jax\.__version__ *[<=>!]|sharding\._[a-z]'
)


def test_nothing_else_asks_for_it():
    files = [file for package in ('gaussq_jax', 'kernels_pallas') for file in (ROOT / package).rglob('*.py')]
    found = {str(file.relative_to(ROOT)) for file in files if INTERNAL.search(file.read_text(encoding='utf-8'))}
    assert found == {'kernels_pallas/jax_internals.py'}
