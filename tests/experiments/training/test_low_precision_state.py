"""Moments in bfloat16: rounded without bias, by bits that nothing but seed, count, path and index decides."""

import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy_weight_sampling import philox_4x32
from parameter_trees import assert_identical_trees, flatten, nest
from small_experiments import keep_gradients, make_experiment, on_mesh, small_config

from experiments.checkpoints.checkpointing import Checkpointer
from experiments.training import meshes
from experiments.training.low_precision_state import low_precision_state
from gaussq_jax.models.llama import LLAMA

SEED = 3


def rounded(values, seed=SEED, count=0, path='w'):
    """What becomes of a leaf of the state, as float32."""
    values = {path: jnp.asarray(values)}
    optimizer = low_precision_state(keep_gradients(), seed)
    state = optimizer.init(values)._replace(count=jnp.int32(count))
    state = jax.jit(optimizer.update)(values, state)[1]
    assert state.inner_state[path].dtype == jnp.bfloat16 and state.count == count + 1
    return np.asarray(state.inner_state[path]).astype(np.float32)


@pytest.mark.parametrize('fraction', [2.0**-7, 0.25, 0.5, 1 - 2.0**-7])
@pytest.mark.parametrize('lower', [1.0, -(2.0**-130)])
def test_the_mean_is_exact(lower, fraction):
    """Up with the probability of the distance from the number below: of a subnormal number, too."""
    step = math.copysign(max(abs(lower) * 2.0**-7, 2.0**-133), lower)
    upper, numbers = lower + step, 2**16
    values = rounded(np.full(numbers, lower + fraction * step, np.float32)).astype(np.float64)
    assert set(values) == {lower, upper}
    deviation = math.sqrt(fraction * (1 - fraction) / numbers)
    assert abs(np.mean(values == upper) - fraction) < 5 * deviation


def test_a_moment_follows_what_rounding_to_nearest_would_lose():
    """With b2 = 0.999 a second moment can't fall in bfloat16, rounded to nearest; here its mean is 0.999^t."""
    optimizer = low_precision_state(optax.scale_by_adam(b2=0.999), SEED)
    weights, steps = jnp.zeros((64, 64)), 200
    state = jax.tree.map(jnp.ones_like, optimizer.init(weights))
    fall = lambda state, _: (optimizer.update(weights, state)[1], None)
    state, _ = jax.jit(lambda state: jax.lax.scan(fall, state, length=steps))(state)
    values = np.asarray(state.inner_state.nu).astype(np.float64)
    # A step's variance is at most step^2 / 4, with steps of 2^-8 below 1.
    deviation = math.sqrt(steps / 4) * 2.0**-8 / math.sqrt(values.size)
    assert abs(values.mean() - 0.999**steps) < 5 * deviation


def test_what_bfloat16_holds_stays():
    """All 65,536 codes, infinities among them; NaN stays NaN."""
    values = (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)
    result, is_nan = rounded(values), np.isnan(values)
    assert np.isnan(result[is_nan]).all()
    np.testing.assert_array_equal(result[~is_nan].view(np.uint32), values[~is_nan].view(np.uint32))


@pytest.mark.parametrize('shape', [(700,), (35, 20), (2, 3, 5, 20)])
def test_random_bits(shape):
    """Philox in NumPy, by its definition: key (seed, hash of the path), counter (column, row, leading index, count)."""
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    digest = hashlib.sha256(b'w').digest()[:4]
    rows, columns = shape[-2:] if len(shape) > 1 else (1, *shape)
    leading, row, column = np.indices((values.size // (rows * columns), rows, columns))
    random = philox_4x32((SEED, int.from_bytes(digest, 'little')), (column, row, leading, 5), rounds=7)[0]
    bits = values.view(np.uint32)
    expected = (bits >> 16) + ((bits << 16) > random.reshape(shape).astype(np.uint32)) << 16
    np.testing.assert_array_equal(rounded(values, count=5).view(np.uint32), expected)


def test_every_leaf_step_and_seed_has_its_own_bits():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    results = [rounded(values, **other) for other in ({}, {'path': 'v'}, {'count': 1}, {'seed': 4}, {'seed': -1})]
    assert len({result.tobytes() for result in results}) == len(results)


def test_counts_and_scalars_stay():
    """An integer's or a schedule's value is no moment: neither is rounded."""
    state = {'count': jnp.int32(257), 'scale': jnp.float32(1 / 3), 'moment': jnp.full(4, 1 / 3)}
    optimizer = low_precision_state(optax.GradientTransformation(lambda _: state, lambda g, s, _: (g, s)), SEED)
    start = optimizer.init(None)
    after = optimizer.update(None, start)[1]
    for kept in (start.inner_state, after.inner_state):
        assert kept['count'] == 257 and kept['scale'] == np.float32(1 / 3)
        assert kept['moment'].dtype == jnp.bfloat16


PARAMS = nest({'params/layers/mlp/up/kernel': np.zeros((2, 32, 48)), 'params/final_norm/scale': np.zeros(32)})
PARAMS = jax.tree.map(np.float32, PARAMS)
OPTIMIZER = low_precision_state(optax.adam(1e-3), SEED)


def shardings_on(sizes):
    """Where the state lies."""
    with on_mesh(sizes):
        mesh = meshes.make_mesh(None)
    return meshes.state_shardings(mesh, jax.eval_shape(OPTIMIZER.init, PARAMS), LLAMA)


def random_gradients(step):
    generator = np.random.default_rng(step)
    return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), PARAMS)


def run_updates(shardings, steps, state=None, first=0):
    """The last of some updates by random gradients, and the state after them, donated each time."""
    state = jax.jit(OPTIMIZER.init, out_shardings=shardings)(PARAMS) if state is None else state
    update = jax.jit(OPTIMIZER.update, donate_argnums=1, out_shardings=(None, shardings))
    for step in range(first, first + steps):
        updates, state = update(random_gradients(step), state)
    return updates, state


def to_host(tree):
    return jax.tree.map(np.asarray, tree)


def test_a_mesh_changes_no_bit():
    single, sharded = (run_updates(shardings_on(sizes), 3) for sizes in [(1, 1, 1), (2, 2, 2)])
    assert not flatten(sharded)['1/inner_state/0/nu/params/layers/mlp/up/kernel'].is_fully_replicated
    assert_identical_trees(to_host(sharded), to_host(single))


def test_resuming_changes_no_bit(tmp_path):
    """Two updates, a checkpoint and two updates are four updates."""
    shardings = shardings_on((2, 2, 2))
    _, halfway = run_updates(shardings, 2)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(2, halfway, {}, {})
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), halfway)
        restored = checkpointer.restore(state)
    assert_identical_trees(to_host(run_updates(shardings, 2, restored.state, 2)), to_host(run_updates(shardings, 4)))


@pytest.mark.parametrize('name', ['adamw', 'adam_mini', 'muon'])
def test_moments_lie_where_their_parameter_lies(name):
    config = small_config(optimizer__state_dtype='bfloat16', optimizer__name=name)
    state = make_experiment(config, (2, 2, 2)).abstract_state
    leaves, params = flatten(state.opt_state), flatten(state.params)
    moments = {path.partition('/mu/params/')[2]: leaf for path, leaf in leaves.items() if '/mu/params/' in path}
    assert moments.keys() == params.keys()
    for path, leaf in moments.items():
        assert (leaf.dtype, leaf.shape, leaf.sharding) == (jnp.bfloat16, params[path].shape, params[path].sharding)
    assert all(leaf.size for leaf in leaves.values())  # no checkpoint could hold it
