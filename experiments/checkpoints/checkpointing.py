"""Checkpoints that resume a run bit for bit, and that notice when a bit of theirs has changed.

Orbax writes the arrays: in the background, each process its own shards, readable on another mesh. It restores
a data file with a flipped bit without noticing, so a manifest of SHA-256 digests is written last and verified
before a restore. Everything else is JSON; nothing that is read is ever executed. A step's directory:

    <directory>/<step>/state/             the leaves of the train state (Orbax)
    <directory>/<step>/checkpoint.json    resolved config, data iterator's state, dtype and shape of each leaf
    <directory>/<step>/manifest.sha256    the digest of every file; `sha256sum -c manifest.sha256` checks them

A step is written as `<step>.writing`, and renamed once its manifest is there. So a step's directory was whole
when it got its name; one that is not whole now is damaged: skipped, with a warning, for the one before.

With several processes, `directory` is on a file system that all of them see, and each calls every method.
Process 0 alone picks the step, writes the JSON and the manifest, and deletes. The data iterator's state is
process 0's: where a batch is a function of (seed, step), every process has the same, whatever their number.
"""

import base64
import concurrent.futures
import contextlib
import hashlib
import json
import operator
import os
import pathlib
import re
import shutil
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from experiments.checkpoints.manifests import MANIFEST, find_damage, write_manifest
from experiments.files import foreign_text, json_files

CONTENTS = 'checkpoint.json'
WRITING = '.writing'
SECONDS_TO_SAVE = 7 * 24 * 3600
ABSENT = type('Absent', (), {'__repr__': lambda self: '(absent)'})()


class SaveError(OSError):
    """A checkpoint could not be saved; the ones before it are as they were."""


class Restored(NamedTuple):
    """What a checkpoint held: the step, the train state, and the data iterator's state as it was given."""

    step: int
    state: Any
    data_state: Any


