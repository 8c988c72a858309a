"""A layer's GEMMs run on FP8 units, in about as many launches and no more memory than the simulation takes."""

import pytest

from experiments.benchmarks import compiled_gemms
from experiments.devices import described_gpus

pytestmark = pytest.mark.optimized


@pytest.mark.parametrize('scales', ['channel', 'tensor'])
@pytest.mark.parametrize('gpu', described_gpus.GPUS)
def test_hardware_arithmetic_is_three_gemms_of_fp8(h100, gpu, scales):
    layers = [f'simulated {scales}', f'hardware {scales}']
    simulated, hardware = compiled_gemms.gemms_report([gpu], layers)
    assert (simulated['fp8_gemms'], hardware['fp8_gemms']) == (0, 3)
    assert hardware['launches'] <= 1.2 * simulated['launches']
    assert hardware['temporary_bytes'] <= 1.2 * simulated['temporary_bytes']


@pytest.mark.parametrize('gpu, layer, number', [('b200', 'mxfp8', 3), ('b200', 'nvfp4', 1), ('h100', 'mxfp8', 0)])
def test_which_gemms_of_jax_are_block_scaled(h100, gpu, layer, number):
    """What XLA maps `jax.nn.scaled_dot_general` to: all of MXFP8, of NVFP4 the forward GEMM, on Blackwell."""
    [row] = compiled_gemms.gemms_report([gpu], [f'jax {layer}'])
    assert row['block_scaled_gemms'] == number
    assert row['layer'] in compiled_gemms.gemms_table([row])
