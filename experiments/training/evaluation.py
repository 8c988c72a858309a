"""What a model's loss is on text that it isn't trained on."""

import functools
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from experiments import methods
from experiments.data import batching, loading
from experiments.data.loading import Data, SourceData
from experiments.methods import quantization_schedule
from experiments.training import meshes
from experiments.training.experiment import Experiment, TrainState
from experiments.training.steps import noise_key, token_logits, token_measures


def make_validation(
    experiment: Experiment, data: Data, at_batch: Callable[[], None] = lambda: None
) -> Callable[[TrainState], dict[str, float]]:
    """A function state -> metrics on the validation split: `eval_batches` batches of it, -1 for all.

    'validation/loss' in nats a token and 'validation/bits_per_byte' with the weights rounded, noise off; with a teacher
    'validation/kl', the mean KL(teacher || student), in nats a token, at temperature 1 whatever training has; and
    'validation/loss_with_noise' where the method has noise. Of several sources, as many batches of each are read, and
    these are the means by the sources' weights, of tokens as training draws them; 'validation/NAME/loss' and
    its like are of the source NAME. The batches are processed in the parts of training;
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

    def measure(state: TrainState, **options) -> dict[SourceData, dict[str, float]]:
        def read(of_source):
            for batch in of_source:
                at_batch()
                data.raise_if_damaged()
                yield batch

        return {
            source: evaluate(state, read(of), **options) | {'bytes': source.validation.bytes_per_token}
            for source, of in batches.items()
        }

    def mean(by_source: dict[SourceData, dict[str, float]], name: str) -> float:
        return math.fsum(float(source.weight) * measured[name] for source, measured in by_source.items())

    def metrics_of(of: str, measured: dict[str, float]) -> dict[str, float]:
        loss, kl = measured['loss'], {f'{of}/kl': measured['kl']} if experiment.teacher else {}
        return {f'{of}/loss': loss, f'{of}/bits_per_byte': bits_per_byte(loss, measured['bytes']), **kl}

    def validate(state: TrainState) -> dict[str, float]:
        by_source = measure(state)
        metrics = metrics_of('validation', {name: mean(by_source, name) for name in by_source[data.sources[0]]})
        for source, measured in by_source.items() if len(data.sources) > 1 else ():
            metrics |= metrics_of(f'validation/{source.name}', measured)
        if experiment.num_blocks:
            metrics['validation/loss_with_noise'] = mean(measure(state, noise=True), 'loss')
        return metrics

    return validate


def make_evaluation(experiment: Experiment) -> Callable[..., dict[str, float]]:
    """A function (state, batches, noise=False) -> {'loss': nats a token, 'tokens': their number}.

    The model is as its next training step has it, quantized or not yet. Weights are made once: rounded, with noise only
    if `noise`, drawn with the key of the state's step. Without noise, a teacher gives 'kl' beside the loss.
    """
    config, teacher = experiment.config, experiment.teacher

    @functools.partial(jax.jit, static_argnames=('noise', 'now'))
    def make_weights(state: TrainState, noise: bool, now):
        key = noise_key(config.seed, state.step) if noise else None
        transform = methods.transform_now(config, experiment.transform, now)
        return transform.apply(key, state.params, state.transform_state)

    @functools.partial(jax.jit, static_argnames='now')
    def sum_measures(weights, teacher_weights, batch, now):
        logits = token_logits(methods.model_now(config, experiment.model, now), weights, batch)
        measured = token_measures(experiment, logits, batch, teacher_weights)
        sums = {name: jnp.sum(values * batch['mask']) for name, values in measured.items()}
        return sums | {'tokens': jnp.sum(batch['mask'])}

    def evaluate(state: TrainState, batches: Iterable[dict], *, noise: bool = False) -> dict[str, float]:
        now, sums = quantization_schedule.when(config, int(state.step)), []
        weights, teacher_weights = make_weights(state, noise, now), teacher.weights if teacher and not noise else None
        for batch in batches:
            sums.append(sum_measures(weights, teacher_weights, meshes.to_devices(batch, experiment.mesh), now))
            jax.block_until_ready(sums[-2:-1])  # one batch ahead, and no more
        total = {name: sum(float(of_batch[name]) for of_batch in sums) for name in sums[0]}
        return {name: value / total['tokens'] for name, value in total.items()} | {'tokens': total['tokens']}

    return evaluate


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Nats a token -> bits per byte of UTF-8 text, which doesn't depend on the tokenizer."""
    return loss / bytes_per_token / math.log(2)
