"""Which process this is of how many, by flags or by what launchers put in the environment.

Looked at in this order; the first that speaks of this process decides:

    flags        --coordinator_address=HOST:PORT --num_processes=N --process_id=I; by these even one process is a launch
    environment  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or JOB_COMPLETION_INDEX of Kubernetes
    Open MPI     mpirun
    Slurm        srun; the shell of an sbatch or salloc, where other variables of Slurm are set too, is one process

The coordinator is process 0: the others find it at HOST:PORT. Slurm and Open MPI before 5 say its host, and its port is
made of the job's number; JAX_COORDINATOR_ADDRESS replaces both, JAX_COORDINATOR_PORT the port.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple


class Launch(NamedTuple):
    """One process of several.

    launcher: in words, for people.
    coordinator_address: host:port of process 0.
    local_device_ids: the GPUs of its host that this process uses; None is all of them.
    """

    launcher: str
    coordinator_address: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None


def find_launch(flags: Mapping[str, str | int | None], environment: Mapping[str, str]) -> Launch | None:
    """Which process this is; None where it is the only one, and no flags say so.

    Args:
      flags: the values of coordinator_address, num_processes and process_id, None where not given.
      environment: as os.environ.

    Raises:
      ValueError: naming the flag or the variable that is missing, or that makes no sense.

    Example:
      >>> find_launch(dict(coordinator_address='10.0.0.1:8476', num_processes=2, process_id=1), {}).coordinator_address
      '10.0.0.1:8476'
    """
    missing = [f'--{name}' for name, value in flags.items() if value is None]
    if not missing:
        return _checked(Launch('flags', **flags))
    if len(missing) < len(flags):
        raise ValueError(f'{" and ".join(missing)} not given: several processes need all of --{", --".join(flags)}')
    launch = _by_environment(environment) or _by_open_mpi(environment) or _by_slurm(environment)
    return launch if launch and _checked(launch).num_processes > 1 else None


def _by_environment(environment: Mapping[str, str]) -> Launch | None:
    if not {'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'} & environment.keys():
        return None
    id_name = 'JAX_PROCESS_ID' if 'JAX_PROCESS_ID' in environment else 'JOB_COMPLETION_INDEX'
    names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', id_name)
    if missing := [name for name in names if name not in environment]:
        raise ValueError(f'{" and ".join(missing)} not set, though {" and ".join({*names} - {*missing})} is')
    return Launch(
        'the environment',
        environment['JAX_COORDINATOR_ADDRESS'],
        _integer(environment, 'JAX_NUM_PROCESSES'),
        _integer(environment, id_name),
    )


def _by_open_mpi(environment: Mapping[str, str]) -> Launch | None:
    if 'OMPI_COMM_WORLD_SIZE' not in environment or environment['OMPI_COMM_WORLD_SIZE'] == '1':
        return None
    if not (address := environment.get('JAX_COORDINATOR_ADDRESS')):
        # 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911 or 1314521088.0;tcp6://[fe80::b9b,2620:10d::2]:43370
        uri = environment.get('OMPI_MCA_orte_hnp_uri', '')
        uri = re.match(r'(\d+)\.\d+;(?:tcp://([^,:]+)|tcp6://(\[[^,\]]+))', uri)
        if uri is None:
            raise ValueError(
                'this Open MPI does not say on which host process 0 is (from version 5 on none does):'
                ' mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT …, any free port of that host'
            )
        job, ipv4, ipv6 = uri.groups()
        address = f'{ipv4 or ipv6 + "]"}:{_port(environment, int(job) >> 12)}'
    return Launch(
        'Open MPI',
        address,
        _integer(environment, 'OMPI_COMM_WORLD_SIZE'),
        _integer(environment, 'OMPI_COMM_WORLD_RANK'),
        _own_gpu(environment, 'OMPI_COMM_WORLD_LOCAL_RANK', _integer(environment, 'OMPI_COMM_WORLD_LOCAL_SIZE')),
    )


def _by_slurm(environment: Mapping[str, str]) -> Launch | None:
    # Not SLURM_NTASKS: the shell of an sbatch or salloc has it too, and there it speaks of the job.
    if environment.get('SLURM_STEP_NUM_TASKS', '1') == '1' or 'SLURM_PROCID' not in environment:
        return None
    if not (address := environment.get('JAX_COORDINATOR_ADDRESS')):
        # node[007-9,12],other -> node007; rack[1-2]n[3,4] -> rack1n3
        first = re.match(r'(?:[^,[]|\[[^]]*\])*', _value(environment, 'SLURM_STEP_NODELIST'))[0]
        host = re.sub(r'\[([^],-]+)[^]]*\]', r'\1', first)
        address = f'{host}:{_port(environment, _integer(environment, "SLURM_JOB_ID"))}'
    tasks_of_nodes = []  # 4(x2),3 -> 4, 4, 3
    of_nodes = _value(environment, 'SLURM_STEP_TASKS_PER_NODE')
    for tasks, repeats in re.findall(r'(\d+)(?:\(x(\d+)\))?', of_nodes):
        tasks_of_nodes += [int(tasks)] * int(repeats or 1)
    if not 0 <= (node := _integer(environment, 'SLURM_NODEID')) < len(tasks_of_nodes):
        raise ValueError(f'SLURM_NODEID={node} is none of the {len(tasks_of_nodes)} nodes of SLURM_STEP_TASKS_PER_NODE')
    return Launch(
        'Slurm',
        address,
        _integer(environment, 'SLURM_STEP_NUM_TASKS'),
        _integer(environment, 'SLURM_PROCID'),
        _own_gpu(environment, 'SLURM_LOCALID', tasks_of_nodes[node]),
    )


def _own_gpu(environment: Mapping[str, str], local_id: str, processes_on_host: int) -> tuple[int, ...] | None:
    """Several processes on one host have a GPU each, unless the environment says which are whose."""
    is_said = {'SLURM_GPUS_PER_TASK', 'JAX_LOCAL_DEVICE_IDS'} & environment.keys()
    sees_one = re.fullmatch('[^,]+', environment.get('CUDA_VISIBLE_DEVICES', ''))  # its own, by --ntasks-per-gpu, say
    return None if is_said or sees_one or processes_on_host == 1 else (_integer(environment, local_id),)


def _port(environment: Mapping[str, str], job: int) -> int:
    """One that all processes of a job agree on, of the highest 4096."""
    if 'JAX_COORDINATOR_PORT' in environment:
        return _integer(environment, 'JAX_COORDINATOR_PORT')
    return 2**16 - 2**12 + job % 2**12


def _integer(environment: Mapping[str, str], name: str) -> int:
    if not re.fullmatch(r'-?\d{1,18}', value := _value(environment, name)):
        raise ValueError(f'{name}={value!r} is not an integer')
    return int(value)


def _value(environment: Mapping[str, str], name: str) -> str:
    if not (value := environment.get(name)):
        raise ValueError(f'{name} is not set, though its launcher set others: start all by it, or unset them')
    return value


def _checked(launch: Launch) -> Launch:
    """The launch; ValueError for one that makes no sense."""
    if launch.num_processes < 1:
        raise ValueError(f'num_processes={launch.num_processes}, by {launch.launcher}, must be at least 1')
    if not 0 <= launch.process_id < launch.num_processes:
        raise ValueError(
            f'process_id={launch.process_id}, by {launch.launcher}, must be 0 to {launch.num_processes - 1},'
            f' with num_processes={launch.num_processes}'
        )
    host, _, port = launch.coordinator_address.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f'coordinator_address={launch.coordinator_address!r}, by {launch.launcher}, must be HOST:PORT')
    return launch
