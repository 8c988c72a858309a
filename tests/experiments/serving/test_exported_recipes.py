"""What a recipe trained is what is exported: the numbers that its forward pass multiplies, kept layers among them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported_runs import make_run, run_export
from small_experiments import ONE_DEVICE, on_mesh

from experiments import methods, workdirs
from experiments.files import huggingface_folder
from gaussq_jax import models
from gaussq_jax.packed import read_packed
from gaussq_jax.param_tree import leaves_by_path

SIZES = dict(model__hidden_size=128, model__mlp_size=128, model__num_heads=2, model__num_kv_heads=2)
KEPT = '.*/(query|key|value)@first=1; .*/down@last=1'
TARGETS = {  # of compressed-tensors, the format that it has
    'nvfp4': 'nvfp4-pack-quantized',
    'fp4_all_the_way': 'nvfp4-pack-quantized',
    'quartet2': 'nvfp4-pack-quantized',
    'mxfp8': 'mxfp8-quantized',
    'fp8_rowwise': 'float-quantized',
    'fp8_tensorwise': 'float-quantized',
    'deepseek_fp8': None,
}


def run_of(argument, **changes):
    return make_run(argument, **{**SIZES, 'dtype': 'bfloat16', 'batch_size': 16, **changes})


def export_run(run, folder, **given):
    """The run's weights in a packed file, and in a folder; what the file holds."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_export(monkeypatch, run, folder, **given)
    (file,) = folder.glob('*.safetensors')
    return file


def multiplied(run):
    """The weights that the forward pass multiplies, by path, float32: I P2(W) by the recipe's matmul of each layer."""
    config = run.experiment.config
    recipe, num_layers = methods.find(config.method).recipe(config), config.model.num_layers
    of_forward = recipe.deterministic().replace(P1=None)
    weights = leaves_by_path(run.experiment.transform.apply(None, run.state.params, run.state.transform_state))

    def of_leaf(path, leaf):
        if not path.endswith('/kernel') or leaf.ndim != 3:
            return leaf
        layers = []
        for layer, kernel in enumerate(leaf.astype(config.dtype)):
            matmul = of_forward.dot_general(path.removesuffix('/kernel'), layer, num_layers=num_layers)
            layers.append(matmul(jnp.eye(len(kernel), dtype=kernel.dtype), kernel, (((1,), (0,)), ((), ()))))
        return jnp.stack(layers)

    return {path: np.asarray(of_leaf(path, leaf), np.float32) for path, leaf in weights.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for path, weights in expected.items():
        np.testing.assert_array_equal(np.asarray(found[path], np.float32), weights, err_msg=path)


def logits_of(run):
    tokens = np.arange(48).reshape(2, 24) % 61
    weights = run.experiment.transform.apply(None, run.state.params, run.state.transform_state)
    return jax.jit(run.experiment.model.apply)({'params': weights}, tokens)


@pytest.mark.parametrize(
    ('name', 'dtype'),
    [
        *((name, 'bfloat16') for name in ('nvfp4', 'mxfp8', 'fp8_rowwise', 'deepseek_fp8')),
        *(pytest.param(name, 'bfloat16', marks=pytest.mark.slow) for name in ('fp4_all_the_way', 'fp8_tensorwise')),
        ('quartet2', 'float32'),
        ('nvfp4', 'float32'),
    ],
)
def test_no_weight_differs(tmp_path, name, dtype):
    """In the packed file, and in what other software reads, kept layers of a stack among them."""
    mlp_size = 256 if name == 'deepseek_fp8' else 128  # of several tiles
    run = run_of(f'method=fqt,recipe={name}', dtype=dtype, quantization__full_precision=KEPT, model__mlp_size=mlp_size)
    target = 'compressed-tensors' if TARGETS[name] else 'deepseek-fp8'
    file = export_run(run, tmp_path, TO=target, OUTPUT=str(tmp_path / 'served'))
    expected = multiplied(run)
    assert_equal(leaves_by_path(read_packed(file).params), expected)
    _, served = models.from_huggingface(*huggingface_folder.read(tmp_path / 'served'))
    assert_equal({path: leaf.astype(dtype) for path, leaf in leaves_by_path(served).items()}, expected)
    config = json.loads((tmp_path / 'served/config.json').read_text())['quantization_config']
    assert config.get('format') == TARGETS[name]
    ignored = config['ignore' if TARGETS[name] else 'modules_to_not_convert']
    assert {'model.layers.0.self_attn.q_proj', 'model.layers.1.mlp.down_proj', 'lm_head'} <= set(ignored)
    assert 'model.layers.0.mlp.down_proj' not in ignored


@pytest.mark.parametrize(('name', 'dtype'), [('nvfp4', 'bfloat16'), ('fp8_rowwise', 'float32')])
def test_an_opened_file_has_the_logits_of_its_run(tmp_path, name, dtype):
    """Its weights are multiplied as they are; activations are quantized, but for those of kept layers."""
    run = run_of(f'method=fqt,recipe={name}', dtype=dtype, quantization__full_precision=KEPT)
    with on_mesh(ONE_DEVICE):
        opened = workdirs.open_packed(export_run(run, tmp_path))
    np.testing.assert_array_equal(logits_of(opened), logits_of(run))


@pytest.mark.filterwarnings('ignore')  # of the packages that read
@pytest.mark.parametrize('name', TARGETS)
def test_transformers_reads_the_same_weights(tmp_path, name):
    """Each by its own reader, in bfloat16; with FP8's float32 scales, where it dequantizes as it loads."""
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    pytest.importorskip('compressed_tensors', reason='the package compressed-tensors of the extra serving')
    run = run_of(f'method=fqt,recipe={name}', quantization__full_precision=KEPT)
    target = 'compressed-tensors' if TARGETS[name] else 'deepseek-fp8'
    export_run(run, tmp_path, TO=target, OUTPUT=str(tmp_path / 'served'))
    dequantizing = {
        'float-quantized': lambda: transformers.CompressedTensorsConfig(dequantize=True),
        None: lambda: transformers.FineGrainedFP8Config(dequantize=True),
    }.get(TARGETS[name])
    settings = {'quantization_config': dequantizing()} if dequantizing else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'served', dtype=torch.bfloat16, **settings)
    with torch.no_grad():
        model(torch.arange(8)[None])  # before which compressed-tensors has not decompressed all
    read = {tensor: weights.float().numpy() for tensor, weights in model.state_dict().items()}
    _, expected = models.from_huggingface(*huggingface_folder.read(tmp_path / 'served'))
    expected, _ = models.to_huggingface(run.experiment.model, expected)
    for tensor, weights in expected.items():
        np.testing.assert_array_equal(read[tensor], weights.astype(jnp.bfloat16).astype(np.float32), err_msg=tensor)


