"""What a training step costs with each method, as a ratio to bf16's; with what one writes first, and with qwix.

The methods are those of the configs, `naive`, the recipes of fqt by their names, and the PEERS.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments.benchmarks import timing
from experiments.cost import step_costs
from experiments.methods import METHODS, with_method
from experiments.training import meshes
from experiments.training.experiment import Experiment, init_state, make_experiment
from gaussq_jax import models, recipes
from gaussq_jax.param_tree import leaf_path, path_hash
from gaussq_jax.text_table import text_table

BASE = 'bf16'
NAIVE = 'naive'
PEERS = {'qwix-int8': 'int8', 'qwix-int4': 'int4', 'qwix-float8': 'float8_e4m3fn'}  # what qwix rounds weights to


def benchmark(
    config: ConfigDict, methods: list[str], turns: int | None, vocab_size: int, clock: str | None
) -> Iterator[tuple[dict[str, Any], str]]:
    """`time_steps` and, at its end, its table; None for the usual number of turns, and the device's clock."""
    clock, turns = clock or timing.default_clock(), turns or timing.DEFAULT_TURNS
    for results in time_steps(config, methods, turns, vocab_size=vocab_size, clock=clock):
        yield results, ''
    title = (
        f'training step of {results["config"]}, {results["parameters"]:,} parameters, {results["tokens"]:,} tokens,'
        f" {results['device']}, by the {clock}'s clock"
    )
    unseen = timing.unseen_text(results['methods'])
    yield results, f'{title}\n{steps_table(results["methods"])}\n{unseen}'.rstrip('\n')


def steps_table(methods: dict[str, Any]) -> str:
    def cells(row):
        if isinstance(row, str):
            return (row,)
        times = (f'{row[name] * 1e3:.1f} ms' for name in ('seconds', 'base_seconds'))
        return '', *times, f'{row["ratio"]:.3f}', timing.quartiles_text(row, 3), str(row.get('launches', ''))

    header = ('method', '', 'median step', 'bf16 beside it', 'to bf16', 'quartiles', 'kernels')
    return text_table([header, *((name, *cells(row)) for name, row in methods.items())], left=(0, 1))


def time_steps(
    config: ConfigDict, methods: list[str], turns: int, *, vocab_size: int, clock: str
) -> Iterator[dict[str, Any]]:
    """Times `turns` training steps of each method, which takes turns with bf16, on one random batch.

    Each has its turns with bf16 alone, so that no more than two training states are in memory. All are compiled before,
    at the same time.

    Yields:
      Each time a method is done, what it was measured on, and under 'methods' for each, bf16 first, what `take_turns`
      measured; or why there is nothing: 'not measured yet', 'not installed', or the error.

    Raises:
      ValueError: for a method or a config that isn't allowed.
    """
    if unknown := set(methods) - {*METHODS, NAIVE, *recipes.RECIPES, *PEERS}:
        allowed = ', '.join((*METHODS, NAIVE, *recipes.RECIPES, *PEERS))
        raise ValueError(f'methods={",".join(methods)}: {", ".join(sorted(unknown))} is not one of {allowed}')
    config = config.copy_and_resolve_references()
    config.optimizer.warmup_steps, config.total_steps = 1, (turns + 2) * len(methods) + 1
    names = dict.fromkeys([BASE, *methods])
    experiments = {name: make_method_experiment(config, name, vocab_size) for name in names if installed(name)}
    base = experiments[BASE]
    results = {
        **timing.provenance(),
        'config': config.name.replace(f'-{config.method}', ''),
        'parameters': base.num_params,
        'sampled': base.num_linear_params,
        'tokens': config.batch_size * config.sequence_length,
        'clock': clock,
        'turns': turns,
        'methods': {name: 'not measured yet' if installed(name) else 'not installed' for name in names},
    }
    rows = results['methods']
    rows[BASE] = 'nothing was measured beside it'
    lower = lambda experiment: step_costs.trace(experiment).lower()
    compiled = timing.compile_together({name: functools.partial(lower, e) for name, e in experiments.items()})
    base_step = None
    for name in [name for name in experiments if name != BASE] or [BASE]:
        try:
            base_step = base_step or make_step(base, compiled[BASE].result())
            pair = {BASE: base_step}
            if name != BASE:
                pair[name] = make_step(experiments[name], compiled[name].result())
            timings = timing.take_turns(pair, turns, clock=clock)
            rows |= timings if isinstance(rows[BASE], str) else {name: timings[name]}
        except Exception as error:  # such as too little memory; the others are timed all the same
            logging.info('%s fails:', name, exc_info=True)
            rows[name] = str(error).strip().splitlines()[0]
        finally:
            pair = None  # frees the training state of this method before the next one's is made
        yield results


