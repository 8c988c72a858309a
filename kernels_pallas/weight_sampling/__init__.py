"""Weight sampling on arrays: forward, backward and the noise itself, by the best implementation for the device."""

from kernels_pallas.weight_sampling import xla
from kernels_pallas.weight_sampling.noise import NOISES
from kernels_pallas.weight_sampling.xla import Grid, draw

IMPLEMENTATIONS = {'xla': xla}

__all__ = ['IMPLEMENTATIONS', 'NOISES', 'Grid', 'draw', 'select']


def select(implementation: str | None):
    """The module with `forward` and `backward` of that name; None is the best for the device.

    Raises:
      ValueError: if there is no such implementation.
    """
    name = 'xla' if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f'implementation={implementation!r} is not one of None, {", ".join(map(repr, IMPLEMENTATIONS))}'
        )
    return IMPLEMENTATIONS[name]
