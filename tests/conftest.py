"""Eight virtual CPU devices for every test, so that sharded code runs on any machine; memory as programs have it."""

import os

from experiments import host_memory

os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
host_memory.keep_freed_memory()
