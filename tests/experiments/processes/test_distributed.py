"""One training in several processes on this machine: the same losses as in one, and nothing waits when one is lost."""

import pathlib
import re
import signal

import pytest
from small_runs import records, start, without_seconds

from configs import tiny
from experiments.processes import distributed, exit_codes

REPOSITORY = pathlib.Path(__file__).parents[3]
SMALL = {'total_steps': 30, 'log_every': 5, 'eval_every': 15, 'eval_batches': 1, 'checkpoint_every': 10}
SMALL |= {'quantization.parts': 'down'}
MESH = {'mesh.data': 2, 'mesh.fsdp': 2}
WITHIN_A_MINUTE = 60


def training(workdir, argument='smoke', **changes):
    """The arguments of a training."""
    settings = [f'--config.{name}={value}' for name, value in changes.items()]
    return ['-m', 'experiments.train', f'--config=configs/tiny.py:{argument}', f'--workdir={workdir}', *settings]


def losses(workdir):
    """Of the first 20 steps."""
    lines = [line for line in records(workdir) if line['step'] <= 20]
    return {(line['step'], name): line[name] for line in lines for name in line if 'loss' in name}


def assert_same_losses(workdir, other):
    """To 1e-5 relative. Sums over four devices have one order within a process, and another between processes; what
    is rounded to bfloat16 makes much of a last bit, some tens of steps later."""
    assert losses(workdir) and losses(workdir) == pytest.approx(losses(other), rel=1e-5)


def assert_same_bits(workdir, other):
    """All that is logged and summed up, to the last digit, but for what the clock says."""
    assert records(workdir) == records(other)
    assert without_seconds(workdir) == without_seconds(other)


def assert_lost(processes, lost):
    """All others have ended by themselves, and said why."""
    assert processes.exit_codes(WITHIN_A_MINUTE) == [
        -signal.SIGKILL if process == lost else exit_codes.LOST_PROCESS for process in range(len(processes.processes))
    ]
    for process in range(len(processes.processes)):
        if process != lost:
            lines = [line for line in processes.text(process).splitlines() if line.startswith('error: ')]
            number = len(processes.processes)
            assert len(lines) == 1 and f'process {lost} of {number} was lost' in lines[0], processes.text(process)
            assert 'start all again with the same command' in lines[0]


def stop_and_continue(launch, workdir, **settings):
    """A training of two processes, of which one is killed after step 15; the last one's two processes."""
    stopped = training(workdir, **settings)
    killed = launch(stopped, 2)
    killed.wait_for('step 15/')
    killed.processes[1].kill()
    assert_lost(killed, 1)
    finished = launch(stopped, 2)
    assert finished.exit_codes() == [exit_codes.DONE, exit_codes.DONE], finished.text(0)
    assert 'continuing from step 10' in finished.text(0)
    return finished


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume_after_one_is_lost(tmp_path, launch):
    """2 x 2 devices: the losses of 1 x 4, after a SIGKILL, too."""
    config = tiny.get_config('smoke')
    config.update_from_flattened_dict(SMALL)
    start(tmp_path / 'one', config, (2, 2, 1))
    finished = stop_and_continue(launch, tmp_path / 'two', **SMALL, **MESH)
    assert_same_losses(tmp_path / 'two', tmp_path / 'one')
    assert 'processes 2: 0-1 on ' in finished.text(0) and 'done ' in finished.text(0)
    assert 'step' not in finished.text(1)  # one process writes logs
    state = tmp_path / 'two' / 'checkpoints' / '30' / 'state'
    assert {'ocdbt.process_0', 'ocdbt.process_1'} <= {path.name for path in state.iterdir()}  # both write their shards


@pytest.mark.slow
def test_two_processes_that_were_stopped_end_with_the_same_bits(tmp_path, launch):
    whole = launch(training(tmp_path / 'whole', **SMALL, **MESH), 2)
    assert whole.exit_codes() == [exit_codes.DONE, exit_codes.DONE], whole.text(0) + whole.text(1)
    stop_and_continue(launch, tmp_path / 'stopped', **SMALL, **MESH)
    assert_same_bits(tmp_path / 'stopped', tmp_path / 'whole')


TOGETHER = """
import pathlib
import socket
import sys
from jax._src.distributed import global_state
from experiments.processes import distributed

def main(order, end, bind_address, address, num_processes, me):
    workdir = pathlib.Path(order).parent
    distributed.initialize(
        address, num_processes, me, workdir=workdir, coordinator_bind_address=bind_address or None
    )
    with distributed.lost_process_errors():
        with distributed.first_then_others():
            print('first' if me == 0 else 'then', file=open(order, 'a', buffering=1))
        assert distributed.is_main_process() == (me == 0)
        with socket.socket() as elsewhere:  # JAX's service is at the coordinator's address alone, or as told
            port = int(global_state.coordinator_address.rpartition(':')[2])
            is_there = elsewhere.connect_ex(('127.0.0.2', port)) == 0
            assert me > 0 or is_there == (bind_address == '0.0.0.0')
        distributed.check_same('the text', 'text')
        try:
            distributed.check_same('the text', f'text {me // 2}')
        except ValueError as error:
            print(error)
        if end == 'error' and me == 1:
            sys.exit('error: of its own')
        print('waiting', flush=True)
        while True:
            distributed.check_same('the text', 'text')

order, end, bind_address, *flags = sys.argv[1:]
address, num_processes, process_id = (flag.partition('=')[2] for flag in flags)
main(order, end, bind_address, address, int(num_processes), int(process_id))
"""


