"""Arrays cut into the blocks that share a scale: along an axis, or several that are read as one, or as tiles."""

import math

import jax
import jax.numpy as jnp
import numpy as np


class Blocks:
    """An array of `shape` cut into blocks: `split` gives each axis that is cut a second one, `within` the blocks.

    Attributes:
      within: the axes of what `split` returns that lie within blocks; all others count them.
    """

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], block_size: int | str | tuple[int, int]):
        # The merged axes come where the first of them is: as they are if they lie side by side.
        others = [i for i in range(len(shape)) if i not in axes]
        position = sum(i < axes[0] for i in others) if axes else 0
        self._order = (*others[:position], *axes, *others[position:])
        self._transposed = tuple(shape[i] for i in self._order)
        merged = math.prod(shape[i] for i in axes)
        self._merged = (*(shape[i] for i in others[:position]), merged, *(shape[i] for i in others[position:]))
        if block_size == 'tensor':
            sizes = dict(enumerate(self._merged))
        elif isinstance(block_size, tuple):
            other = 2 * len(self._merged) - 3 - position  # the other one of the last two
            sizes = {other: block_size[0], position: block_size[1]}
        else:
            sizes = {position: merged if block_size == 'channel' else block_size}
        sizes = {axis: max(1, min(size, self._merged[axis])) for axis, size in sizes.items()}
        self._blocked, within, self._merged_axis = [], [], {}
        self._padding = [(0, 0)] * len(self._merged)
        for i, length in enumerate(self._merged):
            if i not in sizes:
                self._blocked.append(length)
                continue
            count = -(-length // sizes[i])
            self._padding[i] = (0, count * sizes[i] - length)
            within.append(len(self._blocked) + 1)
            self._merged_axis[within[-1]] = i
            self._blocked += [count, sizes[i]]
        self.within = tuple(within)

    @property
    def counts(self) -> np.ndarray:
        """How many values each block has, without padding: float32, to be broadcast over blocks."""
        counts = np.ones([1] * len(self._blocked), np.float32)
        for axis in self.within:
            number, size = self._blocked[axis - 1 : axis + 1]
            i = self._merged_axis[axis]
            of_axis = np.clip(self._merged[i] - size * np.arange(number), 0, size).astype(np.float32)
            counts = counts * of_axis.reshape([-1 if at == axis - 1 else 1 for at in range(len(self._blocked))])
        return counts

    def split(self, x: jax.Array) -> jax.Array:
        """x in blocks, the last of which are padded with zeros."""
        x = jnp.transpose(x, self._order).reshape(self._merged)
        x = jnp.pad(x, self._padding) if any(high for _, high in self._padding) else x
        return x.reshape(self._blocked)

    def join(self, blocks: jax.Array) -> jax.Array:
        """What `split` was given, of what it returned."""
        padded = [length + high for length, (_, high) in zip(self._merged, self._padding)]
        x = blocks.reshape(padded)[tuple(slice(length) for length in self._merged)]
        return jnp.transpose(x.reshape(self._transposed), np.argsort(self._order))
