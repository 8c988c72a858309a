"""Which process this is: what each launcher says of it, and what is no launch of several."""

import pytest
from jax._src.clusters import OmpiCluster, SlurmCluster

from experiments.processes.launchers import find_launch

NO_FLAGS = dict(coordinator_address=None, num_processes=None, process_id=None)
SLURM = dict(
    SLURM_JOB_ID='1234567',
    SLURM_NTASKS='8',
    SLURM_STEP_NUM_TASKS='8',
    SLURM_STEP_NODELIST='node[007-009,12],other',
    SLURM_STEP_TASKS_PER_NODE='2(x3),1(x2)',
    SLURM_PROCID='3',
    SLURM_NODEID='1',
    SLURM_LOCALID='1',
)
OPEN_MPI = dict(
    OMPI_COMM_WORLD_SIZE='4',
    OMPI_COMM_WORLD_RANK='3',
    OMPI_COMM_WORLD_LOCAL_SIZE='2',
    OMPI_COMM_WORLD_LOCAL_RANK='1',
    OMPI_MCA_orte_hnp_uri='1531576320.0;tcp://10.96.0.1,10.148.0.1:34911',
)
KUBERNETES = dict(JAX_COORDINATOR_ADDRESS='train-0.train:8476', JAX_NUM_PROCESSES='4', JOB_COMPLETION_INDEX='2')


def test_flags_come_before_the_environment():
    flags = dict(coordinator_address='10.0.0.1:8476', num_processes=2, process_id=1)
    assert find_launch(flags, {**SLURM, **KUBERNETES}) == ('flags', '10.0.0.1:8476', 2, 1, None)
    assert find_launch({**flags, 'num_processes': 1, 'process_id': 0}, SLURM).num_processes == 1


def test_environment():
    assert find_launch(NO_FLAGS, KUBERNETES) == ('the environment', 'train-0.train:8476', 4, 2, None)
    assert find_launch(NO_FLAGS, {**KUBERNETES, 'JAX_PROCESS_ID': '3'}).process_id == 3
    assert find_launch(NO_FLAGS, {**KUBERNETES, 'JAX_NUM_PROCESSES': '1', 'JOB_COMPLETION_INDEX': '0'}) is None


@pytest.mark.parametrize('nodes', [SLURM['SLURM_STEP_NODELIST'], 'node[1-3]', 'a,b', 'alone', 'n-[03,5-7]'])
def test_slurm_is_read_as_jax_reads_it(monkeypatch, nodes):
    environment = {**SLURM, 'SLURM_STEP_NODELIST': nodes}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    address = SlurmCluster.get_coordinator_address(None, None)
    assert find_launch(NO_FLAGS, environment) == ('Slurm', address, 8, 3, (1,))
    assert (SlurmCluster.get_process_count(), SlurmCluster.get_process_id()) == (8, 3)


def test_slurm_nodes_with_two_numbers():
    assert (
        find_launch(NO_FLAGS, {**SLURM, 'SLURM_STEP_NODELIST': 'rack[1-2]n[3,4]'}).coordinator_address[:7] == 'rack1n3'
    )


@pytest.mark.parametrize(
    ('changes', 'device_ids'),
    [
        (dict(SLURM_NODEID='2', SLURM_LOCALID='0'), (0,)),
        (dict(SLURM_NODEID='3', SLURM_LOCALID='0'), None),  # the only one on its host: all GPUs
        (dict(SLURM_GPUS_PER_TASK='4'), None),  # Slurm shows each process its own
        (dict(CUDA_VISIBLE_DEVICES='3'), None),  # each process sees its own alone, as number 0
        (dict(JAX_LOCAL_DEVICE_IDS='2,3'), None),  # which JAX reads
    ],
)
def test_a_gpu_each_where_processes_share_a_host(changes, device_ids):
    assert find_launch(NO_FLAGS, {**SLURM, **changes}).local_device_ids == device_ids


@pytest.mark.parametrize(
    'uri', [OPEN_MPI['OMPI_MCA_orte_hnp_uri'], '1314521088.0;tcp6://[fe80::b9b,2620:10d::2]:43370']
)
def test_open_mpi_is_read_as_jax_reads_it(monkeypatch, uri):
    monkeypatch.setenv('OMPI_MCA_orte_hnp_uri', uri)
    host, _, port = OmpiCluster.get_coordinator_address(None, None).rpartition(':')
    address = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'  # an IPv6 address has colons of its own
    launch = find_launch(NO_FLAGS, {**SLURM, **OPEN_MPI, 'OMPI_MCA_orte_hnp_uri': uri})  # mpirun in a job of Slurm
    assert launch == ('Open MPI', address, 4, 3, (1,))


