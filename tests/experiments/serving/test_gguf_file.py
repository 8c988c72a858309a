"""Whole GGUF files: the weights read back are those of the layout; and none where one can't be written."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from exported_runs import learned_run
from served_runs import llama, params_of, run_of
from small_checkpoints import GPT2, random_params

from experiments.serving import gguf_file
from gaussq_jax import models
from gaussq_jax.packed import quantize_params, uniform_layout


def write(file, model, fmt='float4_e2m1fn'):
    params = params_of(model)
    gguf_file.write(run_of(model), params, uniform_layout(params, fmt), file, longest=128)
    return params


def test_other_families_are_refused(tmp_path):
    with pytest.raises(ValueError, match='model=GPT2: a GGUF file is written of Llama, Mistral, Qwen2, Qwen3'):
        gguf_file.write(run_of(GPT2), random_params(GPT2), {}, tmp_path / 'file.gguf', longest=24)
    assert not list(tmp_path.iterdir())


def test_the_package_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gguf', None)
    with pytest.raises(ValueError, match=r"GGUF files take the package gguf: pip install 'gaussq-jax\[serving\]'"):
        write(tmp_path / 'file.gguf', llama())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('fmt', 'file_type', 'changes'),
    [
        ('float4_e2m1fn', 38, dict()),
        ('float4_e2m1fn', 38, dict(tie_embeddings=True)),
        ('bfloat16', 32, dict(attention_bias=True, mlp_bias=True)),
        ('float4_e2m1fn', 38, dict(module=models.Qwen3)),
    ],
)
def test_the_weights_read_back(tmp_path, fmt, file_type, changes):
    """To the bit, but that -0 of MXFP4 reads as 0; read by llama.cpp's own package."""
    gguf = pytest.importorskip('gguf', reason='the package gguf of the extra serving')
    model, file = llama(**changes), tmp_path / 'file.gguf'
    file.write_bytes(b'another')
    params = write(file, model, fmt)
    assert list(tmp_path.iterdir()) == [file]
    weights, _ = models.to_huggingface(model, quantize_params(params, uniform_layout(params, fmt)))
    reader = gguf.GGUFReader(file)
    said = {key: field.contents() for key, field in reader.fields.items()}
    name = type(model).__name__.lower()
    assert said['general.architecture'] == name and said['general.name'] == 'small'
    assert said['general.file_type'] == file_type
    assert said[f'{name}.rope.freq_base'] == 50 and said[f'{name}.attention.head_count_kv'] == 2
    assert said[f'{name}.attention.layer_norm_rms_epsilon'] == np.float32(model.norm_epsilon)
    assert len(said['tokenizer.ggml.tokens']) == 264 and said['tokenizer.ggml.add_bos_token'] is True
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], model.num_layers)
    expected = {theirs.get_name(name, ('.weight', '.bias')): tensor for name, tensor in weights.items()}
    assert {tensor.name for tensor in reader.tensors} == expected.keys()
    for tensor in reader.tensors:
        read = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        heads = {'q': 4, 'k': 2}.get(tensor.name.partition('attn_')[2].partition('.')[0])
        if heads and name == 'llama':  # undoes what llama.cpp's converter does
            read = read.reshape(heads, 8, 2, -1).swapaxes(1, 2).reshape(read.shape)
        ours = np.asarray(expected[tensor.name])
        assert tensor.shape.tolist() == list(ours.shape[::-1])
        ours = ours.astype(np.float32)
        ours[(ours == 0) & (tensor.tensor_type == gguf.GGMLQuantizationType.MXFP4)] = 0
        np.testing.assert_array_equal(read.view(np.uint32), ours.view(np.uint32), err_msg=tensor.name)
        if tensor.tensor_type != gguf.GGMLQuantizationType.F32:
            np.testing.assert_array_equal(read, read.astype(jnp.bfloat16))


def test_a_run(tmp_path):
    """As it is opened: its learned layout, on whatever devices."""
    gguf = pytest.importorskip('gguf', reason='the package gguf of the extra serving')
    run = learned_run()
    params = run.state.params
    layout = run.experiment.transform.learned_layout(params, run.state.transform_state)
    gguf_file.write(run, params, layout, tmp_path / 'file.gguf', longest=64)
    reader = gguf.GGUFReader(tmp_path / 'file.gguf')
    assert reader.fields['general.name'].contents() == run.experiment.config.name
    (down,) = (tensor for tensor in reader.tensors if tensor.name == 'blk.1.ffn_down.weight')
    expected = np.asarray(quantize_params(params, layout)['layers']['mlp']['down']['kernel'][1].T)
    np.testing.assert_array_equal(down.data.view(jnp.bfloat16), expected)


def test_a_file_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    gguf = pytest.importorskip('gguf', reason='the package gguf of the extra serving')
    file = tmp_path / 'file.gguf'
    file.write_bytes(b'another')

    def fail(_):
        raise OSError('no space')

    monkeypatch.setattr(gguf.GGUFWriter, 'write_tensors_to_file', fail)
    with pytest.raises(OSError, match='no space'):
        write(file, llama())
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == b'another'
