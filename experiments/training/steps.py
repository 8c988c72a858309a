"""The steps of a training: what the master weights and bitwidths become after a batch."""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

import gaussq_jax as gq
from experiments import methods
from experiments.methods import quantization_schedule
from experiments.training import bitwidth_metrics, distillation, meshes, optimizers
from experiments.training.experiment import Experiment, TrainState, check_takes_segments, make_model
from gaussq_jax import models


def make_train_step(experiment: Experiment) -> Callable[..., tuple[TrainState, dict]]:
    """A compiled step (state, batch) -> (state, metrics); the state is donated.

    Weights are sampled on the devices that have them: what a mesh with fsdp > 1 gathers, layer by layer, is W_hat, in
    bfloat16. They are sampled once, whatever the number of microbatches; with `config.resample_weights` instead
    layer by layer, in each microbatch forward and again backward, and so never all kept. The noise is the same,
    its key a function of (seed, step).

    With W_hat = transform(W, b), the gradients with respect to W_hat are summed over microbatches in float32; that sum
    is dW, since every transform is straight-through, and pulling it back once gives db. Over devices, the dW_hat of a
    linear layer is summed in `config.gradient_reduction`.

    The batch holds 'tokens' (batch_size, sequence_length + 1), int32; where not all of them are learned also 'mask'
    (batch_size, sequence_length), float32, the weight of each predicted token; where a row has several documents
    'segments', of the same shape, int32, which one each input is of. The loss is the mean over all predicted tokens,

        sum(mask * loss) / sum(mask)

    of the whole batch, over all devices and microbatches; not a number where sum(mask) is 0.

    With a teacher, its weights are a third argument, and what is minimised is the same mean of

        (1 - weight) * loss + weight * temperature^2 * KL(teacher || student)        see `distillation.kl_divergence`

    The metrics are scalars: 'train/loss', the cross entropy in nats a token, with a teacher 'train/kl', the mean KL at
    the temperature, 'train/gradient_norm', 'learning_rate', and where bitwidths are learned 'bits/gradient_norm'.
    """
    config, optimizer = experiment.config, experiment.optimizer
    schedule = optimizers.learning_rate_schedule(config)
    param_shardings, layers = experiment.shardings.params, experiment.family.layers
    trained = make_model(config, experiment.vocab_size, experiment.mesh, training=True)
    objective = distillation.make_objective(config) if experiment.teacher else operator.itemgetter('loss')

    def sampled(key, state):
        """The model that trains, its weights, and the function dW_hat -> db."""
        on_shards = jax.lax.with_sharding_constraint
        now = quantization_schedule.when(config, state.step)
        model = methods.model_now(config, trained, now)
        transform = methods.transform_now(config, experiment.transform, now)
        weights, pull_back = jax.vjp(
            lambda bitwidths: on_shards(transform.apply(key, state.params, bitwidths), param_shardings),
            state.transform_state,
        )
        if not config.resample_weights:
            return model, weights, pull_back
        weights, layer_transform = gq.layerwise(transform, key, state.params, state.transform_state, path=(layers,))
        layer_shardings = meshes.of_layers(param_shardings[layers])
        layer_on_shards = lambda layer, index: on_shards(layer_transform(layer, index), layer_shardings)
        return model.clone(layer_transform=layer_on_shards), on_shards(weights, param_shardings), pull_back

    def train_step(state: TrainState, batch, teacher_weights=None):
        model, weights, pull_back = sampled(noise_key(config.seed, state.step), state)

        # What makes the mean over microbatches of the sums of their losses the mean over the batch's learned tokens.
        scale = config.microbatches / jnp.sum(batch['mask']) if 'mask' in batch else None

        def loss_fn(weights, part, key):
            weights = meshes.with_whole_rows(weights, experiment.mesh, experiment.family)
            logits = token_logits(model, weights, part, rngs={'quantization': key})
            measured = token_measures(experiment, logits, part, teacher_weights, config.distillation.temperature)
            mean = lambda x: jnp.mean(x) if scale is None else jnp.sum(part['mask'] * x) * scale
            means = {name: mean(values) for name, values in measured.items()}
            return objective(means), means

        def means_and_grad(*args):
            (_, means), gradients = jax.value_and_grad(loss_fn, has_aux=True)(*args)
            return means, gradients

        rounding_keys = jax.random.split(_rounding_key(config.seed, state.step), config.microbatches)
        names = ('loss', 'kl') if experiment.teacher else ('loss',)
        means, d_params = _mean_over_microbatches(
            means_and_grad, names, weights, batch, rounding_keys, experiment.mesh, param_shardings
        )
        (d_bitwidths,) = pull_back(jax.tree.map(lambda d, w: d.astype(w.dtype), d_params, weights))
        if config.quantization.penalty:
            pull_down = bitwidth_metrics.penalty_gradient(experiment, state.transform_state)
            d_bitwidths = jax.tree.map(jnp.add, d_bitwidths, pull_down)

        gradients = {'params': jax.tree.map(lambda d: d.astype(jnp.float32), d_params), 'bitwidths': d_bitwidths}
        values = {'params': state.params, 'bitwidths': state.transform_state}
        updates, opt_state = optimizer.update(gradients, state.opt_state, values)
        values = optax.apply_updates(values, updates)
        metrics = {
            **{f'train/{name}': mean for name, mean in means.items()},
            'train/gradient_norm': optax.tree.norm(gradients['params']),
            'learning_rate': schedule(state.step),
        }
        if state.transform_state:
            metrics['bits/gradient_norm'] = optax.tree.norm(d_bitwidths)
        return TrainState(state.step + 1, values['params'], values['bitwidths'], opt_state), metrics

    replicated = NamedSharding(experiment.mesh, PartitionSpec())
    return jax.jit(train_step, donate_argnums=0, out_shardings=(experiment.shardings, replicated))