def test_the_coordinator_can_be_given():
    variables = dict(JAX_COORDINATOR_ADDRESS='10.0.0.1:8476')
    for environment in (SLURM, OPEN_MPI, {k: v for k, v in OPEN_MPI.items() if 'uri' not in k}):
        assert find_launch(NO_FLAGS, {**environment, **variables}).coordinator_address == '10.0.0.1:8476'
    assert find_launch(NO_FLAGS, {**SLURM, 'JAX_COORDINATOR_PORT': '99'}).coordinator_address == 'node007:99'
    assert find_launch(NO_FLAGS, {**OPEN_MPI, 'JAX_COORDINATOR_PORT': '99'}).coordinator_address == '10.96.0.1:99'


@pytest.mark.parametrize(
    'environment',
    [
        {},
        dict(JAX_COORDINATOR_ADDRESS='10.0.0.1:8476'),  # somebody's .bashrc
        dict(SLURM_JOB_ID='1', SLURM_NTASKS='8', SLURM_JOB_NODELIST='node[1-4]'),  # the shell of an salloc
        # The shell of an sbatch, and that of an salloc with use_interactive_step:
        dict(SLURM_JOB_ID='1', SLURM_NTASKS='8', SLURM_PROCID='0', SLURM_LOCALID='0', SLURM_NODEID='0'),
        {**SLURM, 'SLURM_STEP_NUM_TASKS': '1', 'SLURM_STEP_TASKS_PER_NODE': '1', 'SLURM_PROCID': '0'},
        {**OPEN_MPI, 'OMPI_COMM_WORLD_SIZE': '1', 'OMPI_COMM_WORLD_RANK': '0'},
        dict(KUBERNETES_SERVICE_HOST='10.0.0.1', JOB_COMPLETION_INDEX='3'),  # each pod trains something else
    ],
)
def test_one_process(environment):
    assert find_launch(NO_FLAGS, environment) is None


@pytest.mark.parametrize(
    ('flags', 'environment', 'message'),
    [
        (dict(num_processes=2), {}, '--coordinator_address and --process_id not given: several processes need all of'),
        (dict(coordinator_address='a:1', num_processes=2, process_id=2), {}, 'process_id=2, by flags, must be 0 to 1'),
        (
            dict(coordinator_address='a:1', num_processes=0, process_id=0),
            {},
            'num_processes=0, by flags, must be at le',
        ),
        (
            dict(coordinator_address='a', num_processes=2, process_id=0),
            {},
            "coordinator_address='a', by flags, must be",
        ),
        (
            dict(coordinator_address='a:99999', num_processes=2, process_id=0),
            {},
            "='a:99999', by flags, must be HOST:P",
        ),
        (
            {},
            dict(JAX_NUM_PROCESSES='2'),
            'JAX_COORDINATOR_ADDRESS and JOB_COMPLETION_INDEX not set, though JAX_NUM_PRO',
        ),
        (
            {},
            dict(JAX_PROCESS_ID='2'),
            'JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES not set, though JAX_PROCESS_ID is',
        ),
        ({}, {**KUBERNETES, 'JAX_NUM_PROCESSES': 'two'}, "JAX_NUM_PROCESSES='two' is not an integer"),
        ({}, {**OPEN_MPI, 'OMPI_MCA_orte_hnp_uri': ''}, 'mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT'),
    ],
)
def test_mistakes_are_named(flags, environment, message):
    with pytest.raises(ValueError, match=message.replace('[', r'\[')):
        find_launch({**NO_FLAGS, **flags}, environment)


@pytest.mark.parametrize(
    ('environment', 'name'), [(SLURM, name) for name in SLURM] + [(OPEN_MPI, name) for name in OPEN_MPI]
)
@pytest.mark.parametrize('value', [None, '', 'x', '9' * 30])
def test_variables_that_are_half_there(environment, name, value):
    """One error that names a variable; or it is one process; never an exception of another kind."""
    changed = {other: text for other, text in environment.items() if other != name or value is not None}
    changed |= {} if value is None else {name: value}
    try:
        launch = find_launch(NO_FLAGS, changed)
    except ValueError as error:
        assert name in str(error) or 'Open MPI' in str(error) or 'process_id' in str(error)
    else:
        is_unread = name == 'SLURM_NTASKS'
        is_one = name in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE') or (name, value) == ('SLURM_PROCID', None)
        is_a_host = name == 'SLURM_STEP_NODELIST' and value
        assert launch if is_unread or is_a_host else launch is None and is_one
