"""Runs of the training program with recipes: stopped where they begin and end to quantize, and opened again."""

import pytest
from small_runs import assert_same_run, run_config, start, stop_after

from gaussq_jax import recipes

SIZES = dict(model__hidden_size=128, model__mlp_size=128, sequence_length=16)  # which all recipes divide
STOPS = (4, 8, 9)  # steps that are taken when a run is stopped: where it begins to quantize, where it ends, beyond
QUANTIZED = dict(quantization__start_step=4, quantization__end_step=8)


@pytest.mark.parametrize(
    ('argument', 'changes'),
    [
        ('method=qat,format=e2m1', dict(quantization__start_step=4)),
        *(pytest.param(f'method=fqt,recipe={name}', QUANTIZED, marks=pytest.mark.slow) for name in recipes.RECIPES),
        pytest.param('method=gaussws,recipe=nvfp4', QUANTIZED, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path, argument, changes):
    config = lambda: run_config(argument=f'smoke,{argument}', quantization__parts='all', **SIZES, **changes)
    start(tmp_path / 'whole', config())
    for taken in STOPS:
        with pytest.MonkeyPatch.context() as monkeypatch:
            stop_after(monkeypatch, taken)
            with pytest.raises(SystemExit, match=f'interrupted; the same command continues from step {taken // 4 * 4}'):
                start(tmp_path / 'stopped', config())
    start(tmp_path / 'stopped', config())
    assert_same_run(tmp_path / 'stopped', tmp_path / 'whole')
