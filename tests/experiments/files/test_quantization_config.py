"""What a config.json says of few bits is read as compressed-tensors reads it, or refused in one line."""

import time

import low_bit_checkpoints
import pytest
from low_bit_checkpoints import ACTIVATIONS, DEEPSEEK, FORMS, MX, compressed, scheme

from experiments.files import quantization_config

UP, QUERY = 'model.layers.0.mlp.up_proj', 'model.layers.10.self_attn.q_proj'


def read(said):
    return quantization_config.read({'model_type': 'llama', 'quantization_config': said})


def storage_name(said, module=UP):
    encoding = read(said).encoding_of(module)
    return encoding and encoding.storage.name


def test_nothing_said_is_nothing_quantized():
    assert quantization_config.read({'model_type': 'llama'}) is None
    assert quantization_config.read({'quantization_config': None, 'compression_config': None}) is None


def test_the_former_field_is_read_alike():
    assert quantization_config.read({'compression_config': FORMS['fp8 channel'][1]}).software == 'compressed-tensors'


@pytest.mark.parametrize('form', FORMS)
def test_fields_that_say_nothing_of_weights_may_be_there(form):
    of_weights = {'observer_kwargs': {}, 'zp_dtype': None, 'actorder': 'static'}
    said = FORMS[form][1]
    if form.startswith('deepseek'):
        said = said | {'dequantize': False, 'scale_fmt': 'ue8m0', 'ignored_layers': ['a']}
    else:
        groups = {
            name: group | {'weights': group['weights'] | of_weights} for name, group in said['config_groups'].items()
        }
        dense = {'format': 'dense', 'global_sparsity': 0.1, 'sparsity_structure': 'unstructured'}
        said = said | {'config_groups': groups, 'sparsity_config': dense, 'quantization_status': 'frozen'}
    assert storage_name(said) == storage_name(FORMS[form][1]) is not None


def groups(**targets):
    """Groups in FP8 blocks of (1, n), by name n."""
    return compressed(
        'float-quantized',
        None,
        config_groups={
            name: scheme(8, 'group', group_size=int(name[1:])) | {'targets': list(of)} for name, of in targets.items()
        },
    )


@pytest.mark.parametrize(
    ('targets', 'ignore', 'expected'),
    [
        ({'g2': ['Linear'], 'g3': ['re:.*up_proj'], 'g4': [UP]}, [], 4),  # the name, the regex, the class
        ({'g4': [UP], 'g3': ['re:.*up_proj'], 'g2': ['Linear']}, [], 4),
        ({'g2': ['Linear'], 'g3': ['re:.*up_proj']}, [], 3),
        ({'g2': ['Linear'], 'g3': ['re:up_proj']}, [], 2),  # a regex begins where the name does
        ({'g2': ['Linear'], 'g3': ['re:model.layers.1']}, [], 2),
        ({'g2': ['Linear'], 'g3': ['re:model.layers.0']}, [], 3),  # but needn't end there
        ({'g2': ['Linear']}, [UP], None),
        ({'g2': [UP]}, ['re:.*mlp.*'], None),
        ({'g2': [UP]}, ['Linear'], None),
        ({'g2': ['Embedding']}, [], None),
        ({'g2': ['up_proj']}, [], None),
        ({'g2': [r're:.*layers\.(0|1)\.(?!self).*(up|down)_proj$']}, [], 2),
    ],
)
def test_targets(targets, ignore, expected):
    name = storage_name(groups(**targets) | {'ignore': ignore})
    assert name == (expected and f'FP8 in blocks of 1 x {expected}')


def test_embeddings_are_a_class_of_their_own():
    assert storage_name(groups(g2=['Embedding']), 'model.embed_tokens') == 'FP8 in blocks of 1 x 2'
    assert storage_name(groups(g2=['Linear']), 'model.embed_tokens') is None


def test_a_target_of_groups_that_differ_is_refused():
    with pytest.raises(ValueError, match=f'{UP} is a target of several config_groups, which differ'):
        storage_name(groups(g2=['re:.*up_proj'], g3=['re:.*mlp.*']))
    assert storage_name(groups(g2=['re:.*up_proj'], g02=['re:.*mlp.*'])) == 'FP8 in blocks of 1 x 2'


def test_what_deepseek_leaves_out():
    said = DEEPSEEK | {'modules_to_not_convert': ['model.layers.1', 'k_proj']}
    assert storage_name(said, QUERY) == storage_name(said) == 'FP8 in blocks of 16 x 32'
    for module in ('lm_head', 'model.embed_tokens', 'model.layers.1.mlp.up_proj', 'model.layers.0.self_attn.k_proj'):
        assert storage_name(said, module) is None


