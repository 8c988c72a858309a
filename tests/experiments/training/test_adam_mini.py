"""Adam-mini against its definition in NumPy, block by block, and against its authors' code in PyTorch."""

import functools
import math

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from parameter_trees import flatten, nest
from small_experiments import on_mesh, small_config

from configs import gpt2, llama2
from experiments import methods
from experiments.training import meshes, optimizers
from experiments.training.adam_mini import scale_by_adam_mini
from experiments.training.experiment import make_experiment
from gaussq_jax.models.llama import LLAMA

LAYERS, HIDDEN, MLP, HEAD, VOCABULARY = 2, 12, 20, 3, 7
HEADS, KV_HEADS = HIDDEN // HEAD, 2
INTO_HEADS = {'query': HEADS, 'key': KV_HEADS, 'value': KV_HEADS}
SHAPES = {
    'embed/embedding': (VOCABULARY, HIDDEN),
    'position_embed/embedding': (5, HIDDEN),
    **{f'layers/attention/{name}/kernel': (LAYERS, HIDDEN, heads * HEAD) for name, heads in INTO_HEADS.items()},
    **{f'layers/attention/{name}/bias': (LAYERS, heads * HEAD) for name, heads in INTO_HEADS.items()},
    'layers/attention/out/kernel': (LAYERS, HIDDEN, HIDDEN),
    'layers/mlp/gate/kernel': (LAYERS, HIDDEN, MLP),
    'layers/mlp/up/kernel': (LAYERS, HIDDEN, MLP),
    'layers/mlp/up/bias': (LAYERS, MLP),
    'layers/mlp/down/kernel': (LAYERS, MLP, HIDDEN),
    'layers/attention_norm/scale': (LAYERS, HIDDEN),
    'layers/attention_norm/bias': (LAYERS, HIDDEN),
    'final_norm/scale': (HIDDEN,),
    'final_norm/bias': (HIDDEN,),
    'lm_head/kernel': (HIDDEN, VOCABULARY),
}


def random_leaves(seed, size=1.0):
    """{path: leaf} of numbers of very uneven sizes, so that other blocks would have other means."""
    generator = np.random.default_rng(seed)
    uneven = lambda shape: size * np.exp(generator.normal(size=shape)) * generator.normal(size=shape)
    return {path: uneven(shape).astype(np.float32) for path, shape in SHAPES.items()}


