"""What names of recipes say of the operands of a linear layer's three GEMMs: 'mxfp4', 'nvfp4', 'fqt e2m1 16'."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from configs import capybara
from gaussq_jax import recipes as library
from gaussq_jax.formats import FloatFormat, parse_format
from gaussq_jax.quantizer import Quantizer


class Operand(NamedTuple):
    """The numbers of an operand.

    Attributes:
      fmt: their format; of integers E0My, which are whole numbers times a power of two.
      block_size: how many of them, along the axis that is contracted, share a scale; 'channel', 'tensor', or '' if that
        isn't said.
      scale: 'mx', a power of two; 'nvfp4', an E4M3; 'fp16' or 'fp32', a number of that; or '' for none.
    """

    fmt: FloatFormat
    block_size: int | str = ''
    scale: str = ''

    @property
    def stored_bits(self) -> float:
        """Of a number, with its share of the scale; a scale of a channel or a tensor counts as nothing."""
        scale_bits = {'mx': 8, 'nvfp4': 8, 'fp16': 16, 'fp32': 32, '': 0}[self.scale]
        return self.fmt.bits + (scale_bits / self.block_size if isinstance(self.block_size, int) else 0)

    @classmethod
    def of(cls, quantizer: Quantizer | None) -> 'Operand':
        """What a Quantizer rounds to; without one, bfloat16. Of a tile, the columns are along the contracted axis."""
        if quantizer is None:
            return BFLOAT16
        size = quantizer.block_size[1] if isinstance(quantizer.block_size, tuple) else quantizer.block_size
        return cls(quantizer.fmt, size, 'fp32' if quantizer.scale == 'absmax' else quantizer.scale)


Gemm = tuple[Operand, Operand]
BFLOAT16 = Operand(parse_format('bfloat16'))
OPERANDS = {  # by the names that tables and people use
    'bf16': BFLOAT16,
    'fp16': Operand(parse_format('float16')),
    'mxfp8': Operand(parse_format('float8_e4m3fn'), 32, 'mx'),
    'mxfp6': Operand(parse_format('float6_e3m2fn'), 32, 'mx'),
    'mxfp4': Operand(parse_format('float4_e2m1fn'), 32, 'mx'),
    'nvfp4': Operand(parse_format('float4_e2m1fn'), 16, 'nvfp4'),
    'fp8': Operand(parse_format('float8_e4m3fn'), '', 'fp32'),
    'fp4': Operand(parse_format('float4_e2m1fn'), '', 'fp32'),
    'int8': Operand(parse_format('e0m7'), '', 'fp16'),
    'int4': Operand(parse_format('e0m3'), '', 'fp16'),
}
NAMES = f"{', '.join(OPERANDS)}, or ExMy with a block size if it has one, as 'e4m3 128'"


SHAPES = {  # of the linear layers of configs/capybara.py, by their paths
    **dict.fromkeys((f'layers/attention/{name}' for name in ('query', 'key', 'value', 'out')), ('hidden', 'hidden')),
    **dict.fromkeys((f'layers/mlp/{name}' for name in ('gate', 'up', 'down')), ('hidden', 'mlp')),
}
MANY_LAYERS = 10_000  # of which a share is that share


class Recipe(NamedTuple):
    """The operands of the forward GEMM, X W, and of the backward ones, dY W^T and X^T dY.

    Attributes:
      forward: two operands; None if they aren't known.
      backward: two of each GEMM; None if they aren't known.
      bits: of the forward GEMM and of a backward one, as the Capybara paper counts them: those of the operand that is
        quantized, or of the bitwidth that weights are sampled at; None if that isn't known, or not one number.
      note: what has to be said of its price; where operands aren't known, why.
      named: the recipe of `gaussq_jax.recipes` that this is of: the layers that it keeps are BF16. None if it is of
        none.
    """

    forward: Gemm | None
    backward: tuple[Gemm, Gemm] | None
    bits: tuple[float, float] | None = None
    note: str = ''
    named: library.Recipe | None = None

    @classmethod
    def of(cls, forward: Gemm, *backward: Gemm) -> 'Recipe':
        """Of these operands; of the backward GEMMs two pairs, or the one that both have."""
        backward = backward if len(backward) == 2 else backward * 2
        bits, *of_backward = (min(operand.fmt.bits for operand in gemm) for gemm in (forward, *backward))
        return cls(forward, backward, (bits, sum(of_backward) / 2))

    @classmethod
    def of_library(cls, recipe: library.Recipe) -> 'Recipe':
        """Of a recipe of `gaussq_jax.recipes`, as it is there."""
        if recipe.weights is not None:
            return _of_weights(Operand.of(recipe.weights))._replace(named=recipe)
        of = lambda *names: tuple(Operand.of(getattr(recipe, name)) for name in names)
        return cls.of(of('P1', 'P2'), of('P3', 'P4'), of('P6', 'P5'))._replace(named=recipe)

    def kept_share(self, size: str | None = None) -> float:
        """The share of the linear layers' operations that stay BF16, in a size of configs/capybara.py.

        Without a size, among ever more layers, of which a number of layers that is kept is no share.

        Example:
          >>> nvfp4 = read_recipe('nvfp4', 'nvfp4')
          >>> nvfp4.kept_share('679m'), round(nvfp4.kept_share(), 3)  # 1 + 3 of 24; 10 of 62
          (0.16666666666666666, 0.161)
        """
        if self.named is None:
            return 0.0
        num_layers, hidden, mlp, _ = capybara.SIZES[size or [*capybara.SIZES][-1]]
        widths, num_layers = {'hidden': hidden, 'mlp': mlp}, num_layers if size else MANY_LAYERS
        weights = [widths[one] * widths[other] for one, other in SHAPES.values()]
        kept = [self.named.kept(path, num_layers).mean() for path in SHAPES]
        return float(np.average(kept, weights=weights))


UNQUANTIZED = Recipe.of((BFLOAT16, BFLOAT16), (BFLOAT16, BFLOAT16))


def one_operand_each(operand: Operand) -> Recipe:
    """One operand of each GEMM quantized, as P2, P4 and P6 are; the other stays BF16."""
    return Recipe.of((BFLOAT16, operand), (BFLOAT16, operand))


def _of_weights(operand: Operand) -> Recipe:
    """The weights of the forward pass quantized."""
    return Recipe.of((BFLOAT16, operand), (BFLOAT16, BFLOAT16))


SAMPLED = 'sampled weights are BF16, as all other operands are'
SAMPLED_NAME = re.compile(r'(gaussws|diffq)(?: (\d+(?:\.\d+)?))?(?: ([^\d\s]\S*))?')


def sampled(bits: float) -> Recipe:
    """Weights sampled at so many bits: W_hat is BF16, as all other operands are."""
    return UNQUANTIZED._replace(bits=(min(bits, BFLOAT16.fmt.bits),) * 2, note=SAMPLED)


class Sampled(NamedTuple):
    """What a name says of sampled weights.

    Attributes:
      method: 'gaussws' or 'diffq'.
      bits: that all have, as they are written; None if they are learned.
      recipe: whose activations and gradients they are multiplied with; None if these are BF16.
    """

    method: str
    bits: str | None
    recipe: library.Recipe | None


def parse_sampled(name: str) -> Sampled | None:
    """Of 'gaussws', 'gaussws 3', 'gaussws 3 nvfp4'; None if it is no such name.

    Example:
      >>> parse_sampled('gaussws 3 mxfp8').recipe.name, parse_sampled('gaussws 3 quest')
      ('mxfp8', None)
    """
    match = SAMPLED_NAME.fullmatch(name)
    if not match or (match[3] and not (recipe := find_recipe(match[3]))):
        return None
    return Sampled(match[1], match[2], recipe if match[3] else None)


def find_recipe(name: str) -> library.Recipe | None:
    """The recipe that `gaussq_jax.recipes.find` knows by this name, in which case doesn't count; None if there is none.

    Example:
      >>> find_recipe('nvfp4-hadamard').P6.summary, find_recipe('nvfp4-quest')
      ('float4_e2m1fn by 16, nvfp4', None)
    """
    whole, *parts = name.split('-')
    as_known = {known.lower(): known for known in library.RECIPES}.get(whole, whole)
    try:
        return library.find('-'.join([as_known, *parts]))
    except ValueError:
        return None


def recipe_of(forward: str, backward: str) -> library.Recipe | None:
    """The recipe that both passes name, or the forward pass alone by a name that is no format's; None for others.

    Example:
      >>> recipe_of('nvfp4', 'nvfp4').name, recipe_of('quartet', '').name, recipe_of('nvfp4', 'bf16')
      ('nvfp4', 'quartet', None)
    """
    is_whole = backward == forward or (not backward and parse_operand(forward) is None)
    return find_recipe(forward) if is_whole else None


def of_bits(bits: float, what: str) -> Recipe:
    """Operands of which a law knows the bits alone."""
    return UNQUANTIZED if bits == BFLOAT16.fmt.bits else Recipe(None, None, (bits, bits), what)


def parse_operand(name: str) -> Operand | None:
    """The operand of a name as tables have it; None if it is no name of a format.

    Example:
      >>> parse_operand('mxfp4').stored_bits, parse_operand('e4m3 128').stored_bits, parse_operand('QuEST')
      (4.25, 8.25, None)
    """
    match = re.fullmatch(r'(\w+)(?: ([1-9]\d*|channel|tensor))?', name.lower())
    if not match:
        return None
    name, block = match.groups()
    if name in OPERANDS:
        known = OPERANDS[name]
        if block is None:
            return known
        block = _block(block)
        if name in ('bf16', 'fp16') or known.scale in ('mx', 'nvfp4'):
            return known if block == known.block_size else None
        return known._replace(block_size=block)
    try:
        return Operand(parse_format(name), *(() if block is None else (_block(block), 'fp32')))
    except ValueError:
        return None


def _block(text):
    return int(text) if text.isdecimal() else text


def read_recipe(forward: str, backward: str = '', formats: Mapping[str, str] | None = None) -> Recipe:
    """What the recipes of a run's forward and backward passes say, as an EffectiveLaw has them.

    A name of `gaussq_jax.recipes` that both passes have ('nvfp4', 'quartet2') is that recipe, with the layers that it
    keeps in BF16. A format ('mxfp4', 'e4m3 128') is that of both operands of a GEMM, in all layers; so are 'nvfp4' and
    'mxfp8' of one pass alone, and 'nvfp4 16' of both. 'fqt e2m1 16' quantizes P2, P4 and P6, 'qat e2m1 32' the weights,
    'gaussws 3' samples them, 'gaussws 3 nvfp4' under the activations and gradients of that recipe: these, and recipes
    whose name is that of no format, say what the backward pass is, too.

    Args:
      forward, backward: names; '' for a backward pass that has none of its own.
      formats: of names that say none: {'quest': 'mxfp4'}, or 'mxfp4/bf16' for the forward and the backward pass.

    Raises:
      ValueError: for a format in `formats` that is none, and no recipe.

    Example:
      >>> read_recipe('mxfp4', 'bf16').bits, read_recipe('fqt e2m1 16').bits, read_recipe('gaussws 3').bits
      ((4, 16.0), (4, 4.0), (3.0, 3.0))
      >>> read_recipe('deepseek_fp8').forward[1].block_size, read_recipe('nvfp4', 'nvfp4').named.name
      (128, 'nvfp4')
      >>> read_recipe('QuEST', 'bf16').note
      "'quest' is the name of no format: say which by --recipes=quest=mxfp4"
    """
    formats = {name.lower(): text.lower() for name, text in (formats or {}).items()}
    for name, text in formats.items():
        if text.count('/') > 1 or not all(map(_is_known, text.split('/'))):
            raise ValueError(
                f'--recipes={name}={text}: a format must be {NAMES}; a recipe,'
                f' {", ".join(library.RECIPES)}; or two, forward/backward'
            )
    forward, backward = forward.lower() or 'bf16', backward.lower()
    mapped, _, mapped_backward = formats.get(forward, forward).partition('/')
    backward = formats.get(backward, backward).partition('/')[0] or mapped_backward
    if named := recipe_of(mapped, backward):
        return Recipe.of_library(named)
    of_forward, of_backward = _described(mapped), _described(backward or mapped)
    if not backward and parse_operand(mapped) not in (None, BFLOAT16):
        of_backward = Recipe(
            None,
            None,
            note=f'nothing says what the backward pass of {forward!r} is in: say it by'
            f' --recipes={forward}={mapped}/bf16',
        )
    if None in (of_forward.forward, of_backward.backward):
        return Recipe(None, None, None, of_forward.note or of_backward.note)
    bits = (of_forward.bits[0], of_backward.bits[1]) if of_forward.bits and of_backward.bits else None
    return of_backward._replace(forward=of_forward.forward, bits=bits, note=of_forward.note)


def _is_known(name):
    return bool(parse_operand(name) or find_recipe(name))


def _described(name):
    """Of one name; of its recipe the part of one pass counts."""
    if operand := parse_operand(name):
        return Recipe.of((operand, operand), (operand, operand))
    if find_recipe(name):
        return Recipe(None, None, None, f'{name!r} is a recipe of both passes, and not of one of them')
    method, _, setting = name.partition(' ')
    operand = parse_operand(setting)
    if method == 'fqt' and operand:
        return one_operand_each(operand)
    if method == 'qat' and operand:
        return _of_weights(operand)
    if (of := parse_sampled(name)) and of.recipe:
        return _sampled_under(of.recipe)
    if of:
        return sampled(float(of.bits)) if of.bits else UNQUANTIZED._replace(bits=None, note=SAMPLED)
    return _no_format(name)


def _sampled_under(recipe):
    """The recipe with sampled weights in the place of its own: of these there is no one number of bits."""
    under = recipe.without_weights()
    of = UNQUANTIZED if under is None else Recipe.of_library(under)
    return of._replace(bits=None, note='sampled weights are BF16')


def _no_format(name):
    return Recipe(None, None, None, f'{name!r} is the name of no format: say which by --recipes={name}=mxfp4')
