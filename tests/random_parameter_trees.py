"""Parameter trees as frameworks make them, drawn at random, with what each axis really is.

Sizes are drawn from few numbers, so that layers, heads and widths often coincide; biases and norms are there or not.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from parameter_trees import nest

NAMES = {  # of axes, as MaxText has them
    'd': 'embed', 'f': 'mlp', 'h': 'heads', 'k': 'kv', 'l': 'layers', 'e': 'exp', 'v': 'vocab', 'q': 'q_lora',
    'a': 'joined_kv',
}  # fmt: skip


@dataclasses.dataclass
class Weight:
    """A leaf: a letter an axis, such as 'ldhk', and which of them are inputs and outputs; '' for what is no matrix."""

    letters: str
    rows: str = ''
    cols: str = ''
    kind: str = ''  # by which refusals are counted


class Draw:
    """A tree: `weights` by path, the size of each letter, and whether axes have names.

    Sizes are drawn from two to four numbers; or all apart, but that the width is that of all heads.
    """

    def __init__(self, generator: np.random.Generator, *, with_names: bool = False, apart: bool = False):
        self.generator, self.with_names = generator, with_names
        letters = 'dfhknleqwcmgrps'
        few = generator.choice([2, 3, 4, 6, 8, 12], size=generator.integers(2, 5))
        drawn = (
            generator.permutation([2, 4, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 19, 21, 22])
            if apart
            else generator.choice(few, len(letters))
        )
        self.sizes = dict(zip(letters, map(int, drawn))) | {'v': 50, 'x': 1, 't': 3}
        self.sizes['a'] = self.sizes['h'] * self.sizes['k']
        if apart or generator.random() < 0.5:  # as in most models
            self.sizes['d'] = self.sizes['a']
        self.sizes['o'] = self.sizes['d']  # the outputs of what has as many as inputs
        self.bias, self.norms = generator.random() < 0.5, generator.random() < 0.85
        self.weights = {'embed/embedding': Weight('vd')}
        self.add_stem()
        for number in range(generator.integers(1, 3)):
            self.add_blocks(f'part_{number}' if number else '')
        if self.norms:
            self.weights['final_norm/scale'] = Weight('d')
        if self.chance(0.5):
            self.add_linear('lm_head', 'd', 'v', 'head')
            self.weights['lm_head/kernel'] = Weight('dv')
        if self.chance(0.1):  # an ensemble
            self.weights = {path: self.stacked(weight, 's', 0) for path, weight in self.weights.items()}

    def chance(self, probability: float) -> bool:
        return bool(self.generator.random() < probability)

    def pick(self, *options):
        return options[self.generator.integers(len(options))]

    def add_linear(self, module, rows, cols, kind, bias=None):
        self.weights[f'{module}/kernel'] = Weight(rows + cols, rows, cols, kind)
        if self.bias if bias is None else bias:
            self.weights[f'{module}/bias'] = Weight(cols)

    def add_stem(self):
        if self.chance(0.3):
            self.add_linear(self.pick('stem/conv', 'Conv_0'), self.pick('twc', 'tc', 'twx'), 'd', 'convolution')
        elif self.chance(0.2):
            bias = self.with_names or None  # where neither names nor a bias tell, nothing does
            self.add_linear('patches', 'twc', 'd', 'convolution by another name', bias)

    def add_blocks(self, part):
        name = '/'.join(filter(None, [part, self.pick('layers', 'blocks', 'encoder/h', 'ScanBlock_0')]))
        before = dict(self.weights)
        is_stacked, axis = self.chance(0.6), self.pick(0, 0, 1, 1, -1)
        self.add_block(name if is_stacked else f'{name}_0')
        if not is_stacked:
            if self.chance(0.5):
                self.add_block(f'{name}_1')
            return
        if self.chance(0.2):
            inside, inner_axis = dict(self.weights), self.pick(0, 1)
            self.add_block(f'{name}/inner')
            for path in self.weights.keys() - inside.keys():
                self.weights[path] = self.stacked(self.weights[path], 'p', inner_axis)
        for path in self.weights.keys() - before.keys():
            self.weights[path] = self.stacked(self.weights[path], 'l', axis)

    def stacked(self, weight, letter, axis):
        at = axis if axis >= 0 else len(weight.letters)
        return dataclasses.replace(weight, letters=weight.letters[:at] + letter + weight.letters[at:])

    def add_block(self, block):
        if self.norms:
            for norm in ('norm_1', 'norm_2'):
                self.weights[f'{block}/{norm}/scale'] = Weight('d')
                if self.bias:
                    self.weights[f'{block}/{norm}/bias'] = Weight('d')
        if self.chance(0.9):
            attentions = (
                self.add_joined,
                self.add_einsums,
                self.add_latent,
                self.add_cross_attention,
                self.add_diagonal_blocks,
            )
            self.pick(*[self.add_heads] * 3, *attentions)(f'{block}/attn')
        if self.chance(0.8):
            self.pick(self.add_mlp, self.add_mlp, self.add_experts, self.add_convs, self.add_general)(
                f'{block}/{self.pick("mlp", "ffn")}'
            )

    def add_heads(self, module):
        names, keys = (
            self.pick((('query', 'key', 'value'), 'out'), (('q_proj', 'k_proj', 'v_proj'), 'o_proj')),
            self.pick('h', 'n'),
        )
        (query, *others), out = names
        self.add_linear(f'{module}/{query}', 'd', 'hk', 'fused heads')
        for other in others:
            self.add_linear(f'{module}/{other}', 'd', f'{keys}k', 'fused heads')
        self.add_linear(f'{module}/{out}', 'hk', 'd', 'fused heads')
        if self.chance(0.3):
            self.weights[f'{module}/q_norm/scale'] = Weight('k')
            self.weights[f'{module}/k_norm/scale'] = Weight('k')

    def add_joined(self, module):
        for name in ('query', 'key', 'value'):
            self.add_linear(f'{module}/{name}', 'd', 'a', 'two axes')
        self.add_linear(f'{module}/out', 'a', 'd', 'two axes')

    def add_einsums(self, module):
        """As Gemma has them: the inputs lie among the outputs."""
        self.weights[f'{module}/q_einsum/kernel'] = Weight('hdk', 'd', 'hk', 'einsum')
        self.weights[f'{module}/attn_vec_einsum/kernel'] = Weight('hkd', 'hk', 'd', 'einsum')

    def add_cross_attention(self, module):
        for name, width, heads in ('q', 'd', 'h'), ('k', 'm', 'n'), ('v', 'm', 'n'):
            self.add_linear(f'{module}/{name}', width, f'{heads}k', 'fused heads')
        self.add_linear(f'{module}/out', 'hk', 'd', 'fused heads')

    def add_diagonal_blocks(self, module):
        """As Griffin has them: a matrix a head, and a bias for each."""
        for name in ('input_gate', 'a_gate'):
            self.weights[f'{module}/{name}/kernel'] = Weight('hkg', 'k', 'g', 'blocks on a diagonal')
            if self.bias:
                self.weights[f'{module}/{name}/bias'] = Weight('hg')
        self.add_linear(f'{module}/out', 'hk', 'd', 'fused heads')

    def add_general(self, module):
        """DenseGeneral with two axes of outputs, and of inputs."""
        self.add_linear(f'{module}/up', 'd', 'gr', 'fused heads')
        self.add_linear(f'{module}/down', 'gr', 'd', 'fused heads')

    def add_latent(self, module):
        """As DeepSeek has it: queries and keys from narrow latents."""
        self.add_linear(f'{module}/q_a', 'd', 'q', 'two axes', bias=False)
        self.add_linear(f'{module}/q_b', 'q', 'hk', 'heads from latents', bias=False)
        if self.chance(0.5):
            self.weights[f'{module}/q_a_norm/scale'] = Weight('q')
        self.add_linear(f'{module}/out', 'hk', 'd', 'heads from latents')

    def add_mlp(self, module):
        for name in self.pick(('up',), ('gate', 'up')):
            self.add_linear(f'{module}/{name}', 'd', 'f', 'two axes')
        self.add_linear(f'{module}/down', 'f', 'd', 'two axes')

    def add_experts(self, module):
        self.weights[f'{module}/router/kernel'] = Weight('de')
        before = dict(self.weights)
        self.add_linear(f'{module}/{self.pick("experts/", "")}up', 'd', 'f', 'experts')
        self.add_linear(
            f'{module}/{"experts/" if any("experts" in path for path in self.weights) else ""}down', 'f', 'd', 'experts'
        )
        axis = self.pick(0, 0, 0, 1)
        for path in self.weights.keys() - before.keys():
            self.weights[path] = self.stacked(self.weights[path], 'e', axis)

    def add_convs(self, module):
        self.add_linear(f'{module}/Conv_0', 'td', 'o', 'convolution')
        self.add_linear(f'{module}/depthwise_conv', 'tx', 'd', 'convolution')
        if self.norms:
            self.weights[f'{module}/BatchNorm_0/scale'] = Weight('d')
            self.weights[f'{module}/BatchNorm_0/bias'] = Weight('d')

    def tree(self):
        return nest({path: self._leaf(weight) for path, weight in self.weights.items()})

    def has_names(self, path) -> bool:
        return self.with_names and None not in self._names(self.weights[path])

    def _names(self, weight):
        return tuple(NAMES.get('h' if letter == 'n' else letter) for letter in weight.letters)

    def _leaf(self, weight):
        array = jax.ShapeDtypeStruct(tuple(self.sizes[letter] for letter in weight.letters), jnp.float32)
        names = self._names(weight)
        return nn.LogicallyPartitioned(array, names) if self.with_names and None not in names else array

    def truth(self) -> dict[str, tuple]:
        """Of each matrix: the batch axes, rows and columns."""
        return {
            path: (
                frozenset(
                    axis for axis, letter in enumerate(weight.letters) if letter not in weight.rows + weight.cols
                ),
                tuple(weight.letters.index(letter) for letter in weight.rows),
                tuple(weight.letters.index(letter) for letter in weight.cols),
            )
            for path, weight in self.weights.items()
            if weight.rows
        }
