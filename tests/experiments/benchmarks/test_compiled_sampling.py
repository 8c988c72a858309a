"""Our kernels of weight sampling, compiled, keep within their limits."""

import pytest

from experiments.benchmarks import compiled_sampling
from kernels_pallas.implementations import KERNELS

pytestmark = pytest.mark.optimized

FORWARD_LIMIT, BACKWARD_LIMIT = 24, 16  # instructions a weight
LIMITS = (('forward', 'float32', FORWARD_LIMIT), ('backward', 'bfloat16', BACKWARD_LIMIT))


@pytest.mark.parametrize('implementation', KERNELS)
@pytest.mark.parametrize('direction, dtype, limit', LIMITS)
def test_weight_sampling_spills_nothing_and_keeps_within_its_instructions(
    h100, implementation, direction, dtype, limit
):
    settings = {'direction': direction, 'dtype': dtype, 'noise': 'rounded_normal', 'format': None}
    [row] = compiled_sampling.compile_report(implementations=[implementation], **settings)['rows']
    assert 'error' not in row
    assert row['launches'] == 1
    assert row['spill_bytes'] == 0
    assert row['instructions_per_weight'] <= limit


@pytest.mark.slow
@pytest.mark.parametrize('implementation', KERNELS)
def test_every_kernel_of_weight_sampling_compiles_and_spills_nothing(h100, implementation):
    report = compiled_sampling.compile_report(shape=(2, 2048, 2048), implementations=[implementation])
    assert len(report['rows']) == 12
    for row in report['rows']:
        assert 'error' not in row, row
        assert row['launches'] == 1 and row['spill_bytes'] == 0, row
