"""The doors open one way: whoever plugs the transform into a model pays for nothing but jax and numpy."""

import subprocess
import sys

import pytest

EXPERIMENTS = (
    'tensorflow_datasets',
    'grain',
    'matplotlib',
    'ml_collections',
    'absl',
    'tqdm',
    'tensorboardX',
    'configs',
)


@pytest.mark.parametrize(
    ('module', 'forbidden'),
    [
        ('kernels_pallas.weight_sampling', ('gaussq_jax', 'experiments', 'flax', 'optax', 'orbax', *EXPERIMENTS)),
        ('gaussq_jax', ('experiments', 'flax', 'optax', 'orbax', 'rich', 'safetensors', *EXPERIMENTS)),
        ('gaussq_jax.models', ('experiments', 'tensorflow_datasets', 'grain', 'matplotlib', 'ml_collections')),
    ],
)
def test_an_import_brings_nothing_from_above(module, forbidden):
    program = f'import sys, {module}; print(*sorted({{name.partition(".")[0] for name in sys.modules}}))'
    loaded = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True).stdout.split()
    assert module.partition('.')[0] in loaded
    assert not set(forbidden) & set(loaded)
