"""Steps on rows of which not all tokens are learned: the mean is over those that are, of the whole batch."""

import jax
import numpy as np
import pytest
from gelu_family import GELU
from ml_collections import ConfigDict
from small_experiments import VOCABULARY, keep_gradients, make_experiment, random_state, small_config

from experiments.data.packing import PackedRows
from experiments.data.token_data import TokenData
from experiments.training import evaluation, meshes, steps
from gaussq_jax import models


def packed_rows(config, seed=0):
    """Two documents a row on average, of which the last half is learned; rows of the batch learn unequally many."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(2, 18, 24).astype(np.uint32)
    tokens = generator.integers(0, VOCABULARY, lengths.sum()).astype(np.uint16)
    mask = np.concatenate([np.arange(n) >= n - generator.integers(1, n) for n in lengths.astype(int)]).astype(np.uint8)
    return PackedRows(
        TokenData((tokens,), 1, 24, '', 0, masks=(mask,), document_lengths=lengths), config.sequence_length
    )


def gradients_of(batch, sizes=(1, 1, 1), argument='smoke,method=bf16', **changes):
    experiment = make_experiment(small_config(argument, dtype='float32', **changes), sizes, keep_gradients())
    state, metrics = steps.make_train_step(experiment)(
        random_state(experiment), meshes.to_devices(batch, experiment.mesh)
    )
    return float(metrics['train/loss']), jax.tree.map(np.asarray, state.opt_state['params'])


def batch_of(rows, count=8):
    return rows.read(np.arange(count))


def each_document_alone(rows, batch):
    """The same, a document a row: as many rows as a batch's number of documents, filled up to a multiple of 8."""
    alone = []
    for tokens, mask, segments in zip(*(batch[name] for name in ('tokens', 'mask', 'segments'))):
        for number in range(1, segments.max() + 1):
            (at,) = np.nonzero(segments == number)
            shape = len(tokens), len(mask)
            row, weights = np.zeros(shape[0], np.int32), np.zeros(shape[1], np.float32)
            row[: len(at) + 1] = tokens[at[0] : at[-1] + 2]
            weights[: len(at)] = mask[at]
            alone.append((row, weights))
    alone += [(np.zeros_like(alone[0][0]), np.zeros_like(alone[0][1]))] * (-len(alone) % 8)
    return dict(zip(('tokens', 'mask'), map(np.stack, zip(*alone))))


def assert_close(got, expected):
    np.testing.assert_allclose(got[0], expected[0], rtol=2e-6)
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(expected[1])):  # of weights in bfloat16, as those are
        assert np.linalg.norm(a - b) < 4e-3 * np.linalg.norm(b)


def test_packed_documents_teach_what_they_teach_alone():
    """The loss of a packed batch is the mean over the learned tokens of its documents, each in a row of its own."""
    rows = packed_rows(small_config())
    batch = batch_of(rows)
    assert batch['segments'].max() > 1
    alone = each_document_alone(rows, batch)
    assert alone['mask'].sum() == batch['mask'].sum()
    assert_close(gradients_of(batch), gradients_of(alone, batch_size=len(alone['tokens'])))


@pytest.mark.parametrize(
    ('sizes', 'changes'),
    [
        ((1, 1, 1), dict(microbatches=4)),
        ((2, 2, 2), dict(microbatches=2)),
        ((1, 1, 1), dict(microbatches=2, argument='smoke,parts=down', resample_weights=True, remat_policy='full')),
    ],
)
def test_the_mean_is_over_the_whole_batch(sizes, changes):
    """Not the mean of the parts' means: in parts, on devices, with weights resampled."""
    batch = batch_of(packed_rows(small_config()))
    assert len(set(batch['mask'].sum(axis=1))) > 3
    whole = {name: value for name, value in changes.items() if name == 'argument'}
    assert_close(gradients_of(batch, sizes, **changes), gradients_of(batch, **whole))


def test_a_mask_of_ones_is_no_mask():
    batch = {'tokens': batch_of(packed_rows(small_config()))['tokens']}
    assert_close(gradients_of(batch | {'mask': np.ones((8, 24), np.float32)}), gradients_of(batch))


def test_evaluation_keeps_documents_apart():
    experiment = make_experiment(small_config('smoke,method=bf16', dtype='float32'))
    state, evaluate = random_state(experiment), evaluation.make_evaluation(experiment)
    rows = packed_rows(experiment.config)
    batch = batch_of(rows)
    alone = each_document_alone(rows, batch)
    got, expected = evaluate(state, [batch]), evaluate(state, [alone])
    assert got['tokens'] == expected['tokens'] == batch['mask'].sum()
    assert got['loss'] == pytest.approx(expected['loss'], rel=1e-6)


def test_a_family_that_takes_no_segments_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(models.FAMILIES, 'gelu', GELU)
    config = small_config('smoke,method=bf16')
    config.model = ConfigDict(dict(family='gelu', num_layers=2, hidden_size=32, wide_size=48))
    experiment = make_experiment(config)
    batch = meshes.to_devices(batch_of(packed_rows(config)), experiment.mesh)
    with pytest.raises(ValueError, match=r"config\.model\.family='gelu': its model takes no segment_ids"):
        steps.make_train_step(experiment)(random_state(experiment), batch)
