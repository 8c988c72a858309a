"""How long checkpoints take beside those of Orbax alone: how long a run stands still, until one is whole, a restore."""

import functools
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from experiments.benchmarks import timing
from experiments.checkpoints.checkpointing import Checkpointer
from experiments.training.experiment import init_state, make_experiment
from gaussq_jax.param_tree import leaves_by_path
from gaussq_jax.text_table import text_table

DEFAULT_TURNS = 5
UPDATES = 30  # of all arrays, which take longer than the save that begins before them
COUNTERS = ('read_bytes', 'rchar')  # of /proc/self/io: bytes that came from the disk, and that were read at all


class Way(NamedTuple):
    """One way to save and restore; `directory` is emptied between calls."""

    directory: pathlib.Path
    save: Callable[[dict[str, jax.Array]], Any]  # returns as soon as the arrays may be donated
    wait: Callable[[], None]  # until the last one is whole
    restore: Callable[[Any], Any]


def benchmark(config: ConfigDict, turns: int | None, vocab_size: int) -> Iterator[tuple[dict[str, Any], str]]:
    """`time_checkpoints` and its table."""
    results = time_checkpoints(config, turns or DEFAULT_TURNS, vocab_size=vocab_size)
    rows = [
        (what, way, f'{row["seconds"]:.3f} s', f'{row["ratio"]:.2f}', timing.quartiles_text(row, 2), _read_text(row))
        for what, ways in results['times'].items()
        for way, row in ways.items()
    ]
    title = f'{results["config"]}, a state of {results["bytes"] * 1e-9:.2f} GB, {results["device"]}'
    header = ('what', 'by', 'median', 'to Orbax', 'quartiles', 'from the disk, read in all')
    yield results, f'{title}\n{text_table([header, *rows])}'


def time_checkpoints(config: ConfigDict, turns: int, *, vocab_size: int) -> dict[str, Any]:
    """Saves and restores a state of the config's model, whose numbers are random; Orbax alone and ours take turns.

    Orbax alone is `StandardCheckpointer` as it comes: it compresses, and computes no digests. Files are in the folder
    for temporary ones, which TMPDIR names.

    Returns:
      What `timing.provenance` says, 'config', 'parameters', 'bytes' of the state, 'turns', and 'times', each a
      `timing.Timing` of 'Orbax' and of 'ours', whose ratios are to Orbax:
        'save returns': from the call until the arrays may be donated.
        'save, updates': until then, and UPDATES that read and write every array, donated, are done: what the copy
          and the work in the background take from a run counts, too. Also 'no save': of the updates alone.
        'save, whole': until the checkpoint is whole on the disk.
        'restore': after its files were dropped from the page cache; with the 'read_bytes' and the 'rchar' of
          /proc/self/io during the last call, where there is that.

    Raises:
      ValueError: for a config that can't be trained.
      RuntimeError: if a restored array is not what was saved.
    """
    experiment = make_experiment(config, vocab_size)
    state = leaves_by_path(init_state(experiment))
    is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    floats = {name: leaf for name, leaf in state.items() if is_float(leaf)}
    state = jax.block_until_ready(state | optax.tree.random_like(jax.random.key(0), floats, jax.random.normal))
    update = jax.jit(
        lambda state: {name: leaf * 0.5 if is_float(leaf) else leaf for name, leaf in state.items()}, donate_argnums=0
    )
    with tempfile.TemporaryDirectory() as folder, Checkpointer(pathlib.Path(folder) / 'ours') as checkpointer:
        ways = {'Orbax': _orbax_alone(pathlib.Path(folder) / 'orbax'), 'ours': _ours(checkpointer, folder)}
        times = _time_saves(ways, state, update, turns) | {'restore': _time_restores(ways, state, turns)}
    return {
        **timing.provenance(),
        'config': config.name,
        'parameters': experiment.num_params,
        'bytes': sum(leaf.nbytes for leaf in floats.values()),
        'turns': turns,
        'times': times,
    }


def _orbax_alone(directory: pathlib.Path) -> Way:
    checkpointer = ocp.StandardCheckpointer()
    path = directory / 'state'
    return Way(
        directory,
        functools.partial(checkpointer.save, path),
        checkpointer.wait_until_finished,
        functools.partial(checkpointer.restore, path),
    )


def _ours(checkpointer: Checkpointer, folder: str) -> Way:
    return Way(
        pathlib.Path(folder) / 'ours',
        lambda state: checkpointer.save(1, state, {}, {}),
        checkpointer.wait,
        lambda targets: checkpointer.restore(targets).state,
    )


def _time_saves(
    ways: dict[str, Way], state: dict[str, jax.Array], update: Callable, turns: int
) -> dict[str, dict[str, timing.Timing]]:
    current = [jax.tree.map(jnp.copy, state)]  # updated again and again; what is donated can't be read any more

    def updates() -> None:
        for _ in range(UPDATES):
            current[0] = jax.block_until_ready(update(current[0]))

    def make_room() -> None:
        for way in ways.values():
            way.wait()
            shutil.rmtree(way.directory, ignore_errors=True)

    def save(way: Way, *then: Callable[[], None]) -> None:
        way.save(current[0])
        for call in then:
            call()

    of_each = lambda *then: {name: functools.partial(save, way, *then) for name, way in ways.items()}
    whole = {name: functools.partial(save, way, way.wait) for name, way in ways.items()}
    times = {
        'save returns': timing.take_turns(of_each(), turns, before=make_room),
        'save, updates': timing.take_turns(of_each(updates) | {'no save': updates}, turns, before=make_room),
        'save, whole': timing.take_turns(whole, turns, before=make_room),
    }
    make_room()
    return times


def _time_restores(ways: dict[str, Way], state: dict[str, jax.Array], turns: int) -> dict[str, dict[str, Any]]:
    targets = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    counted: dict[str, dict[str, int]] = {}
    for way in ways.values():
        way.save(state)
        way.wait()

    def drop_pages() -> None:
        for way in ways.values():
            for path in filter(pathlib.Path.is_file, way.directory.rglob('*')):
                with open(path, 'rb') as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def restore(name: str) -> Any:
        before = _io_counters()
        restored = jax.block_until_ready(ways[name].restore(targets))
        counted[name] = {counter: count - before[counter] for counter, count in _io_counters().items()}
        return restored

    functions = {name: functools.partial(restore, name) for name in ways}
    for name, restore_again in functions.items():
        if not jax.tree.all(jax.tree.map(lambda *leaves: bool(jnp.array_equal(*leaves)), restore_again(), state)):
            raise RuntimeError(f'{name}: what was restored is not what was saved')
    times = timing.take_turns(functions, turns, before=drop_pages)
    return {name: time | counted[name] for name, time in times.items()}


def _io_counters() -> dict[str, int]:
    """Of this process; none but on Linux."""
    path = pathlib.Path('/proc/self/io')
    lines = dict(line.split(': ') for line in path.read_text().splitlines()) if path.exists() else {}
    return {name: int(lines[name]) for name in COUNTERS if name in lines}


def _read_text(row: dict[str, Any]) -> str:
    return ', '.join(f'{row[name] * 1e-9:.2f} GB' for name in COUNTERS if name in row)
