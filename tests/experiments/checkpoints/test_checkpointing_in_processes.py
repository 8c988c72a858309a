"""Several processes save, hash and verify together: each its own part, and all of them what one would."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launched_processes import REPOSITORY
from saved_states import flip_bit

from experiments.checkpoints.checkpointing import Checkpointer
from experiments.checkpoints.manifests import MANIFEST, find_damage
from experiments.checkpoints.process_shares import PART, files_of, writer_of
from experiments.processes import exit_codes

WITHIN_A_MINUTE = 60
ROWS, COLUMNS = 4, 2**20  # 4 MiB a row

PROGRAM = """
import json, os, pathlib, shutil, signal, sys, time
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from experiments.checkpoints import agreement, checkpointing, process_shares
from experiments.processes import distributed

checkpointing.DATA_FILE_BYTES = 2**20
folder, what, *flags = sys.argv[1:]
address, num_processes, me = (flag.partition('=')[2] for flag in flags)
folder, me, num_processes = pathlib.Path(folder), int(me), int(num_processes)
counted = {}

def read_bytes():
    return int(dict(line.split(': ') for line in open('/proc/self/io'))['rchar'])

def count(place, name):
    function = getattr(place, name)
    def counting(*arguments):
        before = read_bytes()
        result = function(*arguments)
        counted[name] = counted.get(name, 0) + read_bytes() - before
        return result
    setattr(place, name, counting)

def gather_digests(directory, digests, wait_for_all):
    def copy_part_and_wait():
        if what == 'kill' and me == 2 and directory.name == '2.writing':
            os.kill(os.getpid(), signal.SIGKILL)
        part = directory / process_shares.PART.format(me)
        if me:
            shutil.copy(part, folder / part.name)
        wait_for_all()
    return gather(directory, digests, copy_part_and_wait)

gather, checkpointing.gather_digests = checkpointing.gather_digests, gather_digests
count(process_shares.DigestsWhileWritten, 'of')
count(agreement, 'find_damage')

def main():
    distributed.initialize(address, num_processes, me, workdir=folder)
    with distributed.lost_process_errors(), checkpointing.Checkpointer(folder / 'checkpoints') as checkpointer:
        mesh = jax.make_mesh((num_processes,), ('data',))
        sharding = NamedSharding(mesh, P('data'))
        if what == 'restore':
            restored = checkpointer.restore({'w': jax.ShapeDtypeStruct((ROWS, COLUMNS), np.float32, sharding=sharding)})
            shards = restored.state['w'].addressable_shards
            rows = {shard.index[0].start: shard.data[:, :3].tolist() for shard in shards}
            print(json.dumps({'step': restored.step, 'rows': rows, 'counted': counted}), flush=True)
        else:
            for step in (1, 2):
                make = lambda index: step + np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)[index]
                w = jax.make_array_from_callback((ROWS, COLUMNS), sharding, make)
                checkpointer.save(step, {'w': w}, {'next': step}, {})
                checkpointer.wait()
            print(json.dumps({'counted': counted}), flush=True)

main()
"""


@pytest.fixture
def start(tmp_path, launch):
    """start(folder, what, number of processes) -> Processes, of one device each."""

    def start(folder, what, num_processes):
        program = tmp_path / 'program.py'
        program.write_text(PROGRAM.replace('ROWS', str(ROWS)).replace('COLUMNS', str(COLUMNS)))
        return launch([program, folder, what], num_processes, devices=1, PYTHONPATH=str(REPOSITORY))

    return start


def told(processes):
    """What each process prints in the end."""
    codes = processes.exit_codes(WITHIN_A_MINUTE)
    assert set(codes) == {exit_codes.DONE}, [processes.text(process) for process in range(len(codes))]
    texts = [processes.text(process) for process in range(len(codes))]
    return [json.loads(next(line for line in text.splitlines() if line.startswith('{'))) for text in texts]


def expected(step):
    return step + np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)


@pytest.mark.slow
def test_each_process_hashes_what_it_writes_and_verifies_a_share(tmp_path, start):
    """Saved by four, restored by two and by one; and a damaged step is skipped by all."""
    saved = told(start(tmp_path, 'save', 4))
    step = tmp_path / 'checkpoints' / '2'
    files = files_of(step)
    digests = dict(reversed(line.split('  ')) for line in (step / MANIFEST).read_text().splitlines())
    quarter = ROWS * COLUMNS * 4 // 4
    for process in range(1, 4):
        part = json.loads((tmp_path / PART.format(process)).read_text())
        assert part.keys() == {name for name in files if writer_of(name) == process}
        assert all(digests[name] == digest for name, (digest, _) in part.items())
        written = sum(files[name].stat().st_size for name in part)
        assert quarter <= written < 1.01 * quarter
        assert saved[process]['counted']['of'] < 2.1 * written  # of two steps
    assert saved[0]['counted']['of'] < 2.1 * quarter
    assert find_damage(step) is None and digests.keys() == files.keys() - {MANIFEST}

    for process in told(start(tmp_path, 'restore', 2)):
        assert process['step'] == 2
        assert 0.9 * 2 * quarter < process['counted']['find_damage'] < 1.1 * 2 * quarter
        for row, values in process['rows'].items():
            assert values == expected(2)[int(row) : int(row) + len(values), :3].tolist()
    with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
        restored = checkpointer.restore({'w': jnp.zeros((ROWS, COLUMNS))})
    np.testing.assert_array_equal(restored.state['w'], expected(2))

    flip_bit(max(step.glob('state/ocdbt.process_3/d/*'), key=lambda path: path.stat().st_size))
    processes = start(tmp_path, 'restore', 2)
    assert [process['step'] for process in told(processes)] == [1, 1]
    assert 'skipping the damaged checkpoint' in processes.text(0)
    assert 'skipping the damaged checkpoint' not in processes.text(1)
    shutil.rmtree(tmp_path / 'checkpoints')


@pytest.mark.slow
def test_a_process_that_is_killed_before_all_have_hashed_leaves_the_step_before(tmp_path, start):
    processes = start(tmp_path, 'kill', 4)
    codes = processes.exit_codes(WITHIN_A_MINUTE)
    assert codes[2] < 0 and {codes[0], codes[1], codes[3]} == {exit_codes.LOST_PROCESS}
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['1', '2.writing']
    with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
        restored = checkpointer.restore({'w': jnp.zeros((ROWS, COLUMNS))})
        assert restored.step == 1
        np.testing.assert_array_equal(restored.state['w'], expected(1))
        checkpointer.save(2, jax.tree.map(jnp.asarray, restored.state), {}, {})
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['1', '2']
