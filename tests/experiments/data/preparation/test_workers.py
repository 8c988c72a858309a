"""Worker processes: in order, few blocks at a time, without JAX, and none left behind."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from small_blocks import SmallBlock

from experiments.data.preparation import workers
from experiments.data.preparation.encoding import BlockEncoder, Settings
from experiments.data.preparation.workers import Placed, encoded_blocks
from experiments.data.tokenizers import Tokenizer
from experiments.data.vocabularies import Bytes

ENCODER = BlockEncoder(Settings('texts'), Tokenizer(Bytes()))


def blocks(texts):
    for number, text in enumerate(texts):
        yield Placed(SmallBlock('file', number, (text,), number), 'train', (0, 0, number), number)


def text_of(parts):
    return bytes(parts['train'].tokens[:-1].astype('u1')).decode()


def test_blocks_come_in_order_from_processes_without_jax():
    """And no more of them are read than BLOCKS_AHEAD of each worker and of the reader."""
    num_read = 0

    def counted():
        nonlocal num_read
        for placed in blocks(['PID', 'MODULES', *map(str, range(60)), 'PID']):
            num_read += 1
            yield placed

    texts = []
    for placed, parts in encoded_blocks(ENCODER, counted(), 2):
        assert num_read <= len(texts) + 1 + workers.BLOCKS_AHEAD * 3 + 1
        assert placed.ends == (0, 0, len(texts))
        texts.append(text_of(parts))
    assert texts[2:-1] == list(map(str, range(60)))
    assert texts[0] != f'process {os.getpid()}'
    modules = texts[1].split()
    assert 'tokenizers' not in modules and 'experiments.data.vocabularies' in modules
    assert not {'jax', 'flax', 'tensorflow', 'tensorflow_datasets'} & set(modules)


@pytest.mark.parametrize('fails', ['a worker', 'reading', 'both'])
def test_the_first_error_is_told(fails):
    def read():
        yield from blocks(['one', 'two', *[b'\xff'] * (fails != 'reading')])
        if fails != 'a worker':
            raise ValueError('the file ends')

    texts = []
    told = 'the file ends' if fails == 'reading' else 'file, row 2: the document is not UTF-8'
    with pytest.raises(ValueError, match=told):
        for _, parts in encoded_blocks(ENCODER, read(), 2):
            texts.append(text_of(parts))
    assert texts == ['one', 'two']


def test_a_worker_that_dies_is_one_error():
    with pytest.raises(
        OSError, match=r'a worker process died \(.*SIGKILL.*\); if memory ran out, give fewer --workers'
    ):
        list(encoded_blocks(ENCODER, blocks(['one', 'KILL', *map(str, range(20))]), 2))


def test_a_worker_that_dies_while_it_sends():
    """Its result is half in the pipe, whose reader must not wait for the rest."""
    with workers._started(ENCODER, 1) as (worker,):
        worker.give(SmallBlock('file', 0, ('x' * 2**22,), 0), 'train')
        assert worker._connection.poll(60)  # there is something to read, of more than a pipe holds
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(OSError, match=r'a worker process died \(SIGKILL\)'):
            worker.take()


PROGRAM = """
    import itertools, sys, time
    from small_blocks import SmallBlock
    from experiments.data.preparation.encoding import BlockEncoder, Settings
    from experiments.data.preparation.workers import Placed, encoded_blocks
    from experiments.data.tokenizers import Tokenizer
    from experiments.data.vocabularies import Bytes

    if __name__ != '__main__':
        raise SystemExit('the main program was imported again')

    blocks = (Placed(SmallBlock('file', 0, ('PID',), 0), 'train', (0, 0, n), 0) for n in itertools.count())
    seen = set()
    for _, parts in encoded_blocks(BlockEncoder(Settings('texts'), Tokenizer(Bytes())), blocks, 2):
        text = bytes(parts['train'].tokens[:-1].astype('u1')).decode()
        if text not in seen:
            seen.add(text)
            print(text.split()[1], flush=True)
"""


def is_running(process):
    try:
        with open(f'/proc/{process}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


SLOW = [pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize('signal_number', [signal.SIGKILL, *SLOW])
def test_workers_end_with_their_parent(tmp_path, signal_number):
    program = tmp_path / 'program.py'
    program.write_text(textwrap.dedent(PROGRAM))
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    started = [sys.executable, str(program)]
    with subprocess.Popen(
        started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        children = [int(line) for line in itertools.islice(process.stdout, 2)]
        assert all(map(is_running, children))
        process.send_signal(signal_number)
        process.communicate()
    deadline = time.monotonic() + 20
    while any(map(is_running, children)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
