"""What serving a trained model costs: operations of the tokens that it will read and write, and memory."""

import math
from typing import Any, NamedTuple

from configs import capybara
from experiments.laws.plans import hardware as hardware_
from experiments.laws.plans.hardware import Hardware, Price
from experiments.laws.recipes import BFLOAT16, NAMES, Operand, parse_operand

OPERATIONS = 2  # a weight and a token, forward
INTEGER_BLOCK = 32  # of integers whose name says none, with a scale of 16 bits: as of GGUF's Q4_0 and Q8_0
WEIGHTS_ONLY = '-weights'


class Serving(NamedTuple):
    """Tokens that are served, and the format that they are served in.

    The format ('mxfp4', 'int8', 'e4m3 128') is that of the weights, as they are stored, and of the activations that
    they are multiplied with, so that units for both are used. 'int4-weights' is that of the weights alone: activations
    are BF16, and so is the rate. Decoding few sequences at once waits for memory instead: that is not priced.

    Example:
      >>> serving = Serving.parse(2e12, 'mxfp4')
      >>> serving.stored_bits, serving.price(hardware_.HARDWARE['b200']).value
      (4.25, 0.25)
      >>> Serving.parse(2e12, 'int4-weights').price(hardware_.HARDWARE['b200']).value
      1.0
    """

    tokens: float
    format: str
    weights: Operand
    activations: Operand

    @classmethod
    def parse(cls, tokens: float, format: str = 'bf16') -> 'Serving':
        """From what flags say; ValueError for no format."""
        name = format.lower()
        weights = parse_operand(name.removesuffix(WEIGHTS_ONLY))
        if weights is None:
            raise ValueError(
                f"--serve_format={format!r} must be {NAMES}; with '{WEIGHTS_ONLY}' if activations are BF16"
            )
        if not weights.block_size and not weights.fmt.exponent_bits:
            weights = weights._replace(block_size=INTEGER_BLOCK)
        return cls(tokens, name, weights, BFLOAT16 if name.endswith(WEIGHTS_ONLY) else weights)

    @property
    def stored_bits(self) -> float:
        """Of a weight, its share of a scale included."""
        return self.weights.stored_bits

    def price(self, hardware: Hardware) -> Price:
        """The cost of an operation relative to BF16's; by `ideal`, bits / 16 of the weights."""
        if hardware.is_ideal:
            return Price(self.weights.fmt.bits / BFLOAT16.fmt.bits)
        return hardware_.gemm_price(hardware, self.activations, self.weights)

    def operations_a_weight(self, hardware: Hardware) -> float:
        """2 tokens price, in operations of BF16; ValueError if the price isn't known."""
        price = self.price(hardware)
        if price.value is None:
            raise ValueError(f'--serve_format={self.format}: {price.note}')
        return OPERATIONS * self.tokens * price.value

    def memory(self, size: str, N: float, hardware: Hardware) -> dict[str, Any]:
        """Bytes of a model of configs/capybara.py: of the linear layers' weights, of keys and values in BF16.

        `devices` is how many it takes to hold the weights and one full sequence, and `tokens_a_second` the most that
        they can read the weights for, one sequence at a time; None without a device.
        """
        layers, hidden, *_ = capybara.SIZES[size]
        length = capybara.get_config(f'size={size},method=bf16').sequence_length
        weights, cache = N * self.stored_bits / 8, 2 * layers * hidden * BFLOAT16.fmt.bits / 8
        memory = {'weights_bytes': weights, 'cache_bytes_a_token': cache, 'cache_bytes_a_sequence': cache * length}
        devices = speed = None
        if hardware.memory_bytes is not None:
            devices = math.ceil((weights + cache * length) / hardware.memory_bytes)
            speed = devices * hardware.memory_bandwidth / weights
        return memory | {'sequence_length': length, 'devices': devices, 'tokens_a_second': speed}
