"""Imported models see the token ids that they see in `transformers`, and have the log-likelihoods of lm-eval's `hf`."""

import importlib
import json
import types

import jax
import numpy as np
import pytest
import tokenizers
from ml_collections import ConfigDict
from programs import import_program
from small_experiments import ONE_DEVICE, on_mesh, random_state, small_config
from small_tokenizers import write_huggingface, write_sentencepiece

from experiments import workdirs
from experiments.data.tokenizers import load_tokenizer
from experiments.serving import folders
from experiments.serving.targets import TRANSFORMERS
from experiments.training.experiment import make_experiment
from experiments.training.token_choice import Sampling
from experiments.training.token_writer import TokenWriter

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
tokenization_qwen2 = pytest.importorskip('transformers.models.qwen2.tokenization_qwen2')
import_hf = import_program('import_hf')

LONGEST = 48
TEXTS = [
    'def f(x): return x',
    '',
    'x',
    ' leading and trailing ',
    'naïve façade, 日本語 🙂',
    'a\n\n    b\tc',
    'for i in range(10):\n    print(i)\n' * 4,
]
BLANK = ' \n '  # nothing is left of it as a context, which lm-eval's hf takes from a model with BOS only
PAIRS = [('def f', '(x):'), ('', 'import os'), ('for i in', ' range(3):'), (BLANK, 'y'), ('a b c ' * 30, 'and d')]


def sentencepiece_as_llama(folder):
    """As Llama 2's: a space before the text, and BOS."""
    write_sentencepiece(folder / 'tokenizer.model', add_dummy_prefix=True)
    names = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
    return names | {'tokenizer_class': 'LlamaTokenizer', 'add_bos_token': True, 'add_eos_token': False}


def sentencepiece_without_bos(folder):
    write_sentencepiece(folder / 'tokenizer.model', add_dummy_prefix=True)
    names = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
    return names | {'tokenizer_class': 'LlamaTokenizer', 'add_bos_token': False, 'add_eos_token': False}


