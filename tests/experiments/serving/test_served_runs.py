"""`export --to`: what other software is given is what was evaluated, and nothing is written where that can't be."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported_runs import make_run, run_export
from parameter_trees import assert_identical_trees
from programs import import_program
from small_experiments import ONE_DEVICE, on_mesh

import gaussq_jax as gq
from experiments import workdirs
from experiments.serving import folders
from experiments.serving.targets import TARGETS, TRANSFORMERS

import_hf = import_program('import_hf')

SIZES = dict(model__hidden_size=128, model__mlp_size=256, model__num_heads=4, model__num_kv_heads=2)


def llama_run(argument='method=bf16', **changes):
    return make_run(argument, **{**SIZES, **changes})


@pytest.fixture(scope='module')
def plain():
    return llama_run()


@pytest.fixture(scope='module')
def learned():
    """Bitwidths of 2.5 to 5.05, by block."""
    return llama_run('method=gaussws', quantization__b_target=2.5, quantization__b_init=4.2)


@pytest.fixture(scope='module')
def gpt2():
    family = {'family': 'gpt2', 'max_length': 24, 'num_layers': 2, 'hidden_size': 64, 'num_heads': 2}
    run = make_run('method=bf16')
    return make_run('method=bf16', model=type(run.experiment.config.model)(family))


def bits_of(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16).view(np.uint16), tree)


def export_run(run, folder, **given):
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_export(monkeypatch, run, folder, OUTPUT=str(folder / 'served'), **given)


def imported(folder):
    """The weights that import_hf makes of the folder that was written."""
    with on_mesh(ONE_DEVICE):
        import_hf.import_checkpoint(folder / 'served', folder / 'imported', tokenizer='bytes')
        return workdirs.open_run(folder / 'imported').state.params


def packed_weights(folder):
    """Of the one packed file that is written beside."""
    (file,) = folder.glob('*.safetensors')
    return gq.load_packed(file)


# --- read again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('given', 'kinds'),
    [
        (dict(FORMAT='float4_e2m1fn', TO='compressed-tensors'), 'mxfp4-pack-quantized'),
        (dict(FORMAT='float6_e2m3fn', TO='compressed-tensors'), 'mxfp6-pack-quantized'),
        (dict(FORMAT='float8_e4m3fn', TO='compressed-tensors'), 'mxfp8-quantized'),
        (dict(FORMAT='e2m1', SCALE='nvfp4', BLOCK_SIZE='16', TO='compressed-tensors'), 'nvfp4-pack-quantized'),
        (
            dict(FORMAT='float8_e4m3fn', SCALE='absmax', BLOCK_SIZE='channel', TO='compressed-tensors'),
            'float-quantized',
        ),
        (dict(FORMAT='float8_e4m3fn', SCALE='absmax', BLOCK_SIZE='128x128', TO='deepseek-fp8'), None),
        (dict(BUDGET=7.0, TO='compressed-tensors'), 'mixed-precision'),
        (dict(TO='transformers'), None),
    ],
)
@pytest.mark.parametrize('tied', [False, True])
def test_import_reads_the_weights_that_were_exported(tmp_path, given, kinds, tied):
    """A packed file is written beside, of the same weights: what is evaluated is what is served."""
    run = llama_run(model__tie_embeddings=tied)
    export_run(run, tmp_path, **given)
    config = json.loads((tmp_path / 'served/config.json').read_text())
    assert kinds is None or config['quantization_config']['format'] == kinds
    assert_identical_trees(bits_of(imported(tmp_path)), bits_of(packed_weights(tmp_path)))


def test_learned_blocks_are_carried_over(tmp_path, capsys, learned):
    """Each matrix in the narrowest format that holds its blocks, or in bfloat16; servers' fused ones alike."""
    export_run(learned, tmp_path, TO='compressed-tensors')
    _, told = capsys.readouterr().out.split(f'written to {tmp_path}/served: the same weights, for compressed-tensors\n')
    counts, *reasons = told.rstrip().split('matrices in bfloat16\n')
    assert counts.startswith('11 matrices in MXFP8\n3 ')
    names = [f'model.layers.1.mlp.{name}_proj' for name in ('down', 'gate', 'up')]
    reason = "can't be held exactly as MXFP8, its format e3m4 has numbers that float8_e4m3fn doesn't have"
    assert reasons[0].splitlines() == [
        f'{names[0]}: bfloat16, as {names[0]} {reason}',
        f'{names[1]}, {names[2]}: bfloat16, as {names[2]} {reason}',
    ]
    assert_identical_trees(bits_of(imported(tmp_path)), bits_of(packed_weights(tmp_path)))


