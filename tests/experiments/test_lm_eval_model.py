"""The model for lm-eval: its numbers are those of the logits in float64, whatever is batched and padded with what."""

import importlib
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from small_experiments import ONE_DEVICE, on_mesh

from configs import tiny
from experiments import workdirs
from experiments.data import tokenizers
from experiments.training import meshes
from experiments.training.experiment import UNCHANGED, TrainState
from gaussq_jax import models

lm_eval = pytest.importorskip('lm_eval')
lm_eval_model = importlib.import_module('experiments.lm_eval_model')

REPOSITORY = pathlib.Path(__file__).parents[2]
WINDOW = 24
PAIRS = [
    ('import ', 'os'),
    ('', 'nothing before'),
    ('spaces at the end   ', 'x'),
    (' \n ', 'y'),
    ('naïve', ' café §'),
    ('a context that is longer than the window is', ' seen from its end'),
    ('a text to score', ' that alone is longer than the window, by a lot'),
    ('one', 'x'),
]
TEXTS = [
    'short',
    'x',
    '',
    'exactly the window long!',
    'and one more than that, ë',
    'a text of more than two windows ' * 2,
]


def make_run(sizes):
    """One of a small model, whose choices are far apart, and ASCII."""
    model = models.Llama(vocab_size=257, num_layers=1, hidden_size=16, mlp_size=16, num_heads=2, dtype=jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))['params']
    params = jax.tree.map(lambda leaf: 30 * leaf if leaf.ndim > 1 else leaf, params)
    params['lm_head']['kernel'] = params['lm_head']['kernel'].at[:, 128:].set(0)
    with on_mesh(sizes):
        mesh = meshes.make_mesh(None)
    config = ConfigDict(dict(method='bf16', sequence_length=WINDOW, model={}))
    halved = UNCHANGED._replace(apply=lambda key, params, state: jax.tree.map(lambda leaf: leaf / 2, params))
    experiment = types.SimpleNamespace(config=config, vocab_size=257, mesh=mesh, model=model, transform=halved)
    state = TrainState(0, jax.device_put(params, NamedSharding(mesh, PartitionSpec())), {}, ())
    return workdirs.Run(experiment, tokenizers.load_tokenizer('bytes'), state)


@pytest.fixture(scope='module')
def run():
    return make_run(ONE_DEVICE)


@pytest.fixture(scope='module')
def log_probabilities(run):
    """ln p of every next token, of one sequence without any padding: (length, vocabulary) float64."""
    weights = run.experiment.transform.apply(None, run.state.params, run.state.transform_state)
    apply = jax.jit(lambda tokens: run.experiment.model.apply({'params': weights}, tokens)[0])

    def compute(tokens):
        # Later tokens change nothing of what is compared, and one length is compiled once.
        padded = np.full((1, WINDOW), 99, np.int32)
        padded[0, : len(tokens)] = tokens
        logits = np.asarray(apply(padded), np.float64)[: len(tokens)]
        return logits - np.log(np.sum(np.exp(logits - logits.max()), -1, keepdims=True)) - logits.max()

    return compute


def make_adapter(run, **settings):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(workdirs, 'open_run', lambda workdir: run)
        return lm_eval_model.LowPrecisionModel(**{'workdir': 'a', 'batch_size': 3, **settings})


@pytest.fixture(scope='module')
def adapter(run):
    """Of `run`, three sequences at a time."""
    return make_adapter(run)


def requests(*arguments):
    return [types.SimpleNamespace(args=args) for args in arguments]


def encode(text):
    return [256, *text.encode()]


