"""What a training step keeps and moves: W_hat in bfloat16, gathered by layers, and never kept whole if resampled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameter_trees import assert_identical_trees
from small_experiments import (
    ONE_DEVICE,
    VOCABULARY,
    keep_gradients,
    make_experiment,
    random_batch,
    random_state,
    small_config,
)

from experiments.cost import collectives
from experiments.training import meshes, steps

LAYERS = 8


def aligned_config(**changes):
    """Layers of 256: eight shards of whole blocks."""
    sizes = dict(model__hidden_size=256, model__mlp_size=512, model__num_heads=8, model__num_layers=LAYERS)
    return small_config(dtype='bfloat16', remat_policy='full', **sizes, **changes)


@functools.cache
def compiled(sizes=(1, 8, 1), **changes):
    """The experiment; the compiled step, and what it moves between devices."""
    experiment = make_experiment(aligned_config(**changes), sizes)
    config = experiment.config
    shape = (config.batch_size, config.sequence_length + 1)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=meshes.batch_sharding(experiment.mesh))
    lowered = steps.make_train_step(experiment).lower(experiment.abstract_state, {'tokens': tokens})
    program, hlo = collectives.compile_partitioned(lowered)
    return experiment, program, collectives.read(hlo)


def matrices(moved, kind):
    """{(dtype, shape): how often} of the arrays of floats, of two axes or more, that are moved so."""
    found = {}
    for one in moved:
        if one.kind == kind and one.dtype in ('f32', 'bf16') and len(one.shape) > 1:
            found[one.dtype, one.shape] = found.get((one.dtype, one.shape), 0) + one.count
    return found


@pytest.mark.parametrize(
    'resample_weights', [pytest.param(False, marks=pytest.mark.slow, id='keep'), pytest.param(True, id='resample')]
)
def test_fsdp_gathers_two_bytes_a_weight(resample_weights):
    """Sampled where it lies, then gathered: each matrix of a layer forward and backward, in bfloat16; never W."""
    _, _, moved = compiled(resample_weights=resample_weights)
    assert matrices(moved, 'all-gather') == {
        ('bf16', (VOCABULARY, 256)): 1,
        ('bf16', (256, 256)): 2 * 4 * LAYERS,  # query, key, value, out
        ('bf16', (256, 512)): 2 * 2 * LAYERS,
        ('bf16', (512, 256)): 2 * LAYERS,
        ('bf16', (256, VOCABULARY)): 1,
    }
    assert not any(matrices(moved, kind) for kind in ('all-reduce', 'all-to-all', 'collective-permute'))


@pytest.mark.parametrize(
    ('reduction', 'dtype'), [('float32', 'f32'), pytest.param('bfloat16', 'bf16', marks=pytest.mark.slow)]
)
def test_gradients_are_summed_in_the_dtype_of_the_config(reduction, dtype):
    """Those of the linear layers, each once; those of embedding and head in float32 whatever it says."""
    _, _, moved = compiled(gradient_reduction=reduction)
    summed = matrices([one for one in moved if VOCABULARY not in one.shape], 'reduce-scatter')
    assert {found for found, _ in summed} == {dtype}
    # Transposed or not: gate and up, or down.
    wide, tall = (summed[dtype, shape] for shape in ((256, 512), (512, 256)))
    assert summed[dtype, (256, 256)] == 4 * LAYERS and {wide, tall} == {2 * LAYERS, LAYERS}
    of_vocabulary = matrices([one for one in moved if VOCABULARY in one.shape], 'reduce-scatter')
    assert of_vocabulary == {('f32', (VOCABULARY, 256)): 1, ('f32', (256, VOCABULARY)): 1}


@pytest.mark.slow
def test_a_tensor_is_shared_without_moving_more():
    """On a mesh of all three axes: weights are gathered over fsdp alone, and only sums of activations over tensor."""
    _, _, moved = compiled((2, 2, 2))
    gathered = matrices(moved, 'all-gather')
    assert {dtype for dtype, _ in gathered} == {'bf16'}
    weights = {one for one in moved if one.kind == 'all-gather' and one.count > 1}
    assert {one.group_size for one in weights} == {2}
    activations = {one for one in moved if one.dtype == 'bf16' and len(one.shape) == 3}
    assert {(one.kind, one.shape, one.group_size) for one in activations} == {('all-reduce', (2, 24, 256), 2)}


@pytest.mark.slow
def test_resampling_keeps_a_layer_instead_of_all():
    """The compiled step takes 2 bytes less for each sampled weight of a device, but for one layer's."""
    (experiment, keeping, _), (_, resampling, _) = compiled(), compiled(resample_weights=True)
    sampled = experiment.num_linear_params / 8
    saved = keeping.memory_analysis().temp_size_in_bytes - resampling.memory_analysis().temp_size_in_bytes
    assert saved > 2 * sampled * (1 - 1 / LAYERS)


@pytest.mark.parametrize(
    ('method', 'microbatches', 'sizes'),
    [
        pytest.param('gaussws', 2, ONE_DEVICE, marks=pytest.mark.slow),
        pytest.param('gaussws', 2, (1, 4, 2), marks=pytest.mark.slow),
        pytest.param('qat', 1, (1, 4, 2), marks=pytest.mark.slow),
    ],
)
def test_resampling_changes_no_loss_and_no_gradient(method, microbatches, sizes):
    """One weight has one noise, and one sum of gradients: to the bit but for the order of sums."""

    def first_step(resample_weights):
        config = small_config(
            f'smoke,method={method}',
            resample_weights=resample_weights,
            remat_policy='dots_saveable',
            microbatches=microbatches,
        )
        experiment = make_experiment(config, sizes, keep_gradients())
        state, metrics = steps.make_train_step(experiment)(random_state(experiment), random_batch(experiment))
        return float(metrics['train/loss']), state

    loss, state = first_step(True)
    expected_loss, expected = first_step(False)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2**-7, atol=1e-6)
    assert_identical_trees(state.params, expected.params)