@pytest.mark.parametrize(
    ('name', 'of_up', 'of_query'),
    [
        ('model.layers.1', True, True),  # a name ends at a dot: the other's is model.layers.10
        ('model.layers.10', True, False),
        ('layers.0.mlp', True, True),  # and begins where the module's does
        ('_proj', False, False),  # unless it is the end
        (r'model\.layers\.\d+\.mlp\.up_proj', False, True),
        ('model.*mlp', False, True),
        ('model.*mlp.up', True, True),
        ('nothing|model.layers.0', False, True),
        (r'model\.layers\.0\.', False, True),
    ],
)
def test_names_and_regexes_of_what_deepseek_leaves_out(name, of_up, of_query):
    config = read(DEEPSEEK | {'modules_to_not_convert': [name]})
    assert [config.encoding_of(module) is not None for module in (UP, QUERY)] == [of_up, of_query]
    quantizers = pytest.importorskip('transformers.quantizers.quantizers_utils', reason='transformers is not installed')
    assert [quantizers.should_convert_module(module, [name]) for module in (UP, QUERY)] == [of_up, of_query]


def test_the_tensors_of_activations_are_of_those_quantized():
    group = scheme(8, 'tensor')
    of = lambda **said: read(compressed('float-quantized', group | said)).encoding_of(UP).of_activations
    assert of() == ()
    assert of(input_activations=ACTIVATIONS) == ('input_scale', 'input_global_scale')
    assert of(output_activations=ACTIVATIONS) == ('output_scale', 'output_global_scale')
    assert read(DEEPSEEK | {'activation_scheme': 'static'}).encoding_of(UP).of_activations[0] == 'activation_scale'


def mxfp4(**fields):
    return FORMS['mxfp4'][1] | fields


def weights(form='mxfp4-pack-quantized', num_bits=4, strategy='group', **fields):
    return compressed(form, scheme(num_bits, strategy, **(MX if strategy == 'group' else {}) | fields))


def group(**fields):
    return mxfp4(config_groups={'group_0': FORMS['mxfp4'][1]['config_groups']['group_0'] | fields})


FIELD = r'quantization_config\.'
GROUP = FIELD + r"config_groups\['group_0'\]"