class Checkpointer:
    """Saves train states in the background, keeps the newest few whole ones, and restores the newest.

    Use it as a context manager, or call `close()`: a process that exits before loses the save under way.

    Args:
      directory: holds one directory a step; made at the first save.
      keep: how many whole checkpoints stay. Damaged ones don't count, and go when they are older than those.
        To count, the kept checkpoints are read and verified again, in the background, once a save.

    Raises:
      ValueError: `keep` is less than 1.

    Example:
      with Checkpointer('/runs/tiny/checkpoints') as checkpointer:
          restored = checkpointer.restore(abstract_state, config=config, identity=('model',))
          ...
          checkpointer.save(step, state, iterator.get_state(), config)
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 3):
        if keep < 1:
            raise ValueError(f'keep={keep}: at least one checkpoint has to stay')
        self._directory = pathlib.Path(directory).absolute()
        self._keep = keep
        # Orbax's timeouts go by the time of day: a save in which the clock is set would end. That of the wait for a
        # directory, which another thread makes, can't be set.
        options = ocp.options.AsyncOptions(timeout_secs=SECONDS_TO_SAVE, create_directories_asynchronously=False)
        self._orbax = ocp.StandardCheckpointer(async_options=options)
        self._executor = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix='checkpoint')
        self._pending: tuple[int, concurrent.futures.Future] | None = None

    def save(
        self, step: int, state: Any, data_state: Any, config: Mapping[str, Any], *, protected: int | None = None
    ) -> bool:
        """Starts to save a step; returns when the arrays are copied, after which they may be donated.

        Waits for the save before it, if that is still under way.

        Args:
          step: names the checkpoint; not negative.
          state: a pytree of jax.Array (typed PRNG keys too; global arrays, with several processes),
            np.ndarray and Python numbers.
          data_state: the data iterator's `get_state()`: bytes, or anything that JSON keeps as it is.
          config: the resolved config, JSON-able.
          protected: another step, which isn't deleted for this one.

        Returns:
          False if this step is there already, and whole: it is left as it is. A damaged one is replaced.

        Raises:
          SaveError: the save before this one failed, or this one at once; calling again tries this one.
          ValueError: a negative step, a leaf with no elements, or something that JSON can't hold.
        """
        step = operator.index(step)
        if step < 0:
            raise ValueError(f'step={step}: a step is not negative')
        leaves = _leaves_by_name(state)
        empty = [name for name, leaf in leaves.items() if leaf.size == 0]
        if empty:
            raise ValueError(f'state: Orbax cannot save leaves without elements: {", ".join(empty)}')
        contents = {
            'step': step,
            'leaves': {name: _describe(leaf) for name, leaf in leaves.items()},
            'data_state': _encode_data_state(data_state),
            'config': _through_json('config', config),
        }
        self.wait()
        if _decided_by_first_process(lambda: self._make_room(step)):
            return False
        try:
            self._orbax.save(self._writing(step) / 'state', leaves)
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = step, self._executor.submit(self._finish, step, contents, protected)
        return True

    def raise_if_failed(self) -> None:
        """As `wait`, but doesn't wait for a save that is under way."""
        if self._pending and self._pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on disk; raises SaveError, naming the step, if it failed."""
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        try:
            future.result()
        except Exception as error:
            raise self._failed(step, error) from error

    def close(self) -> None:
        """Waits for the last save, as `wait()` does, and ends the background threads."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            with contextlib.suppress(Exception):  # which `wait` has told already
                self._orbax.close()

    def __enter__(self) -> 'Checkpointer':
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def latest_step(self, *, at_most: int | None = None) -> int | None:
        """The newest whole step, or None where nothing was saved; warns and raises as `restore` does."""
        self.wait()
        step = _decided_by_first_process(lambda: _newest_whole_step(self._directory, at_most))
        return None if step < 0 else step

    def restore(
        self,
        abstract_state: Any,
        *,
        config: Mapping[str, Any],
        identity: Sequence[str],
        complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda stored: stored,
        former_names: Mapping[str, str] = types.MappingProxyType({}),
        at_most: int | None = None,
    ) -> Restored | None:
        """Restores the newest whole checkpoint, bit for bit; None where nothing was saved.

        Args:
          abstract_state: the state's pytree, with a jax.ShapeDtypeStruct (or jax.Array) for each jax.Array:
            its sharding, on any mesh, says where the leaf goes; without one, this process's first device. For
            an np.ndarray or a Python number, any other such.
          config: the present run's config.
          identity: the keys of `config` whose values define the state, and so must equal the stored ones.
          complete: a function of the stored config that adds the keys which an earlier version lacks, and raises
            ValueError for what is none.
          former_names: of the state's fields that earlier versions stored by another name, that name.
          at_most: the newest step to consider; None is the newest there is.

        Raises:
          ValueError: there are checkpoints but none is whole; the checkpoint is another run's, by its config
            or by its leaves (all that differs is named); `identity` names a key that `config` doesn't have.
        """
        step = self.latest_step(at_most=at_most)
        if step is None:
            return None
        directory = self._directory / str(step)
        contents = _read_contents(directory)
        with json_files.naming(directory / CONTENTS):
            stored = complete(contents['config'])
        _check_identity(directory, stored, config, identity)
        leaves = _leaves_by_name(abstract_state)
        names = {name: _name_in(contents['leaves'], name, former_names) for name in leaves}
        _check_leaves(directory, contents['leaves'], {names[name]: leaf for name, leaf in leaves.items()})
        targets = {names[name]: _restore_target(leaf) for name, leaf in leaves.items()}
        with _damage_of(directory):
            restored = self._orbax.restore(directory / 'state', targets)
        abstract_leaves, treedef = jax.tree.flatten(abstract_state)
        values = [
            restored[name] if hasattr(leaf, 'dtype') else restored[name].item()
            for name, leaf in zip(targets, abstract_leaves, strict=True)
        ]
        with json_files.naming(directory):
            data_state = _decode_data_state(contents['data_state'])
        return Restored(step, jax.tree.unflatten(treedef, values), data_state)

    def discard_after(self, step: int) -> None:
        """Deletes the checkpoints that are newer than a step, of a past that the run has gone back on."""
        self.wait()
        if jax.process_index() == 0:
            for newer in _steps(self._directory):
                if newer > step:
                    shutil.rmtree(self._directory / str(newer))

    def _writing(self, step: int) -> pathlib.Path:
        return self._directory / f'{step}{WRITING}'

    def _make_room(self, step: int) -> bool:
        """Removes what interrupted saves left; True if the step is there already, whole."""
        for leftover in self._directory.glob(f'*{WRITING}'):
            shutil.rmtree(leftover)
        return find_damage(self._directory / str(step)) is None

    def _failed(self, step: int, error: Exception) -> SaveError:
        """Gives back the room that a failed save has taken; what to raise."""
        if jax.process_index() == 0:
            shutil.rmtree(self._writing(step), ignore_errors=True)
        reported = re.search(r"os_error_code='(\d+)'", str(error))  # by TensorStore, in many words
        number = int(reported[1]) if reported else getattr(error, 'errno', None)
        reason = os.strerror(number) if number else ' '.join(str(error).split())
        return SaveError(f'saving the checkpoint {self._directory / str(step)} failed (older ones are whole): {reason}')

    def _finish(self, step: int, contents: dict[str, Any], protected: int | None) -> None:
        self._orbax.wait_until_finished()
        if jax.process_index() != 0:
            return
        directory = self._directory / str(step)
        (self._writing(step) / CONTENTS).write_text(json.dumps(contents, indent=1), encoding='utf-8')
        write_manifest(self._writing(step))
        if directory.exists():  # damaged, or `save` would have left it alone
            shutil.rmtree(directory)
        self._writing(step).rename(directory)
        whole = 0
        for older in _steps(self._directory):
            if whole == self._keep:
                if older != protected:
                    shutil.rmtree(self._directory / str(older))
            elif older == step or find_damage(self._directory / str(older)) is None:
                whole += 1


