"""Matrices of few bits become the numbers that they stand for, to the bit; what doesn't fit together is named."""

import json

import low_bit_checkpoints
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from low_bit_checkpoints import FORMS, MODEL, change_tensors, read_tensors
from parameter_trees import assert_identical_trees
from small_checkpoints import change_json

from experiments.files import huggingface_folder, low_bit_tensors
from gaussq_jax import models

UP, QUERY = 'model.layers.1.mlp.up_proj.', 'model.layers.0.self_attn.q_proj.'


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Form -> the folder, and the numbers of its matrices."""
    directory = tmp_path_factory.mktemp('low_bit')
    return {
        form: (directory / form, low_bit_checkpoints.write(directory / form, form, tokenizer=False)) for form in FORMS
    }


def copy(folders, form, tmp_path):
    for path in folders[form][0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def assert_identical(tensors, numbers):
    for name, expected in numbers.items():
        found = tensors[name]
        assert found.dtype == np.float32 and found.shape == expected.shape, name
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32), err_msg=name)


@pytest.mark.parametrize('form', FORMS)
def test_numbers_are_those_of_the_codes(folders, form):
    directory, numbers = folders[form]
    tensors, config = huggingface_folder.read(directory)
    assert_identical(tensors, numbers)
    plain = {name: tensor for name, tensor in read_tensors(directory / 'model.safetensors').items() if name in tensors}
    assert {*tensors} == {*plain, *numbers} and len(tensors) == len([*tensors]) == 21
    for name in plain.keys() - numbers.keys():
        assert tensors[name].tobytes() == plain[name].tobytes()
    _, params = models.from_huggingface(tensors, config)
    assert_identical_trees(params['layers']['mlp']['up']['kernel'][1], numbers[UP + 'weight'].T)


@pytest.mark.parametrize('form', FORMS)
def test_bands_of_a_matrix_make_the_same_numbers(folders, form, monkeypatch):
    monkeypatch.setattr(low_bit_tensors, 'WEIGHTS', 64 * 5)
    directory, numbers = folders[form]
    assert_identical(huggingface_folder.read(directory)[0], numbers)


def test_matrices_and_scales_may_be_in_several_files(folders, tmp_path):
    directory, numbers = folders['nvfp4']
    tensors = read_tensors(directory / 'model.safetensors')
    files = {name: f'model-{i % 3}.safetensors' for i, name in enumerate(tensors)}
    for file in {*files.values()}:
        low_bit_checkpoints.write_tensors(
            tmp_path / file, {name: tensors[name] for name in tensors if files[name] == file}
        )
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': files}))
    (tmp_path / 'config.json').write_bytes((directory / 'config.json').read_bytes())
    assert_identical(huggingface_folder.read(tmp_path)[0], numbers)


@pytest.mark.parametrize(
    ('form', 'first', 'others'),
    [
        ('mxfp4', 'matrices of compressed-tensors: 14 of MXFP4, 2 of bfloat16; dequantized exactly', False),
        ('fp8 tensor', 'matrices of compressed-tensors: 14 of FP8, 2 of bfloat16; dequantized in float32', False),
        ('fp8 channel', 'matrices of compressed-tensors: 14 of FP8 by output channel, 2 of bfloat16', False),
        ('mixed', 'matrices of compressed-tensors: 8 of FP8 by output channel, 6 of NVFP4, 2 of bfloat16', True),
        ('deepseek', 'matrices of DeepSeek: 14 of FP8 in blocks of 16 x 32, 2 of bfloat16', True),
    ],
)
def test_remarks(folders, form, first, others):
    remarks = huggingface_folder.read(folders[form][0])[0].remarks
    assert remarks[0].startswith(first)
    assert remarks[1:] == ('activations were quantized when it was served; here they are not',) * others


def test_a_folder_of_no_few_bits_has_no_remarks(folders, tmp_path):
    copy(folders, 'mxfp4', tmp_path)
    change_json(tmp_path / 'config.json', quantization_config=...)
    tensors, _ = huggingface_folder.read(tmp_path)
    assert tensors.remarks == () and UP + 'weight_packed' in tensors


@pytest.mark.parametrize('form', ['mxfp4', 'deepseek'])
def test_scales_of_the_dtype_e8m0(folders, form, tmp_path):
    """As numbers of a dtype of their own they mean the same as their codes, and in FP8 the powers of two."""
    directory, numbers = copy(folders, form, tmp_path), folders[form][1]
    if form == 'mxfp4':
        change_tensors(directory, **{UP + 'weight_scale': lambda codes: codes.view(ml_dtypes.float8_e8m0fnu)})
        expected = numbers[UP + 'weight']
    else:
        codes = np.arange(110, 110 + 6 * 2, dtype=np.uint8).reshape(6, 2)
        change_tensors(directory, **{UP + 'weight_scale_inv': codes.view(ml_dtypes.float8_e8m0fnu)})
        weights = read_tensors(directory / 'model.safetensors')[UP + 'weight'].astype(np.float32)
        expected = weights * np.ldexp(np.float32(1), codes.astype(int) - 127).repeat(16, 0).repeat(32, 1)
    assert_identical(huggingface_folder.read(directory)[0], {UP + 'weight': expected})


def test_an_embedding_may_be_quantized(folders, tmp_path):
    directory = copy(folders, 'fp8 channel', tmp_path)
    said = FORMS['fp8 channel'][1]
    group = said['config_groups']['group_0'] | {'targets': ['Linear', 'Embedding']}
    change_json(directory / 'config.json', quantization_config=said | {'config_groups': {'group_0': group}})
    scale = np.full((264, 1), 0.5, np.float32)
    to_fp8 = lambda table: table.astype(ml_dtypes.float8_e4m3fn)
    change_tensors(directory, **{'model.embed_tokens.weight': to_fp8, 'model.embed_tokens.weight_scale': scale})
    codes = read_tensors(directory / 'model.safetensors')['model.embed_tokens.weight']
    table = codes.astype(np.float32) / 2
    assert_identical(huggingface_folder.read(directory)[0], {'model.embed_tokens.weight': table})


def test_codes_that_are_no_number_stay_none(folders, tmp_path):
    directory = copy(folders, 'fp8 tensor', tmp_path)
    nan = lambda codes: np.where(np.arange(64) == 3, np.uint8(0x7F), codes.view(np.uint8)).view(codes.dtype)
    change_tensors(directory, **{UP + 'weight': nan})
    assert np.isnan(huggingface_folder.read(directory)[0][UP + 'weight'])[:, 3].all()


def replaced(index, value):
    def change(tensor):
        array = tensor.copy()
        array.reshape(-1)[index] = value
        return array

    return change


INT8, HALF = np.zeros((96, 64), np.int8), np.zeros(1, np.float16)
SCALE = np.zeros((96, 2), np.uint8)


@pytest.mark.parametrize(
    ('form', 'tensor', 'change', 'message'),
    [
        ('mxfp4', UP + 'weight_scale', ..., 'mlp.up_proj lacks weight_scale, though quantization_config says'),
        ('mxfp4', UP + 'weight', INT8, r'up_proj\.weight has no place beside weight_packed and weight_scale'),
        ('mxfp4', UP + 'weight_zero_point', SCALE, r'up_proj\.weight_zero_point has no place beside weight_packed'),
        ('mxfp4', UP + 'weight_g_idx', SCALE, r'up_proj\.weight_g_idx has no place beside'),
        ('mxfp4', UP + 'input_scale', HALF, r'up_proj\.input_scale has no place beside'),
        ('mxfp4', 'model.layers.0.self_attn.k_scale', HALF, r'self_attn\.k_scale is there, but quantization_config'),
        ('mxfp4', 'lm_head.weight_scale', SCALE, r'lm_head\.weight_scale is there, but quantization_config does not'),
        ('mxfp4', 'lm_head.weight', lambda head: head.view(np.int8), r'lm_head\.weight is of I8, but quantization'),
        ('mxfp4', UP + 'weight_packed', INT8, r'up_proj\.weight_packed: its dtype I8 must be U8'),
        ('mxfp4', UP + 'weight_packed', SCALE[:, :1], r'up_proj\.weight_packed: its 2 inputs are no multiple of 32'),
        ('mxfp4', UP + 'weight_packed', SCALE[:, :0], r"up_proj\.weight_packed: U8 \(96, 0\) is no matrix of MXFP4"),
        ('mxfp6', UP + 'weight_packed', SCALE, r"up_proj\.weight_packed: U8 \(96, 2\) is no matrix of MXFP6"),
        ('mxfp4', UP + 'weight_scale', SCALE.T, r'up_proj\.weight_scale: its shape \(2, 96\) must be \(96, 2\)'),
        ('mxfp4', UP + 'weight_scale', SCALE.view(np.int8), r'weight_scale: its dtype I8 must be U8 or F8_E8M0'),
        ('mxfp4', UP + 'weight_scale', replaced(7, 255), r'up_proj\.weight_scale: mx scales have codes that stand'),
        ('mxfp4', UP + 'weight_scale', replaced(7, 254), r'up_proj\.weight: some of its values are infinite'),
        ('nvfp4', UP + 'weight_global_scale', ..., 'lacks weight_global_scale, though'),
        ('nvfp4', UP + 'weight_global_scale', replaced(0, 0), r'weight_global_scale=0 must be a positive number'),
        ('nvfp4', UP + 'weight_global_scale', replaced(0, np.nan), r'weight_global_scale=nan must be a positive'),
        ('nvfp4', UP + 'weight_global_scale', replaced(0, 1e-38), 'divided by weight_global_scale=1e-38 is infinite'),
        ('nvfp4', UP + 'weight_scale', replaced(5, np.nan), r'up_proj\.weight_scale: nvfp4 scales have codes that'),
        ('fp8 channel', UP + 'weight_scale', replaced(5, np.inf), 'weight_scale has scales that are not finite'),
        ('fp8 channel', UP + 'weight_scale', replaced(5, -1), 'scales that are not finite, or below 0'),
        ('fp8 channel', UP + 'weight_scale', np.ones(96, np.float32), r'its shape \(96,\) must be \(96, 1\)'),
        ('fp8 tensor', UP + 'weight_scale', np.ones((1, 1), np.float32), r'its shape \(1, 1\) must be \(1,\) or \(\)'),
        ('fp8 block', UP + 'weight_scale', np.ones((6, 3), np.float32), r'its shape \(6, 3\) must be \(6, 2\)'),
        ('fp8 block', UP + 'weight', lambda codes: codes.astype(np.float16), r'dtype F16 must be F8_E4M3'),
        ('deepseek', UP + 'weight_scale_inv', ..., 'lacks weight_scale_inv, though quantization_config says'),
        ('deepseek', UP + 'activation_scale', HALF, r'up_proj\.activation_scale has no place beside'),
        ('deepseek', 257 * 'x', HALF, "'x+ … is a name of more than 256 characters"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(folders, tmp_path, form, tensor, change, message):
    directory = copy(folders, form, tmp_path)
    change_tensors(directory, **{tensor: change})
    with pytest.raises(ValueError, match=message) as error:
        tensors, _ = huggingface_folder.read(directory)
        tensors[UP + 'weight']
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('ignore', 'message'),
    [
        ([], 'lm_head lacks weight_packed, though quantization_config says that it is MXFP4'),
        (['lm_head', 're:.*up_proj'], r'up_proj\.weight_packed is there, but quantization_config does not say'),
    ],
)
def test_modules_that_the_configuration_has_otherwise_are_named(folders, tmp_path, ignore, message):
    directory = copy(folders, 'mxfp4', tmp_path)
    change_json(directory / 'config.json', quantization_config=FORMS['mxfp4'][1] | {'ignore': ignore})
    with pytest.raises(ValueError, match=message):
        huggingface_folder.read(directory)


def test_a_configuration_of_tensors_that_are_not_there_is_refused(folders, tmp_path):
    directory = copy(folders, 'mxfp4', tmp_path)
    path = directory / 'model.safetensors'
    safetensors.numpy.save_file({'model.norm.weight': np.ones(64, np.float32)}, path)
    with pytest.raises(ValueError, match='quantization_config is there, but no tensor of what it quantizes'):
        huggingface_folder.read(directory)


def bfloat16_bits(array):
    return array.astype(ml_dtypes.bfloat16).view(np.uint16)


@pytest.mark.parametrize('form', [form for form in FORMS if not form.startswith(('deepseek', 'mixed'))])
def test_compressed_tensors_has_the_same_numbers_in_bfloat16(folders, form):
    reason = 'compressed-tensors is not installed; the numbers are still compared with their definition'
    compressors = pytest.importorskip('compressed_tensors.compressors', reason=reason)
    quantization = pytest.importorskip('compressed_tensors.quantization', reason=reason)
    torch = pytest.importorskip('torch', reason=reason)
    from safetensors.torch import load_file

    directory, numbers = folders[form]
    config = quantization.QuantizationConfig.model_validate(FORMS[form][1])
    compressor = compressors.BaseCompressor.get_value_from_registry(config.format)
    stored, ours = load_file(directory / 'model.safetensors'), huggingface_folder.read(directory)[0]
    for name in numbers:
        prefix = name.removesuffix('weight')
        parts = {part.removeprefix(prefix): tensor for part, tensor in stored.items() if part.startswith(prefix)}
        theirs = compressor.decompress(parts, config.config_groups['group_0'])['weight'].to(torch.bfloat16)
        assert np.array_equal(theirs.view(torch.int16).numpy().view(np.uint16), bfloat16_bits(ours[name])), name


@pytest.mark.slow
@pytest.mark.parametrize(
    'form', ['mxfp4', 'mxfp6', 'mxfp8', 'nvfp4', 'fp8 channel', 'deepseek', 'deepseek bfloat16', 'deepseek tensor']
)
def test_transformers_has_the_logits_of_what_is_read(folders, form, tmp_path):
    """Its own reading of the folder, and the folder that is written of what we read, to the bit.

    It rounds float32 scales of compressed-tensors' FP8 to the model's bfloat16, which compressed-tensors doesn't.
    """
    reason = 'torch, transformers and compressed-tensors are needed; the numbers are still compared'
    for name in ('compressed_tensors', 'accelerate'):
        pytest.importorskip(name, reason=reason)
    torch, transformers = (pytest.importorskip(name, reason=reason) for name in ('torch', 'transformers'))
    model, params = models.from_huggingface(*huggingface_folder.read(folders[form][0]))
    huggingface_folder.write(tmp_path / 'ours', model, params)
    load = lambda path: transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    theirs, ours = load(folders[form][0]), load(tmp_path / 'ours')
    tokens = torch.randint(0, MODEL.vocab_size, (3, 20))
    with torch.no_grad():
        logits = theirs(tokens).logits
        assert torch.isfinite(logits).all() and torch.equal(logits, ours(tokens).logits)