def bpe(folder):
    """As SmolLM's: BOS has a name, and leads no text."""
    write_huggingface(folder / 'tokenizer.json', ['<unk>', '<s>', '</s>'])
    return {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<s>', 'eos_token': '</s>'}


def bpe_with_bos(folder):
    """As Llama 3's: a template puts BOS before a text; and EOS is one of several."""
    names = ['<|begin_of_text|>', '<|end_of_text|>', '<|eot_id|>']
    write_huggingface(folder / 'tokenizer.json', names)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    template = dict(single=f'{names[0]} $A', pair=f'{names[0]} $A {names[0]} $B', special_tokens=[(names[0], 0)])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(**template)
    tokenizer.save(str(folder / 'tokenizer.json'))
    return {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': names[0], 'eos_token': names[1]}


def bpe_of_gpt2(folder):
    """One token is both."""
    write_huggingface(folder / 'tokenizer.json')
    return {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<|endoftext|>', 'eos_token': '<|endoftext|>'}


def bpe_led_by_its_end(folder):
    """One token is both, and leads texts."""
    contents = bpe_of_gpt2(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    template = dict(single='<|endoftext|> $A', pair='<|endoftext|> $A $B', special_tokens=[('<|endoftext|>', 0)])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(**template)
    tokenizer.save(str(folder / 'tokenizer.json'))
    return contents


def bpe_of_qwen(folder):
    """As Qwen3's: pieces by a regex of its own, letters composed, no BOS."""
    write_huggingface(folder / 'tokenizer.json', ['<|endoftext|>', '<|im_start|>', '<|im_end|>'])
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    pieces = tokenizers.pre_tokenizers.Split(tokenizers.Regex(tokenization_qwen2.PRETOKENIZE_REGEX), 'isolated')
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([pieces, to_bytes])
    tokenizer.save(str(folder / 'tokenizer.json'))
    return {'tokenizer_class': 'Qwen2Tokenizer', 'bos_token': None, 'eos_token': '<|im_end|>'}


KINDS = (sentencepiece_as_llama, sentencepiece_without_bos, bpe, bpe_with_bos, bpe_of_gpt2, bpe_led_by_its_end)
KINDS = (*KINDS, bpe_of_qwen)


def write_model(folder, kind):
    """A random model whose choices are far apart, with the tokenizer of this kind, as `save_pretrained` leaves it."""
    folder.mkdir()
    contents = kind(folder)
    vocabulary = load_tokenizer(str(next(folder.glob('tokenizer.*'))))
    ids = {'bos_token_id': contents['bos_token'], 'eos_token_id': contents['eos_token']}
    ids = {field: token and vocabulary.vocabulary.find(token) for field, token in ids.items()}
    ids['eos_token_id'] = [ids['eos_token_id'], 2] if kind is bpe_with_bos else ids['eos_token_id']
    torch.manual_seed(0)
    if kind is bpe_of_gpt2:
        config = transformers.GPT2Config(vocab_size=400, n_positions=LONGEST, n_embd=32, n_layer=2, n_head=2, **ids)
        model = transformers.GPT2LMHeadModel(config)
    else:
        sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
        if kind is bpe_of_qwen:
            sizes |= dict(model_type='qwen3', head_dim=24, num_key_value_heads=1)
        config = transformers.AutoConfig.for_model(
            **{'model_type': 'llama', **sizes}, vocab_size=400, max_position_embeddings=LONGEST, **ids
        )
        model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            scaled = parameter * (4 if parameter.ndim > 1 else 1)
            parameter.copy_(scaled.bfloat16())  # to which a run of method bf16 rounds
    model.save_pretrained(folder)
    (folder / 'tokenizer_config.json').write_text(json.dumps(contents))
    return folder


def is_alike(tokenizer, text):
    """Whether SentencePiece reads a text as transformers 5 does, which takes a first space for the one put before."""
    return not (text.startswith(' ') and tokenizer.fingerprint.startswith('sentencepiece'))


@pytest.fixture(scope='module', params=KINDS, ids=lambda kind: kind.__name__)
def imported(request, tmp_path_factory):
    """The folder of a model, and the workdir of the run that it has become."""
    directory = tmp_path_factory.mktemp(request.param.__name__)
    checkpoint = write_model(directory / 'checkpoint', request.param)
    with on_mesh(ONE_DEVICE):
        import_hf.import_checkpoint(checkpoint, directory / 'run')
    return checkpoint, directory / 'run'


def test_token_ids(imported):
    """Of prompts; and the ids that end what is written are those at which `generate` of transformers stops."""
    checkpoint, workdir = imported
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint)
    with on_mesh(ONE_DEVICE):
        ours = workdirs.open_run(workdir).tokenizer
    alone = theirs.eos_token_id if theirs.bos_token_id is None else theirs.bos_token_id
    for text in (text for text in TEXTS if is_alike(ours, text)):
        assert ours.encode_prompt(text) == (theirs(text).input_ids or [alone]), text
    assert ours.end_of_document == theirs.eos_token_id and ours.special.bos == theirs.bos_token_id
    ends = transformers.GenerationConfig.from_pretrained(checkpoint).eos_token_id
    assert set(ours.special.eos) == set(ends if isinstance(ends, list) else [ends])


def test_log_likelihoods_are_those_of_hf(imported):
    """Of continuations, of whole texts in windows, and which of them are the likeliest; and texts that are written."""
    pytest.importorskip('lm_eval')
    pytest.importorskip('accelerate')  # which lm-eval's hf needs
    huggingface = importlib.import_module('lm_eval.models.huggingface')
    lm_eval_model = importlib.import_module('experiments.lm_eval_model')
    checkpoint, workdir = imported
    theirs = huggingface.HFLM(pretrained=str(checkpoint), dtype='float32', device='cpu', batch_size=2)
    with on_mesh(ONE_DEVICE):
        ours = lm_eval_model.LowPrecisionModel(workdir=str(workdir), dtype='float32', batch_size=2)
        assert (ours.max_length, ours.prefix_token_id) == (theirs.max_length, theirs.prefix_token_id)
        assert ours.eot_token_id == theirs.eot_token_id
        texts = [text for text in TEXTS if is_alike(ours.run_tokenizer, text)]
        for text in texts:
            assert ours.tok_encode(text) == theirs.tok_encode(text)
        pairs = [pair for pair in PAIRS if is_alike(ours.run_tokenizer, pair[0])]
        pairs = [types.SimpleNamespace(args=pair) for pair in pairs if pair[0] != BLANK or ours.tok_encode('')]
        assert len(pairs) >= len(PAIRS) - 1
        texts = [types.SimpleNamespace(args=(text,)) for text in texts if text]
        expected = theirs.loglikelihood(pairs, disable_tqdm=True)
        found = ours.loglikelihood(pairs, disable_tqdm=True)
        whole = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
        np.testing.assert_allclose(ours.loglikelihood_rolling(texts, disable_tqdm=True), whole, rtol=1e-5)
        asked = [(text, dict(until=['\n'], max_gen_toks=8)) for text in ('def f', 'def ' * LONGEST, 'x')]
        asked = [types.SimpleNamespace(args=args) for args in asked]
        written = ours.generate_until(asked, disable_tqdm=True)
        texts = theirs.generate_until(asked, disable_tqdm=True)
        if (checkpoint / 'tokenizer.json').exists():  # bytes that are no UTF-8 are decoded otherwise by SentencePiece
            assert written == texts and any(written)
    np.testing.assert_allclose([score for score, _ in found], [score for score, _ in expected], rtol=1e-5)
    assert [likeliest for _, likeliest in found] == [likeliest for _, likeliest in expected]
    assert min(whole) < -100


def test_texts_are_written_as_by_transformers(imported):
    """The likeliest tokens, after several prompts at a time, up to an end of a document."""
    checkpoint, workdir = imported
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with on_mesh(ONE_DEVICE):
        run = workdirs.open_run(workdir, dtype='float32')
        prompts = [run.tokenizer.encode_prompt(text)[:28] for text in ('def f', 'x', 'class A: pass # ' * 9)]
        ends = run.tokenizer.special.eos
        writer = TokenWriter(run.experiment.model, run.state.params, window=LONGEST, ends=ends)
        steps = writer.write(prompts, num_tokens=20, sampling=Sampling(0), key=jax.random.key(0))
        texts = [[] for _ in prompts]
        for step in steps:
            for i, token in step.items():
                texts[i].append(token)
    for prompt, tokens in zip(prompts, texts):
        seen = dict(input_ids=torch.tensor([prompt]), attention_mask=torch.ones((1, len(prompt))))
        theirs = model.generate(**seen, max_new_tokens=20, do_sample=False, pad_token_id=0)
        assert tokens == theirs[0, len(prompt) :].tolist()


OWN = [
    ('sentencepiece', {}),
    ('sentencepiece', {'add_bos_token': 'false', 'eos_token_id': '5'}),
    ('sentencepiece', {'bos_token_id': 'eos', 'eos_token_id': 'by_name', 'add_bos_token': 'true'}),  # of version 0.1
    ('bpe', {}),
    ('bpe', {'bos_token_id': '1'}),
    ('bpe_with_bos', {'add_bos_token': 'false'}),
    ('bpe_with_bos', {'bos_token_id': '2', 'eos_token_id': '1,2'}),
]


@pytest.mark.parametrize('family', ['llama', 'gpt2', 'mistral', 'qwen3'])
@pytest.mark.parametrize(('kind', 'asked'), OWN)
def test_transformers_read_what_a_run_of_our_own_was_trained_on(tmp_path, kind, asked, family):
    """Also where the files beside its tokenizer say something else."""
    source = tmp_path / 'source'
    source.mkdir()
    if kind == 'sentencepiece':
        path = write_sentencepiece(source / 'tokenizer.model')
    else:
        {'bpe': bpe, 'bpe_with_bos': bpe_with_bos}[kind](source)
        path = source / 'tokenizer.json'
    (source / 'generation_config.json').write_text('{"bos_token_id": 7, "eos_token_id": 8}')
    (source / 'config.json').write_text(
        '{"model_type": "llama", "max_position_embeddings": 4096, "pad_token_id": 9999}'
    )
    if asked:
        (source / 'tokenizer_config.json').write_text(
            '{"bos_token": "</s>", "eos_token": "<s>", "add_bos_token": true}'
        )
    config = small_config(tokenizer=str(path))
    config.special_tokens.update({'eos_token_id': '' if kind == 'sentencepiece' else '2'} | asked)
    if family == 'gpt2':
        sizes = dict(num_layers=1, hidden_size=32, num_heads=2, mlp_size=128, max_length=24)
        config.model = ConfigDict({'family': 'gpt2', **sizes, 'norm_epsilon': 1e-5})
    elif family == 'qwen3':
        config.model.head_dim = 24
    config.model.family = family
    with on_mesh(ONE_DEVICE):
        tokenizer = workdirs.settle_tokenizer(config, tmp_path / 'run')
        experiment = make_experiment(config, tokenizer.vocab_size)
        run = workdirs.Run(experiment, tokenizer, random_state(experiment))
        folders.write(run, tmp_path / 'run', tmp_path / 'folder', TRANSFORMERS, run.state.params, {})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'folder')
    for text in (text for text in TEXTS if text):
        assert theirs(text).input_ids == tokenizer.encode_prompt(text), text
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'folder')
    ends = model.generation_config.eos_token_id
    assert tuple(ends if isinstance(ends, list) else [ends]) == tokenizer.special.eos
    assert theirs.eos_token_id == tokenizer.end_of_document
    assert model.config.max_position_embeddings == 24