def load_contents(directory: str | os.PathLike) -> dict[str, Any]:
    """Step, config, leaves, and the manifest's SHA-256, of the newest whole checkpoint; ValueError if there is none."""
    directory = pathlib.Path(directory).absolute()
    step = _newest_whole_step(directory)
    if step < 0:
        raise ValueError(f'{directory} holds no checkpoint')
    return _read_contents(directory / str(step)) | {'sha256': _manifest_sha256(directory / str(step))}


@contextlib.contextmanager
def _damage_of(directory: pathlib.Path) -> Iterator[None]:
    """Whatever Orbax raises of files that are what the manifest says, and yet not what Orbax writes."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        reason = ' '.join(str(error).split())[:200]
        raise ValueError(f"{directory / 'state'} can't be restored: {type(error).__name__}: {reason}") from error


def _read_contents(directory: pathlib.Path) -> dict[str, Any]:
    """What `save` wrote of a step beside its arrays; ValueError if it is something else."""
    return json_files.read(directory / CONTENTS, step=int, leaves=dict, data_state=dict, config=dict)


def load_config(directory: str | os.PathLike) -> dict[str, Any]:
    """The resolved config in the newest whole checkpoint of `directory`; ValueError if there is none."""
    return load_contents(directory)['config']


def load_part(directory: str | os.PathLike, step: int, sha256: str, name: str, abstract_part: Any) -> Any:
    """One field of the state of this very checkpoint, bit for bit; the others aren't read. Else as `restore`.

    Raises:
      ValueError: the checkpoint isn't there any more, or is damaged.
    """
    directory = pathlib.Path(directory).absolute() / str(step)
    damage = find_damage(directory)
    if damage is None and _manifest_sha256(directory) != sha256:
        damage = 'another one was saved in its place'
    if damage:
        raise ValueError(f'the checkpoint {directory} is not what it was: {damage}')
    targets = {f'{name}/{leaf}': _restore_target(part) for leaf, part in _leaves_by_name(abstract_part).items()}
    restore_args = ocp.checkpoint_utils.construct_restore_args(targets)
    arguments = ocp.args.PyTreeRestore(item=targets, restore_args=restore_args, partial_restore=True)
    with _damage_of(directory), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(directory / 'state', args=arguments)
    return jax.tree.unflatten(jax.tree.structure(abstract_part), [restored[leaf] for leaf in targets])


def newest_step(directory: str | os.PathLike) -> int | None:
    """The newest step in `directory`, which was whole when it was written; nothing is read."""
    return next(iter(_steps(pathlib.Path(directory))), None)


def _manifest_sha256(directory: pathlib.Path) -> str:
    return hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()


def _steps(directory: pathlib.Path) -> list[int]:
    """The steps in `directory`, newest first, whole or not."""
    names = [path.name for path in directory.glob('*')]
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _newest_whole_step(directory: pathlib.Path, at_most: int | None = None) -> int:
    """The newest whole step, -1 where nothing was saved."""
    steps = [step for step in _steps(directory) if at_most is None or step <= at_most]
    for step in steps:
        damage = find_damage(directory / str(step))
        if damage is None:
            return step
        told = foreign_text.printable(f'skipping the damaged checkpoint {directory / str(step)}: {damage}')
        warnings.warn(told, stacklevel=2)
    if steps:
        raise ValueError(
            f'{directory} holds {len(steps)} checkpoint(s), but none is whole (each was named in a warning). '
            'Restore one from a copy, or start again in another --workdir.'
        )
    for leftover in directory.glob(f'*{WRITING}'):
        warnings.warn(f'{leftover} was never finished, and there is no checkpoint before it', stacklevel=2)
    return -1


def _decided_by_first_process(compute: Callable[[], int]) -> int:
    """compute() of process 0, on every process: they must not disagree about what is on the disk."""
    value = compute() if jax.process_index() == 0 else 0
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _leaves_by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths, as arrays, in the pytree's order."""
    leaves = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        if name in leaves:
            raise ValueError(f'state: two of its leaves have the path {name}')
        leaves[name] = leaf if hasattr(leaf, 'dtype') else np.asarray(leaf)
    return leaves


