"""A process that is killed while it saves leaves checkpoints that are whole."""

import signal
import subprocess
import sys
import time
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.checkpoints.checkpointing import Checkpointer
from experiments.checkpoints.manifests import find_damage
from experiments.checkpoints.step_directories import all_steps

SAVE_FOREVER = """
import itertools, pathlib, sys
import jax.numpy as jnp
from experiments.checkpoints.checkpointing import Checkpointer
checkpointer = Checkpointer(sys.argv[1], keep=2)
state = {'w': jnp.zeros(20000)}
restored = checkpointer.restore(state)
start = 0 if restored is None else restored.step
for step in itertools.count(start + 1):
    checkpointer.save(step, {'w': jnp.full(20000, step, jnp.float32)}, {'next': step}, {})
    print(step, flush=True)
"""


def test_sigkill_leaves_a_whole_step(tmp_path):
    """Killed again and again in the middle of a save, a run finds its last finished one, none damaged."""
    state = {'w': jnp.zeros(20000)}
    newest = 0
    for number_of_saves in (1, 3, 6):
        with subprocess.Popen(
            [sys.executable, '-c', SAVE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            started = [int(process.stdout.readline()) for _ in range(number_of_saves)]
            time.sleep(0.007 * number_of_saves)
            process.kill()
        with warnings.catch_warnings(), Checkpointer(tmp_path) as checkpointer:
            warnings.filterwarnings('ignore', '.*was never finished')  # killed during the very first save
            restored = checkpointer.restore(state)
        if number_of_saves == 1:
            continue
        assert restored.step >= max(newest, started[-2])  # when `save` returns, the save before it is on disk
        np.testing.assert_array_equal(restored.state['w'], restored.step)
        assert restored.data_state == {'next': restored.step}
        newest = restored.step


KILLED_AT = """
import os, signal, sys
import pathlib, shutil
import jax.numpy as jnp
import orbax.checkpoint
from experiments.checkpoints import checkpointing
from experiments.checkpoints.checkpointing import Checkpointer

directory, place, name, when = sys.argv[1:]
place = {
    'checkpointing': checkpointing,
    'digests': checkpointing.DigestsWhileWritten,
    'Orbax': orbax.checkpoint.AsyncCheckpointer,
    'path': pathlib.Path,
    'shutil': shutil,
}[place]
function = getattr(place, name)

def killed(*arguments, **options):
    if when == 'after':
        function(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)

with Checkpointer(directory, keep=1) as checkpointer:
    checkpointer.save(1, {'w': jnp.full(20000, 1.0)}, {'next': 1}, {})
    checkpointer.wait()
    setattr(place, name, killed)
    checkpointer.save(2, {'w': jnp.full(20000, 2.0)}, {'next': 2}, {})
"""

MOMENTS = {
    'before a file is written': ('Orbax', 'save', 'before', 1),
    'while they are written': ('Orbax', 'save', 'after', 1),
    'when they are written': ('Orbax', 'wait_until_finished', 'after', 1),
    'when they are hashed': ('digests', 'of', 'after', 1),
    'before the manifest is written': ('checkpointing', 'write_manifest', 'before', 1),
    'when it is written': ('checkpointing', 'write_manifest', 'after', 1),
    'when the step has its name': ('path', 'rename', 'after', 2),
    'when the older step is gone': ('shutil', 'rmtree', 'after', 2),
}


@pytest.mark.slow
@pytest.mark.parametrize(('place', 'name', 'when', 'newest'), MOMENTS.values(), ids=MOMENTS.keys())
def test_killed_at_each_moment(tmp_path, place, name, when, newest):
    """The step is there, whole, or it is not there; another save removes what is left."""
    command = [sys.executable, '-c', KILLED_AT, str(tmp_path), place, name, when]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    for step in all_steps(tmp_path):
        assert find_damage(tmp_path / str(step)) is None
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        restored = checkpointer.restore({'w': jnp.zeros(20000)})
        assert restored.step == newest
        np.testing.assert_array_equal(restored.state['w'], newest)
        checkpointer.save(3, restored.state, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ['3']