def test_a_run_is_exported_as_its_matmuls_were_quantized(tmp_path):
    """Without --format: the weights of NVFP4 training, from the bfloat16 that it rounds, and so its loss."""
    run = llama_run('method=fqt,format=e2m1,scale=nvfp4,block_size=16,targets=P2', dtype='bfloat16')
    export_run(run, tmp_path, TO='compressed-tensors')
    served = packed_weights(tmp_path)
    tokens = np.arange(48).reshape(2, 24) % 61
    weights = run.experiment.transform.apply(None, run.state.params, run.state.transform_state)
    logits = run.experiment.model.apply({'params': weights}, tokens)
    plain = llama_run(dtype='bfloat16').experiment.model.apply({'params': served}, tokens)
    np.testing.assert_array_equal(plain, logits)


def test_a_run_of_bfloat16_is_exported_in_it(tmp_path, plain):
    export_run(plain, tmp_path, TO='transformers')
    assert_identical_trees(bits_of(imported(tmp_path)), bits_of(plain.state.params))
    assert (tmp_path / 'bfloat16.safetensors').is_file()


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('run', 'given', 'message'),
    [
        (
            'plain',
            dict(TO='compressed-tensors'),
            '--to=compressed-tensors would have nothing in low bits; --budget chooses',
        ),
        (
            'plain',
            dict(FORMAT='e5m2', TO='compressed-tensors'),
            "its format e5m2 has numbers that float8_e4m3fn doesn't",
        ),
        (
            'plain',
            dict(FORMAT='float6_e3m2fn', TO='gguf'),
            'as MXFP4, its format float6_e3m2fn has .*; it can be by comp',
        ),
        (
            'plain',
            dict(FORMAT='float4_e2m1fn', TO='quark-mxfp6', BLOCK_SIZE='16'),
            '16 inputs share a scale, which is no',
        ),
        (
            'plain',
            dict(FORMAT='float8_e4m3fn', TO='deepseek-fp8'),
            'as FP8 in blocks of 128 x 128, .*; it can be by comp',
        ),
        ('plain', dict(FORMAT='e2m1', SCALE='nvfp4', TO='mlx'), "scale='nvfp4' with fmt e2m1 and block_size=32"),
        (
            'plain',
            dict(FORMAT='e2m1', SCALE='nvfp4', BLOCK_SIZE='16', TO='mlx'),
            'scales are of the kind nvfp4, not mx',
        ),
        ('plain', dict(FORMAT='e2m1', SCALE='max', TO='mlx'), "scale='max' is not one of 'absmax', 'mx', 'nvfp4'"),
        ('plain', dict(FORMAT='e2m1', BLOCK_SIZE='3x', TO='mlx'), "block_size='3x'"),
        ('plain', dict(SCALE='mx', TO='mlx'), '--scale=mx has no meaning with --format=learned'),
        ('plain', dict(FORMAT='e2m1', BUDGET=5.0, TO='mlx'), '--budget=5 has no meaning with --format=e2m1'),
        ('plain', dict(BUDGET=4.0, TO='mlx'), r'a budget of 4 bits a weight is below 4\.25, the least'),
        ('plain', dict(BUDGET=math.nan, TO='mlx'), 'a budget of nan bits'),
        ('plain', dict(BUDGET=6.0, TO='transformers'), '--budget=6: .* of this run is bf16, .*; or --to=compressed-te'),
        (
            'plain',
            dict(BUDGET=9.0, TO='deepseek-fp8'),
            '--budget=9 has no meaning with --to=deepseek-fp8, which has one',
        ),
        ('plain', dict(FORMAT='float4_e2m1fn', TO='mlx', TO_HF='hf'), '--to=mlx, --to_hf=hf: give one of them'),
        ('plain', dict(FORMAT='float4_e2m1fn', TO='mlx', OUTPUT=None), '--to=mlx takes --output, where it is written'),
        ('plain', dict(FORMAT='float16', TO='transformers'), 'has weights in float16, which bfloat16 does not hold'),
        ('plain', dict(FORMAT='learned', BUDGET=5.0, TO='mlx'), 'of this run is bf16, which learns no bitwidths'),
        ('learned', dict(TO='gguf'), '--to=gguf would have nothing in low bits: .*e3m2 has numbers'),
        (
            'gpt2',
            dict(FORMAT='float4_e2m1fn', TO='compressed-tensors'),
            r'c_attn.weight \(in, out\) by the models of gpt2',
        ),
        ('gpt2', dict(FORMAT='float4_e2m1fn', TO='gguf'), r'c_attn.weight \(in, out\) by the models of gpt2'),
    ],
)
def test_mistakes_are_told(tmp_path, capsys, request, run, given, message):
    """One line, and nothing is written."""
    given = {'OUTPUT': str(tmp_path / 'served'), **given}
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(SystemExit, match=f'^error: .*{message}') as error:
        run_export(monkeypatch, request.getfixturevalue(run), tmp_path, **given)
    assert '\n' not in str(error.value) and not capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize('target', [name for name in TARGETS if name != 'gguf'])
