"""describe: what a person sees of how a tree is read."""

import html
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from parameter_families import FAMILIES

import gaussq_jax as gq


def lines_of(family, transform):
    return str(gq.describe(FAMILIES[family].tree(), transform)).splitlines()


def test_the_table_of_a_model():
    first, *rows, summary = lines_of('V-MoE', gq.gaussian_weight_sampling())
    assert first.split() == ['leaf', 'shape', 'action', 'axes', 'matrices', 'blocks', 'format', 'share', 'why']
    expert = next(row for row in rows if 'Moe/Mlp/Dense_0/kernel' in row)
    cells = re.split(r'  +', expert)
    assert cells[1:6] == ['6 x 32 x 80', 'sampled', 'expert in out', '6 x (32 -> 80)', '18']
    assert cells[-1] == 'kernel (in, out); stacked, 6 on axis 0'
    assert re.fullmatch(r'[\d,]+ sampled \(9\d.\d%\), [\d,]+ cast \(.*%\), 192 kept \(0..%\), in \d+ leaves', summary)


def test_the_rows_in_the_readme():
    readme = (pathlib.Path(__file__).parents[2] / 'README.md').read_text(encoding='utf-8')
    (table,) = re.findall(r"small V-MoE's:\n\n```\n(.*?)\n```", readme, re.S)
    cells = lambda line: re.split(r'  +', line)
    rows = [cells(line) for line in lines_of('V-MoE', gq.gaussian_weight_sampling())]
    assert all(cells(line) in rows for line in table.splitlines())


def test_layers_alike_are_one_row():
    rows = lines_of('Hugging Face GPT-2', gq.gaussian_weight_sampling(rules=FAMILIES['Hugging Face GPT-2'].rules))
    (row,) = (row for row in rows if 'c_fc/kernel' in row)
    assert re.split(r'  +', row)[:3] == ['transformer/h/0/mlp/c_fc/kernel (x 2)', '80 x 32', 'sampled']
    assert row.endswith('by a rule')


def test_what_is_unexplained_is_in_the_table_and_told_below():
    """describe doesn't refuse; it says what to write."""
    description = gq.describe(FAMILIES['Tunix Llama 3'].tree(), gq.gaussian_weight_sampling())
    assert description.totals['unexplained'] == 32 * (4 + 2 + 2 + 4) * 16
    text = str(description)
    assert (
        "gq.MatrixRule(r'layers/0/attn/q_proj/w', batch_axes=(), row_axes=(0,), col_axes=(1, 2), head_axes=(1,))"
        in text
    )
    page = description._repr_html_()
    assert page.count('<tr>') == len(description.rows()) + 1 and html.escape('32 inputs -> 64 outputs') in page
    assert '<table>' in page and not re.search(r'<(?!/?(table|tr|td|th|p|pre)\b)', page)


def test_matrices_in_full_precision():
    """Of a stack some, of single layers whole leaves; they count as cast."""
    kernel = lambda *shape: {'kernel': jnp.ones(shape)}
    params = {'layers': {'up': kernel(6, 64, 128)}, 'h0': {'up': kernel(64, 128)}, 'h1': {'up': kernel(64, 128)}}
    stack = gq.MatrixRule('layers/up/kernel', batch_axes=(0,), row_axes=(1,), col_axes=(2,))
    kept = gq.recipes.parse_kept_layers('layers/up@first=1+last=1; h0/up')
    qat = gq.quantization_aware(gq.Quantizer('e2m1'), rules=(stack, *gq.DEFAULT_RULES), full_precision=kept)
    description = gq.describe(params, qat)
    assert description.totals == {'quantized': 5 * 64 * 128, 'cast': 3 * 64 * 128, 'kept': 0, 'unexplained': 0}
    rows = {row[0]: (row[2], row[6], row[8].partition('; ')[2]) for row in description.rows()}
    assert rows == {
        'h0/up/kernel': ('cast', 'bfloat16', '1 of 1 in full precision'),
        'h1/up/kernel': ('quantized', 'e2m1', ''),
        'layers/up/kernel': ('quantized', 'e2m1', '2 of 6 in full precision'),
    }
    layout = qat.uniform_layout(params, 'e2m1')
    assert 'h0/up/kernel' not in layout or all(fmt.bits == 16 for fmt in layout['h0/up/kernel'].formats)
    assert len(np.unique(layout['layers/up/kernel'].indices)) == 2


def test_any_transform_and_shapes_alone():
    shapes = {'up': {'kernel': jax.ShapeDtypeStruct((64, 128), jnp.float32)}, 'steps': jnp.int32(0)}
    for transform, what in (gq.cast_params(), 'cast'), (gq.quantization_aware(gq.Quantizer('e2m1')), 'quantized'):
        description = gq.describe(shapes, transform)
        assert description.summary == f'8,192 {what} (100.0%), 1 kept (0.0%), in 2 leaves'
        assert 'blocks' not in str(description)
