"""All that the programs use of JAX beyond its public interface. A release of JAX may change any of it.

Each entry says what it is for, in which versions of JAX it is as here, and what to do when it goes.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend
from jax._src import distributed
from jax.interpreters import partial_eval


def wait_at_barrier(name: str, seconds: float) -> None:
    """Waits until all processes that `jax.distributed` knows are at the barrier of this name, which has to be new.

    JAX 0.10 to 0.12: the client of `jax.distributed`, which Orbax uses in the same way. The public
    `multihost_utils.sync_global_devices` is a collective, whose timeout of minutes ends a process that waits for long.
    Should the client go, take the one that Orbax then takes.
    """
    distributed.global_state.client.wait_at_barrier(name, timeout_in_ms=round(1000 * seconds))


def without_unused(jaxpr: jax.extend.core.Jaxpr) -> jax.extend.core.Jaxpr:
    """The jaxpr without what none of its results needs.

    JAX 0.10 to 0.12: a name of `jax.interpreters` that is documented nowhere. Should it go, walk over the equations
    from the last to the first, and keep those of which a result is used; inside of scans, too.
    """
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def jaxprs_among(params: dict[str, Any]) -> Iterator[jax.extend.core.Jaxpr]:
    """The jaxprs among an equation's parameters, whatever they are called.

    JAX 0.10 to 0.12: primitives keep them there, alone or in tuples. Should one hide its jaxpr in an object of another
    kind, open that here.
    """
    is_jaxpr = lambda x: isinstance(x, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr)
    for leaf in filter(is_jaxpr, jax.tree.leaves(params, is_leaf=is_jaxpr)):
        yield getattr(leaf, 'jaxpr', leaf)


def pallas_programs(jaxpr: jax.extend.core.Jaxpr) -> Iterator[tuple[str, int]]:
    """The name of each Pallas kernel in a jaxpr, and how many programs it has.

    JAX 0.10 to 0.12: parameters of the primitives behind `pallas_call` and `plgpu.kernel`. Should they have other
    names, print the jaxpr of a kernel, in which they stand.
    """
    for equation in jaxpr.eqns:
        params = equation.params
        if 'grid_mapping' in params:
            yield params['name'], math.prod(params['grid_mapping'].grid)
        elif 'meshes' in params:
            yield params['name'], math.prod(params['meshes'][0].grid)
        for inner in jaxprs_among(params):
            yield from pallas_programs(inner)
