"""Which implementation runs: by platform, compute capability and JAX version; and what is said when one can't."""

import importlib.util
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

import gaussq_jax as gq
from kernels_pallas import implementations, weight_sampling

KEY = jax.random.key(0)
GPU_KINDS = {
    '7.5': 'Tesla T4',
    '8.0': 'NVIDIA A100-SXM4-80GB',
    '8.9': 'NVIDIA L40S',
    '9.0': 'NVIDIA H100 80GB HBM3',
    '10.0': 'NVIDIA B200',
    '10.3': 'NVIDIA GB300',
    '11.0': 'NVIDIA Thor',
    '12.0': 'NVIDIA GeForce RTX 5090',
}


@pytest.fixture(autouse=True)
def nothing_said_before():
    """What is logged is logged once a process."""
    caches = [
        f for module in (implementations, weight_sampling) for f in vars(module).values() if hasattr(f, 'cache_clear')
    ]
    for function in caches:
        function.cache_clear()
    yield
    for function in caches:
        function.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """A function that makes JAX's devices those of a compute capability."""

    def use(compute_capability):
        kind = GPU_KINDS[compute_capability]
        device = types.SimpleNamespace(platform='gpu', device_kind=kind, compute_capability=compute_capability)
        monkeypatch.setattr(jax, 'devices', lambda *backend: [device])

    return use


@pytest.fixture
def without_triton(monkeypatch):
    """As in a JAX that has dropped it."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *package: None if 'triton' in name else found(name, *package)
    )


def sample(block_size=32, **options):
    w = jnp.ones((64, 64))
    return gq.sample_weights(KEY, w, jnp.full((64 // block_size,) * 2, 4.0), block_size=block_size, **options)


# --- on a CPU -----------------------------------------------------------------------------------------


def test_on_a_cpu_none_is_the_reference_and_says_so_once(caplog):
    with caplog.at_level(logging.INFO, 'kernels_pallas'):
        for _ in range(3):
            sample()
            assert weight_sampling.select(None) == 'xla'
    [record] = caplog.records
    assert record.levelno == logging.INFO and record.name == 'kernels_pallas'
    message = record.getMessage()
    for part in ("'xla'", 'triton', 'mosaic', 'NVIDIA GPU', 'cpu'):
        assert part in message
    assert '\n' not in message


def test_what_is_asked_for_is_not_logged(caplog):
    with caplog.at_level(logging.DEBUG, 'kernels_pallas'):
        for implementation in ('xla', 'triton_interpret'):
            assert weight_sampling.select(implementation) == implementation
    assert caplog.records == []


@pytest.mark.parametrize('implementation', implementations.KERNELS)
def test_a_kernel_asked_for_without_a_gpu_is_an_error_that_says_why(implementation):
    with pytest.raises(ValueError) as error:
        sample(implementation=implementation)
    message = str(error.value)
    assert f"implementation='{implementation}'" in message and 'NVIDIA GPU' in message and 'cpu' in message
    assert '\n' not in message


@pytest.mark.parametrize(
    'options',
    [
        dict(implementation='triton'),
        dict(implementation='cuda'),
        dict(implementation='triton_interpret', block_size=16),
    ],
)
def test_a_transform_that_cannot_run_is_an_error_at_once(options):
    with pytest.raises(ValueError, match=f'implementation={options["implementation"]!r}'):
        gq.gaussian_weight_sampling(**options)


def test_unknown_names_are_errors_that_list_the_known_ones():
    for name in ('cuda', 'Triton', '', 'interpret'):
        with pytest.raises(ValueError) as error:
            sample(implementation=name)
        assert f'implementation={name!r}' in str(error.value)
        for known in ('None', 'triton', 'mosaic', 'xla', 'triton_interpret', 'mosaic_interpret'):
            assert known in str(error.value)


def test_mosaic_is_interpreted_where_jax_can():
    reason = implementations.why_not('mosaic_interpret')
    if jax.__version_info__ >= (0, 11, 2):
        assert reason is None
    else:
        assert jax.__version__ in reason and '0.11.2' in reason
        with pytest.raises(ValueError, match='interprets no Mosaic'):
            implementations.check('mosaic_interpret')


# --- on GPUs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('compute_capability', 'picked'),
    [('7.5', 'xla'), ('8.0', 'triton'), ('9.0', 'triton'), ('10.0', 'triton'), ('12.0', 'triton')],
)
def test_the_pick_of_a_gpu(gpu, caplog, compute_capability, picked):
    gpu(compute_capability)
    with caplog.at_level(logging.INFO, 'kernels_pallas'):
        assert weight_sampling.select(None) == picked
    [record] = caplog.records
    assert repr(picked) in record.getMessage() and record.levelno == logging.INFO


@pytest.mark.parametrize(
    ('compute_capability', 'picked'),
    [('7.5', 'xla'), ('8.0', 'xla'), ('9.0', 'mosaic'), ('10.3', 'mosaic'), ('11.0', 'xla'), ('12.0', 'xla')],
)
def test_the_pick_of_a_gpu_when_jax_has_no_triton(gpu, without_triton, caplog, compute_capability, picked):
    gpu(compute_capability)
    with caplog.at_level(logging.INFO, 'kernels_pallas'):
        assert weight_sampling.select(None) == picked
    message = caplog.records[0].getMessage()
    assert repr(picked) in message and f'JAX {jax.__version__} has no Triton' in message
    for name in ('triton', 'triton_interpret'):
        with pytest.raises(ValueError, match='has no Triton'):
            weight_sampling.select(name)


def test_without_triton_on_a_cpu_the_reference_samples(without_triton):
    """Nothing of it is imported."""
    assert weight_sampling.select(None) == 'xla'
    np.testing.assert_array_equal(sample(), sample(implementation='xla'))


@pytest.mark.parametrize(
    ('implementation', 'compute_capability', 'needed'),
    [
        ('triton', '7.5', '8.0 or newer'),
        *(('mosaic', capability, '9.x or 10.x') for capability in ('7.5', '8.0', '8.9', '11.0', '12.0')),
    ],
)
def test_a_gpu_that_a_kernel_is_not_for_is_named(gpu, implementation, compute_capability, needed):
    gpu(compute_capability)
    with pytest.raises(ValueError) as error:
        weight_sampling.select(implementation)
    for part in (f"implementation='{implementation}'", GPU_KINDS[compute_capability], compute_capability, needed):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ('implementation', 'compute_capability'),
    [('triton', '8.0'), ('triton', '9.0'), ('triton', '12.0'), ('mosaic', '9.0'), ('mosaic', '10.0')],
)
def test_a_gpu_that_a_kernel_is_for_gets_it(gpu, implementation, compute_capability):
    gpu(compute_capability)
    assert weight_sampling.select(implementation) == implementation


def test_a_gpu_that_is_not_of_nvidia_gets_the_reference(monkeypatch):
    """AMD's devices are of the platform 'gpu' too; their compute capability reads 'gfx90a'."""
    device = types.SimpleNamespace(platform='gpu', device_kind='AMD Instinct MI250X', compute_capability='gfx90a')
    monkeypatch.setattr(jax, 'devices', lambda *backend: [device])
    assert weight_sampling.select(None) == 'xla'
    with pytest.raises(ValueError, match=r'NVIDIA GPU.*MI250X'):
        weight_sampling.select('triton')


