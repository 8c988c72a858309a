"""GPUs to compile for where there are none: XLA compiles for the one that a target describes.

JAX's plugin for CUDA, and NVIDIA's assembler and disassembler, come with the extra `compile`.
"""

import functools
import importlib.util
import os
import pathlib
import shutil
from contextlib import AbstractContextManager

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh

GPUS = {'h100': 'NVIDIA H100', 'b200': 'NVIDIA B200'}  # their device kinds; the targets are beside this file
ARCHITECTURE = 'sm_90a'  # of the H100
GPUS_PER_HOST = 8


class CannotCompile(ValueError):
    """A package that compiling for a GPU takes isn't installed."""


@functools.cache
def devices(number: int = 1, gpu: str = 'h100') -> tuple[jax.Device, ...]:
    """So many of one of GPUS, eight to a host if that comes out even. To be asked for before JAX looks for devices.

    Raises:
      CannotCompile: where a package is missing.
    """
    find_tool('ptxas'), find_tool('nvdisasm')
    if not any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13)):
        raise _cannot_compile("JAX's CUDA plugin")
    os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')  # of a driver and libraries, which nothing here runs
    hosts = number // GPUS_PER_HOST if number % GPUS_PER_HOST == 0 else 1
    topology = f'1x{hosts}x{number // hosts}'
    target = pathlib.Path(__file__).with_name(f'{gpu}_target.textproto').read_text()
    try:
        return tuple(topologies.get_topology_desc(platform='cuda', target_config=target, topology=topology).devices)
    except NotImplementedError:  # JAX has looked for devices before, found no driver, and put its plugin away
        raise CannotCompile('JAX has given up its CUDA plugin, for it found no GPU; set JAX_PLATFORMS=cpu') from None


def tracing(gpu: str = 'h100') -> AbstractContextManager:
    """In which programs are traced and lowered for one of GPUS: the kernels for GPUs are chosen."""
    device = AbstractDevice(device_kind=GPUS[gpu], num_cores=None, platform='gpu')
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


@functools.cache
def find_tool(name: str) -> pathlib.Path:
    """One of NVIDIA's tools, from a package of theirs or else from the PATH; CannotCompile where it is missing."""
    nvidia = importlib.util.find_spec('nvidia')
    roots = nvidia.submodule_search_locations if nvidia else []
    found = [path for root in roots for path in sorted(pathlib.Path(root).glob(f'cu*/bin/{name}'))]  # cu13 comes first
    if not found and (path := shutil.which(name)):
        found = [pathlib.Path(path)]
    if not found:
        raise _cannot_compile(name)
    return found[0]


def _cannot_compile(missing: str) -> CannotCompile:
    return CannotCompile(
        f'{missing} is missing: compiling for a GPU needs jax-cuda12-plugin=={jax.__version__} (or cuda13),'
        ' nvidia-cuda-nvcc and nvidia-cuda-nvdisasm; pip install -e .[compile]'
    )
