"""A process that is killed while it saves leaves checkpoints that are whole."""

import subprocess
import sys
import time
import warnings

import jax.numpy as jnp
import numpy as np

from experiments.checkpoints.checkpointing import Checkpointer

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
