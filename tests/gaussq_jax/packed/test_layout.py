"""How weights are stored, and the bytes of it, against counts made block by block."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from parameter_trees import RULES, nest

import gaussq_jax as gq
from gaussq_jax.packed import budget_below

BLOCK = 4
FORMATS = [gq.format_for_bitwidth(b) for b in range(3, 11)]
SHAPES = {
    'up/kernel': (7, 9),
    'layers/mlp/kernel': (3, 8, 5),
    'layers/attention/query/kernel': (2, 6, 2, 5),
    'embed/embedding': (5, 3),
    'norm/scale': (3,),
}
MATRICES = {'up/kernel': (1, 7, 9), 'layers/mlp/kernel': (3, 8, 5), 'layers/attention/query/kernel': (2, 6, 10)}


def make_params(shapes=SHAPES):
    return nest({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()})


def make_bitwidths(seed=0, low=2.0, high=11.0):
    generator = np.random.default_rng(seed)
    bitwidths = {}
    for path, (count, m, n) in MATRICES.items():
        batch = (count,) if len(SHAPES[path]) > 2 else ()
        bitwidths[path] = generator.uniform(low, high, (*batch, math.ceil(m / BLOCK), math.ceil(n / BLOCK)))
    return bitwidths


def blocks(path, bitwidths):
    """Of each matrix, each block's bitwidth and number of weights."""
    count, m, n = MATRICES[path]
    for matrix in np.reshape(bitwidths[path], (count, -(-m // BLOCK), -(-n // BLOCK))):
        yield [
            (matrix[i, j], min(BLOCK, m - BLOCK * i) * min(BLOCK, n - BLOCK * j))
            for i, j in itertools.product(*map(range, matrix.shape))
        ]


def count_bytes(bitwidths, formats=gq.format_for_bitwidth):
    """Payload, scales, names and weights of each matrix leaf: the blocks one by one."""
    sizes = {}
    for path in MATRICES:
        matrices = list(blocks(path, bitwidths))
        payload = 0
        for matrix in matrices:
            bits = {}
            for bitwidth, weights in matrix:
                fmt = formats(bitwidth)
                bits[fmt] = bits.get(fmt, 0) + weights * fmt.bits
            payload += sum(math.ceil(number / 8) for number in bits.values())
        tiles = sum(map(len, matrices))
        several = len({formats(bitwidth) for matrix in matrices for bitwidth, _ in matrix}) > 1
        sizes[path] = payload, tiles, tiles * several, math.prod(MATRICES[path])
    return sizes


def stored_bits(bitwidths, formats):
    sizes = count_bytes(bitwidths, formats).values()
    return 8 * sum(sum(size[:3]) for size in sizes) / sum(size[3] for size in sizes)


@pytest.mark.parametrize('low', [2.0, 9.5])
def test_the_size_of_learned_bitwidths_is_the_sum_over_their_blocks(low):
    bitwidths = make_bitwidths(low=low)
    size = gq.model_size(make_params(), bitwidths, block_size=BLOCK, rules=RULES)
    expected = count_bytes(bitwidths)
    for path, (payload, scales, names, weights) in expected.items():
        leaf = size.leaves[path]
        assert (leaf.payload_bytes, leaf.scale_bytes, leaf.format_bytes) == (payload, scales, names)
        assert leaf.mean_stored_bits == 8 * leaf.total_bytes / weights
        mean = sum(b * n for matrix in blocks(path, bitwidths) for b, n in matrix) / weights
        assert leaf.mean_bitwidth == pytest.approx(mean, rel=1e-12)
    payloads, scales, names, weights = map(sum, zip(*expected.values()))
    rest = 2 * (5 * 3 + 3)  # embedding and norm in bfloat16
    assert (size.payload_bytes, size.scale_bytes, size.format_bytes) == (payloads + rest, scales, names)
    assert size.total_bytes == payloads + rest + scales + names
    assert size.mean_stored_bits == 8 * (payloads + scales + names) / weights
    mean = sum(b * n for path in MATRICES for matrix in blocks(path, bitwidths) for b, n in matrix) / weights
    assert size.mean_bitwidth == pytest.approx(mean, rel=1e-12)
    assert size.leaves['embed/embedding'].total_bytes == 30 and math.isnan(size.leaves['norm/scale'].mean_stored_bits)


def test_four_bits_are_six_on_the_disk():
    """A bitwidth is not a size: b_t = 4 takes E3M2 and its share of the scales."""
    params = {'up': {'kernel': jax.ShapeDtypeStruct((256, 64), jnp.float32)}}
    size = gq.model_size(params, {'up/kernel': jnp.full((8, 2), 4.0)}, rules=RULES)
    assert size.mean_bitwidth == 4
    assert size.mean_stored_bits == 6 + 8 / 1024
    assert size.total_bytes == 256 * 64 * 6 // 8 + 16
    mixed = gq.model_size(params, {'up/kernel': jnp.full((8, 2), 4.0).at[0, 0].set(3)}, rules=RULES)
    assert mixed.mean_bitwidth == 4 - 1 / 16
    assert mixed.mean_stored_bits == 6 - 2 / 16 + 2 * 8 / 1024  # the names of two formats, too


@pytest.mark.parametrize('fmt', ['float4_e2m1fn', 'float6_e3m2fn', 'float8_e4m3fn', 'e3m8', 'float16'])
@pytest.mark.parametrize('block_size', [3, 32, 1000])
def test_the_size_of_a_uniform_layout(fmt, block_size):
    """One scale a run of so many rows of a column; no names."""
    size = gq.layout_size(make_params(), gq.uniform_layout(make_params(), fmt, block_size=block_size, rules=RULES))
    for path, (count, m, n) in MATRICES.items():
        leaf = size.leaves[path]
        assert leaf.payload_bytes == count * math.ceil(m * n * gq.parse_format(fmt).bits / 8)
        assert leaf.scale_bytes == count * math.ceil(m / block_size) * n and leaf.format_bytes == 0
    assert math.isnan(size.mean_bitwidth)


def test_bfloat16_is_no_layout_and_two_bytes_a_weight():
    params = make_params() | {'step': jax.ShapeDtypeStruct((), jnp.int32), 'mask': jax.ShapeDtypeStruct((9,), bool)}
    assert gq.uniform_layout(params, 'bfloat16', rules=RULES) == {}
    size = gq.layout_size(params, {})
    assert size.total_bytes == 2 * sum(map(math.prod, SHAPES.values())) + 4 + 9
    assert math.isnan(size.mean_stored_bits) and size.scale_bytes == size.format_bytes == 0


def test_each_block_has_the_format_of_its_bitwidth_as_it_acts():
    """To a multiple of 2^-10, as the noise has it; formats in the order of their width."""
    bitwidths = make_bitwidths()
    bitwidths['up/kernel'][0, :2] = [4 + 2**-12, 5 - 2**-12]
    layout = gq.learned_layout(make_params(), bitwidths, block_size=BLOCK, rules=RULES)
    assert sorted(layout) == sorted(MATRICES)
    for path, leaf in layout.items():
        formats = [leaf.formats[i] for i in leaf.indices.ravel()]
        assert formats == [gq.format_for_bitwidth(b) for b in bitwidths[path].ravel()]
        assert leaf.indices.dtype == np.uint8 and leaf.indices.shape == bitwidths[path].shape
        assert [fmt.bits for fmt in leaf.formats] == sorted(fmt.bits for fmt in leaf.formats)
    formats = [layout['up/kernel'].formats[i].name for i in layout['up/kernel'].indices[0, :2]]
    assert formats == ['e3m2', 'e3m3']


def test_sizes_are_of_shapes_alone():
    """Weights need not be there, on whatever devices they will be; NNX variables and lists of layers are leaves too."""
    model = nnx.eval_shape(lambda: nnx.Sequential(*(nnx.Linear(8, 6, rngs=nnx.Rngs(0)) for _ in range(2))))
    params = nnx.state(model, nnx.Param)
    size = gq.layout_size(params, gq.uniform_layout(params, 'float4_e2m1fn', rules=RULES))
    assert sorted(size.leaves) == [f'layers/{i}/{name}' for i in range(2) for name in ('bias', 'kernel')]
    assert size.total_bytes == 2 * (8 * 6 // 2 + 6 + 2 * 6)


@pytest.mark.parametrize('shape', [(0, 4, 4), (0, 4), (4, 0)])
def test_empty_weights_take_nothing(shape):
    path = 'layers/kernel' if len(shape) == 3 else 'kernel'
    params = make_params({path: shape})
    assert gq.uniform_layout(params, 'e2m1', rules=RULES) == {}
    size = gq.model_size(
        params, {path: jnp.zeros((*shape[:-2], *(-(-side // 32) for side in shape[-2:])))}, rules=RULES
    )
    assert size.total_bytes == 0 and math.isnan(size.mean_bitwidth) and math.isnan(size.mean_stored_bits)


# --- budget ---------------------------------------------------------------------------------------------


def noise(bitwidth, fmt):
    """What storing a block in a format adds to its noise, to a constant: 4^(b - n), n the bitwidth of the format."""
    bits = 3 + FORMATS.index(fmt)
    asked = FORMATS.index(gq.format_for_bitwidth(bitwidth)) + 3
    return 0 if bits >= asked else 4.0 ** (min(bitwidth, 10) - bits) - 4.0 ** (min(bitwidth, 10) - asked)


@pytest.mark.parametrize('seed', range(3))
def test_no_choice_of_formats_that_takes_as_few_bits_has_less_noise(seed):
    """Every choice of a format for each of four blocks of one size: none is both as small and better."""
    bitwidths = {'kernel': np.random.default_rng(seed).uniform(3, 8, (2, 2))}
    params = make_params({'kernel': (2 * BLOCK, 2 * BLOCK)})
    of_blocks = bitwidths['kernel'].ravel()
    choices = [FORMATS[: FORMATS.index(gq.format_for_bitwidth(b)) + 1] for b in of_blocks]
    everything = [
        (sum(fmt.bits for fmt in choice), sum(map(noise, of_blocks, choice))) for choice in itertools.product(*choices)
    ]
    met = set()
    for budget in np.arange(4.5, 13, 0.25):
        formats = gq.formats_within_budget(params, bitwidths, budget, block_size=BLOCK, rules=RULES)
        chosen = [formats(b) for b in of_blocks]
        bits, cost = sum(fmt.bits for fmt in chosen), sum(map(noise, of_blocks, chosen))
        assert min(noise for size, noise in everything if size <= bits) == pytest.approx(cost, abs=1e-12)
        met.add(bits)
    assert len(met) > 5 and min(met) == 16


def test_the_budget_is_kept_and_used_and_more_of_it_is_no_narrower():
    bitwidths, params = make_bitwidths(low=3.0, high=8.0), make_params()
    full = gq.model_size(params, bitwidths, block_size=BLOCK, rules=RULES).mean_stored_bits
    narrowest = stored_bits(bitwidths, lambda b: FORMATS[0])
    every = sorted({b for grid in bitwidths.values() for b in grid.ravel()})
    before = [4] * len(every)
    for budget in [*np.linspace(narrowest, full, 12), full + 1]:
        formats = gq.formats_within_budget(params, bitwidths, budget, block_size=BLOCK, rules=RULES)
        size = gq.model_size(params, bitwidths, formats=formats, block_size=BLOCK, rules=RULES)
        assert size.mean_stored_bits == stored_bits(bitwidths, formats) <= budget
        # A block more or less, and a byte that names a block's format, are what may be left of it.
        assert size.mean_stored_bits > min(budget, full) - 0.75
        widths = [formats(b).bits for b in every]
        assert all(wide >= narrow for wide, narrow in zip(widths, before))
        assert all(formats(b).bits <= gq.format_for_bitwidth(b).bits for b in every)
        before = widths
    assert widths == [gq.format_for_bitwidth(b).bits for b in every]


def test_equal_bitwidths_are_treated_alike():
    """A function of b_t alone: what one block loses, all of its bitwidth lose."""
    params = make_params({'kernel': (2 * BLOCK, 2 * BLOCK)})
    bitwidths = {'kernel': np.array([[5.0, 5.0], [5.0, 6.0]])}
    formats = gq.formats_within_budget(params, bitwidths, 7.7, block_size=BLOCK, rules=RULES)
    layout = gq.learned_layout(params, bitwidths, formats=formats, block_size=BLOCK, rules=RULES)['kernel']
    names = [layout.formats[i].name for i in layout.indices.ravel()]
    assert len(set(names[:3])) == 1


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(1, 12), min_size=4, max_size=4),
    st.floats(4.6, 17),
)
def test_no_budget_is_exceeded(of_blocks, budget):
    params = make_params({'kernel': (2 * BLOCK, 2 * BLOCK - 1)})
    bitwidths = {'kernel': np.reshape(of_blocks, (2, 2))}
    formats = gq.formats_within_budget(params, bitwidths, budget, block_size=BLOCK, rules=RULES)
    size = gq.model_size(params, bitwidths, formats=formats, block_size=BLOCK, rules=RULES)
    assert size.mean_stored_bits <= budget
    if gq.model_size(params, bitwidths, block_size=BLOCK, rules=RULES).mean_stored_bits <= budget:
        assert all(formats(b) == gq.format_for_bitwidth(b) for b in of_blocks)


@pytest.mark.parametrize('budget', [4.0, 3, 0, -1, math.nan])
def test_a_budget_that_nothing_meets(budget):
    params = make_params({'kernel': (BLOCK, BLOCK)})
    with pytest.raises(ValueError, match=r'a budget of .* bits a weight is below 4\.5, all blocks in e2m1'):
        gq.formats_within_budget(params, {'kernel': [[5.0]]}, budget, block_size=BLOCK, rules=RULES)


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (lambda b: b.clear(), 'bitwidths has no entry: nothing was learned'),
        (lambda b: b.pop('up/kernel'), r"it lacks \['up/kernel'\] and has nothing besides"),
        (lambda b: b.update(other=0), r"it lacks nothing and has \['other'\] besides"),
        (
            lambda b: b.update({'up/kernel': b['up/kernel'].T}),
            r'has the shape \(3, 2\), but blocks of 4 x 4 are \(2, 3\)',
        ),
        (lambda b: b['up/kernel'].fill(math.nan), r"bitwidths\['up/kernel'\] has NaN or infinity in it"),
        (lambda b: b['up/kernel'].fill(math.inf), r"bitwidths\['up/kernel'\] has NaN or infinity in it"),
    ],
)
@pytest.mark.parametrize(
    'function',
    [gq.learned_layout, gq.model_size, lambda *args, **kwargs: gq.formats_within_budget(*args, 6.0, **kwargs)],
    ids=['learned_layout', 'model_size', 'formats_within_budget'],
)
def test_bitwidths_of_other_params(function, changes, message):
    bitwidths = make_bitwidths()
    changes(bitwidths)
    with pytest.raises(ValueError, match=message):
        function(make_params(), bitwidths, block_size=BLOCK, rules=RULES)


def test_formats_that_cannot_be_packed():
    with pytest.raises(ValueError, match='format e7m10 has 18 bits; at most 16 can be packed'):
        gq.uniform_layout(make_params(), 'e7m10', rules=RULES)
    with pytest.raises(ValueError, match="format 'fp6' is unknown"):
        gq.uniform_layout(make_params(), 'fp6', rules=RULES)
    with pytest.raises(ValueError, match='block_size=0'):
        gq.uniform_layout(make_params(), 'e2m1', block_size=0, rules=RULES)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(tile=(4,)), r'tile=\(4,\): it must be two positive integers'),
        (dict(tile=(4, 0)), r'tile=\(4, 0\)'),
        (dict(tile=(4, 2.0)), r'tile=\(4, 2\.0\)'),
        (dict(formats=()), r'formats=\(\): there must be some, each once'),
        (dict(formats=(FORMATS[0],) * 2), 'there must be some, each once'),
        (dict(formats=(gq.parse_format('e8m9_ieee'),)), 'format e8m9_ieee has 18 bits; at most 16 can be packed'),
        (dict(indices=np.ones((2, 3), np.uint8)), 'indices must be uint8, less than 1, the number of formats'),
        (dict(indices=np.zeros((2, 3), int)), 'indices must be uint8'),
        (dict(scale_rounding='up'), "scale_rounding='up' is not one of 'floor'"),
        (dict(fit='eden'), "fit='eden' with scale='mx'"),
        (dict(products='float16'), "products='float16': allowed are 'bfloat16', 'float32'"),
        (
            dict(
                formats=(gq.parse_format('e2m1'), gq.parse_format('bfloat16')),
                **dict(tile=(16, 1), scale='nvfp4', indices=np.uint8([[0, 1]])),
            ),
            'a matrix with nvfp4 scales has bfloat16 in all of its tiles, or in none',
        ),
    ],
)
def test_layouts_that_are_none(changes, message):
    fields = dict(rule=gq.MatrixRule('.*', (), (0,), (1,)), tile=(4, 4), formats=(FORMATS[0],))
    with pytest.raises(ValueError, match=message):
        gq.LeafLayout(**(fields | dict(indices=np.zeros((2, 3), np.uint8)) | changes))


def test_a_layout_of_other_params():
    layout = gq.uniform_layout(make_params(), 'e2m1', rules=RULES)
    with pytest.raises(ValueError, match=r"the layout is of other params: they have no leaf 'up/kernel'"):
        gq.layout_size({'bias': jax.ShapeDtypeStruct((3,), jnp.float32)}, {'up/kernel': layout['up/kernel']})
    for shape in ((7, 10), (33, 9), (9, 7), (7, 9, 1)):
        with pytest.raises(ValueError, match=r"the layout of 'up/kernel' is of a leaf of another shape than \("):
            gq.layout_size(make_params({'up/kernel': shape}), {'up/kernel': layout['up/kernel']})
    empty = gq.LeafLayout(layout['up/kernel'].rule, (4, 4), (FORMATS[0],), np.zeros((0, 2), np.uint8))
    with pytest.raises(ValueError, match=r"'up/kernel' is empty, \(0, 5\)"):
        gq.layout_size(make_params({'up/kernel': (0, 5)}), {'up/kernel': empty})


@pytest.mark.parametrize(
    ('leaf', 'message'),
    [
        (1.0, "'up' is a float of Python"),
        (True, "'up' is a bool of Python"),
        (np.array('text'), "'up' is <U4"),
        (np.array(None), "'up' is object"),
        (jnp.zeros(3, jnp.float8_e4m3fn), "'up' is float8_e4m3fn"),
        (jax.random.key(0), r"'up' is key<fry>"),
    ],
)
def test_leaves_that_cannot_be_stored(leaf, message):
    with pytest.raises(ValueError, match=f'{message}; allowed are arrays of bool, '):
        gq.layout_size({'up': leaf}, {})


def test_two_leaves_of_one_path():
    leaf = jax.ShapeDtypeStruct((3,), jnp.float32)
    with pytest.raises(ValueError, match="two leaves have the path 'a/b'; rename one"):
        gq.layout_size({'a': {'b': leaf}, 'a/b': leaf}, {})


def test_a_budget_that_allows_everything_takes_nothing():
    """A first cut would give the leaf a second format, whose name in each tile takes more than the cut saves."""
    params = {'up': {'kernel': jax.ShapeDtypeStruct((1280, 800), jnp.float32)}}
    bitwidths = np.full(1000, 4.0)
    bitwidths[:5] = 3.5, 3.6, 3.7, 3.8, 3.9
    bitwidths = {'up/kernel': bitwidths.reshape(40, 25)}
    whole = gq.model_size(params, bitwidths, rules=RULES)
    for budget in (whole.mean_stored_bits, 6.01):
        formats = gq.formats_within_budget(params, bitwidths, budget, rules=RULES)
        assert gq.model_size(params, bitwidths, formats=formats, rules=RULES) == whole


@pytest.mark.parametrize(
    ('of_blocks', 'fmt', 'budget'),
    [
        ([4.0, 4.25], 'e3m3', 6.5),  # the block of 4 stays in e3m2; a byte a block for the scale, of 16 weights
        ([4.0, 4.5], 'e3m3', 6.0),  # a bit of 4.0's costs as much as one of 4.5's: it goes too, and both have names
        ([4.25, 4.25], 'e3m3', 6.5),
        ([4.25, 4.25], 'e3m2', None),  # which no block asks for
        ([2.0, 3.0], 'e2m1', None),  # none is narrower
    ],
)
def test_budgets_below_a_format(of_blocks, fmt, budget):
    """By hand; within it no block of the format keeps it."""
    params, bitwidths = {'kernel': jax.ShapeDtypeStruct((4, 8), jnp.float32)}, {'kernel': [of_blocks]}
    found = budget_below(params, bitwidths, gq.parse_format(fmt), block_size=BLOCK, rules=RULES)
    assert found == budget
    if budget is not None:
        formats = gq.formats_within_budget(params, bitwidths, found, block_size=BLOCK, rules=RULES)
        of_format = [level for level in of_blocks if gq.format_for_bitwidth(level).name == fmt]
        assert of_format and all(formats(level).bits < gq.parse_format(fmt).bits for level in of_format)