def test_what_is_there_is_not_overwritten(tmp_path, plain, target):
    (tmp_path / 'served').mkdir()
    (tmp_path / 'served/file').write_text('mine')
    given = {'transformers': {}, 'deepseek-fp8': dict(FORMAT='float8_e4m3fn', SCALE='absmax', BLOCK_SIZE='128x128')}
    with pytest.raises(SystemExit, match='served is there already, and what is in it is not overwritten'):
        export_run(plain, tmp_path, TO=target, **given.get(target, dict(FORMAT='float4_e2m1fn')))
    assert sorted(file.name for file in tmp_path.rglob('*')) == ['file', 'served']


def test_nothing_half_written_stays(tmp_path, monkeypatch, plain):
    """Neither where a scale is one that the target can't have, nor where the packed file can't be written."""
    params = jax.tree.map(np.copy, plain.state.params)
    params['layers']['mlp']['up']['kernel'][1, :32] *= 2.0**-30
    run = plain._replace(state=plain.state._replace(params=params))
    names = r'model\.layers\.1\.mlp\.gate_proj, model\.layers\.1\.mlp\.up_proj'
    with pytest.raises(SystemExit, match=rf'^error: {names} has scales of 2\^-\d+ to 2\^-\d: NVFP4'):
        export_run(run, tmp_path, TO='compressed-tensors', FORMAT='e2m1', BLOCK_SIZE='16')
    assert not list(tmp_path.iterdir())

    def fail(*_, **__):
        raise OSError('no space left')

    monkeypatch.setattr(gq, 'save_packed', fail)
    with pytest.raises(SystemExit, match='no space left'):
        export_run(plain, tmp_path, TO='compressed-tensors', FORMAT='e2m1')
    assert not list(tmp_path.iterdir())


def test_the_packed_file_is_not_overwritten(tmp_path, capsys, plain):
    """By what is written besides, at the same place or around it; nor a file that is no GGUF file."""
    run = dict(FORMAT='float4_e2m1fn')
    for given, message in [
        (dict(TO='mlx', OUTPUT=f'{tmp_path}/float4_e2m1fn.safetensors'), 'would be in the place of the packed file'),
        (dict(TO='gguf', OUTPUT=f'{tmp_path}/float4_e2m1fn.safetensors'), 'would be in the place of the packed file'),
        (dict(TO_HF=f'{tmp_path}/same', OUTPUT=f'{tmp_path}/same'), 'would be in the place of the packed file'),
        (dict(TO='gguf', OUTPUT=f'{tmp_path}/config.json'), 'config.json is there already, and no GGUF file'),
        (dict(TO='gguf', OUTPUT=f'{tmp_path}/nowhere/file'), 'nowhere/file: there is no folder'),
    ]:
        (tmp_path / 'config.json').write_text('{}')
        with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(SystemExit, match=message):
            run_export(monkeypatch, plain, tmp_path, **run, **given)
        assert [file.name for file in tmp_path.iterdir()] == ['config.json'] and not capsys.readouterr().out


