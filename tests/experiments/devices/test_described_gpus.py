"""What compiling for a GPU that isn't there needs is asked for by name; devices stand in hosts of eight."""

import importlib.util
import shutil

import pytest

from experiments.devices import described_gpus
from experiments.devices.described_gpus import CannotCompile


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    described_gpus.find_tool.cache_clear()
    with pytest.raises(
        CannotCompile, match=r'ptxas is missing.*nvidia-cuda-nvcc.*pip install -e \.\[compile\]'
    ) as error:
        described_gpus.find_tool('ptxas')
    assert '\n' not in str(error.value)
    monkeypatch.undo()
    described_gpus.find_tool.cache_clear()


def test_each_gpu_is_described_with_its_architecture(h100):
    capability = {gpu: described_gpus.devices(gpu=gpu)[0].compute_capability for gpu in described_gpus.GPUS}
    assert capability == {'h100': '9.0', 'b200': '10.0'}
    for gpu, kind in described_gpus.GPUS.items():
        assert described_gpus.devices(gpu=gpu)[0].device_kind.startswith(kind)


@pytest.mark.parametrize(('number', 'hosts'), [(1, 1), (4, 1), (16, 2), (12, 1)])
def test_devices_are_described(h100, number, hosts):
    devices = described_gpus.devices(number)
    assert len(devices) == number and len({device.slice_index for device in devices}) == 1
    assert {device.device_kind for device in devices} == {h100.device_kind}
    assert len({device.process_index for device in devices}) == hosts
