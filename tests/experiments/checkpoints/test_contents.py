"""A checkpoint of another run is refused by name, before any array of it is read; so is what can't be stored."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_states import CONFIG, abstract

from experiments.checkpoints.checkpointing import Checkpointer, load_part
from experiments.checkpoints.contents import CONTENTS
from experiments.checkpoints.manifests import MANIFEST, sha256_of_manifest, write_manifest


def test_another_configs_checkpoint_is_refused(two_steps):
    """Before any array is read, and before its leaves are compared."""

    def refuse(directory, config):
        raise ValueError(f'{directory} {config}')

    with Checkpointer(two_steps) as checkpointer, pytest.raises(ValueError) as error:
        checkpointer.restore({'w': jnp.zeros(2)}, refuse)
    assert str(error.value) == f'{two_steps / "2"} {CONFIG}'


def test_another_states_leaves_are_named(tmp_path):
    """Shape, dtype, key implementation, missing and new leaves: in words, not as Orbax puts it."""
    stored = {
        'w': jnp.zeros((4, 8)),
        'step': jnp.int32(0),
        'key': jax.random.key(0),
        'old': jnp.ones(3),
        'same': jnp.ones(2),
    }
    present = {
        'w': jnp.zeros((4, 16)),
        'step': jnp.float32(0),
        'key': jax.random.key(0, impl='rbg'),
        'new': jnp.ones(3),
        'same': jnp.ones(2),
    }
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, stored, {}, CONFIG)
        with pytest.raises(ValueError, match='--workdir') as error:
            checkpointer.restore(abstract(present))
    for line in (
        "w: stored 'float32[4, 8]', present 'float32[4, 16]'",
        "step: stored 'int32[]', present 'float32[]'",
        "key: stored 'key<fry>[]', present 'key<rbg>[]'",
        "old: stored 'float32[3]', present (absent)",
        "new: stored (absent), present 'float32[3]'",
    ):
        assert line in str(error.value)
    assert 'same' not in str(error.value)


@pytest.mark.parametrize(
    'arguments, name',
    [
        ((-1, {'w': np.ones(2)}, {}, {}), 'step=-1'),
        ((1, {'w': np.ones((0, 2))}, {}, {}), 'w'),
        ((1, {'a/b': np.ones(2), 'a': {'b': np.ones(2)}}, {}, {}), 'a/b'),
        ((1, {'w': np.ones(2)}, {1: 2}, {}), 'data_state'),
        ((1, {'w': np.ones(2)}, object(), {}), 'data_state'),
        ((1, {'w': np.ones(2)}, {}, {'schedule': object()}), 'config'),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, name):
    with Checkpointer(tmp_path / 'checkpoints') as checkpointer, pytest.raises(ValueError, match=name):
        checkpointer.save(*arguments)
    assert not (tmp_path / 'checkpoints').exists()


@pytest.mark.parametrize('change', ['one more', 'one less'])
def test_arrays_are_those_that_the_contents_name(tmp_path, change):
    """Whoever has written both, and the manifest: nothing else than an array is ever restored, and none left out."""
    state = {'a': jnp.ones(3), 'b': jnp.zeros(2)}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {}, CONFIG)
    path = tmp_path / '1' / CONTENTS
    contents = json.loads(path.read_text())
    if change == 'one more':
        contents['leaves']['z'] = 'float32[2]'
        state['z'] = jnp.zeros(2)
    else:
        del contents['leaves']['b'], state['b']
    path.write_text(json.dumps(contents))
    (tmp_path / '1' / MANIFEST).unlink()
    write_manifest(tmp_path / '1')
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(ValueError, match="1/state can't be restored: "):
        checkpointer.restore(abstract(state), lambda directory, config: None)
    part = {'z' if change == 'one more' else 'y': jnp.zeros(2)}
    with pytest.raises(ValueError, match="1/state can't be restored: "):
        load_part(tmp_path, 1, sha256_of_manifest(tmp_path / '1'), 'params', part)
