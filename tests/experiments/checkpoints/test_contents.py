"""A checkpoint of another run is refused by name, before any array of it is read; so is what can't be stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_states import CONFIG, IDENTITY, abstract, small_state

from experiments.checkpoints.checkpointing import Checkpointer


def test_a_config_of_before_is_completed(two_steps):
    """A field that it doesn't have yet counts as its default."""
    complete = lambda stored: {'dtype': 'float32', **stored}
    with Checkpointer(two_steps) as checkpointer:
        restore = lambda dtype, **options: checkpointer.restore(
            small_state(0), config={**CONFIG, 'dtype': dtype}, identity=(*IDENTITY, 'dtype'), **options
        )
        assert restore('float32', complete=complete).step == 2
        with pytest.raises(ValueError, match="dtype: stored 'float32', present 'bfloat16'"):
            restore('bfloat16', complete=complete)
        with pytest.raises(ValueError, match=r"dtype: stored \(absent\), present 'float32'"):
            restore('float32')


def test_another_configs_checkpoint_is_refused(two_steps):
    """Every differing field, with both values, before any array is read; other keys may differ."""
    present = {
        'model': {'name': 'llama', 'num_layers': 8, 'rope': True},
        'method': 'bf16',
        'optimizer': None,
        'log_every': 1,
    }
    with Checkpointer(two_steps) as checkpointer:
        with pytest.raises(ValueError, match='--workdir') as error:
            checkpointer.restore({'w': jnp.zeros(2)}, config=present, identity=IDENTITY)
        same = {**CONFIG, 'log_every': 1}
        assert checkpointer.restore(small_state(0), config=same, identity=IDENTITY).step == 2
    message = str(error.value)
    assert str(two_steps / '2') in message
    for line in (
        'model.num_layers: stored 4, present 8',
        'model.hidden_size: stored 64, present (absent)',
        'model.rope: stored (absent), present True',
        "method: stored 'gaussws', present 'bf16'",
    ):
        assert line in message
    assert 'model.name' not in message
    assert 'log_every' not in message


def test_identity_names_a_key_of_the_config(two_steps):
    with Checkpointer(two_steps) as checkpointer, pytest.raises(ValueError, match='modle'):
        checkpointer.restore(small_state(0), config=CONFIG, identity=('modle',))


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
            checkpointer.restore(abstract(present), config=CONFIG, identity=IDENTITY)
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