# --- which weights those are ------------------------------------------------------------------------------------


def bfloat16_of(run):
    return {
        path: np.asarray(leaf.astype(jnp.bfloat16), np.float32)
        for path, leaf in leaves_by_path(run.state.params).items()
    }


def test_layers_that_quantization_aware_training_keeps(tmp_path):
    argument = 'method=qat,format=float8_e4m3fn,block_size=channel'
    run = run_of(argument, dtype='float32', quantization__full_precision='last=1')
    weights = run.experiment.transform.apply(None, run.state.params, {})
    file = export_run(run, tmp_path)
    assert file.name == 'float8_e4m3fn-channel-absmax-kept.safetensors'
    assert_equal(
        leaves_by_path(read_packed(file).params),
        {path: np.asarray(leaf, np.float32) for path, leaf in leaves_by_path(weights).items()},
    )


@pytest.mark.parametrize(('start', 'end'), [(0, 5), (15, 0)])
def test_what_is_not_quantized_now_is_exported_in_bfloat16(tmp_path, start, end):
    """After the last step of quantization, or before the first; the file has the run's logits."""
    steps = dict(quantization__start_step=start, quantization__end_step=end)
    run = run_of('method=fqt,recipe=nvfp4', total_steps=20, **steps)
    run = run._replace(state=run.state._replace(step=jnp.int32(10)), experiment=run.experiment.at_step(10))
    file = export_run(run, tmp_path)
    assert file.name == 'bfloat16.safetensors'
    assert_equal(leaves_by_path(read_packed(file).params), bfloat16_of(run))
    with on_mesh(ONE_DEVICE):
        opened = workdirs.open_packed(file)
    np.testing.assert_array_equal(logits_of(opened), logits_of(run))


def test_transformed_weights_are_kept_as_they_are_before(tmp_path):
    """No file holds Quartet's; from weights in bfloat16, its matmuls make the same numbers."""
    run = run_of('method=fqt,recipe=quartet')
    with pytest.raises(
        SystemExit, match=r'^error: this run multiplies weights that are .*Hadamard 32.*; --format=bfloat16'
    ):
        export_run(run, tmp_path)
    with on_mesh(ONE_DEVICE):
        opened = workdirs.open_packed(export_run(run, tmp_path, FORMAT='bfloat16'))
    np.testing.assert_array_equal(logits_of(opened), logits_of(run))


def test_weights_sampled_under_a_recipe(tmp_path):
    """Learned blocks, whose activations are quantized where they are served, too."""
    run = run_of('method=gaussws,recipe=mxfp8')
    with on_mesh(ONE_DEVICE):
        opened = workdirs.open_packed(export_run(run, tmp_path))
        of_plain = opened.experiment.model.clone(dot_general_cls=None)
    assert opened.experiment.config.quantization.recipe == 'mxfp8'
    plain = opened._replace(experiment=dataclasses.replace(opened.experiment, model=of_plain))
    assert np.any(logits_of(opened) != logits_of(plain))


def test_float32_products_are_no_weights_in_bfloat16(tmp_path):
    run = run_of('method=fqt,recipe=fp8_rowwise', dtype='float32')
    with pytest.raises(SystemExit, match='float8_e4m3fn times absmax scales, which bfloat16 does not hold exactly'):
        export_run(run, tmp_path, TO='transformers', OUTPUT=str(tmp_path / 'served'))
