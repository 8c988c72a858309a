"""How the programs of the tests are compiled: quickly, unless a test is marked `optimized`.

Compiling is what takes the tests' time. XLA's own passes, fusion among them, are those of users' programs; what is left
out is LLVM's optimization, and where XLA has two code generators for fusions, the older one is taken. Tests whose
subject is bits that this could change, or machine code, are marked, and have programs compiled as users' are; so have
all tests where the environment variable GAUSSQ_OPTIMIZED_TESTS is set.
"""

import os

import jax
from jax._src import compiler  # no public way to compile some programs of a process in another way than others

ALL_OPTIMIZED = bool(os.environ.get('GAUSSQ_OPTIMIZED_TESTS'))
QUICK = {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
    'xla_cpu_parallel_codegen_split_count': 1,
}
DEFAULTS = {  # of XLA
    'xla_backend_optimization_level': 3,
    'xla_llvm_disable_expensive_passes': False,
    'xla_cpu_parallel_codegen_split_count': 32,
}
if jax.__version_info__ < (0, 11):  # from then on there is but one code generator
    QUICK['xla_cpu_use_fusion_emitters'] = False
    DEFAULTS['xla_cpu_use_fusion_emitters'] = True

_get_compile_options = compiler.get_compile_options
_overrides = {}


def xla_flags(devices: int) -> str:
    """XLA_FLAGS for a process that has so many devices."""
    flags = {'xla_force_host_platform_device_count': devices, **({} if ALL_OPTIMIZED else QUICK)}
    return ' '.join(f'--{name}={value}' for name, value in flags.items())


def compile_as_users(wanted: bool):
    """From now on, in this process; what was compiled quickly isn't used then, while the reverse does no harm."""
    overrides = DEFAULTS if wanted and not ALL_OPTIMIZED else {}
    if overrides and not _overrides:
        jax.clear_caches()
    _overrides.clear()
    _overrides.update(overrides)


def _with_overrides(*arguments, env_options_overrides=None, **options):
    overrides = {**_overrides, **(env_options_overrides or {})}
    return _get_compile_options(*arguments, env_options_overrides=overrides, **options)


compiler.get_compile_options = _with_overrides