def _name_in(stored: Mapping[str, str], name: str, former_names: Mapping[str, str]) -> str:
    """The name of a leaf in a checkpoint, whose field may have had another."""
    field, _, path = name.partition('/')
    former = f'{former_names.get(field)}/{path}'
    return former if name not in stored and former in stored else name


def _describe(leaf: Any) -> str:
    return f'{leaf.dtype}{list(leaf.shape)}'


def _restore_target(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return leaf
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_leaves(directory: pathlib.Path, stored: dict[str, str], present: dict[str, Any]) -> None:
    differences = list(_differences(stored, {name: _describe(leaf) for name, leaf in present.items()}))
    if differences:
        shown = differences[:20] + [f'... and {len(differences) - 20} more'] * (len(differences) > 20)
        raise ValueError(
            f'the checkpoint {directory} does not hold the state of this program. Leaves that differ:\n  '
            + '\n  '.join(shown)
            + '\nUse another --workdir, or the model, method and optimizer that it was saved with.'
        )


def _check_identity(
    directory: pathlib.Path, stored: dict[str, Any], present: Mapping[str, Any], identity: Sequence[str]
) -> None:
    present = _through_json('config', present)
    if unknown := [key for key in identity if key not in present]:
        raise ValueError(f'identity names {unknown}, but config has only {sorted(present)}')
    differences = [line for key in identity for line in _differences(stored.get(key, ABSENT), present[key], key)]
    if differences:
        raise ValueError(
            f'the checkpoint {directory} was saved by a run with another config:\n  '
            + '\n  '.join(differences)
            + '\nUse another --workdir for this config, or give the stored values to continue that run.'
        )


def _differences(stored: Any, present: Any, name: str = '') -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(present, dict):
        for key in dict.fromkeys([*stored, *present]):
            inner = f'{name}.{key}' if name else key
            yield from _differences(stored.get(key, ABSENT), present.get(key, ABSENT), inner)
    elif stored != present:
        yield f'{name}: stored {stored!r}, present {present!r}'


def _through_json(name: str, value: Any) -> Any:
    """A copy of a value as JSON keeps it."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f'{name}={value!r} cannot be stored as JSON: {error}') from error


def _encode_data_state(data_state: Any) -> dict[str, Any]:
    if isinstance(data_state, bytes):
        return {'base64': base64.b64encode(data_state).decode()}
    copy = _through_json('data_state', data_state)
    if copy != data_state:
        raise ValueError(f'data_state={data_state!r}: JSON makes it {copy!r}; give bytes, or what JSON keeps')
    return {'json': copy}


def _decode_data_state(encoded: dict[str, Any]) -> Any:
    match encoded:
        case {'base64': str(text)}:
            return base64.b64decode(text, validate=True)
        case {'json': value}:
            return value
    raise ValueError(f'{CONTENTS} has a data_state of no kind that is written')