def installed(method: str) -> bool:
    return method not in PEERS or importlib.util.find_spec('qwix') is not None


def make_method_experiment(config: ConfigDict, method: str, vocab_size: int) -> Experiment:
    """The config's experiment by this method."""
    if method == NAIVE:
        return naive(make_experiment(with_method(config, 'gaussws'), vocab_size))
    if method in PEERS:
        return make_experiment(with_qwix(config, PEERS[method]), vocab_size)
    if method in recipes.RECIPES:
        config = config.copy_and_resolve_references()
        config.quantization.recipe, method = method, 'fqt'
    return make_experiment(with_method(config, method), vocab_size)


def make_step(experiment: Experiment, train_step: Callable) -> Callable[[], Any]:
    """A function that takes one more training step, compiled, always on the same random batch."""
    shape = experiment.config.batch_size, experiment.config.sequence_length + 1
    tokens = np.random.default_rng(0).integers(0, experiment.vocab_size, shape, dtype=np.int32)
    batch = meshes.to_devices({'tokens': tokens}, experiment.mesh)
    state = init_state(experiment)

    def step():
        nonlocal state
        state, metrics = train_step(state, batch)
        return state, metrics

    return step


def naive(experiment: Experiment) -> Experiment:
    """The same experiment with Gaussian sampling as one writes it first: jax.random.normal, round, add, autodiff.

    It knows scanned matrices of whole blocks only, as those of our models are.
    """
    transform, size = experiment.transform, int(experiment.config.quantization.block_size)

    def apply(key, params, state):
        bitwidths = transform.bitwidths(state)

        def sample(path, w):
            if (name := leaf_path(path)) not in bitwidths:
                return w.astype(jnp.bfloat16)
            layers, m, n = w.shape
            blocks = jax.lax.stop_gradient(w).reshape(layers, m // size, size, n // size, size)
            step = jnp.max(jnp.abs(blocks), axis=(2, 4)) * 2 ** (1 - bitwidths[name])
            leaf_key = jax.random.fold_in(key, path_hash(name))
            noise = jnp.round(jax.random.normal(leaf_key, blocks.shape) / 2) * step[:, :, None, :, None]
            return (w + noise.reshape(w.shape)).astype(jnp.bfloat16)

        return jax.tree_util.tree_map_with_path(sample, params)

    return dataclasses.replace(experiment, transform=transform._replace(apply=apply))


def with_qwix(config: ConfigDict, dtype: str) -> ConfigDict:
    """The config of bf16 with the model's linear layers quantized by qwix, as its users do: weights alone, by channel.

    The weights are rounded to `dtype` in each matmul, straight through; the model is of a family of its own.
    """
    config = with_method(config, BASE)
    family = models.find_family(config.model.family)
    config.model.family = f'{family.name}, qwix {dtype}'
    if config.model.family not in models.FAMILIES:
        models.register_family(dataclasses.replace(family, name=config.model.family, module=_by_qwix(family, dtype)))
    return config


def _by_qwix(family: models.ModelFamily, weight_dtype: str) -> Callable:
    @functools.wraps(family.module, updated=())
    def quantized(**fields):
        import qwix

        fields['dot_general_cls'] = None  # ours: qwix puts its own in the place of JAX's
        rule = qwix.QtRule(module_path=f'{family.layers}/.*', weight_qtype=weight_dtype)
        return qwix.quantize_model(family.module(**fields), qwix.QtProvider([rule]))

    return quantized