@pytest.mark.parametrize('sizes', [ONE_DEVICE, pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def test_log_likelihoods(adapter, log_probabilities, sizes):
    """Of a continuation that fits into the window: after as much of its context as does."""
    pairs = [pair for pair in PAIRS if len(pair[1].encode()) <= WINDOW - 4]
    adapter = adapter if sizes == ONE_DEVICE else make_adapter(make_run(sizes))
    results = adapter.loglikelihood(requests(*pairs), disable_tqdm=True)
    assert len(pairs) == len(PAIRS) - 1
    for (context, continuation), (score, likeliest) in zip(pairs, results, strict=True):
        tokens = encode(context + continuation)[-WINDOW - 1 :]
        number = len(continuation.encode()) + (len(context) - len(context.rstrip()))
        of_tokens = log_probabilities(tokens[:-1])[np.arange(-number, 0), tokens[-number:]]
        assert score == pytest.approx(of_tokens.sum(), rel=1e-5) and not likeliest


def test_a_continuation_longer_than_the_window(adapter, log_probabilities):
    """Each of its tokens once, after the tokens of its window."""
    ((context, continuation),) = (pair for pair in PAIRS if len(pair[1]) > WINDOW)
    tokens, expected = encode(context + continuation), 0.0
    first = len(encode(context))
    for start in range(first, len(tokens), WINDOW):
        stop = min(start + WINDOW, len(tokens))
        seen = tokens[stop - 1 - WINDOW : stop - 1]
        expected += log_probabilities(seen)[np.arange(start - stop, 0), tokens[start:stop]].sum()
    ((score, _),) = adapter.loglikelihood(requests((context, continuation)), disable_tqdm=True)
    assert score == pytest.approx(expected, rel=1e-5)


def test_rolling_log_likelihoods(adapter, log_probabilities):
    """Of whole texts, in lm-eval's own windows: each token once, the last ones after as many as fit."""
    scores = adapter.loglikelihood_rolling(requests(*((text,) for text in TEXTS)), disable_tqdm=True)
    for text, score in zip(TEXTS, scores, strict=True):
        expected = 0.0
        for window in lm_eval.utils.get_rolling_token_windows(list(text.encode()), 256, WINDOW, 1):
            context, predicted = lm_eval.utils.make_disjoint_window(window)
            seen = (context + predicted)[:-1]
            expected += log_probabilities(seen)[np.arange(-len(predicted), 0), predicted].sum()
        assert score == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(('length', 'scored'), [(1, 0), (2, 1), (9, 3), (5, 4), (6, 5), (30, 29), (30, 13), (12, 4)])
def test_windows(length, scored):
    """Every token once, after as many as there are and fit: none of an empty text."""
    tokens = list(range(length))
    windows = lm_eval_model.split(tokens, scored, 4)
    assert [token for window in windows for token in window.tokens[-window.scored :]] == tokens[length - scored :]
    for window in windows:
        assert len(window.tokens) == min(4 + 1, window.tokens[-1] + 1) and window.scored < len(window.tokens)


def test_the_likeliest_continuation(adapter, run, log_probabilities):
    """It is told from one that is likeliest but for its last token."""
    tokens = encode('def')
    for _ in range(4):
        tokens.append(int(log_probabilities(tokens)[-1].argmax()))
    text = bytes(tokens[1:]).decode()
    other = text[:-1] + chr(text.encode()[-1] ^ 1)
    pairs = [('def', text[3:]), ('def', other[3:])]
    results = adapter.loglikelihood(requests(*pairs), disable_tqdm=True)
    assert [result for _, result in results] == [True, False]


# --- what it writes ---------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def write(log_probabilities):
    """The likeliest text after as much of a prompt as leaves room for it, or up to the end of a document."""

    def write(prompt, num_tokens):
        tokens, written = encode(prompt)[num_tokens - WINDOW :], []
        for _ in range(num_tokens):
            token = int(log_probabilities(tokens + written)[-1].argmax())
            if token == 256:
                break
            written.append(token)
        return bytes(written).decode()

    return write


def test_likeliest_texts(adapter, write):
    """Of prompts of all lengths in one batch, to the end; and up to the first stop sequence, which is left out."""
    prompts = ['def', '', 'a context that is longer than the window']
    expected = [write(prompt, 12) for prompt in prompts]
    assert all(len(text) > 8 for text in expected)
    options = dict(until=[], max_gen_toks=12)
    assert adapter.generate_until(requests(*((p, options) for p in prompts)), True) == expected
    stops = [text[6:8] for text in expected]
    cut = [text[: min(text.index(stop) for stop in stops if stop in text)] for text in expected]
    options = dict(until=stops, max_gen_toks=12, do_sample=False, temperature=0.7, top_p=0.9)
    assert adapter.generate_until(requests(*((p, options) for p in prompts)), True) == cut


def test_each_request_has_its_own_settings(adapter, write):
    prompts = ['def', 'class', 'def']
    options = [dict(until=['\0'], max_gen_toks=length) for length in (3, 5, 4)]
    texts = adapter.generate_until(requests(*zip(prompts, options)), True)
    assert [text[:2] for text in texts] == [write(prompt, 2) for prompt in prompts]
    assert [len(write(prompt, n)) for prompt, n in zip(prompts, (3, 5, 4))] == [len(text) for text in texts]


def test_drawn_texts(adapter, write):
    """With a temperature, the same requests give the same texts, and equal requests several; each for itself."""
    options = dict(until=[], max_gen_toks=4, do_sample=True, temperature=5.0)
    draw = lambda *prompts, **more: adapter.generate_until(requests(*((p, options | more) for p in prompts)), True)
    texts = draw(*['def'] * 8)
    assert len(set(texts)) > 1 and draw(*['def'] * 8) == texts
    assert draw('def', 'another', 'def', 'a context that is longer than the window')[::2] == texts[:3:2]
    assert draw('def', top_k=1) == draw('def', top_p=1e-6) == [write('def', 4)]
    assert draw('def', top_k=0, top_p=1.0) == draw('def', top_k=-1, temperature='5.0') == texts[:1]


def test_texts_that_depend_on_others_are_told(run, capsys):
    """Where activations have scales that tokens share."""
    make_adapter(run)
    assert capsys.readouterr().err == ''
    config = tiny.get_config('method=fqt,block_size=tensor,targets=P1+P2')
    config.sequence_length = WINDOW
    make_adapter(run._replace(experiment=types.SimpleNamespace(**vars(run.experiment) | {'config': config})))
    assert capsys.readouterr().err.startswith('note: scales of activations span tokens: a text depends on')


# --- settings, tasks --------------------------------------------------------------------------------


def test_it_is_known_by_its_name():
    assert lm_eval.api.registry.get_model('gaussq_jax') is lm_eval_model.LowPrecisionModel


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(workdir=''), "give workdir, a run's directory, or weights"),
        (dict(weights='b'), "workdir='a', weights='b': give one of them"),
        (dict(tokenizer='t.json'), "tokenizer='t.json' has a meaning only with weights"),
        (dict(batch_size='auto'), "batch_size='auto': allowed is a positive integer"),
        (dict(batch_size='auto:4', max_batch_size=8), 'max_batch_size=8 has no meaning here'),
        (dict(window=0), 'window=0: allowed'),
        (dict(prefix_token_id=257), 'prefix_token_id=257: allowed are 0 to 256'),
    ],
)
def test_mistakes_are_told(run, settings, message):
    with pytest.raises(ValueError, match=message):
        make_adapter(run, **settings)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(repetition_penalty=1.1), 'generation_kwargs has repetition_penalty: allowed are'),
        (dict(do_sample=True, temperature=1.0, top_k=-2), 'top_k=-2: allowed'),
        (dict(do_sample=True, temperature='hot'), "temperature='hot': allowed is a number"),
        (dict(temperature=None), 'temperature=None: allowed is a number'),
        (dict(temperature=-1.0), 'temperature=-1.0: allowed are 0 and numbers'),
        (dict(do_sample=True), 'do_sample=True needs a temperature above 0'),
        (dict(do_sample=True, temperature=0), 'do_sample=True needs a temperature above 0'),
        (dict(do_sample='no', temperature=1.0), "do_sample='no': allowed are True and False"),
        (dict(do_sample=True, temperature=1.0, top_p=2.0), 'top_p=2.0: allowed'),
        (dict(max_gen_toks=WINDOW), f'max_gen_toks={WINDOW}: allowed are 1 to {WINDOW - 1}, of a window of {WINDOW}'),
        (dict(), 'max_gen_toks=256: allowed are 1 to'),
    ],
)
def test_settings_that_cannot_be(adapter, options, message):
    """They are told before any text is written."""
    with pytest.raises(ValueError, match=message):
        adapter.generate_until(requests(('def', dict(max_gen_toks=2)), ('def', options)), True)


@pytest.mark.slow
def test_tasks(adapter, monkeypatch, tmp_path):
    """Tasks of all three kinds of requests, from files, by lm-eval itself."""
    import datasets
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path)
    tasks = ['python_choice', 'python_text', 'python_line']
    results = lm_eval.simple_evaluate(
        model=adapter,
        tasks=tasks,
        task_manager=TaskManager(include_path='tests/data/lm_eval', include_defaults=False),
    )
    assert {task: results['n-samples'][task]['effective'] for task in tasks} == dict.fromkeys(tasks, 8)
    assert 6 < results['results']['python_text']['bits_per_byte,none'] < 20
    assert 0 <= results['results']['python_choice']['acc,none'] <= 1
