"""Which implementation of an array function can run here: a kernel needs its backend in JAX and its GPU."""

import importlib
import importlib.util
import re
import warnings

import jax

from kernels_pallas import jax_internals

KERNELS = ('triton', 'mosaic')
INTERPRETED = tuple(f'{name}_interpret' for name in KERNELS)  # step by step in XLA, on any platform: to test them
IMPLEMENTATIONS = (*KERNELS, 'xla', *INTERPRETED)

_BACKENDS = {'triton': 'triton', 'mosaic': 'mosaic_gpu'}  # modules of jax.experimental.pallas
# Compute capabilities, and which major versions these are. Mosaic's code aborts the process when it is compiled for an
# older GPU, NVIDIA's assembler refuses it for 12.x, and 11.x is untried.
_COMPUTE_CAPABILITIES = {
    'triton': ('8.0 or newer', lambda major: major >= 8),
    'mosaic': ('9.x or 10.x', lambda major: major in (9, 10)),
}
# Of GPUs that are only described, by what their device kinds contain. Source: developer.nvidia.com/cuda/gpus.
_DESCRIBED = {
    r'V100': '7.0',
    r'T4': '7.5',
    r'A100|A800|A30': '8.0',
    r'A10G?|A16|A40|RTX A\d{4}|GeForce RTX 30\d0': '8.6',
    r'L4|L40S?|GeForce RTX 40\d0|RTX \d{4} Ada': '8.9',
    r'H100|H200|H800|H20|GH200': '9.0',
    r'B200|GB200': '10.0',
    r'B300|GB300': '10.3',
    r'Thor': '11.0',
    r'GeForce RTX 50\d0|RTX PRO \d{4}': '12.0',
    r'GB10': '12.1',
}


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
    here, to compile for it (`jax.sharding.AbstractDevice`): its compute capability is looked up by its name.
    """
    if implementation == 'xla':
        return None
    kernel = implementation.removesuffix('_interpret')
    if importlib.util.find_spec(f'jax.experimental.pallas.{_BACKENDS[kernel]}') is None:
        return f'JAX {jax.__version__} has no {kernel.capitalize()} backend of Pallas'
    if implementation in INTERPRETED:
        return jax_internals.why_mosaic_is_not_interpreted() if kernel == 'mosaic' else None
    device, (needed, suffices) = _device(), _COMPUTE_CAPABILITIES[kernel]
    capability = _compute_capability(device)
    if device.platform != 'gpu':
        return f'it needs an NVIDIA GPU, and the device is {device.device_kind}'
    if capability is None:
        return f'it needs an NVIDIA GPU, and the compute capability of {device.device_kind} is unknown'
    if not suffices(int(capability.split('.')[0])):
        return f'it needs compute capability {needed}, and {device.device_kind} has {capability}'
    return None


def _compute_capability(device: jax.Device | jax.sharding.AbstractDevice) -> str | None:
    """Such as '9.0'; None if it has none, as GPUs of other makers, or if nothing is known of a described one."""
    if not isinstance(device, jax.sharding.AbstractDevice):
        capability = getattr(device, 'compute_capability', '')
        return capability if '.' in capability else None
    kind = device.device_kind
    return next((found for regex, found in _DESCRIBED.items() if re.search(rf'\b({regex})\b', kind)), None)


def _device() -> jax.Device | jax.sharding.AbstractDevice:
    """What the mesh of the context describes, or such a device if there is one here; without a mesh, the default."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is not None:
        here = (device for device in jax.devices() if device.device_kind == described.device_kind)
        return next(here, described)
    default = jax.config.jax_default_device
    return jax.devices(default)[0] if default is None or isinstance(default, str) else default


def load(package: str, implementation: str):
    """The module of a kernel in `package`, and the arguments that its functions take for this implementation.

    Which kernel runs is our choice: JAX's warning that Triton is deprecated is filtered out for the process.
    """
    kernel = implementation.removesuffix('_interpret')
    if kernel == 'triton':  # from 0.11, JAX warns wherever it is lowered, which is after this, in the user's call
        warnings.filterwarnings('ignore', 'The Pallas Triton backend is deprecated', DeprecationWarning)
    module = importlib.import_module(f'{package}.{kernel}')
    return module, {'interpret': True} if implementation in INTERPRETED else {}
