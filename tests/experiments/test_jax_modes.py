"""With 64-bit numbers, and without promotion of ranks and dtypes, training and its checkpoints have the same bits."""

import jax
import numpy as np
import pytest
from jax_modes import assert_same_bits, in_all_modes_everywhere, in_mode
from small_experiments import make_experiment, random_batch, random_tokens, small_config
from small_runs import assert_same_run, change_steps, final_state, run_config, start

from experiments.training import evaluation, steps
from experiments.training.experiment import init_state

BFLOAT16_STATE = dict(optimizer__state_dtype='bfloat16', microbatches=2)
TRAININGS = {
    'gaussws': dict(BFLOAT16_STATE, optimizer__name='adam_mini', quantization__penalty=0.1),
    'gaussws, resampled': dict(dtype='bfloat16', resample_weights=True, remat_policy='full'),
    'diffq': BFLOAT16_STATE,
    'qat': dict(optimizer__name='adam_mini', dtype='bfloat16'),
    'fqt': dict(quantization__rounding='stochastic', dtype='bfloat16', microbatches=2),
    'bf16': dict(dtype='bfloat16'),
}
QUICK = 'gaussws'


def train(name):
    """Of two steps: the state after them, their metrics, and the loss of evaluation with noise and without."""
    experiment = make_experiment(small_config(f'smoke,method={name.split(",")[0]}', **TRAININGS[name]))
    state, train_step = init_state(experiment), steps.make_train_step(experiment)
    metrics = []
    for seed in range(2):
        state, of_step = train_step(state, random_batch(experiment, seed))
        metrics.append(of_step)
    tokens = random_tokens(experiment.config, seed=2)
    batches = [{'tokens': tokens, 'mask': np.ones(tokens[:, 1:].shape, np.float32)}]
    evaluate = evaluation.make_evaluation(experiment)
    return jax.device_get((state, metrics, [evaluate(state, batches, noise=noise) for noise in (False, True)]))


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in TRAININGS]
)
def test_steps_and_evaluation(name):
    without = train(name)
    with in_mode('all'):
        assert_same_bits(train(name), without)


def start_until(step, workdir, config):
    """The training is interrupted when it has taken so many steps."""

    def interrupt(train_step, state, batch):
        if int(state.step) == step:
            raise KeyboardInterrupt
        return train_step(state, batch)

    with pytest.MonkeyPatch.context() as monkeypatch:
        change_steps(monkeypatch, interrupt)
        with pytest.raises(SystemExit, match='the same command continues from step'):
            start(workdir, config)


@pytest.mark.slow
def test_a_run_goes_from_one_mode_into_the_other(tmp_path):
    """A checkpoint of the one is resumed in the other, both ways; all that the run leaves is that of neither."""
    config = run_config(optimizer__state_dtype='bfloat16')
    start(tmp_path / 'without', config)
    with in_all_modes_everywhere():
        start_until(6, tmp_path / 'both', config)
    start_until(10, tmp_path / 'both', config)
    with in_all_modes_everywhere():
        start(tmp_path / 'both', config)
    assert_same_run(tmp_path / 'both', tmp_path / 'without')
    assert_same_bits(final_state(tmp_path / 'both'), final_state(tmp_path / 'without'))
