"""A run, or a packed file, as a model of lm-eval (`pip install lm_eval`, the extra of that name), called `gaussq_jax`.

    python -m experiments.lm_eval_model run --model gaussq_jax --batch_size 16 \\
        --model_args weights=runs/tiny-gaussws/learned.safetensors --tasks my_task --include_path my_tasks/

is lm-eval's own program, which then knows this model, too; --model_args workdir=runs/tiny-gaussws evaluates the newest
checkpoint. In Python: `simple_evaluate(LowPrecisionModel(weights='…'), tasks=[…])`.
"""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from experiments import methods, workdirs
from experiments.devices import host_memory
from experiments.methods import quantization_schedule
from experiments.training import meshes
from experiments.training.token_choice import Sampling
from experiments.training.token_writer import TokenWriter

MAX_NEW_TOKENS = 256  # where a task doesn't say


class Window(NamedTuple):
    """Tokens that the model sees at once; the last ones are scored."""

    tokens: Sequence[int]
    scored: int


@register_model('gaussq_jax')
class LowPrecisionModel(TemplateLM):
    """The model of a run, with its weights rounded and no noise.

    Texts begin with what they begin with in training: with BOS, or after the end of a document; those of an imported
    model with what its own tokenizer puts before them. What doesn't fit into the window is seen as far as it fits: of a
    context the end; a longer text to score is scored in windows, each token once. Of imported models, token ids and
    log-likelihoods are those of lm-eval's `hf` with transformers 5, which scores BOS too where it scores a whole text;
    but text that looks like a special token is text here, and SentencePiece keeps a space at the beginning. Numbers
    don't depend on what else is in a batch, nor do texts; except for fqt with activations whose scales span tokens
    (block_size=tensor, tiles of several rows, NVFP4), of which a note tells.

    Args:
      workdir: a run's directory, whose newest checkpoint is evaluated; or else
      weights: a packed file.
      tokenizer: with `weights`, the tokenizer's file, if it isn't beside them or in the folder `tokenizer` there.
      window: how many tokens the model sees at once, if not as many as in training.
      prefix_token_id: the token that a text follows whose first token is scored, too, if not BOS, or EOS without BOS.
      dtype: of the computation, if not as in training.
      batch_size: sequences at a time.
      max_batch_size: refused.
      device: what lm-eval's program gives to every model, and of no use here: JAX has its own.

    Raises:
      ValueError: for neither or both of `workdir` and `weights`, what they are not, and settings that can't be.
    """

    def __init__(
        self,
        workdir: str = '',
        weights: str = '',
        tokenizer: str = '',
        window: int | None = None,
        prefix_token_id: int | None = None,
        dtype: str = '',
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        if max_batch_size is not None:
            raise ValueError(f'max_batch_size={max_batch_size!r} has no meaning here: give batch_size as a number')
        self.batch_size = _positive('batch_size', batch_size)
        run = workdirs.open_either(workdir, weights, tokenizer, **({'dtype': dtype} if dtype else {}))
        self.run_tokenizer = run.tokenizer
        self._mesh = run.experiment.mesh
        now = quantization_schedule.when(run.experiment.config, int(run.state.step))
        if methods.scales_span_tokens(run.experiment.config, now):
            print(f'note: {methods.SPAN_TOKENS}', file=sys.stderr)
        self._weights = run.experiment.transform.apply(None, run.state.params, run.state.transform_state)
        config = run.experiment.config
        self.max_length = config.sequence_length if window is None else _positive('window', window)
        if self.max_length > config.model.get('max_length', self.max_length):
            raise ValueError(f'window={window}: this model has {config.model.max_length} positions')
        self._prefix = run.tokenizer.special.prefix if prefix_token_id is None else prefix_token_id
        if self._prefix not in range(run.experiment.vocab_size):
            raise ValueError(f'prefix_token_id={prefix_token_id!r}: allowed are 0 to {run.experiment.vocab_size - 1}')
        model = run.experiment.model

        @jax.jit
        def score(weights, batch):
            logits = model.apply({'params': weights}, batch['tokens'][:, :-1])
            targets = batch['tokens'][:, 1:]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return -losses, jnp.argmax(logits, -1) == targets

        self._score = score
        self._writer = TokenWriter(
            model,
            self._weights,
            window=self.max_length,
            vocab_size=run.tokenizer.vocab_size,
            ends=run.tokenizer.special.eos,
            mesh=self._mesh,
        )

    @property
    def eot_token_id(self) -> int:
        return self.run_tokenizer.end_of_document

    @property
    def prefix_token_id(self) -> int:
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        return self.run_tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """The tokens of a text, after what texts begin with unless `add_special_tokens=False`."""
        special = self.run_tokenizer.special
        leads = special.add_bos if add_special_tokens is None else add_special_tokens
        before = [] if not leads or special.bos is None else [special.bos]
        return before + self.run_tokenizer.encode(string).tolist()

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs
    ) -> list[tuple[float, bool]]:
        windows = [
            split((context or [self.prefix_token_id]) + continuation, len(continuation), self.max_length)
            for _, context, continuation in requests
        ]
        scores = self._score_texts(windows, 'loglikelihood', disable_tqdm)
        for (texts, *_), score in zip(requests, scores):
            self.cache_hook.add_partial('loglikelihood', texts, score)
        return scores

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """ln p of each whole text, after the prefix."""
        before = [self.prefix_token_id, *self.run_tokenizer.before_whole_text]
        texts = [before + self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        windows = [split(tokens, len(tokens) - 1, self.max_length) for tokens in texts]
        scores = [score for score, _ in self._score_texts(windows, 'loglikelihood_rolling', disable_tqdm)]
        for request, score in zip(requests, scores):
            self.cache_hook.add_partial('loglikelihood_rolling', request.args, score)
        return scores

    def _score_texts(
        self, texts: Sequence[Sequence[Window]], name: str, disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        """The sum of ln p over the windows of each text, and whether every token was the likeliest."""
        windows = list(itertools.chain.from_iterable(texts))
        scores = [(0.0, True)] * len(windows)
        with tqdm(total=len(windows), desc=name, disable=disable_tqdm) as progress:
            for indices in batches([len(window.tokens) - 1 for window in windows], self._padded, self.batch_size):
                rows = [windows[i].tokens for i in indices]
                length = self._padded(max(map(len, rows)) - 1) + 1
                results = self._score(self._weights, self._to_devices(rows, length))
                for i, row, *of_row in zip(indices, rows, *map(np.asarray, results)):
                    scored = slice(len(row) - 1 - windows[i].scored, len(row) - 1)
                    log_probabilities, likeliest = (values[scored] for values in of_row)
                    scores[i] = (float(np.sum(log_probabilities, dtype=np.float64)), bool(likeliest.all()))
                progress.update(len(indices))
        scores = iter(scores)
        of_texts = [list(itertools.islice(scores, len(windows))) for windows in texts]
        return [(sum(score for score, _ in parts), all(likeliest for _, likeliest in parts)) for parts in of_texts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the first of the task's stop sequences, or a document's end.

        Of a context its end is seen, as much of it as leaves room for max_gen_toks in the window, as with lm-eval's
        `hf`. Where a task samples, it draws from all tokens unless it gives top_k (0 or -1: all) or top_p, while `hf`
        has a top_k of 50. A drawn text depends on its request's place, and on no other request.

        Raises:
          ValueError: for other settings of sampling, or a max_gen_toks that leaves no room for a context.
        """
        settings = [self._settings(request.args[1]) for request in requests]
        prompts = [
            (self.tok_encode(request.args[0]) or [self.prefix_token_id])[setting.max_new_tokens - self.max_length :]
            for request, setting in zip(requests, settings)
        ]
        texts = [''] * len(requests)
        with tqdm(total=len(requests), desc='generate_until', disable=disable_tqdm) as progress:
            for setting in dict.fromkeys(settings):
                alike = [i for i in range(len(requests)) if settings[i] == setting]
                for chunk in batches([len(prompts[i]) for i in alike], self._padded, self.batch_size):
                    indices = [alike[i] for i in chunk]
                    for i, text in zip(indices, self._generate([prompts[i] for i in indices], setting, indices)):
                        texts[i] = text
                        self.cache_hook.add_partial('generate_until', requests[i].args, text)
                    progress.update(len(indices))
        return texts

    def _generate(self, prompts: Sequence[list[int]], setting: 'GenerationSettings', rows: Sequence[int]) -> list[str]:
        how = dict(num_tokens=setting.max_new_tokens, sampling=setting.sampling, key=jax.random.key(0), rows=rows)
        written, texts, writing = [[] for _ in prompts], [''] * len(prompts), set(range(len(prompts)))
        for step in self._writer.write(prompts, batch_size=self.batch_size, **how):
            for i in writing & step.keys():
                written[i].append(step[i])
                whole = self.run_tokenizer.decode(t for t in written[i] if t not in self.run_tokenizer.special.eos)
                ends = [whole.index(stop) for stop in setting.until if stop in whole]
                texts[i] = whole[: min(ends, default=None)]
                if ends:
                    writing.remove(i)
            if not writing & step.keys():
                break
        return texts

    def _settings(self, options: dict) -> 'GenerationSettings':
        setting = _generation_settings(options)
        if not 1 <= setting.max_new_tokens < self.max_length:
            raise ValueError(
                f'max_gen_toks={setting.max_new_tokens}: allowed are 1 to {self.max_length - 1}, of a window of'
                f' {self.max_length} tokens; a task says it in generation_kwargs'
            )
        return setting

    def _padded(self, length: int) -> int:
        return self._writer.padded(length)

    def _to_devices(self, rows: Sequence[Sequence[int]], length: int) -> dict[str, jax.Array]:
        """Rows of this length, padded with zeros after their last token, which a causal model doesn't see before."""
        shards = meshes.num_batch_shards(self._mesh)
        batch = {'tokens': np.zeros((-(-self.batch_size // shards) * shards, length), np.int32)}
        for i, row in enumerate(rows):
            batch['tokens'][i, : len(row)] = row
        return meshes.to_devices(batch, self._mesh)


class GenerationSettings(NamedTuple):
    """How a task wants texts to be written."""

    until: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling


def split(tokens: Sequence[int], scored: int, length: int) -> list[Window]:
    """Windows of at most `length` tokens and the one after them, in which the last `scored` tokens are scored once.

    Each has as many tokens before the first one that it scores as fit.
    """
    windows, start = [], len(tokens) - scored
    while start < len(tokens):
        stop = min(start + length, len(tokens))
        windows.append(Window(tokens[max(0, stop - length - 1) : stop], stop - start))
        start = stop
    return windows


def batches(lengths: Sequence[int], padded: Callable[[int], int], batch_size: int) -> Iterator[list[int]]:
    """Indices of sequences of one padded length, at most `batch_size` at a time, the longest first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for _, alike in itertools.groupby(order, key=lambda i: padded(lengths[i])):
        alike = list(alike)
        yield from (alike[i : i + batch_size] for i in range(0, len(alike), batch_size))


def _generation_settings(options: dict) -> GenerationSettings:
    do_sample, temperature = options.get('do_sample'), _number('temperature', options.get('temperature', 0.0))
    if not (do_sample is None or isinstance(do_sample, bool)):
        raise ValueError(f'do_sample={do_sample!r}: allowed are True and False')
    if do_sample and not temperature:
        raise ValueError('do_sample=True needs a temperature above 0; without sampling, do_sample=False')
    Sampling(temperature)  # which can be wrong where nothing is sampled, too
    options = normalize_gen_kwargs({**options, 'temperature': temperature}, default_max_gen_toks=MAX_NEW_TOKENS)
    is_sampled = options.pop('do_sample')
    allowed = {'until', 'max_gen_toks', 'temperature', 'top_p', 'top_k'}
    if unknown := sorted(set(options) - allowed):
        raise ValueError(f'generation_kwargs has {", ".join(unknown)}: allowed are {", ".join(sorted(allowed))}')
    sampling = Sampling(0)
    if is_sampled:
        top_k = None if options.get('top_k') in (0, -1) else options.get('top_k')  # as in transformers, and in vLLM
        sampling = Sampling(temperature, top_k, options.get('top_p'))
    until = tuple(filter(None, options['until']))
    return GenerationSettings(until, options['max_gen_toks'], sampling)


def _number(name: str, value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f'{name}={value!r}: allowed is a number') from None


def _positive(name: str, value) -> int:
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f'{name}={value!r}: allowed is a positive integer')
    return int(value)


if __name__ == '__main__':
    host_memory.keep_freed_memory()
    cli_evaluate()
