"""Published peak speed and memory of accelerators, by the names that JAX and people give them."""

import re
from typing import NamedTuple


class DeviceSpec(NamedTuple):
    """One accelerator, as JAX sees devices.

    Attributes:
      name: short, such as 'h100'; `find` knows it.
      peak_flops: dense matrix multiplications of bfloat16, FLOP/s, accumulated in float32; without sparsity, which
        NVIDIA's sheets double the numbers with.
      memory_bytes: as published, GB being 10^9; a little less or more can be allocated.
      source: where that is published.
      fp8_flops: the same of 8-bit floating-point numbers; None if it has none, or for want of a source.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    source: str
    fp8_flops: float | None = None


def _spec(name, teraflops, gigabytes, source, fp8_teraflops=None):
    return DeviceSpec(name, teraflops * 1e12, gigabytes * 1e9, source, fp8_teraflops and fp8_teraflops * 1e12)


# Each with the device kinds, without the maker's name, that are this device. Those without bfloat16 (V100, T4) are not
# here. The chips of an H100 SXM, an H200 SXM and a GH200 multiply alike: NVIDIA's H100 whitepaper has 989.4 TFLOP/s for
# dense bfloat16, and 1,978.9 with sparsity, which data sheets round to 1,979.
DEVICES = {
    _spec('a10', 125, 24, 'NVIDIA A10 datasheet'): 'a10',
    _spec('a100-40gb', 312, 40, 'NVIDIA A100 datasheet'): r'a100(-sxm4?|-pcie)?-40gb',
    _spec('a100-80gb', 312, 80, 'NVIDIA A100 datasheet'): r'a100(-sxm4?|-pcie)?-80gb|a100 80gb pcie|a100',
    _spec('rtx-a6000', 154.8, 48, 'NVIDIA Ampere GA102 whitepaper'): r'rtx[ -]a6000',
    _spec('rtx-3090', 71, 24, 'NVIDIA Ampere GA102 whitepaper'): r'(geforce )?rtx[ -]3090',
    _spec('rtx-4090', 165.2, 24, 'NVIDIA Ada whitepaper'): r'(geforce )?rtx[ -]4090',
    _spec('l4', 121, 24, 'NVIDIA L4 datasheet'): 'l4',
    _spec('l40', 181, 48, 'NVIDIA L40 datasheet'): 'l40',
    _spec('l40s', 362, 48, 'NVIDIA L40S datasheet'): 'l40s',
    _spec('h100', 989.4, 80, 'NVIDIA H100 whitepaper, SXM5', 1978.9): r'h100( 80gb hbm3|-sxm5?)?',
    _spec('h100-pcie', 756, 80, 'NVIDIA H100 datasheet, PCIe'): r'h100[ -]pcie',
    _spec('h100-nvl', 835, 94, 'NVIDIA H100 datasheet, NVL'): r'h100[ -]nvl',
    _spec('gh200', 989.4, 96, 'NVIDIA H100 whitepaper; memory: GH200 datasheet, HBM3', 1978.9): r'gh200( 480gb)?',
    _spec('h200', 989.4, 141, 'NVIDIA H100 whitepaper; memory: H200 datasheet, SXM', 1978.9): 'h200',
    _spec('h200-nvl', 835, 141, 'NVIDIA H200 datasheet, NVL'): r'h200[ -]nvl',
    _spec('b200', 2250, 180, 'NVIDIA DGX B200 datasheet, an eighth', 4500): 'b200',
    _spec('gb200', 2500, 186, 'NVIDIA GB200 NVL72 datasheet, a 72nd'): 'gb200',
    _spec('mi250x', 191.5, 64, 'AMD Instinct MI250X datasheet, one of its two dies'): 'mi250x',
    _spec('mi300a', 980.6, 128, 'AMD Instinct MI300A datasheet'): 'mi300a',
    _spec('mi300x', 1307.4, 192, 'AMD Instinct MI300X datasheet'): 'mi300x',
    _spec('mi325x', 1307.4, 256, 'AMD Instinct MI325X datasheet'): 'mi325x',
    _spec('tpu-v4', 275, 32, 'Google Cloud TPU v4 documentation'): r'(tpu[ -])?v4',
    _spec('tpu-v5e', 197, 16, 'Google Cloud TPU v5e documentation'): r'(tpu[ -])?(v5e|v5 lite)',
    _spec('tpu-v5p', 459, 95, 'Google Cloud TPU v5p documentation'): r'(tpu[ -])?v5p?',
    _spec('tpu-v6e', 918, 32, 'Google Cloud TPU v6e documentation'): r'(tpu[ -])?(v6e|v6 lite)',
}


def names() -> list[str]:
    """The short names that `find` knows."""
    return [spec.name for spec in DEVICES]


def find(device_kind: str) -> DeviceSpec | None:
    """The accelerator that a `jax.Device.device_kind` or a short name stands for; None if it isn't known.

    Example:
      >>> find('NVIDIA H100 80GB HBM3').name, find('TPU v5 lite').name, find('cpu')
      ('h100', 'tpu-v5e', None)
    """
    kind = re.sub(r'^(nvidia|amd instinct|amd)[ -]', '', device_kind.strip().lower())
    for spec, pattern in DEVICES.items():
        if kind == spec.name or re.fullmatch(pattern, kind):
            return spec
    return None
