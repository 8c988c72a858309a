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
      fp8_flops, fp6_flops, fp4_flops, int8_flops, int4_flops: the same of operands that are both of such numbers; of
        integers, operations, accumulated in int32. None if it has no unit for them, or for want of a source.
      memory_bandwidth: bytes/s, as published; None for want of a source.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    source: str
    fp8_flops: float | None = None
    fp6_flops: float | None = None
    fp4_flops: float | None = None
    int8_flops: float | None = None
    int4_flops: float | None = None
    memory_bandwidth: float | None = None

    @property
    def rates(self) -> dict[str, float]:
        """The rates that are known, by the numbers of both operands."""
        names = ('fp8', 'fp6', 'fp4', 'int8', 'int4')
        rates = {'bf16': self.peak_flops} | {name: getattr(self, f'{name}_flops') for name in names}
        return {name: rate for name, rate in rates.items() if rate is not None}


# Each with the device kinds, without the maker's name, that are this device. Those without bfloat16 (V100, T4) are not
# here. The chips of an H100 SXM, an H200 SXM and a GH200 multiply alike: NVIDIA's H100 whitepaper has 989.4 TFLOP/s for
# dense bfloat16 and twice that for dense FP8, which data sheets round to 1,979. A tpu-7x is a chip of two TensorCores,
# each of which JAX has as a device: it is no device kind. TPUs before it take FP8, as fast as bfloat16.
DEVICES = {
    DeviceSpec('a10', 125e12, 24e9, 'NVIDIA A10 datasheet'): 'a10',
    DeviceSpec('a100-40gb', 312e12, 40e9, 'NVIDIA A100 datasheet'): r'a100(-sxm4?|-pcie)?-40gb',
    DeviceSpec(
        'a100-80gb',
        312e12,
        80e9,
        'NVIDIA A100 datasheet, SXM',
        int8_flops=624e12,
        int4_flops=1248e12,
        memory_bandwidth=2.039e12,
    ): r'a100(-sxm4?|-pcie)?-80gb|a100 80gb pcie|a100',
    DeviceSpec('rtx-a6000', 154.8e12, 48e9, 'NVIDIA Ampere GA102 whitepaper'): r'rtx[ -]a6000',
    DeviceSpec('rtx-3090', 71e12, 24e9, 'NVIDIA Ampere GA102 whitepaper'): r'(geforce )?rtx[ -]3090',
    DeviceSpec('rtx-4090', 165.2e12, 24e9, 'NVIDIA Ada whitepaper'): r'(geforce )?rtx[ -]4090',
    DeviceSpec('l4', 121e12, 24e9, 'NVIDIA L4 datasheet'): 'l4',
    DeviceSpec('l40', 181e12, 48e9, 'NVIDIA L40 datasheet'): 'l40',
    DeviceSpec('l40s', 362e12, 48e9, 'NVIDIA L40S datasheet'): 'l40s',
    DeviceSpec(
        'h100',
        989.4e12,
        80e9,
        'NVIDIA H100 whitepaper, SXM5',
        fp8_flops=1978.9e12,
        int8_flops=1978.9e12,
        memory_bandwidth=3.35e12,
    ): r'h100( 80gb hbm3|-sxm5?)?',
    DeviceSpec('h100-pcie', 756e12, 80e9, 'NVIDIA H100 datasheet, PCIe'): r'h100[ -]pcie',
    DeviceSpec('h100-nvl', 835e12, 94e9, 'NVIDIA H100 datasheet, NVL'): r'h100[ -]nvl',
    DeviceSpec(
        'gh200', 989.4e12, 96e9, 'NVIDIA H100 whitepaper; memory: GH200 datasheet, HBM3', 1978.9e12
    ): r'gh200( 480gb)?',
    DeviceSpec(
        'h200',
        989.4e12,
        141e9,
        'NVIDIA H100 whitepaper; memory: H200 datasheet, SXM',
        fp8_flops=1978.9e12,
        int8_flops=1978.9e12,
        memory_bandwidth=4.8e12,
    ): 'h200',
    DeviceSpec('h200-nvl', 835e12, 141e9, 'NVIDIA H200 datasheet, NVL'): r'h200[ -]nvl',
    DeviceSpec(
        'b200',
        2250e12,
        180e9,
        'NVIDIA DGX B200 datasheet, an eighth',
        fp8_flops=4500e12,
        fp6_flops=4500e12,
        fp4_flops=9000e12,
        int8_flops=4500e12,
        memory_bandwidth=8e12,
    ): 'b200',
    DeviceSpec(
        'b300',
        2250e12,
        270e9,
        'NVIDIA HGX B300 datasheet, an eighth; INT8 and usable memory as Verda, which rents them, has them',
        fp8_flops=4500e12,
        fp6_flops=4500e12,
        fp4_flops=13500e12,
        int8_flops=150e12,
        memory_bandwidth=8e12,
    ): 'b300',
    DeviceSpec('gb200', 2500e12, 186e9, 'NVIDIA GB200 NVL72 datasheet, a 72nd'): 'gb200',
    DeviceSpec('mi250x', 191.5e12, 64e9, 'AMD Instinct MI250X datasheet, one of its two dies'): 'mi250x',
    DeviceSpec('mi300a', 980.6e12, 128e9, 'AMD Instinct MI300A datasheet'): 'mi300a',
    DeviceSpec(
        'mi300x',
        1307.4e12,
        192e9,
        'AMD Instinct MI300X datasheet',
        fp8_flops=2614.9e12,
        int8_flops=2614.9e12,
        memory_bandwidth=5.3e12,
    ): 'mi300x',
    DeviceSpec(
        'mi355x',
        2516.6e12,
        288e9,
        'AMD Instinct MI355X datasheet',
        fp8_flops=5033.2e12,
        fp6_flops=10066.3e12,
        fp4_flops=10066.3e12,
        int8_flops=5033.2e12,
        memory_bandwidth=8e12,
    ): 'mi355x',
    DeviceSpec('mi325x', 1307.4e12, 256e9, 'AMD Instinct MI325X datasheet'): 'mi325x',
    DeviceSpec('tpu-v4', 275e12, 32e9, 'Google Cloud TPU v4 documentation'): r'(tpu[ -])?v4',
    DeviceSpec('tpu-v5e', 197e12, 16e9, 'Google Cloud TPU v5e documentation'): r'(tpu[ -])?(v5e|v5 lite)',
    DeviceSpec(
        'tpu-v5p',
        459e12,
        95e9,
        'Google Cloud TPU v5p documentation; INT8: How to scale your model, chapter 2',
        fp8_flops=459e12,
        int8_flops=918e12,
        memory_bandwidth=2.765e12,
    ): r'(tpu[ -])?v5p?',
    DeviceSpec(
        'tpu-v6e',
        918e12,
        32e9,
        'Google Cloud TPU v6e documentation',
        fp8_flops=918e12,
        int8_flops=1836e12,
        memory_bandwidth=1.638e12,
    ): r'(tpu[ -])?(v6e|v6 lite)',
    DeviceSpec(
        'tpu-7x',
        2307e12,
        192 * 2**30,
        'Google Cloud TPU7x documentation, a chip',
        fp8_flops=4614e12,
        memory_bandwidth=7.38e12,
    ): 'tpu-7x',
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
