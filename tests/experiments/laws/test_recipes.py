"""Names of recipes: which operands they quantize, to what, and what they leave open."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gaussq_jax as gq
from configs import capybara
from experiments.laws.recipes import BFLOAT16, SHAPES, UNQUANTIZED, Recipe, parse_operand, read_recipe


@pytest.mark.parametrize(
    ('name', 'fmt', 'block', 'stored'),
    [
        ('mxfp4', 'float4_e2m1fn', 32, 4.25),
        ('nvfp4', 'float4_e2m1fn', 16, 4.5),
        ('MXFP6', 'float6_e3m2fn', 32, 6.25),
        ('mxfp8 32', 'float8_e4m3fn', 32, 8.25),
        ('fp8', 'float8_e4m3fn', '', 8),
        ('fp8 128', 'float8_e4m3fn', 128, 8.25),
        ('int4 32', 'e0m3', 32, 4.5),
        ('e2m1 16', 'e2m1', 16, 6),
        ('e4m3 channel', 'e4m3', 'channel', 8),
        ('float8_e5m2', 'float8_e5m2', '', 8),
        ('bf16', 'bfloat16', '', 16),
    ],
)
def test_names_of_formats(name, fmt, block, stored):
    operand = parse_operand(name)
    assert (operand.fmt.name, operand.block_size, operand.stored_bits) == (fmt, block, stored)


@pytest.mark.parametrize('name', ['quest', '', 'mxfp4 16', 'bf16 32', 'e2m1 row', 'e9m9', 'e2m1 16 32', 'fqt e2m1 16'])
def test_what_is_no_format(name):
    assert parse_operand(name) is None


def test_operands_of_the_three_gemms():
    e2m1 = parse_operand('e2m1 16')
    fqt = read_recipe('fqt e2m1 16')
    assert fqt.forward == (BFLOAT16, e2m1) and fqt.backward == (fqt.forward,) * 2 and fqt.bits == (4, 4)
    qat = read_recipe('qat e2m1 16')
    assert qat.forward == (BFLOAT16, e2m1) and qat.backward == ((BFLOAT16,) * 2,) * 2 and qat.bits == (4, 16)
    both = read_recipe('e2m1 16', 'mxfp8')
    assert (
        both.forward == (e2m1, e2m1) and both.backward == ((parse_operand('mxfp8'),) * 2,) * 2 and both.bits == (4, 8)
    )
    assert read_recipe('') == read_recipe('bf16') == read_recipe('BF16', 'BF16') == UNQUANTIZED


def test_a_backward_pass_that_has_no_name_is_not_guessed():
    recipe = read_recipe('mxfp4')
    assert recipe.forward is recipe.bits is None
    assert recipe.note.endswith('say it by --recipes=mxfp4=mxfp4/bf16')
    assert read_recipe('mxfp4', formats={'mxfp4': 'mxfp4/bf16'}) == read_recipe('mxfp4', 'bf16')


def test_formats_of_names_that_say_none():
    mxfp4 = read_recipe('mxfp4', 'bf16')
    assert read_recipe('QuEST', 'bf16', {'quest': 'MXFP4'}) == mxfp4
    assert read_recipe('QuEST', '', {'QuEST': 'mxfp4/bf16'}) == mxfp4
    assert read_recipe('bf16', 'luq', {'luq': 'int4'}).bits == (16, 4)
    for wrong in ('fp3', 'mxfp4/fp3', 'mxfp4/bf16/bf16', ''):
        with pytest.raises(ValueError, match=f'--recipes=quest={wrong}: a format must be bf16, '):
            read_recipe('QuEST', 'bf16', {'quest': wrong})


# The format of values, how many along the contracted axis share a scale, its kind, and the format of gradients.
OF_PAPERS = {
    'nvfp4': ('e2m1', 16, 'nvfp4', 'e2m1'),
    'fp4_all_the_way': ('e2m1', 16, 'nvfp4', 'e2m1'),
    'quartet': ('e2m1', 32, 'mx', 'e2m1'),
    'quartet2': ('e2m1', 16, 'nvfp4', 'e2m1'),
    'mxfp8': ('e4m3', 32, 'mx', 'e4m3'),
    'fp8_rowwise': ('e4m3', 'channel', 'fp32', 'e5m2'),
    'fp8_tensorwise': ('e4m3', 'tensor', 'fp32', 'e5m2'),
    'deepseek_fp8': ('e4m3', 128, 'fp32', 'e4m3'),
}
NAMES = {'e2m1': 'float4_e2m1fn', 'e4m3': 'float8_e4m3fn', 'e5m2': 'float8_e5m2'}


@pytest.mark.parametrize('name', gq.recipes.RECIPES)
def test_operands_of_recipes(name):
    """All six, by the papers: of tiles, what counts is their length along the contracted axis."""
    values, block_size, scale, gradients = OF_PAPERS[name]
    recipe = read_recipe(name.upper(), name)
    told = [[(x.fmt.name, x.block_size, x.scale) for x in gemm] for gemm in (recipe.forward, *recipe.backward)]
    one, of_gradients = ((NAMES[fmt], block_size, scale) for fmt in (values, gradients))
    assert told == [[one, one], [of_gradients, one], [one, of_gradients]]
    assert recipe.named is gq.recipes.find(name)
    assert recipe.bits == (gq.parse_format(values).bits,) * 2


def test_what_is_a_recipe_and_what_a_format():
    """A recipe is one of both passes; 'nvfp4' of one of them is a format, and 'nvfp4 16' is in any case."""
    recipe, formats = read_recipe('nvfp4', 'nvfp4'), read_recipe('nvfp4 16', 'nvfp4 16')
    assert formats == Recipe.of((parse_operand('nvfp4'),) * 2, (parse_operand('nvfp4'),) * 2)
    assert recipe == formats._replace(named=gq.recipes.NVFP4)
    assert read_recipe('nvfp4', 'bf16') == Recipe.of((parse_operand('nvfp4'),) * 2, (BFLOAT16, BFLOAT16))
    assert read_recipe('nvfp4').note.startswith("nothing says what the backward pass of 'nvfp4' is in")
    assert read_recipe('quartet') == read_recipe('quartet', 'quartet') == Recipe.of_library(gq.recipes.QUARTET)
    for forward, backward in (('quartet', 'bf16'), ('bf16', 'quartet'), ('quartet', 'quartet2')):
        recipe = read_recipe(forward, backward)
        assert recipe.forward is None and recipe.note.endswith('is a recipe of both passes, and not of one of them')
    assert read_recipe('mine', 'mine', {'mine': 'nvfp4'}).named is gq.recipes.NVFP4
    assert read_recipe('mine', 'mine', {'mine': 'quartet2'}).named is gq.recipes.QUARTET2


def test_sampled_weights_under_a_recipe():
    """They are BF16, so that only dW multiplies two low-bit operands."""
    recipe, nvfp4 = read_recipe('gaussws 3 nvfp4'), parse_operand('nvfp4')
    assert recipe.forward == recipe.backward[0] == (nvfp4, BFLOAT16) and recipe.backward[1] == (nvfp4, nvfp4)
    assert recipe.bits is None and recipe.note == 'sampled weights are BF16'
    assert recipe.kept_share('679m') == 4 / 24
    assert read_recipe('gaussws nvfp4') == read_recipe('diffq 4.5 nvfp4') == recipe
    assert read_recipe('gaussws 3 quest').note == "'gaussws 3 quest' is the name of no format: say which by" + (
        ' --recipes=gaussws 3 quest=mxfp4'
    )


def test_recipes_of_weights_alone():
    """As 'qat e2m1 16' is."""
    recipe = Recipe.of_library(gq.recipes.qat(gq.Quantizer('e2m1', block_size=16)))
    assert recipe._replace(named=None) == read_recipe('qat e2m1 16')


def test_the_share_that_is_kept():
    """By hand: of 88 layers 3 and 11; of 2 none; of down, h f of 4 h^2 + 3 h f weights, in the last 2 layers of 12."""
    shares = {size: read_recipe('nvfp4', 'nvfp4').kept_share(size) for size in ('70b', '41m', 'tiny')}
    assert shares == pytest.approx({'70b': 14 / 88, '41m': 2 / 12, 'tiny': 0})
    assert read_recipe('mxfp8', 'mxfp8').kept_share() == read_recipe('nvfp4 16', 'nvfp4 16').kept_share() == 0
    down = gq.recipes.MXFP8.replace(full_precision=gq.recipes.parse_kept_layers('.*/down@last=2'))
    assert Recipe.of_library(down).kept_share('41m') == pytest.approx(2 / 12 * 1536 / (4 * 512 + 3 * 1536))
    assert Recipe.of_library(down).kept_share() < 1e-4


def test_the_linear_layers_are_those_of_the_model():
    """Their paths, of which rules speak, and their widths."""
    num_layers, hidden, mlp, heads = capybara.SIZES['tiny']
    model = gq.models.Llama(vocab_size=256, num_layers=num_layers, hidden_size=hidden, num_heads=heads, mlp_size=mlp)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
    leaves = {
        '/'.join(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    linear = {
        path.removesuffix('/kernel'): np.prod(shape[1:]) for path, shape in leaves.items() if path[:6] == 'layers'
    }
    widths = {'hidden': hidden, 'mlp': mlp}
    expected = {path: widths[one] * widths[other] for path, (one, other) in SHAPES.items()}
    assert {path: size for path, size in linear.items() if 'norm' not in path} == expected
