"""Devices are known by the names that JAX and people give them; no other is taken for one of them."""

import re

import pytest

from experiments.devices import device_specs

# `jax.Device.device_kind` of real devices, with the peak in TFLOP/s and the memory in GB that their makers publish.
REAL = {
    'NVIDIA A100-SXM4-40GB': (312, 40),
    'NVIDIA A100-SXM4-80GB': (312, 80),
    'NVIDIA A100 80GB PCIe': (312, 80),
    'NVIDIA H100 80GB HBM3': (989.4, 80),
    'NVIDIA H100 PCIe': (756, 80),
    'NVIDIA H100 NVL': (835, 94),
    'NVIDIA H200': (989.4, 141),
    'NVIDIA B200': (2250, 180),
    'NVIDIA GB200': (2500, 186),
    'NVIDIA L4': (121, 24),
    'NVIDIA L40S': (362, 48),
    'NVIDIA GeForce RTX 4090': (165.2, 24),
    'AMD Instinct MI300X': (1307.4, 192),
    'TPU v4': (275, 32),
    'TPU v5 lite': (197, 16),
    'TPU v5': (459, 95),
    'TPU v5p': (459, 95),
    'TPU v6 lite': (918, 32),
}


@pytest.mark.parametrize('kind', REAL)
def test_device_kinds_are_found(kind):
    spec = device_specs.find(kind)
    assert (spec.peak_flops, spec.memory_bytes) == pytest.approx([REAL[kind][0] * 1e12, REAL[kind][1] * 1e9])


@pytest.mark.parametrize('name', device_specs.names())
def test_short_names_are_found_and_say_where_the_numbers_are_from(name):
    spec = device_specs.find(name)
    assert spec.name == name and spec.source
    assert device_specs.find(name.upper()) == spec


def test_no_device_kind_is_two_devices():
    for kind in [*REAL, *device_specs.names()]:
        short = kind.lower().removeprefix('nvidia ').removeprefix('amd instinct ')
        matching = {spec.name for spec, pattern in device_specs.DEVICES.items() if re.fullmatch(pattern, short)}
        assert matching <= {device_specs.find(kind).name}


@pytest.mark.parametrize(
    'kind', ['cpu', '', 'Tesla V100-SXM2-16GB', 'NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'TPU v9', 'H1000', 'NVIDIA']
)
def test_others_are_unknown(kind):
    assert device_specs.find(kind) is None
