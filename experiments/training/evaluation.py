"""What a model's loss is on text that it isn't trained on."""

import functools
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from experiments.data import batching, loading
from experiments.data.loading import Data, SourceData
from experiments.training import meshes
from experiments.training.experiment import Experiment, TrainState
from experiments.training.steps import noise_key, token_losses


def make_validation(
    experiment: Experiment, data: Data, at_batch: Callable[[], None] = lambda: None
) -> Callable[[TrainState], dict[str, float]]:
    """A function state -> metrics on the validation split: `eval_batches` batches of it, -1 for all.

    'validation/loss' in nats a token and 'validation/bits_per_byte' with the weights rounded, noise off; and
    'validation/loss_with_noise' where the method has noise. Of several sources, as many batches of each are read, and
    these are the means by the sources' weights, of tokens as training draws them; 'validation/NAME/loss' and
    'validation/NAME/bits_per_byte' are of the source NAME. The batches are processed in the parts of training;
    `at_batch` is called before each. The function raises OSError for tokens that are damaged.
    """
    config = experiment.config
    evaluate = make_evaluation(experiment)
    part = meshes.part_of_batch(experiment.mesh)
    batches = {
        source: batching.validation_batches(
            loading.make_rows(source.validation, config),
            global_batch_size=config.batch_size // config.microbatches,
            max_batches=None if config.eval_batches == -1 else config.eval_batches * config.microbatches,
            process_index=part.index,
            process_count=part.count,
        )
        for source in data.sources
    }

    def losses(state: TrainState, **options) -> dict[SourceData, float]:
        def read(of_source):
            for batch in of_source:
                at_batch()
                data.raise_if_damaged()
                yield batch

        return {source: evaluate(state, read(of), **options)['loss'] for source, of in batches.items()}

    def mean(values: dict[SourceData, float]) -> float:
        return math.fsum(float(source.weight) * value for source, value in values.items())

    def validate(state: TrainState) -> dict[str, float]:
        by_source = losses(state)
        loss, bytes_per_token = mean(by_source), mean({s: s.validation.bytes_per_token for s in data.sources})
        metrics = {'validation/loss': loss, 'validation/bits_per_byte': bits_per_byte(loss, bytes_per_token)}
        for source, of_source in by_source.items() if len(data.sources) > 1 else ():
            in_bits = bits_per_byte(of_source, source.validation.bytes_per_token)
            metrics |= {f'validation/{source.name}/loss': of_source, f'validation/{source.name}/bits_per_byte': in_bits}
        if experiment.num_blocks:
            metrics['validation/loss_with_noise'] = mean(losses(state, noise=True))
        return metrics

    return validate


def make_evaluation(experiment: Experiment) -> Callable[..., dict[str, float]]:
    """A function (state, batches, noise=False) -> {'loss': nats a token, 'tokens': their number}.

    Weights are made once: rounded, with noise only if `noise`, drawn with the key of the state's step.
    """
    config = experiment.config

    @functools.partial(jax.jit, static_argnames='noise')
    def make_weights(state: TrainState, noise: bool):
        key = noise_key(config.seed, state.step) if noise else None
        return experiment.transform.apply(key, state.params, state.transform_state)

    @jax.jit
    def sum_losses(weights, batch):
        losses = token_losses(experiment.model, weights, batch) * batch['mask']
        return jnp.sum(losses), jnp.sum(batch['mask'])

    def evaluate(state: TrainState, batches: Iterable[dict], *, noise: bool = False) -> dict[str, float]:
        weights = make_weights(state, noise)
        sums = []
        for batch in batches:
            sums.append(sum_losses(weights, meshes.to_devices(batch, experiment.mesh)))
            jax.block_until_ready(sums[-2:-1])  # one batch ahead, and no more
        loss, tokens = (sum(float(value) for value in values) for values in zip(*sums))
        return {'loss': loss / tokens, 'tokens': tokens}

    return evaluate


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Nats a token -> bits per byte of UTF-8 text, which doesn't depend on the tokenizer."""
    return loss / bytes_per_token / math.log(2)