@pytest.mark.parametrize(
    ('said', 'message'),
    [
        ([], 'quantization_config must hold a JSON object, not an array'),
        ({}, "quantization_config lacks 'quant_method'"),
        ({'quant_method': 'gptq', 'bits': 4}, FIELD + "quant_method='gptq' must be 'compressed-tensors' or 'fp8'"),
        ({'quant_method': 'mxfp4'}, FIELD + "quant_method='mxfp4' must be"),
        ({'quant_method': 'bitsandbytes', 'load_in_4bit': True}, FIELD + "quant_method='bitsandbytes' must be"),
        (mxfp4(format='pack-quantized'), FIELD + "format='pack-quantized' must be 'mxfp4-pack-quantized' or"),
        (mxfp4(format='dense'), FIELD + "format='dense' must be"),
        (mxfp4(format=None), "quantization_config: 'format' must be a string, not null"),
        (mxfp4(format='mixed-precision'), GROUP + ' lacks a format, though that of all is mixed-precision'),
        (mxfp4(config_groups={'FP8': ['Linear']}), r"config_groups\['FP8'\] must hold a JSON object, not an array"),
        (mxfp4(kv_cache_scheme=ACTIVATIONS), FIELD + r"kv_cache_scheme=\{.* must be null"),
        (mxfp4(kv_cache_scheme={}), FIELD + r'kv_cache_scheme=\{\} must be null'),
        (mxfp4(sparsity_config={'format': 'sparse-24-bitmask'}), FIELD + "sparsity_config=.* of the format 'dense'"),
        (mxfp4(transform_config={'config_groups': {'R1': {}}}), FIELD + 'transform_config=.* must be null or'),
        (mxfp4(quantization_status='initialized'), FIELD + "quantization_status='initialized' must be"),
        (mxfp4(speed=3), "quantization_config: the field 'speed' is not known; known are quant_method"),
        (mxfp4(ignore='lm_head'), FIELD + "ignore='lm_head' must be a list of strings"),
        (mxfp4(ignore=['re:(a+)+$']), FIELD + r"ignore: '\(a\+\)\+\$' must not repeat a group"),
        (mxfp4(ignore=['re:(?x)(a+) +$']), FIELD + 'ignore: .* must not repeat a group, nor set flags'),
        (mxfp4(ignore=['re:.*.*.*.*x']), FIELD + 'ignore: .* must have at most 1,000 characters and 3 repetitions'),
        (mxfp4(ignore=['re:(']), FIELD + r"ignore: '\(' is no regex: missing \)"),
        (group(targets=None), GROUP + ": 'targets' must be an array, not null"),
        (group(format='nvfp4-pack-quantized'), GROUP + r"\.format='nvfp4-pack-quantized' must be that of all"),
        (group(rotation='hadamard'), GROUP + ": the field 'rotation' is not known"),
        (weights(num_bits=8), GROUP + r'\.weights\.num_bits=8 must be 4'),
        (weights(type='int'), GROUP + r"\.weights\.type='int' must be 'float'"),
        (weights('float-quantized', 8, 'channel', type='int'), GROUP + r"\.weights\.type='int' must be 'float'"),
        (weights(symmetric=False), GROUP + r'\.weights\.symmetric=False must be True'),
        (weights(dynamic=True), GROUP + r'\.weights\.dynamic=True must be False'),
        (weights(actorder='group'), GROUP + r"\.weights\.actorder='group' must be null or"),
        (weights(group_size=16), GROUP + r'\.weights\.group_size=16 must be 32'),
        (weights(strategy='channel'), GROUP + r"\.weights\.strategy='channel' must be 'group'"),
        (weights(scale_dtype='torch.bfloat16'), GROUP + r"\.weights\.scale_dtype='torch.bfloat16' must be null or"),
        (weights('float-quantized', 8, 'token'), GROUP + r"\.weights\.strategy='token' must be 'tensor' or"),
        (weights('float-quantized', 8, 'block'), GROUP + r'\.weights\.block_structure=None must be two integers'),
        (weights('float-quantized', 8, 'tensor', group_size=8), GROUP + r"\.weights\.group_size=8 says nothing of"),
        ({'quant_method': 'fp8'}, 'quantization_config lacks weight_block_size: two integers, or null'),
        (DEEPSEEK | {'weight_block_size': []}, FIELD + r'weight_block_size=\[\] must be two integers of 1 to'),
        (DEEPSEEK | {'weight_block_size': [0, 128]}, FIELD + r'weight_block_size=\[0, 128\] must be two integers'),
        (DEEPSEEK | {'fmt': 'e5m2'}, FIELD + "fmt='e5m2' must be null or 'e4m3'"),
        (DEEPSEEK | {'expert_dtype': 'fp4'}, FIELD + "expert_dtype='fp4' must be null or 'fp8'"),
        (DEEPSEEK | {'modules_to_not_convert': ['(a+)+']}, FIELD + 'modules_to_not_convert: .* not repeat a group'),
        (DEEPSEEK | {'modules_to_not_convert': ['*']}, FIELD + 'modules_to_not_convert: .* is no regex'),
        (DEEPSEEK | {'modules_to_not_convert': 3}, FIELD + 'modules_to_not_convert=3 must be a list of strings'),
    ],
)  # fmt: skip
def test_what_is_refused(said, message):
    with pytest.raises(ValueError, match=message) as error:
        read(said)
    assert '\n' not in str(error.value) and len(str(error.value)) < 600


def test_two_fields_are_refused():
    said = FORMS['mxfp4'][1]
    with pytest.raises(ValueError, match='quantization_config and compression_config are both there'):
        quantization_config.read({'quantization_config': said, 'compression_config': said})


def test_regexes_of_strangers_end():
    """The slowest that are taken, on the longest name."""
    config, name = read(groups(g2=['re:.*.*.*x'])), 'a' * quantization_config.MOST_NAME_CHARACTERS
    start = time.perf_counter()
    assert config.encoding_of(name) is None
    assert time.perf_counter() - start < 1


def test_compressed_tensors_reads_the_same_targets():
    reason = 'compressed-tensors is not installed; what it reads is written down above'
    match = pytest.importorskip('compressed_tensors.utils.match', reason=reason)
    torch = pytest.importorskip('torch', reason=reason)
    linear = torch.nn.Linear(2, 2)
    for target in [
        'Linear',
        'Embedding',
        UP,
        'up_proj',
        're:.*up_proj',
        're:up_proj',
        're:model.layers.0',
        r're:.*\.0',
    ]:
        for name in (UP, QUERY, 'lm_head'):
            ours = read(groups(g2=[target]) | {'ignore': []}).encoding_of(name) is not None
            assert ours == match.is_match(name, linear, target), (target, name)


def test_the_forms_of_the_tests_are_what_compressed_tensors_takes():
    reason = 'compressed-tensors is not installed'
    quantization = pytest.importorskip('compressed_tensors.quantization', reason=reason)
    for form, (_, said) in low_bit_checkpoints.FORMS.items():
        if not form.startswith('deepseek'):
            quantization.QuantizationConfig.model_validate(said)