@pytest.mark.parametrize('end', ['lost 0', 'error'])
def test_what_processes_do_together(tmp_path, launch, end):
    """Order, differences; and when process 0 is lost, or one ends with an error, none waits for it."""
    (tmp_path / 'together.py').write_text(TOGETHER)
    order = tmp_path / 'order'
    together = [tmp_path / 'together.py', order, end, '0.0.0.0' if end == 'error' else '']
    processes = launch(together, 3, devices=1, PYTHONPATH=str(REPOSITORY))
    if end == 'lost 0':
        for process in range(3):
            processes.wait_for('waiting', process)
        processes.processes[0].kill()
        assert_lost(processes, 0)
        assert order.read_text().split() == ['first', 'then', 'then']
    else:
        assert processes.exit_codes(WITHIN_A_MINUTE) == [exit_codes.ERROR] * 3
        assert 'error: of its own' in processes.text(1)
        assert 'error: process 1 of 3 ended with exit code 1; process 2 ends, too; it says why' in processes.text(2)
    for process in range(3):
        message = 'the text is not the same in all processes: process 2 has another than process 0'
        assert message in processes.text(process)


def test_one_process_does_all_alone(tmp_path):
    distributed.initialize(workdir=tmp_path)
    assert distributed.is_main_process()
    with distributed.first_then_others(), distributed.lost_process_errors():
        distributed.check_same('the text', 'text')


@pytest.mark.slow
@pytest.mark.parametrize('asked', [0, 1])
def test_all_stop_after_the_same_step_when_one_is_asked_to(tmp_path, launch, asked):
    """SIGTERM for one of two: both save, both end as preempted, and continue to the bits of never having stopped."""
    steps = SMALL | {'total_steps': 300, 'checkpoint_every': 150, 'eval_every': 150}
    whole = launch(training(tmp_path / 'whole', **steps), 2)
    assert whole.exit_codes() == [exit_codes.DONE] * 2
    stopped = launch(training(tmp_path / 'stopped', **steps), 2)
    stopped.wait_for(' 20/300')
    stopped.processes[asked].terminate()
    assert stopped.exit_codes(WITHIN_A_MINUTE) == [exit_codes.PREEMPTED] * 2, stopped.text(0)
    finished = launch(training(tmp_path / 'stopped', **steps), 2)
    assert finished.exit_codes() == [exit_codes.DONE] * 2, finished.text(0)
    assert re.search(r'continuing from step \d+', finished.text(0))[0] in stopped.text(0).replace(
        'continues', 'continuing'
    )
    assert_same_bits(tmp_path / 'stopped', tmp_path / 'whole')


@pytest.mark.slow
@pytest.mark.parametrize(('num_processes', 'mesh'), [(4, (2, 2, 1)), (2, (1, 1, 4)), (4, (1, 2, 2)), (4, (2, 1, 2))])
def test_every_mesh_over_processes(tmp_path, launch, num_processes, mesh):
    """One device a process, as on GPUs, too; and processes that share a tensor read the same rows."""
    config = tiny.get_config('smoke')
    config.update_from_flattened_dict(SMALL)
    start(tmp_path / 'one', config, mesh)
    sizes = {f'mesh.{axis}': size for axis, size in zip(('data', 'fsdp', 'tensor'), mesh, strict=True)}
    run = launch(training(tmp_path / 'several', **SMALL, **sizes), num_processes, devices=4 // num_processes)
    assert run.exit_codes() == [exit_codes.DONE] * num_processes, run.text(0)
    assert_same_losses(tmp_path / 'several', tmp_path / 'one')


@pytest.mark.slow
@pytest.mark.parametrize('num_processes', [2, 4])
def test_the_whole_of_tiny(tmp_path, launch, num_processes):
    """900 steps, and four devices: where the sums have one order, by the same collectives, so have all bits."""
    for name, number in (('one', 1), ('several', num_processes)):
        arguments = training(tmp_path / name, '')
        run = launch(arguments, number, XLA_FLAGS=f'--xla_force_host_platform_device_count={4 // number}')
        assert run.exit_codes() == [exit_codes.DONE] * number, run.text(0)
    assert_same_bits(tmp_path / 'several', tmp_path / 'one')
