"""What compiling for a GPU that isn't there needs is asked for by name; devices stand in hosts of eight."""

import importlib.util
import shutil

import pytest

from experiments.devices import described_h100
from experiments.devices.described_h100 import CannotCompile


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    described_h100.find_tool.cache_clear()
    with pytest.raises(
        CannotCompile, match=r'ptxas is missing.*nvidia-cuda-nvcc.*pip install -e \.\[compile\]'
    ) as error:
        described_h100.find_tool('ptxas')
    assert '\n' not in str(error.value)
    monkeypatch.undo()
    described_h100.find_tool.cache_clear()


@pytest.mark.parametrize(('number', 'hosts'), [(1, 1), (4, 1), (16, 2), (12, 1)])
def test_devices_are_described(h100, number, hosts):
    devices = described_h100.devices(number)
    assert len(devices) == number and len({device.slice_index for device in devices}) == 1
    assert {device.device_kind for device in devices} == {h100.device_kind}
    assert len({device.process_index for device in devices}) == hosts
