"""Which implementation of an array function can run here: a kernel needs its backend in JAX and its GPU."""

import importlib
import importlib.util

import jax

KERNELS = ('triton', 'mosaic')
INTERPRETED = tuple(f'{name}_interpret' for name in KERNELS)  # step by step in XLA, on any platform: to test them
IMPLEMENTATIONS = (*KERNELS, 'xla', *INTERPRETED)

_BACKENDS = {'triton': 'triton', 'mosaic': 'mosaic_gpu'}  # modules of jax.experimental.pallas
_COMPUTE_CAPABILITY = {'triton': (8, 0), 'mosaic': (9, 0)}
_MOSAIC_INTERPRETS_FROM = (0, 11, 2)


def check(implementation: str, reason: str | None = None) -> str:
    """The implementation, if there is one of that name, and neither `why_not` nor the caller has a reason against it.

    Raises:
      ValueError: otherwise, saying which there are, or why it can't run.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'implementation={implementation!r} is not one of None, {", ".join(map(repr, IMPLEMENTATIONS))}'
        )
    if reason := reason or why_not(implementation):
        raise ValueError(f"implementation={implementation!r} can't run: {reason}")
    return implementation


def why_not(implementation: str) -> str | None:
    """Why an implementation can't run with this JAX and device; None if it can.

    The device is that of the mesh in whose context this is, else the default one. A mesh may describe a GPU that isn't
    here, to compile for it (`jax.sharding.AbstractDevice`): that counts as able.
    """
    if implementation == 'xla':
        return None
    kernel = implementation.removesuffix('_interpret')
    if importlib.util.find_spec(f'jax.experimental.pallas.{_BACKENDS[kernel]}') is None:
        return f'JAX {jax.__version__} has no {kernel.capitalize()} backend of Pallas'
    if implementation in INTERPRETED:
        if kernel == 'mosaic' and jax.__version_info__ < _MOSAIC_INTERPRETS_FROM:
            return f'JAX {jax.__version__} interprets no Mosaic kernels; {_dotted(_MOSAIC_INTERPRETS_FROM)} does'
        return None
    device, needed = _device(), _COMPUTE_CAPABILITY[kernel]
    if isinstance(device, jax.sharding.AbstractDevice) and device.platform == 'gpu':
        return None
    capability = getattr(device, 'compute_capability', '')
    if device.platform != 'gpu' or '.' not in capability:
        return f'it needs an NVIDIA GPU, and the device is {device.device_kind}'
    if tuple(map(int, capability.split('.'))) < needed:
        return f'it needs compute capability {_dotted(needed)}, and {device.device_kind} has {capability}'
    return None


def _device() -> jax.Device | jax.sharding.AbstractDevice:
    """What the mesh of the context describes, or such a device if there is one here; without a mesh, the default."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is not None:
        here = (device for device in jax.devices() if device.device_kind == described.device_kind)
        return next(here, described)
    default = jax.config.jax_default_device
    return jax.devices(default)[0] if default is None or isinstance(default, str) else default


def load(package: str, implementation: str):
    """The module of a kernel in `package`, and the arguments that its functions take for this implementation."""
    module = importlib.import_module(f'{package}.{implementation.removesuffix("_interpret")}')
    return module, {'interpret': True} if implementation in INTERPRETED else {}


def _dotted(version: tuple[int, ...]) -> str:
    return '.'.join(map(str, version))
