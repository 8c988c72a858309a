"""Serving: stored bits, prices, and the memory of weights and of keys and values."""

import pytest

from experiments.laws.notation import model_sizes
from experiments.laws.plans.hardware import HARDWARE
from experiments.laws.plans.serving import Serving


@pytest.mark.parametrize(
    ('name', 'bits', 'on_b200', 'ideal'),
    [
        ('mxfp4', 4.25, 1 / 4, 4 / 16),
        ('nvfp4', 4.5, 1 / 4, 4 / 16),
        ('mxfp8', 8.25, 1 / 2, 8 / 16),
        ('bf16', 16, 1, 1),
        ('int8', 8.5, 1 / 2, 8 / 16),
        ('int4', 4.5, 1 / 2, 4 / 16),  # its units have INT8
        ('int4-weights', 4.5, 1, 4 / 16),
        ('e4m3 128', 8.25, 1 / 2, 8 / 16),
    ],
)
def test_formats_of_serving(name, bits, on_b200, ideal):
    serving = Serving.parse(1e12, name)
    assert serving.stored_bits == bits
    assert serving.price(HARDWARE['b200']).value == on_b200
    assert serving.price(HARDWARE['ideal']).value == ideal
    assert serving.operations_a_weight(HARDWARE['b200']) == 2 * 1e12 * on_b200


@pytest.mark.parametrize('name', ['', 'quest', 'int4-activations', 'fp3', 'e4m3 0'])
def test_formats_that_there_are_not(name):
    with pytest.raises(ValueError, match=f'--serve_format={name!r} must be bf16, '):
        Serving.parse(1e12, name)


def test_a_price_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match='--serve_format=fp16: no unit of tpu-7x holds both float16 and float16'):
        Serving.parse(1e12, 'fp16').operations_a_weight(HARDWARE['tpu-7x'])


def test_memory_of_a_model():
    """70b: 88 layers of 8192, so 2 x 88 x 8192 numbers of two bytes a token."""
    N = model_sizes()['70b']
    memory = Serving.parse(1e12, 'mxfp4').memory('70b', N, HARDWARE['a100'])
    cache = 2 * 88 * 8192 * 2
    assert memory['weights_bytes'] == N * 4.25 / 8
    assert (memory['cache_bytes_a_token'], memory['cache_bytes_a_sequence']) == (cache, 2048 * cache)
    assert memory['devices'] == 1  # 37.8 + 5.9 GB, of 80
    assert memory['tokens_a_second'] == 2.039e12 / memory['weights_bytes']
    in_bf16 = Serving.parse(1e12).memory('70b', N, HARDWARE['a100'])
    assert in_bf16['devices'] == 2 and in_bf16['weights_bytes'] == 2 * N
    assert Serving.parse(1e12).memory('70b', N, HARDWARE['ideal'])['devices'] is None