def described(kind):
    """A context in which programs are compiled for a GPU of this kind."""
    device = AbstractDevice(device_kind=kind, num_cores=None, platform='gpu')
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def test_compiling_for_a_gpu_that_is_elsewhere_picks_its_kernel():
    with described('NVIDIA H100'):
        assert weight_sampling.select(None) == 'triton'
    assert weight_sampling.select(None) == 'xla'


@pytest.mark.parametrize('compute_capability', GPU_KINDS)
def test_a_described_gpu_can_do_what_a_real_one_can(gpu, compute_capability):
    """Mosaic aborts the process where it can't, so that nothing may get there."""
    with described(GPU_KINDS[compute_capability]):
        of_described = [implementations.why_not(name) for name in implementations.KERNELS]
    gpu(compute_capability)
    assert of_described == [implementations.why_not(name) for name in implementations.KERNELS]


@pytest.mark.parametrize('kind', ['NVIDIA H1000', 'Quadro RTX 5000', 'AMD Instinct MI300A', 'gpu'])
def test_of_an_unknown_described_gpu_nothing_is_guessed(kind):
    with described(kind):
        assert weight_sampling.select(None) == 'xla'
        for name in implementations.KERNELS:
            with pytest.raises(ValueError, match=f'the compute capability of {kind} is unknown'):
                weight_sampling.select(name)


# --- other block sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize('implementation', ['triton_interpret', 'triton'])
def test_a_block_size_that_a_kernel_has_not_is_an_error(gpu, implementation):
    gpu('9.0')
    with pytest.raises(ValueError) as error:
        sample(block_size=16, implementation=implementation)
    for part in (f"implementation='{implementation}'", '16', '32'):
        assert part in str(error.value)


def test_another_block_size_goes_to_the_reference_with_a_warning_where_a_kernel_would_run(gpu, caplog):
    expected = sample(block_size=16, implementation='xla')
    gpu('8.0')
    with caplog.at_level(logging.INFO, 'kernels_pallas'):
        for _ in range(2):
            assert weight_sampling.select(None, 16) == 'xla'
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    for part in ('16', '32', "'xla'", 'block_size'):
        assert part in record.getMessage()
    np.testing.assert_array_equal(sample(block_size=16), expected)


def test_on_a_cpu_another_block_size_is_no_reason_for_a_warning(caplog):
    with caplog.at_level(logging.INFO, 'kernels_pallas'):
        assert weight_sampling.select(None, 16) == 'xla'
    [record] = caplog.records
    assert record.levelno == logging.INFO and '16' in record.getMessage()
