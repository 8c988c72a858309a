"""How many files this process may have open."""

import contextlib
import resource


def allow_more(count: int) -> None:
    """Raises the limit of open files by so many, as far as this process may: a memory map keeps its file open.

    Many systems allow 1024, of which thousands of mapped files would leave none to the rest of the program.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    limit = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
    with contextlib.suppress(OSError, ValueError):  # some systems have a lower limit than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
