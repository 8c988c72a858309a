"""The mesh, and where arrays lie on it: parameters with their moments, sequences over the devices."""

import unittest.mock

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from parameter_trees import flatten
from small_experiments import small_config

from configs import gpt2
from experiments.training import meshes
from experiments.training.experiment import make_experiment


@pytest.mark.parametrize(
    ('sizes', 'shape'),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((2, 2, 2), (2, 2, 2)),
        ((2, -1, 1), (2, 4, 1)),
        ((1, 2, -1), (1, 2, 4)),
        ((8, -1, 1), (8, 1, 1)),
    ],
)
def test_mesh(sizes, shape):
    mesh = meshes.make_mesh(ConfigDict(dict(zip(meshes.AXES, sizes))))
    assert mesh.shape == dict(zip(('data', 'fsdp', 'tensor'), shape))
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    'sizes', [(1, 1, 1), (3, -1, 1), (16, 1, 1), (-1, -1, 1), (0, 8, 1), (-1, 0, 1), (-2, -4, 1), (-8, -1, 1)]
)
def test_mesh_that_does_not_fit(sizes):
    config = ConfigDict(dict(zip(meshes.AXES, sizes)))
    with pytest.raises(ValueError, match=r'config.mesh=.* does not fit 8 device\(s\)'):
        meshes.make_mesh(config)


def specs(config):
    """{path: PartitionSpec} of the parameters, and of Adam's moments of them."""
    state = make_experiment(config, 257).abstract_state
    leaves = {name: jax.tree.leaves(tree) for name, tree in state._asdict().items()}
    assert all(leaf.sharding.mesh.shape == {'data': 2, 'fsdp': 2, 'tensor': 2} for leaf in leaves['params'])
    adam = state.opt_state.inner_states['params'].inner_state[1][0]
    return [
        {path: leaf.sharding.spec for path, leaf in flatten(tree).items()}
        for tree in (state.params, adam.mu['params'], adam.nu['params'])
    ]


INTO, BACK, WHOLE = PartitionSpec(None, 'fsdp', 'tensor'), PartitionSpec(None, 'tensor', 'fsdp'), PartitionSpec()


def test_llama_shardings():
    """Every leaf: matrices over fsdp and tensor, a vocabulary of 257 whole, norms on every device."""
    config = small_config(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    params, *moments = specs(config)
    assert params == {
        'embed/embedding': PartitionSpec(None, 'fsdp'),
        **{f'layers/attention/{name}/kernel': INTO for name in ('query', 'key', 'value')},
        'layers/attention/out/kernel': BACK,
        **{f'layers/mlp/{name}/kernel': INTO for name in ('gate', 'up')},
        'layers/mlp/down/kernel': BACK,
        **{name: WHOLE for name in ('layers/attention_norm/scale', 'layers/mlp_norm/scale', 'final_norm/scale')},
        'lm_head/kernel': PartitionSpec('fsdp', None),
    }
    assert moments == [params, params]


def test_gpt2_shardings():
    config = gpt2.get_config('smoke')
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
    params, *moments = specs(config)
    assert moments == [params, params]
    split = {path for path, spec in params.items() if any(spec)}
    matrices = {f'layers/{name}/kernel' for name in (
        *('attention/query', 'attention/key', 'attention/value', 'attention/out'), *('mlp/up', 'mlp/down')
    )}  # fmt: skip
    assert split == {'embed/embedding', *matrices}


def part_of(mesh, process):
    """Of a process that has two of eight devices."""
    mine = jax.devices()[2 * process : 2 * process + 2]
    addressable = lambda sharding, shape: {
        device: rows for device, rows in sharding.devices_indices_map(shape).items() if device in mine
    }
    with unittest.mock.patch.object(NamedSharding, 'addressable_devices_indices_map', addressable):
        return meshes.part_of_batch(mesh)


@pytest.mark.parametrize(
    ('sizes', 'parts'),
    [
        ((8, 1, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 2, 2), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((1, 2, 4), [(0, 2), (0, 2), (1, 2), (1, 2)]),  # a tensor is shared by two processes
        ((1, 1, 8), [(0, 1)] * 4),
    ],
)
def test_processes_that_share_a_tensor_read_the_same_rows(sizes, parts):
    mesh = meshes.make_mesh(ConfigDict(dict(zip(meshes.AXES, sizes))))
    assert [part_of(mesh, process) for process in range(4)] == parts
    assert meshes.part_of_batch(mesh) == (0, 1)  # here, one process has all


def test_rows_that_do_not_lie_together_are_refused():
    devices = np.asarray(jax.devices())[[0, 2, 1, 3, 4, 6, 5, 7]].reshape(8, 1, 1)
    with pytest.raises(ValueError, match=r'config.mesh=.* the parts \[0, 2\] of 8 of a batch'):
        part_of(jax.sharding.Mesh(devices, meshes.AXES), 0)


def test_batches_reach_the_devices_by_rows():
    mesh = meshes.make_mesh(ConfigDict(dict(data=2, fsdp=2, tensor=2)))
    tokens = np.arange(8 * 5, dtype=np.int32).reshape(8, 5)
    batch = meshes.to_devices({'tokens': tokens}, mesh)['tokens']
    np.testing.assert_array_equal(batch, tokens)
    for shard in batch.addressable_shards:
        data, fsdp, _ = np.argwhere(mesh.devices == shard.device)[0]
        first = 2 * (2 * data + fsdp)
        np.testing.assert_array_equal(shard.data, tokens[first : first + 2])