def noise_key(seed: int, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step)


def _rounding_key(seed: int, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2), step)


def token_losses(model, weights, batch, rngs=None):
    """The loss of each predicted token of a batch, masked or not: (batch_size, sequence_length), float32.

    Raises:
      ValueError: as `token_logits`.
    """
    return _cross_entropy(token_logits(model, weights, batch, rngs), batch)


def token_logits(model, weights, batch, rngs=None):
    """What a model predicts of each token of a batch: (batch_size, sequence_length, vocab_size), float32.

    Raises:
      ValueError: a batch with segments, of a model that can't keep them apart.
    """
    segments = {}
    if 'segments' in batch:
        check_takes_segments(models.family_of(model))
        segments = {'segment_ids': batch['segments']}
    return model.apply({'params': weights}, batch['tokens'][:, :-1], rngs=rngs, **segments)


def token_measures(experiment: Experiment, logits, batch, teacher_weights=None, temperature=1.0):
    """What is measured of the logits at each predicted token: 'loss', and with a teacher's weights 'kl'."""
    measured = {'loss': _cross_entropy(logits, batch)}
    if teacher_weights is None:
        return measured
    teacher, mesh = experiment.teacher, experiment.mesh
    weights = meshes.with_whole_rows(teacher_weights, mesh, teacher.family)
    model = teacher.model.clone(constrain=meshes.constrain_activations(mesh))
    of_teacher = token_logits(model, weights, batch)
    return measured | {'kl': distillation.kl_divergence(of_teacher, logits, temperature)}


def _cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch['tokens'][:, 1:])


def _mean_over_microbatches(means_and_grad, names, weights, batch, keys, mesh, shardings):
    """The means of these names, and the gradient, summed in float32 over equal parts of the batch, one for each key."""

    def on_shards(means, gradients):
        return means, jax.lax.with_sharding_constraint(gradients, shardings)

    microbatches = keys.size
    if microbatches == 1:
        return on_shards(*means_and_grad(weights, batch, keys[0]))

    def add_part(total, part):
        value = on_shards(*means_and_grad(weights, *part))
        return on_shards(*jax.tree.map(lambda sum_, x: sum_ + x.astype(jnp.float32), total, value)), None

    parts = jax.lax.with_sharding_constraint(
        jax.tree.map(  # each device keeps its own rows
            lambda rows: rows.reshape(-1, microbatches, rows.shape[-1]).swapaxes(0, 1), batch
        ),
        NamedSharding(mesh, PartitionSpec(None, *meshes.batch_sharding(mesh).spec)),
    )
    no_gradient = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
    zeros = on_shards(dict.fromkeys(names, jnp.float32(0)), no_gradient)
    total, _ = jax.lax.scan(add_part, zeros, (parts, keys))
    return jax.tree.map(lambda x: x / microbatches, total)
