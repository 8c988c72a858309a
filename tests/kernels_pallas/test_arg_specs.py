"""The list of real shapes is that of the models in configs/."""

import jax
import jax.numpy as jnp
import pytest

from configs import capybara, gpt2, llama2, tiny
from experiments.methods.settings import layer_rules
from experiments.training import meshes
from experiments.training.experiment import make_model
from gaussq_jax.param_reading import matrix_rules
from gaussq_jax.param_tree import read_leaves
from kernels_pallas import arg_specs

CONFIGS = {
    'tiny': tiny.get_config(),
    **{f'llama2-{size}': llama2.get_config(f'size={size}') for size in llama2.SIZES},
    **{f'gpt2-{size}': gpt2.get_config(f'size={size}') for size in gpt2.SIZES},
    **{f'capybara-{size}': capybara.get_config(f'size={size}') for size in capybara.SIZES},
}
NO_SPECS = {name for name in CONFIGS if name.startswith('capybara-tiny-')}  # of the same family as capybara-tiny
NO_CONFIG = {'llama-7b', 'ragged'}


@pytest.mark.parametrize('name', sorted(CONFIGS.keys() - NO_SPECS))
def test_shapes_are_those_of_the_sampled_leaves(name):
    """Each shape that the model samples is listed, once, under the names of its matrices; and no other."""
    config = CONFIGS[name]
    model = make_model(config, 64, meshes.make_mesh(config.mesh))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))['params']
    sampled = matrix_rules(params, layer_rules(config))
    shapes = {path: leaf.value.shape for path, leaf in read_leaves(params).items() if path in sampled}
    specs = {spec.name.removeprefix(f'{name}/'): spec.shape for spec in arg_specs.ARG_SPECS if spec.model == name}
    for matrix, shape in specs.items():
        leaf = {'attention': 'attention/query'}.get(matrix, matrix)
        assert shapes[f'layers/{leaf}/kernel'] == shape
    assert set(shapes.values()) == set(specs.values())


def test_every_model_has_a_config():
    assert {spec.model for spec in arg_specs.ARG_SPECS} == (CONFIGS.keys() - NO_SPECS) | NO_CONFIG


def test_names_are_unique():
    names = [spec.name for spec in arg_specs.ARG_SPECS]
    assert len(set(names)) == len(names)


def test_what_a_spec_says():
    spec = arg_specs.ArgSpec('model/mlp/gate', (2, 33, 64))
    assert (spec.model, spec.size) == ('model', 4224)
    assert (spec.blocks(), spec.blocks(11)) == ((2, 2, 2), (2, 3, 6))


def test_choosing_by_name():
    assert [spec.name for spec in arg_specs.matching('^llama2-134m/(attention|mlp/down)')] == [
        'llama2-134m/attention',
        'llama2-134m/mlp/down',
    ]
    with pytest.raises(ValueError, match="'lama3' is in the name of no shape; there are ragged/one, "):
        arg_specs.matching('lama3')
    with pytest.raises(ValueError, match=r"'\(' is no regular expression: missing \)"):
        arg_specs.matching('(')
