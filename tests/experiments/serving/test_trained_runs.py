"""A run of the training program, exported to each target, is read by the target's own software as it was evaluated."""

import jax.numpy as jnp
import numpy as np
import pytest
from programs import import_program, run_program
from small_runs import run_config, start

import gaussq_jax as gq
from experiments import workdirs
from gaussq_jax import models

export = import_program('export')
SIZES = dict(model__hidden_size=128, model__mlp_size=256, model__num_heads=4, model__num_kv_heads=2)
BY_BLOCK = dict(FORMAT='float8_e4m3fn', SCALE='absmax', BLOCK_SIZE='128x128')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('trained') / 'run'
    bits = dict(quantization__b_target=2.5, quantization__b_init=4.0)
    start(workdir, run_config(**SIZES, quantization__parts='all', **bits))
    return workdir


def read_by_transformers(folder, **settings):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    transformers = pytest.importorskip('transformers', reason='extra serving')
    pytest.importorskip('compressed_tensors', reason='extra serving')
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **settings)
    with torch.no_grad():
        model(torch.arange(8)[None])  # before which compressed-tensors has not decompressed all
    narrow = lambda tensor: tensor.to(torch.bfloat16).contiguous().view(torch.uint16).numpy().view(jnp.bfloat16)
    return {name: narrow(tensor) for name, tensor in model.state_dict().items()}


def read_dequantized(folder):
    pytest.importorskip('accelerate', reason='accelerate, of the extra serving')
    transformers = pytest.importorskip('transformers', reason='extra serving')
    return read_by_transformers(folder, quantization_config=transformers.FineGrainedFP8Config(dequantize=True))


def read_by_quark(folder):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    transformers = pytest.importorskip('transformers', reason='extra serving')
    pytest.importorskip('quark.torch', reason='amd-quark is not installed')
    found = {}
    for name, module in transformers.AutoModelForCausalLM.from_pretrained(folder, dtype='bfloat16').named_modules():
        if getattr(module, 'weight', None) is not None:
            weight = module.weight_quantizer(module.weight) if hasattr(module, 'weight_quantizer') else module.weight
            found[f'{name}.weight'] = weight.detach().to(torch.bfloat16).view(torch.uint16).numpy().view(jnp.bfloat16)
    return found


def read_by_mlx(folder):
    mx = pytest.importorskip('mlx.core', reason='extra serving')
    mlx_lm = pytest.importorskip('mlx_lm.utils', reason='extra serving')
    model, _ = mlx_lm.load_model(folder)
    found = {}
    for name, module in model.named_modules():
        if 'weight' in module:
            weight = module.weight
            if 'scales' in module:
                mode = dict(group_size=module.group_size, bits=module.bits, mode=module.mode)
                weight = mx.dequantize(weight, module.scales, **mode)
            found[f'{name}.weight'] = np.array(weight.view(mx.uint16)).view(jnp.bfloat16)
    return found


def read_by_gguf(file):
    gguf = pytest.importorskip('gguf', reason='extra serving')
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 64)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    found = {}
    for name, (_, ours) in names.mapping.items():
        if name.startswith('model.') and f'{ours}.weight' in theirs:
            tensor = theirs[f'{ours}.weight']
            array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            heads = {'q_proj': 4, 'k_proj': 2}.get(name.rpartition('.')[2])
            if heads:  # undoes what llama.cpp's converter does
                array = array.reshape(heads, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            found[f'{name}.weight'] = array.astype(jnp.bfloat16)
    return found


READERS = {
    'compressed-tensors': (read_by_transformers, [{}, dict(BUDGET=6.0), dict(FORMAT='float4_e2m1fn')]),
    'deepseek-fp8': (read_dequantized, [BY_BLOCK]),
    'quark-mxfp6': (read_by_quark, [dict(FORMAT='float6_e3m2fn')]),
    'mlx': (read_by_mlx, [{}, dict(BUDGET=6.0), dict(FORMAT='float8_e4m3fn')]),
    'gguf': (read_by_gguf, [dict(BUDGET=8.0), dict(FORMAT='float4_e2m1fn')]),
}


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # of the packages that read
@pytest.mark.parametrize('target', READERS)
def test_each_weight_is_the_one_that_was_evaluated(tmp_path, workdir, target):
    """Of learned blocks, of a budget and of one format: as uint16, but for the sign of zeros in GGUF files."""
    read, cases = READERS[target]
    for i, given in enumerate(cases):
        served = tmp_path / f'{i}.served'
        run_program(export, WORKDIR=str(workdir), TO=target, OUTPUT=str(served), **given)
        (packed,) = workdir.glob('*.safetensors')
        model = workdirs.open_packed(packed).experiment.model
        weights, _ = models.to_huggingface(model, gq.load_packed(packed))
        packed.unlink()
        found, compared = read(served), 0
        for name, weight in weights.items():
            if name in found:
                bits, expected = found[name].view(np.uint16), np.ascontiguousarray(weight).view(np.uint16)
                if target == 'gguf':
                    bits, expected = (np.where(array == 0x8000, 0, array) for array in (bits, expected))
                np.testing.assert_array_equal(bits, expected, err_msg=f'{given} {name}')
                compared += weight.size
        assert compared >= sum(weight.size for name, weight in weights.items() if 'proj' in name)