def test_budgets_of_two_targets_are_two_files(tmp_path, plain):
    for target in ('compressed-tensors', 'mlx'):
        with pytest.MonkeyPatch.context() as monkeypatch:
            run_export(monkeypatch, plain, tmp_path, BUDGET=6.0, TO=target, OUTPUT=str(tmp_path / target))
    names = [f'served-6-{target}.safetensors' for target in ('compressed-tensors', 'mlx')]
    assert sorted(file.name for file in tmp_path.glob('*.safetensors')) == names


def test_what_readers_make_other_weights_of_is_told(tmp_path, capsys, plain):
    """Fused matrices with global scales of their own; scales that transformers rounds."""
    (tmp_path / 'nvfp4').mkdir(), (tmp_path / 'fp8').mkdir()
    export_run(plain, tmp_path / 'nvfp4', TO='compressed-tensors', FORMAT='e2m1', SCALE='nvfp4', BLOCK_SIZE='16')
    assert 'have global scales of their own' in capsys.readouterr().out
    given = dict(FORMAT='float8_e4m3fn', BLOCK_SIZE='channel')
    export_run(plain, tmp_path / 'fp8', TO='compressed-tensors', SCALE='absmax', **given)
    assert 'its scales are float32, which transformers rounds' in capsys.readouterr().out
    (tmp_path / 'powers').mkdir()
    export_run(plain, tmp_path / 'powers', TO='compressed-tensors', SCALE='mx', **given)
    assert 'rounds' not in capsys.readouterr().out


def test_an_imported_model_keeps_its_longest_sequence(tmp_path, plain):
    run = plain._replace(experiment=plain.experiment)
    assert folders.longest_sequence(run, tmp_path) == run.experiment.config.sequence_length
    (tmp_path / 'tokenizer').mkdir()
    (tmp_path / 'tokenizer/config.json').write_text('{"model_type": "llama", "max_position_embeddings": 4096}')
    assert folders.longest_sequence(run, tmp_path) == 4096


# --- read by others --------------------------------------------------------------------------------------------


def logits_of(folder, **settings):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **settings)
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits.float().numpy(), model


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize(
    'given',
    [
        dict(FORMAT='float4_e2m1fn'),
        dict(FORMAT='float8_e4m3fn'),
        dict(FORMAT='e2m1', SCALE='nvfp4', BLOCK_SIZE='16'),
        dict(FORMAT='float8_e4m3fn', SCALE='mx', BLOCK_SIZE='channel'),
        dict(BUDGET=6.0),
    ],
    ids=lambda given: ' '.join(map(str, given.values())),
)
def test_transformers_has_the_logits_of_the_same_weights(tmp_path, given, tied):
    """To the bit, of what compressed-tensors decompresses, and of bfloat16 weights."""
    pytest.importorskip('compressed_tensors', reason='the package compressed-tensors of the extra serving')
    run = llama_run(model__tie_embeddings=tied)
    export_run(run, tmp_path, TO='compressed-tensors', **given)
    folders.write(run, tmp_path, tmp_path / 'wide', TRANSFORMERS, packed_weights(tmp_path), {})
    served, _ = logits_of(tmp_path / 'served')
    wide, _ = logits_of(tmp_path / 'wide')
    np.testing.assert_array_equal(served, wide)


def test_scales_of_float32_are_rounded_by_transformers_unless_it_dequantizes(tmp_path, plain):
    """What docs/serving.md says of FP8 by channel: exact where weights are dequantized as they are loaded."""
    pytest.importorskip('compressed_tensors', reason='the package compressed-tensors of the extra serving')
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    export_run(plain, tmp_path, TO='compressed-tensors', FORMAT='float8_e4m3fn', SCALE='absmax', BLOCK_SIZE='channel')
    folders.write(plain, tmp_path, tmp_path / 'wide', TRANSFORMERS, packed_weights(tmp_path), {})
    dequantize = transformers.CompressedTensorsConfig(dequantize=True)
    wide, _ = logits_of(tmp_path / 'wide')
    by_default, _ = logits_of(tmp_path / 'served')
    assert np.any(by_default != wide)
    with pytest.warns(UserWarning, match='already has a `quantization_config`'):
        served, _ = logits_of(tmp_path / 'served', quantization_config=dequantize)
    np.testing.assert_array_equal(served, wide)
