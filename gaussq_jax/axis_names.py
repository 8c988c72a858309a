"""Which axes of a weight are stacks, inputs and outputs, where its framework says so, by names or by classes."""

import re
from typing import Any

from gaussq_jax.axis_clues import AxisReading
from gaussq_jax.param_rules import EXPERT, LAYER
from gaussq_jax.param_tree import HAIKU, Leaf, is_class

# The names that linen's and NNX's models give to axes: of flax's examples, T5X, flaxformer, MaxText.
LAYERS = {
    'layers',
    'layer',
    'stack',
    'dense_layers',
    'moe_layers',
    'local_layers',
    'scanned_blocks',
    'layers_per_stage',
}
EXPERTS = {'exp', 'expert', 'experts', 'num_experts'}
HEADS = {'heads', 'q_heads', 'kv_heads', 'num_heads', 'multiquery_heads'}
HEAD_DIMS = {'kv', 'head_dim', 'kv_head_dim', 'head_size', 'qkv'}
WIDTHS = {'embed', 'embed_moe', 'embed_no_exp', 'embed_vocab', 'norm', 'mlp_embed'}
MLP = {'mlp', 'mlp_moe', 'mlp_no_fsdp', 'expert_mlp', 'num_activations'}
OTHERS = {'joined_kv', 'vocab', 'q_lora', 'kv_lora', 'q_lora_up_proj', 'kv_lora_up_proj'}

_GROUPS = (HEADS | HEAD_DIMS, WIDTHS, MLP, *({name} for name in sorted(OTHERS)))
_NORMS = ('LayerNorm', 'RMSNorm', 'RmsNorm', 'GroupNorm', 'BatchNorm', 'LayerNormBase')


def axes_by_names(leaf: Leaf) -> AxisReading | None:
    """What the names of a leaf's axes say; None without names, and with others, such as those of a mesh.

    The last axis that is no stack is an output, and so are the others of its kind: the heads beside their head_dim. The
    rest are inputs.
    """
    names = leaf.axis_names
    if names is None:
        return None
    kinds = [_kind(name) for name in names]
    left = [axis for axis, kind in enumerate(kinds) if kind not in (LAYER, EXPERT)]
    if None in kinds or len(left) < 2:
        return None
    if len(left) == 2:
        rows, cols = left[:1], left[1:]
    else:
        rows = [axis for axis in left if kinds[axis] != kinds[left[-1]]]
        cols = [axis for axis in left if kinds[axis] == kinds[left[-1]]]
        if len({kinds[axis] for axis in rows}) != 1:
            return None
    layers, experts = ([axis for axis, kind in enumerate(kinds) if kind == role] for role in (LAYER, EXPERT))
    heads = [axis for axis in left if names[axis] in HEADS]
    why = f'its axes are named {", ".join(names)}'
    return AxisReading((*layers, *experts), tuple(rows), tuple(cols), tuple(experts), tuple(heads), why)


def layer_axes(leaf: Leaf) -> tuple[int, ...] | None:
    """The axes that count layers, by name; None where not all axes of the leaf have names that are known."""
    kinds = [_kind(name) for name in leaf.axis_names or (None,)]
    return None if None in kinds else tuple(axis for axis, kind in enumerate(kinds) if kind == LAYER)


