"""XLA's temporaries stay in the process: settings of glibc's allocator for programs that compute on CPUs.

At each call of a compiled program XLA allocates its temporaries, and frees them when it is done. glibc maps blocks of
that size from the system and gives them back, and trims the arenas of threads: the system zeroes the same pages at
every step, one fault each (benchmarks/step_changes_cpu.json). With these settings freed memory is kept, in one arena
that all threads share, and used again. The numbers come out the same; the process keeps the most memory that it ever
had.
"""

import ctypes
import glob
import os

SETTINGS = {  # of mallopt(3): the parameter's number, as malloc.h has it, and its value
    -8: 1,  # M_ARENA_MAX: what one thread frees serves the others
    -4: 0,  # M_MMAP_MAX: no block is a mapping of its own
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: free memory at the end of the heap is kept
    -2: 64 * 2**20,  # M_TOP_PAD: the heap grows in steps of 64 MB
}
ACCELERATORS = ('/dev/nvidia[0-9]*', '/dev/kfd', '/dev/accel*', '/dev/vfio/[0-9]*')


def keep_freed_memory():
    """Makes the allocator keep what is freed, if this process computes on CPUs; to be called before JAX computes.

    It does nothing where the C library isn't glibc, and where there is an accelerator, unless JAX_PLATFORMS says that
    it isn't used: its programs have their temporaries in its own memory.
    """
    libc = ctypes.CDLL(None) if os.name == 'posix' else None
    if hasattr(libc, 'gnu_get_libc_version') and _computes_on_cpus():
        for parameter, value in SETTINGS.items():
            libc.mallopt(parameter, value)


def _computes_on_cpus() -> bool:
    return os.environ.get('JAX_PLATFORMS') == 'cpu' or not any(map(glob.glob, ACCELERATORS))
