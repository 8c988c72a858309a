"""Muon against its iteration written out in NumPy and against PyTorch's: of which leaves, and along which axes."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parameter_trees import assert_identical_trees, flatten, nest
from small_experiments import make_experiment, random_batch, random_state, small_config

import gaussq_jax as gq
from experiments.training import steps
from experiments.training.muon import scale_by_muon
from gaussq_jax import models

LLAMA = models.find_family('llama')
UP, DOWN, SCALE, HEAD = 'layers/mlp/up/kernel', 'layers/mlp/down/kernel', 'layers/mlp_norm/scale', 'head/kernel'
SHAPES = {UP: (2, 4, 6), DOWN: (2, 6, 4), SCALE: (2, 4), HEAD: (4, 7), 'embed/embedding': (7, 4)}
# Of torch.optim.Muon in torch 2.13, which iterates in bfloat16: the first update of two matrices by their gradients,
# learning_rate=1, adjust_lr_fn='match_rms_adamw'.
GRADIENTS = np.float32(
    [
        [[0.13, -0.13, 0.64, 0.10, -0.54], [0.36, 1.30, 0.95, -0.70, -1.27], [-0.62, 0.04, -2.33, -0.22, -1.25]],
        [[-0.73, -0.54, -0.32, 0.41, 1.04], [-0.13, 1.37, -0.67, 0.35, 0.90], [0.09, -0.74, -0.92, -0.46, 0.22]],
    ]
)
OF_TORCH = np.float32(
    [
        [0.0106, -0.2498, 0.1948, 0.1441, -0.2882],
        [0.0625, 0.2585, 0.1398, -0.1398, -0.1494],
        [-0.1079, -0.0229, -0.3931, -0.0211, -0.2288],
    ]
)
OF_TORCH_TRANSPOSED = np.float32(
    [
        [-0.2219, -0.0159, 0.1101],
        [-0.1, 0.3424, -0.124],
        [0.0251, -0.2219, -0.3232],
        [0.1651, 0.062, -0.1922],
        [0.262, 0.2341, 0.0055],
    ]
)
BFLOAT16 = 1e-2  # of numbers of about 0.3, after five iterations


def random_tree(seed, shapes=SHAPES):
    generator = np.random.default_rng(seed)
    return {'params': nest({path: generator.normal(size=shape).astype(np.float32) for path, shape in shapes.items()})}


def orthogonalized(x):
    """Newton-Schulz in float64, of one matrix."""
    x = x.astype(np.float64)
    x /= np.sqrt((x**2).sum())
    for _ in range(5):
        products = x @ x.T
        x = 3.4445 * x + (-4.7750 * products + 2.0315 * products @ products) @ x
    return x


def muon(gradients):
    """The last of the updates of one matrix by its gradients, in float64."""
    momentum = 0.0
    for t, gradient in enumerate(gradients, start=1):
        momentum = 0.95 * momentum + 0.05 * gradient.astype(np.float64)
        ahead = 0.95 * momentum / (1 - 0.95 ** (t + 1)) + 0.05 * gradient / (1 - 0.95**t)
    return 0.2 * np.sqrt(max(ahead.shape)) * orthogonalized(ahead)


def updates_of(optimizer, gradients):
    state, update = optimizer.init(gradients[0]), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state)
    return flatten(updates['params']), state


def first_updates(kernel, family=LLAMA):
    shape = {UP: kernel.shape}
    return updates_of(
        scale_by_muon(optax.identity(), family=family), [jax.tree.map(lambda _: kernel, random_tree(0, shape))]
    )[0][UP]


def test_each_matrix_of_a_stack_is_by_itself():
    """Three steps, wide matrices and tall ones."""
    gradients = [random_tree(seed) for seed in range(3)]
    updates, _ = updates_of(scale_by_muon(optax.scale_by_adam(), family=LLAMA), gradients)
    for path in (UP, DOWN):
        for layer in range(2):
            expected = muon([flatten(gradient['params'])[path][layer] for gradient in gradients])
            np.testing.assert_allclose(updates[path][layer], expected, rtol=1e-4, atol=1e-5)
            values = np.linalg.svd(updates[path][layer] / (0.2 * np.sqrt(6)), compute_uv=False)
            assert values.min() > 0.3 and values.max() < 1.3


def test_all_else_is_the_other_optimizers():
    """Norms, embeddings and the head, bit for bit, though the latter two have the shape of a matrix."""
    gradients = [random_tree(seed) for seed in range(3)]
    updates, _ = updates_of(scale_by_muon(optax.scale_by_adam(), family=LLAMA), gradients)
    expected, _ = updates_of(optax.scale_by_adam(), gradients)
    others = SHAPES.keys() - {UP, DOWN}
    assert_identical_trees(*({path: np.asarray(of[path]) for path in others} for of in (updates, expected)))


def test_axes_are_those_of_the_familys_rules():
    """Fused outputs, stacks along another axis, and matrices with their outputs first."""
    generator = np.random.default_rng(0)
    matrices = generator.normal(size=(3, 4, 10)).astype(np.float32)
    expected = np.stack([muon([matrix]) for matrix in matrices])
    for kernel, axes, back in (
        (matrices.reshape(3, 4, 2, 5), ((0,), (1,), (2, 3)), lambda x: x.reshape(3, 4, 10)),
        (matrices.transpose(1, 0, 2), ((1,), (0,), (2,)), lambda x: x.transpose(1, 0, 2)),
        (matrices.transpose(0, 2, 1), ((0,), (2,), (1,)), lambda x: x.transpose(0, 2, 1)),
    ):
        batch, rows, cols = axes
        rules = (
            gq.MatrixRule('.*kernel', batch_axes=batch, row_axes=rows, col_axes=cols),
            gq.CastOnly('.*', optional=True),
        )
        updates = first_updates(kernel, types.SimpleNamespace(rules=rules))
        np.testing.assert_allclose(back(updates), expected, rtol=1e-4, atol=1e-5)


def test_a_gradient_of_zeros_changes_nothing():
    assert not first_updates(np.zeros((2, 4, 6), np.float32)).any()


def test_the_first_update_is_pytorchs():
    """Of later ones, the momentum differs: there it has no correction of its bias."""
    np.testing.assert_allclose(first_updates(GRADIENTS)[0], OF_TORCH, atol=BFLOAT16)
    np.testing.assert_allclose(first_updates(GRADIENTS.transpose(0, 2, 1))[1], OF_TORCH_TRANSPOSED, atol=BFLOAT16)


def test_what_is_stored_is_pytorchs():
    torch = pytest.importorskip('torch', reason='the updates of torch.optim.Muon are stored; this computes them anew')
    for gradient, stored in ((GRADIENTS[0], OF_TORCH), (GRADIENTS[1].T, OF_TORCH_TRANSPOSED)):
        weight = torch.nn.Parameter(torch.zeros(gradient.shape))
        settings = dict(lr=1.0, momentum=0.95, weight_decay=0.0, adjust_lr_fn='match_rms_adamw')
        optimizer = torch.optim.Muon([weight], **settings)
        weight.grad = torch.tensor(gradient.copy())
        optimizer.step()
        np.testing.assert_allclose(-weight.detach().numpy(), stored, atol=1e-3)


def test_a_mesh_changes_no_loss():
    """Nor the update of a matrix whose rows and columns lie on different devices."""
    config = small_config('smoke,method=bf16', optimizer__name='muon', optimizer__warmup_steps=0)
    results = []
    for sizes in ((1, 1, 1), (2, 2, 2)):
        experiment = make_experiment(config, sizes)
        state, train_step, losses = random_state(experiment), steps.make_train_step(experiment), []
        for seed in range(3):
            state, metrics = train_step(state, random_batch(experiment, seed))
            losses.append(float(metrics['train/loss']))
        results.append((losses, state))
    (losses, state), (sharded_losses, sharded) = results
    assert not sharded.params['layers']['mlp']['up']['kernel'].is_fully_replicated
    np.testing.assert_allclose(sharded_losses, losses, rtol=1e-5)
    of_matrices = lambda state: {path: leaf for path, leaf in flatten(state.params).items() if '/mlp/' in path}
    for path, leaf in of_matrices(sharded).items():
        np.testing.assert_allclose(leaf, of_matrices(state)[path], atol=5e-5, err_msg=path)


def test_the_state_is_moments_alone():
    """One of each matrix: in bfloat16, nothing else would be rounded."""
    config = small_config('smoke,method=bf16', optimizer__name='muon', optimizer__state_dtype='bfloat16')
    experiment = make_experiment(config)
    leaves = {path: leaf for path, leaf in flatten(experiment.abstract_state.opt_state).items() if leaf.ndim}
    assert {leaf.dtype for leaf in leaves.values()} == {jnp.dtype('bfloat16')}
    params = flatten(experiment.abstract_state.params)
    matrices = [leaf.size for path, leaf in params.items() if path.startswith('layers/') and path.endswith('kernel')]
    assert sum(matrices) == experiment.num_linear_params
    assert sum(leaf.size for leaf in leaves.values()) == 2 * experiment.num_params - experiment.num_linear_params