def axes_by_module(leaf: Leaf) -> AxisReading | str | None:
    """What the class of the leaf's module says: its axes; why it is no weight matrix; None where the class isn't known.

    Equinox's weights are (out, in, window..), those of Haiku (window.., in, out), haliax's linear layers name their
    axes. What `filter_vmap`, `layer_stack` and `Stacked` stack is along the first axes. Where a Haiku module has
    another name than its class, all but matrices and convolutions of four axes is left to the evidence.
    """
    module, path = leaf.module, leaf.path.split('/')
    if module == HAIKU and path[-1] in ('w', 'w_i', 'w_h'):
        return _axes_in_haiku(path, leaf.value.shape)
    for package in ('equinox', 'haliax'):
        if is_class(module, package, 'Embedding', *_NORMS):
            return f'of {package}.nn.{type(module).__name__}'
    if is_class(module, 'haliax', 'Linear', 'MoELinear') and path[-1] == 'weight':
        return _axes_in_haliax(module, leaf.axis_names or ())
    if is_class(module, 'equinox', 'Linear') and leaf.value.shape[-2:] != _sizes_in_equinox(module):
        return None  # stacked along another axis than the first
    if is_class(module, 'equinox', 'Linear', 'GRUCell', 'LSTMCell') and path[-1].startswith('weight'):
        return _stacked(leaf.value.shape, 2, rows=(1,), cols=(0,), why='equinox: (out, in)')
    if is_class(module, 'equinox', 'Conv', 'ConvTranspose') and path[-1] == 'weight':
        if module.groups == module.in_channels > 1:
            return 'a depthwise convolution'
        own = 2 + module.num_spatial_dims
        return _stacked(leaf.value.shape, own, rows=tuple(range(1, own)), cols=(0,), why='equinox: (out, in, window..)')
    return None


def _kind(name: str) -> Any:
    if name in LAYERS:
        return LAYER
    if name in EXPERTS:
        return EXPERT
    return next((number for number, group in enumerate(_GROUPS) if name in group), None)


def _axes_in_haiku(path: list[str], shape: tuple[int, ...]) -> AxisReading | str | None:
    """By the names that Haiku gives its modules; where a model has its own, of two axes alone."""
    module = path[-2]
    if 'depthwise' in module:
        return 'a depthwise convolution'
    is_stack = any(name.startswith('__layer_stack') for name in path)
    match = re.fullmatch(r'conv(\d)_d(_transpose)?(_\d+)?', module)
    if match or (re.fullmatch(r'(?!.*(transpose|deconv|upconv))\w*conv\w*', module) and len(shape) == 4 + is_stack):
        own = int(match[1]) + 2 if match else 4
        if match and match[2]:
            rows, cols, why = (*range(own - 2), own - 1), (own - 2,), 'haiku: (window.., out, in)'
        else:
            rows, cols, why = tuple(range(own - 1)), (own - 1,), 'haiku: (window.., in, out)'
    else:
        own, rows, cols, why = 2, (0,), (1,), 'haiku: (in, out)'
    if len(shape) != own + is_stack:
        return None
    if own > 2 and shape[rows[-1] + is_stack] == 1:
        return 'a depthwise convolution, or of one channel'
    return _stacked(shape, own, rows, cols, why)


def _sizes_in_equinox(linear: Any) -> tuple[int, int]:
    return tuple(1 if size == 'scalar' else size for size in (linear.out_features, linear.in_features))


def _axes_in_haliax(module: Any, names: tuple[str, ...]) -> AxisReading | None:
    of = lambda axes: {axis.name for axis in ((axes,) if hasattr(axes, 'name') else axes)}
    inputs, outputs = of(module.In), of(module.Out)
    rows, cols = ([axis for axis, name in enumerate(names) if name in group] for group in (inputs, outputs))
    if not rows or not cols or inputs & outputs:
        return None
    batch = [axis for axis in range(len(names)) if axis not in (*rows, *cols)]
    experts = [axis for axis in batch if names[axis] in EXPERTS]
    batch.sort(key=lambda axis: axis in experts)
    heads = [axis for axis in (*rows, *cols) if 'head' in names[axis] and names[axis] not in HEAD_DIMS]
    why = f'haliax: {", ".join(sorted(inputs))} -> {", ".join(sorted(outputs))}'
    return AxisReading(tuple(batch), tuple(rows), tuple(cols), tuple(experts), tuple(heads), why)


def _stacked(shape, own: int, rows: tuple[int, ...], cols: tuple[int, ...], why: str) -> AxisReading | None:
    """The reading of a leaf whose own axes are the last ones."""
    stacks = len(shape) - own
    if stacks < 0:
        return None
    shift = lambda axes: tuple(stacks + axis for axis in axes)
    return AxisReading(tuple(range(stacks)), shift(rows), shift(cols), why=why)