def blocks(path, shape):
    """The indices of each block of a leaf, one after the other."""
    if path.endswith('bias'):
        yield from np.ndindex(shape)
    elif path.endswith('embedding'):
        yield from ((row,) for row in range(shape[0]))
    elif path == 'lm_head/kernel':
        yield from ((slice(None), column) for column in range(shape[1]))
    elif path == 'final_norm/scale':
        yield ...
    elif path.endswith('scale'):
        yield from ((layer,) for layer in range(LAYERS))
    elif 'query' in path or 'key' in path:
        for layer, head in np.ndindex(LAYERS, shape[2] // HEAD):
            yield layer, slice(None), slice(head * HEAD, (head + 1) * HEAD)
    else:
        yield from ((layer, slice(None), neuron) for layer, neuron in np.ndindex(LAYERS, shape[2]))


def definition(path, gradients, b1, b2, eps):
    """The updates of one leaf, by algorithm 1 of the paper, in float64."""
    updates = [np.full(gradient.shape, np.nan) for gradient in gradients]
    for block in blocks(path, gradients[0].shape):
        m, v = 0.0, 0.0
        for t, gradient in enumerate(gradients, start=1):
            g = gradient[block].astype(np.float64)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * np.mean(g**2)
            updates[t - 1][block] = m / (1 - b1**t) / (math.sqrt(v / (1 - b2**t)) + eps)
    return updates


def test_definition():
    """Every leaf of Llama and of GPT-2, each in its own blocks, over steps whose gradients differ in size."""
    moments = dict(b1=0.8, b2=0.95, eps=1e-3)
    optimizer = scale_by_adam_mini(**moments, family=LLAMA, head_size=HEAD)
    gradients = [random_leaves(seed, size) for seed, size in ((1, 1.0), (2, 0.01), (3, 10.0))]
    state, update, updates = optimizer.init(nest(gradients[0])), jax.jit(optimizer.update), []
    for gradient in gradients:
        got, state = update(nest(gradient), state)
        updates.append(flatten(got))
    for path in SHAPES:
        expected = definition(path, [gradient[path] for gradient in gradients], **moments)
        np.testing.assert_allclose([got[path] for got in updates], expected, rtol=1e-5, atol=1e-6, err_msg=path)
        assert flatten(state.nu)[path].size == len(list(blocks(path, SHAPES[path])))


def torch_parameters(leaves):
    """[(path, layer or None, name in Hugging Face's Llama, leaf as PyTorch has it)]"""
    names = {'query': 'self_attn.q_proj', 'key': 'self_attn.k_proj', 'value': 'self_attn.v_proj'}
    names |= {'out': 'self_attn.o_proj', 'attention_norm': 'input_layernorm'}
    names |= {name: f'mlp.{name}_proj' for name in ('gate', 'up', 'down')}
    whole = {'embed': 'model.embed_tokens', 'final_norm': 'model.norm', 'lm_head': 'lm_head'}
    for path, leaf in leaves.items():
        *_, module, kind = path.split('/')
        transposed = leaf.swapaxes(-1, -2) if kind == 'kernel' else leaf
        suffix = 'bias' if kind == 'bias' else 'weight'
        if module in whole:
            yield path, ..., f'{whole[module]}.{suffix}', transposed
        elif module in names:
            for layer in range(LAYERS):
                yield path, layer, f'model.layers.{layer}.{names[module]}.{suffix}', transposed[layer]


def test_the_authors_code():
    """Weights after five steps of the whole optimizer: blocks, bias correction, decay and schedule."""
    torch = pytest.importorskip('torch', reason='torch is not installed; the definition is still compared')
    adam_mini = pytest.importorskip('adam_mini', reason='adam-mini is not installed; the definition is still compared')
    config = small_config(
        optimizer__name='adam_mini',
        optimizer__weight_decay=0.3,
        optimizer__clip_norm=math.inf,
        optimizer__warmup_steps=2,
        optimizer__learning_rate=0.05,
        model__hidden_size=HIDDEN,
        model__num_heads=HEADS,
    )
    start = {path: leaf for path, leaf in random_leaves(0).items() if not path.startswith('position')}
    transform = methods.find(config.method).make_transform(config)
    optimizer, schedule = optimizers.make_optimizer(config, transform), optimizers.learning_rate_schedule(config)
    values = {'params': nest(start), 'bitwidths': {}}
    state, update = optimizer.init(values), jax.jit(optimizer.update)

    named = [(name, torch.nn.Parameter(torch.tensor(leaf.copy()))) for _, _, name, leaf in torch_parameters(start)]
    theirs = adam_mini.Adam_mini(
        named,
        betas=(config.optimizer.b1, config.optimizer.b2),
        eps=config.optimizer.eps,
        weight_decay=0.3,
        dim=HIDDEN,
        n_heads=HEADS,
        n_kv_heads=KV_HEADS,
        verbose=False,
    )
    for step in range(5):
        gradients = {path: leaf for path, leaf in random_leaves(step + 1, 10.0**-step).items() if path in start}
        for (_, parameter), (*_, gradient) in zip(named, torch_parameters(gradients)):
            parameter.grad = torch.tensor(gradient.copy())
        for group in theirs.param_groups:
            group['lr'] = float(schedule(step))
        theirs.step()
        updates, state = update({'params': nest(gradients), 'bitwidths': {}}, state, values)
        values = optax.apply_updates(values, updates)

    values = flatten(values['params'])
    ours = list(torch_parameters({path: np.asarray(values[path]) for path in start}))
    assert len(ours) == len(named)
    for (_, parameter), (path, _, name, leaf) in zip(named, ours):
        np.testing.assert_allclose(leaf, parameter.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=f'{path} {name}')


@pytest.mark.parametrize(
    'config',
    [llama2.get_config('size=134m'), llama2.get_config('size=1b'), gpt2.get_config('size=124m')],
    ids=lambda config: config.name,
)
def test_memory(config):
    """A whole model's second moments are less than 1 % of its weights."""
    config.optimizer.name, config.microbatches = 'adam_mini', 1
    experiment = make_experiment(config, 32_000)
    scaling = experiment.abstract_state.opt_state.inner_states['params'].inner_state[1][0]
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert size(scaling.mu) == experiment.num_params
    assert size(scaling.nu) < 0.01 * experiment.num_params


def test_on_a_mesh():
    """Heads and neurons lie where their weights lie: devices exchange means of blocks, and no weights."""
    shapes = {
        'params/layers/attention/query/kernel': (2, 16, 24),
        'params/layers/attention/out/kernel': (2, 24, 16),
        'params/lm_head/kernel': (16, 32),
    }
    generator, results = np.random.default_rng(0), []
    gradients = nest({path: generator.normal(size=shape).astype(np.float32) for path, shape in shapes.items()})
    optimizer = scale_by_adam_mini(family=LLAMA, head_size=6)
    for sizes in [(1, 1, 1), (2, 2, 2)]:
        with on_mesh(sizes):
            mesh = meshes.make_mesh(None)
        state = optimizer.init(gradients)
        places = [meshes.state_shardings(mesh, tree, LLAMA) for tree in (gradients, state)]
        arguments = [jax.device_put(tree, place) for tree, place in zip((gradients, state), places)]
        compiled = jax.jit(optimizer.update, out_shardings=tuple(places)).lower(*arguments).compile()
        assert not any(word in compiled.as_text() for word in ('all-gather', 'all-to-all', 'collective-permute'))
        results.append(compiled(*arguments))
    assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(assert_close, *(jax.tree.map(np.asarray, result) for result in results))
    nu = flatten(results[1][1].nu)
    assert nu['params/layers/attention/query/kernel'].sharding.spec == PartitionSpec(None, None, 'tensor')
    assert nu['params/layers/attention/out/kernel'].sharding.spec == PartitionSpec(None, None, 'fsdp')


@pytest.mark.parametrize(
    ('path', 'shape', 'message'),
    [
        (
            'layers/experts/kernel',
            (2, 3, 12, 20),
            r"no rule of Adam-mini .* 'layers/experts/kernel', of shape \(2, 3, 12, 20\)",
        ),
        (
            'layers/mlp/up/weights',
            (2, 12, 20),
            "'layers/mlp/up/weights', .* rules for embedding, kernel, scale",
        ),
        ('layers/0/mlp/up/kernel', (12, 20), r"'layers/0/mlp/up/kernel', of shape \(12, 20\), share a second moment"),
        ('layers/attention/query/kernel', (2, 12, 10), r'no whole number of heads of head_size=3'),
    ],
)
def test_refuses(path, shape, message):
    with pytest.raises(ValueError, match=message):
        scale_by_adam_mini(family=LLAMA, head_size=HEAD).init(nest({path: np.zeros(shape)}))
